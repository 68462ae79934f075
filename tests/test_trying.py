"""Host's own classes on tiny checkpoints: what ``redrel bases --try`` and ``make coverage`` run, for a few of them."""

from __future__ import annotations

import sys

import pytest
import torch
from checkpoints import host_table, needs_host
from modelbox import in_host, records

from redrel_vlmeval import trying
from redrel_vlmeval.errors import TruncationError, UnknownName
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import find_decoder, truncated

pytestmark = needs_host
QUESTION = "What is in the picture?"
TILES = 7  # of a picture of 300 x 200: 3 x 2, and the whole


@pytest.fixture(scope="module")
def table():
    return host_table()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return trying.draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module", params=["InternVL3-8B", "InternVL2-8B"])
def name(request):
    """One over Qwen2, which attends through transformers' interface, and one over InternLM2, which does not."""
    return request.param


@pytest.fixture(scope="module")
def internvl(name, tmp_path_factory):
    """How it is built, on a CPU."""
    with trying.on_cpu():
        yield trying.make("InternVLChat", name, tmp_path_factory.mktemp("internvl")) | {"max_new_tokens": 5}


def asked(pictures, *numbers):
    return [{"type": "image", "value": pictures[n]} for n in numbers] + [{"type": "text", "value": QUESTION}]


def test_internvl_truncates_through_its_chat(table, name, internvl, pictures):
    tried = trying.attempt(table, name, pictures, QUESTION, **internvl)
    assert not tried.wrong and tried.model == "InternVLChatModel"
    assert tried.tokens[0] - tried.tokens[-1] == TILES * 16 - 8


@pytest.fixture(scope="module")
def variant(table, name, internvl):
    return table[f"{name}_trunc_l2_k8"](**internvl)


def test_pictures_take_the_place_of_one_id_each_in_the_package_llava():
    tried = trying.try_name("llava_onevision_qwen2_7b_si")
    assert not tried.wrong and tried.model == "LlavaQwenForCausalLM"
    assert tried.tokens[0] - tried.tokens[-1] == 3 * 17 - 8  # three tiles, each with a newline


@pytest.mark.parametrize(("name", "package"), [("Eagle-X5-7B", "eagle"), ("Janus-1.3B", "janus")])
def test_a_class_of_a_package_that_is_not_installed_is_not_tried(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnknownName, match=f"imports the package '{package}', which is not installed"):
        trying.try_name(name)
    assert not trying.able(trying.kind_of(name)) and trying.able("LLaVA_OneVision") and not trying.able("Kosmos2")


def test_a_record_of_internvl_has_its_blocks_and_its_prefill(variant, name, pictures, tmp_path):
    in_host(lambda: variant.generate(asked(pictures, 0, 1)), 1, tmp_path, f"{name}_trunc_l2_k8")
    (record,) = records(tmp_path)
    assert record["image_tokens"] == 2 * TILES * 16 and record["images_per_block"] == [224, 224, 8, 8, 8]
    assert record["new_tokens"] == 5 and record["prefill_ms"] > 0 and record["decode_ms_per_token"] > 0
    assert record["kv_bytes_measured"] == record["kv_bytes"] < record["kv_bytes_untouched"]


@pytest.mark.parametrize(
    ("setting", "images"),
    [
        ("l2_k8_uniform", [112, 112, 8, 8, 8]),
        ("l0_k0", [0] * 5),
        ("l1_r50_l3_k4", [112, 56, 56, 4, 4]),
        ("l2_k8_official", [112, 112, 8, 8, 8]),
        ("l2_k8_pos-new", [112, 112, 8, 8, 8]),
        ("l2_k8_next", [112, 112, 8, 8, 8]),
    ],
)
def test_settings_of_internvl_answer(variant, pictures, setting, images):
    with truncated(variant.torch_model, setting) as trace:
        variant.inner.generate(asked(pictures, 0))
    last = trace.prompts[-1]
    assert last.images == images and last.kv[0] == last.tokens[0] + 4


def test_without_a_picture_internvl_is_untouched(variant):
    with truncated(variant.torch_model, "l2_k8") as trace:
        variant.torch_model.chat(variant.inner.tokenizer, None, QUESTION, {"max_new_tokens": 2, "do_sample": False})
    assert trace.prompts[-1].mode == "untouched"


def test_beams_and_ranked_options_of_internvl(table, name, internvl, pictures, tmp_path):
    from redrel_vlmeval.models.variant import TruncatedVLM

    inner = table[name](**internvl)
    beams = TruncatedVLM(inner, "l2_k8_beam3")
    with truncated(inner.model, "l2_k8") as alone:
        inner.generate(asked(pictures, 0))
    in_host(lambda: beams.generate(asked(pictures, 0)), 1, tmp_path, f"{name}_trunc_l2_k8_beam3")
    assert records(tmp_path)[0]["new_tokens"] > 1
    assert alone.prompts[-1].kept[2]
    ranked = TruncatedVLM(inner, "l2_k8_ppl")
    ranked.set_dump_image(lambda line: pictures[:1])
    line = {"index": 1, "question": "Which?", "A": "red", "B": "blue"}
    message = ranked.build_prompt(line, dataset="MMBench_DEV_EN")
    assert ranked.generate(message, dataset="MMBench_DEV_EN") in ("A", "B")


def test_a_sweep_of_internvl_says_what_single_variants_say(variant, name, pictures):
    from redrel_vlmeval.models.variant import TruncatedVLM
    from redrel_vlmeval.sweep import Sweeper

    settings = ["l2_k8", "l1_k4", "l3_k16_uniform", "l0_k0", "l2_k8_random", "l1_r50_l3_k4", "l2_k8_next"]
    specs = [parse(f"{name}_trunc_{setting}") for setting in settings]
    found = Sweeper(variant.inner, specs).answer(asked(pictures, 0))
    assert found[""].text == variant.inner.generate(asked(pictures, 0))
    for spec in specs:
        single = TruncatedVLM(variant.inner, spec.setting).generate(asked(pictures, 0))
        assert found[spec.setting].text == single, spec.setting


def test_embeddings_that_are_not_the_prompts_are_refused(variant, pictures):
    outer = variant.torch_model
    root = find_decoder(outer).root
    ids = torch.arange(5, 15)[None]
    rows = root.get_input_embeddings()(ids)
    with truncated(outer, "l2_k8"):
        with pytest.raises(TruncationError, match="no ids of the prompt were seen before"):
            root.generate(inputs_embeds=rows, max_new_tokens=1)
        outer.img_context_token_id = 7
        plain = root.get_input_embeddings()
        scaled = plain.register_forward_hook(lambda _m, _a, out: out * torch.rand(out.shape))
        try:
            with pytest.raises(TruncationError, match="not those of the prompt's ids with one kind of placeholder"):
                outer.generate(input_ids=ids, max_new_tokens=1)
        finally:
            scaled.remove()
        with pytest.raises(TruncationError, match="without a cache later steps forget the prompt"):
            root.generate(inputs_embeds=rows, max_new_tokens=1, use_cache=False)
