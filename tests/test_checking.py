"""``redrel check`` says in words what a name does, and takes none that no model here answers to."""

from __future__ import annotations

import pytest
from checkpoints import needs_host
from typer.testing import CliRunner

from redrel_vlmeval import bases, checking
from redrel_vlmeval.cli import app
from redrel_vlmeval.host import runner


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host of a few models, to be read, never imported."""
    (tmp_path / "config.py").write_text(
        "import nothing_of_this_name\n"
        "a = {'own_7b': partial(vlm.Own, path='x'), 'llava_v1.5_7b': partial(vlm.LLaVA)}\n"
        "a |= {'own_13b': partial(vlm.Own, sizes={'no_model': 3})}\n"
        "b = {'GPT4o': partial(api.GPT4V, model='g', use_lmdeploy=True)}\n"
        "b |= {'Qwen3-VL-8B': partial(vlm.Qwen3VLChat, model_path='q', use_vllm=True), 'c': partial(vlm.Cosmos)}\n"
        "b |= {'instructblip_7b': partial(vlm.InstructBLIP, name='i'), 'Smol': partial(vlm.SmolVLM, model_path='s')}\n"
        "b |= {'MiMo': partial(vlm.Qwen2VLChat, model_path='m', use_lmdeploy=True, min_pixels=28 * 28)}\n"
        "b |= {'Q-Omni': partial(vlm.Qwen2VLChat, model_path='o')}\n"
    )
    monkeypatch.setattr(runner, "host_folder", lambda: tmp_path)
    runner.entries.cache_clear()
    yield tmp_path
    runner.entries.cache_clear()


@pytest.fixture
def no_host(monkeypatch):
    def missing() -> None:
        raise runner.HostMissing("none")

    monkeypatch.setattr(runner, "host_folder", missing)
    runner.entries.cache_clear()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llava_v1.5_7b_trunc_l5_k128",
         "decoder blocks 1-5 see all 576 image tokens, 6-32 the 128 that the last query row attends to most"),
        ("redrel_tiny_trunc_l1_k0", "decoder block 1 sees all 64 image tokens, 2-8 none"),
        ("redrel_tiny_trunc_l7_k64", "decoder blocks 1-7 see all 64 image tokens, 8 all 64"),
        ("redrel_tiny_trunc_l0_k0", "no decoder block sees an image token: the blind control"),
        ("redrel_tiny_trunc_l0_k8_random", "decoder blocks 1-8 see 8 drawn at random"),
        ("qwen_chat_trunc_l2_r50_uniform", "decoder blocks 1-2 see all 256 image tokens, 3-32 50 % evenly spaced"),
        ("llava_v1.5_13b_trunc_l8_k288_l16_k144_lowest", "9-16 the 288 that the last query row attends to least, "
         "17-40 the 144 of these that the last query row attends to least"),
        ("redrel_tiny_trunc_l2_k8_rowimg", "that the query row of the last image token attends to most"),
        ("redrel_tiny_trunc_l2_k8_rowmean_official", "from the last image token on attend to, on average, most; as"),
        ("redrel_tiny_p-cqm_beam3", "nothing is truncated; asked with the prompt cqm; beam search (n=3)"),
        ("redrel_tiny_trunc_l2_k8_ppl", "most; options ranked by likelihood"),
        ("own_7b_trunc_l2_k8", "blocks 1-2 see all image tokens, 3 and on the 8 that"),
        ("l5_k9", "base (any), setting l5_k9: decoder blocks 1-5 see all"),
        ("own_13b", "base own_13b, no setting: nothing is truncated"),
    ],
)  # fmt: skip
def test_a_name_in_words(host, name, said):
    done = CliRunner().invoke(app, ["check", name])
    assert done.exit_code == 0 and done.output.startswith(f"{name}: base ") and said in done.output, done.output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llava_v1.5_7b_trun_l5_k128", "did you mean 'llava_v1.5_7b_trunc_l5_k128'?"),
        ("llava_v1.5_7b_l5_k128", "did you mean 'llava_v1.5_7b_trunc_l5_k128'?"),
        ("own_7b_truncated_L5_K8", "did you mean 'own_7b_trunc_l5_k8'?"),
        ("LLaVA_v1.5_7b_trunc_l5_k128", "did you mean 'llava_v1.5_7b_trunc_l5_k128'?"),  # of the host and of ours, once
        ("lava_v1.5_7b_trunc_l5_k128", "did you mean 'llava_v1.5_7b_trunc_l5_k128' or"),
        ("own_14b_trunc_l5_k128", "did you mean 'own_13b_trunc_l5_k128'"),
        ("nonsense_trunc_l2_k8", "no such name in the host here"),
        (
            "nonsense_trunc_l2_k8",
            "and 10 of the host. Where a host has it: decoder blocks 1-2 see all image tokens",
        ),
        ("no_model", "no such name in the host here"),
        ("llava_v1.5_7b_trunc_l5_k999", "K = 999, but a picture has 576 image tokens in llava_v1.5_7b: K is 0 to 576"),
        ("redrel_tiny_trunc_l2_k65", "K = 65, but a picture has 64 image tokens in redrel_tiny"),
        ("redrel_tiny_trunc_l2_k8_l8_k0", "layer 8, but redrel_tiny has 8 blocks"),
        ("redrel_tiny_trunc_l5", "K is missing"),
    ],
)
def test_nonsense_is_refused_with_what_may_be_meant(host, name, said):
    done = CliRunner().invoke(app, ["check", name])
    assert done.exit_code == 1 and said in done.output, done.output


def test_without_a_host_only_the_known_bases_are_sure(no_host):
    assert checking.check("qwen_base_trunc_l2_k8")
    with pytest.raises(KeyError, match="no such name without a host, and there is none here; known are redrel_tiny, "):
        checking.check("Qwen2-VL-2B-Instruct_trunc_l2_k8")


@needs_host
def test_the_real_hosts_names_are_read_from_its_text():
    runner.entries.cache_clear()
    assert {"llava_v1.5_7b", "Qwen2-VL-2B-Instruct", "qwen_chat"} <= runner.model_names()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GPT4o_trunc_l5_k128", "base 'GPT4o' cannot be truncated: an API holds no model"),
        (
            "instructblip_7b_trunc_l5_k16",
            "base 'instructblip_7b' cannot be truncated: its decoder is called with",
        ),
        ("c_trunc_l5_k16", "base 'c' cannot be truncated: its class runs on vLLM alone"),
        ("Q-Omni_trunc_l5_k16_ppl", "two decoders"),
    ],
)
def test_a_base_that_cannot_be_truncated_is_refused_before_it_is_loaded(host, name, said):
    done = CliRunner().invoke(app, ["check", name])
    assert done.exit_code == 1 and said in done.output, done.output
    assert CliRunner().invoke(app, ["check", name.partition("_trunc")[0]]).exit_code == 0  # alone it is a model


@pytest.mark.parametrize(
    ("name", "verdict", "why"),
    [
        ("own_7b", "unknown", "not judged: a class that is not known here"),
        ("llava_v1.5_7b", "works", "on a class of ours"),
        ("Smol", "works", ""),
        ("MiMo", "note", "on transformers, not LMDeploy, base and variants"),
        ("GPT4o", "refused", "an API holds no model whose tokens could be dropped"),
    ],
)
def test_bases_and_check_give_the_same_verdict(host, name, verdict, why):
    lines = CliRunner().invoke(app, ["bases"]).output.splitlines()
    (line,) = (line.split() for line in lines if line.split()[0] == name)
    assert line[2] == verdict and " ".join(line[4:]) == why
    done = CliRunner().invoke(app, ["check", f"{name}_trunc_l5_k16"])
    assert done.exit_code == (verdict == "refused")
    assert why in done.output or name in bases.BASES


def test_bases_lists_a_family(host):
    done = CliRunner().invoke(app, ["bases", "--family", "QWEN"])
    names = [line.split()[0] for line in done.output.splitlines()]
    assert names[:2] == ["qwen_base", "qwen_chat"] and {"Qwen3-VL-8B", "MiMo", "Q-Omni"} < set(names)
    assert "llava_v1.5_7b" not in names and done.output.splitlines()[-1].startswith("5 names: ")


def test_every_row_of_the_table_of_classes_can_be_meant():
    rows = bases._classes()
    assert {row.verdict for row in rows} == {"works", "note", "refused", "unknown"}
    assert {row.evidence for row in rows} == {"measured", "read", "family", "none"}
    assert all(bool(row.why) == (row.verdict != "works") for row in rows)
    seen = set()
    for row in rows:  # the first row that fits counts: behind one that fits all, none is reached
        assert (row.name, "") not in seen, row
        seen.add((row.name, row.names))


@needs_host
def test_every_class_of_the_real_host_is_judged_and_rows_are_its_own_bases():
    runner.entries.cache_clear()
    found = checking.verdicts()
    assert [one for one in found if one.why == bases.UNJUDGED.why] == []
    named = {name for name, base in bases.BASES.items() if name not in bases.BOXED and not base.alias}
    assert named <= set(runner.entries())
    for name in named:
        weights = runner.entries()[name].keywords.get("model_path")
        assert bases.BASES[name].reformatted or weights in (None, bases.BASES[name].weights), name
