"""Names: exact round trip, one name per variant, errors that say why and name the nearest valid one."""

from __future__ import annotations

import dataclasses
import re
import time

import pytest
from hypothesis import given, strategies as st

from redrel_vlmeval import names, rules
from redrel_vlmeval.names import Stage, VariantSpec, looks_like_variant, nearest, parse

BASES = [
    "redrel_tiny",
    "llava_v1.5_7b",
    "qwen_chat",
    "Qwen2-VL-7B-Instruct",
    "a.b-c_d",
    "InternVL2_5-8B_l5",
    "x_official",
    "",
]
AMOUNTS = {"k": "keep", "r": "percent", "a": "average"}


@st.composite
def specs(draw: st.DrawFn) -> VariantSpec:
    """Any spec that may exist, and those that may not are drawn again."""
    layers = sorted(draw(st.sets(st.integers(0, 60), max_size=4)))
    kind = draw(st.sampled_from("kra" if len(layers) == 1 else "kr"))
    amounts = sorted(draw(st.lists(st.integers(0, 100), min_size=len(layers), max_size=len(layers))), reverse=True)
    own = draw(st.lists(st.sampled_from([None, None, *rules.known()]), min_size=len(layers), max_size=len(layers)))
    stages = tuple(
        Stage(layer, **{AMOUNTS[kind]: amount}, rule=rule)
        for layer, amount, rule in zip(layers, amounts, own, strict=True)
    )
    fields = {"base": draw(st.sampled_from(BASES)), "stages": stages, "prompt": draw(st.sampled_from(names.PROMPTS))}
    fields |= draw(st.sampled_from([{}, {"ppl": True}])) or {"beam": draw(st.integers(1, 99))}
    if stages:
        fields["rule"] = draw(st.sampled_from(list(rules.known())))
        fields["positions"] = draw(st.sampled_from(names.POSITIONS))
        fields["seed"] = draw(st.sampled_from([0, 0, 1, 12]))
        fields["row"] = draw(st.sampled_from(list(names.ROWS)))
        fields["official"] = draw(st.booleans())
    try:
        return VariantSpec(**fields)
    except ValueError:
        return VariantSpec(fields["base"], (Stage(5, 128),))


@given(specs())
def test_every_spec_survives_its_name(spec: VariantSpec) -> None:
    if not str(spec):
        return
    assert parse(str(spec)) == spec
    assert re.fullmatch(r"[A-Za-z0-9._-]+", str(spec))


@given(st.text(alphabet="abl0k159_rtuncp-.beamofi", max_size=40))
def test_any_text_is_parsed_or_refused_with_a_reason(text: str) -> None:
    try:
        spec = parse(text)
    except KeyError as error:
        assert "no variant" in error.args[0]
        near = nearest(text)
        assert near is None or (near != text and str(parse(near)) == near)
    else:
        assert str(spec) == text  # one variant has one name


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("llava_v1.5_13b_trunc_l5_k128", VariantSpec("llava_v1.5_13b", (Stage(5, 128),))),
        ("qwen_chat_trunc_l3_k64", VariantSpec("qwen_chat", (Stage(3, 64),))),
        ("llava_v1.5_7b_trunc_l2_r50_random", VariantSpec("llava_v1.5_7b", (Stage(2, percent=50),), rule="random")),
        ("llava_v1.5_7b_p-cqm_beam3", VariantSpec("llava_v1.5_7b", prompt="cqm", beam=3)),
        ("x_trunc_l8_k288_l16_k144", VariantSpec("x", (Stage(8, 288), Stage(16, 144)))),
        ("x_trunc_l5_k9_lowest_rowmean_official_p-p1-cqm_beam2",
         VariantSpec("x", (Stage(5, 9),), "lowest", "rowmean", True, "p1-cqm", 2)),
        ("qwen_base_p-qwen_ppl", VariantSpec("qwen_base", prompt="qwen", ppl=True)),
        ("x_trunc_l5_k9_random_ppl", VariantSpec("x", (Stage(5, 9),), "random", ppl=True)),
        ("llava_v1.5_7b", VariantSpec("llava_v1.5_7b")),
        ("l0_k0", VariantSpec("", (Stage(0, 0),))),
    ],
)  # fmt: skip
def test_the_grammar_of_the_design(name: str, spec: VariantSpec) -> None:
    assert parse(name) == spec
    assert str(spec) == name
    assert looks_like_variant(name) is (spec.is_variant and bool(spec.base))


@pytest.mark.parametrize(
    ("name", "reason", "near"),
    [
        ("a_trunc_l5k128", "does not begin with a stage", "a_trunc_l5_k128"),
        ("a_trunc_l5_k0128", "does not begin with a stage", "a_trunc_l5_k128"),
        ("a_trunc", "no stage after", "a_trunc_l5_k128"),
        ("a_trunc_L2_K8", "does not begin with a stage", "a_trunc_l2_k8"),
        ("a_trunc_k8_l2", "does not begin with a stage", "a_trunc_l2_k8"),
        ("a_trunc_r50_l2_random", "does not begin with a stage", "a_trunc_l2_r50_random"),
        ("a_trunc_l5", "'l5': K is missing, the image tokens that go on from there: l5_k<K>", "a_trunc_l5_k128"),
        ("a_trunc_l5_random", "'l5': K is missing", "a_trunc_l5_k128_random"),
        ("a_trunc_l5_k8_l9", "'l9': K is missing", None),
        ("a_trunc_l0_k5", "before block 1 there is no attention", "a_trunc_l1_k5"),
        ("a_trunc_l0_k5_lowest", "before block 1 there is no attention", "a_trunc_l1_k5_lowest"),
        ("a_trunc_l5_k5_l3_k2", "layers must rise", "a_trunc_l3_k5_l5_k2"),
        ("a_trunc_l3_k5_l5_k9", "cannot keep more", "a_trunc_l3_k9_l5_k5"),
        ("a_trunc_l8_k50_l4_k20", "layers must rise", "a_trunc_l4_k50_l8_k20"),
        ("a_trunc_l8_r20_l4_k30_l4_k20", "layers must rise", "a_trunc_l4_k20_l8_r20"),
        ("a_trunc_l5_k5_randm", "unknown rule 'randm': choose one of attention", "a_trunc_l5_k5_random"),
        ("a_trunc_l5_k5_official_random", "cannot read '_random'", "a_trunc_l5_k5_random_official"),
        ("a_trunc_l5_k5_random_rowimg", "has no meaning with rule 'random'", "a_trunc_l5_k5_random"),
        ("a_trunc_l5_k5_p-stock", "is the default and is not written", "a_trunc_l5_k5"),
        ("a_trunc_l2_r120", "at most 100", "a_trunc_l2_r100"),
        ("a_beam1", "one beam is the default", "a"),
        ("a_p-cqmm", "unknown prompt 'cqmm'", "a_p-cqm"),
        ("a_ppl_beam3", "'ppl' ranks the options and generates nothing that beam3 could search", "a_ppl"),
        ("a_trunc_l5_k5_ppl_beam3", "use one of the two", "a_trunc_l5_k5_ppl"),
        ("a_beam3_ppl", "their order is _p-<prompt>, _ppl, _beam<n>", "a_ppl"),
        ("a_ppl_p-cqm", "their order is _p-<prompt>, _ppl, _beam<n>", "a_p-cqm_ppl"),
        ("a_trunc_l5_k5_ppl_p-cqm", "cannot read '_ppl_p-cqm'", "a_trunc_l5_k5_p-cqm_ppl"),
        ("a_trunc_l5_k5_pppl", "unknown rule 'pppl'", "a_trunc_l5_k5_ppl"),
        ("_trunc_l5_k3", "base model's name is missing", "l5_k3"),
        ("a_trunc_l1_k2_trunc_l3_k1", "cannot read '_trunc_l3_k1'", None),
    ],
)  # fmt: skip
def test_malformed_names_say_why_and_what_was_meant(name: str, reason: str, near: str | None) -> None:
    with pytest.raises(KeyError) as error:
        parse(name)
    message = error.value.args[0]
    assert repr(name) in message
    assert reason in message
    if near is not None:
        assert f"did you mean {near!r}?" in message


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("x_trunc_l0_k9-random_l5_k3-random", "x_trunc_l0_k9_l5_k3_random"),
        ("x_trunc_l2_k8-random", "x_trunc_l2_k8_random"),
        ("x_trunc_l2_k8-attention", "x_trunc_l2_k8"),
        ("x_trunc_l0_k9-random_l5_k3-attention", "x_trunc_l0_k9-random_l5_k3"),
        ("x_trunc_l0_k9_random_seed0", "x_trunc_l0_k9_random"),
    ],
)
def test_one_variant_has_one_name(name: str, written: str) -> None:
    with pytest.raises(KeyError, match=f"it is written '{written}'"):
        parse(name)
    assert str(parse(written)) == written


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x_trunc_l5_k128𝟓", "begin with a stage"), ("x_beam3５", None),
        ("x_trunc_l5_k" + "1" * 5000, "characters, a name has"),
        ("x_trunc_l5_k" + "1" * 60, "cannot|stage"), ("x_trunc_l5_k9_l6_r3_l7_k99_l8_r50", "later stage cannot keep"),
        ("x_trunc_" + "l5_k9_" * 4000, "characters"), ("x_trunc_l9999999_k1", "stage"),
        ("x_trunc_l5_k9_seed٣", "unknown|cannot"),
        ("x_trunc_l5_a9_l6_a3", "one stage's"), ("x_trunc_l5_k9_seed1", "draws nothing"),
        ("x_trunc_l5_k9_pos-new_official", "official drops none"),
        ("x_trunc_l5_k9_next_official", "official ranks again"),
        ("x_trunc_l0_k9-lowest_l5_k3", "before block 1"),
    ],
)  # fmt: skip
def test_what_no_name_can_say_is_refused_at_once(name: str, reason: str | None) -> None:
    """Digits of other scripts, numbers that no computer counts to, and combinations without a meaning."""
    begun = time.process_time()
    if reason is None:  # no suffix of ours: a base of that name, which no host has
        assert looks_like_variant(name) is False
        return
    with pytest.raises(KeyError, match=reason) as error:
        parse(name)
    assert len(error.value.args[0]) < 1500 and time.process_time() - begun < 2


def test_an_average_is_what_papers_call_it() -> None:
    assert [Stage(2, average=a).count(576, 32) for a in (192, 128, 64)] == [166, 98, 30]
    assert Stage(0, average=64).count(576, 32) == 64 and Stage(16, average=600).count(576, 32) == 576
    with pytest.raises(ValueError, match=r"A is at least 288"):
        Stage(16, average=192).count(576, 32)
    with pytest.raises(ValueError, match="not known"):
        Stage(2, average=192).count(576)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "best"}, {"row": "first"}, {"prompt": "cot"}, {"beam": 0}, {"beam": 100}, {"base": "a b"},
        {"base": "a/b"},
        {"base": "a_ppl"}, {"base": "a_beam2"}, {"ppl": True, "beam": 2},
        {"base": "x_trunc_l1_k1"}, {"stages": (), "official": True}, {"stages": (Stage(0, 3),)},
        {"stages": (Stage(3, 3), Stage(3, 3))}, {"stages": (Stage(3, 3), Stage(4, 4))},
    ],
)  # fmt: skip
def test_a_spec_that_means_nothing_cannot_be_made(wrong: dict) -> None:
    with pytest.raises(ValueError, match=".+"):
        VariantSpec(**({"base": "x", "stages": (Stage(5, 9),)} | wrong))


@pytest.mark.parametrize("wrong", [(5,), (5, 1, 1), (-1, 3), (5, -3), (5, None, 101), (True, 3)])
def test_a_stage_that_means_nothing_cannot_be_made(wrong: tuple) -> None:
    with pytest.raises(ValueError, match=".+"):
        Stage(*wrong)


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("x_trunc_l5_k128", "x"), ("x", "x"), ("x_p-cqm", "x_p-cqm"), ("x_beam3", "x_beam3"),
        ("x_trunc_l5_k128_rowimg_official_p-cqm", "x_p-cqm"),
        ("x_trunc_l8_k9_l9_k3_lowest_p-p1-cqm_beam3", "x_p-p1-cqm_beam3"), ("x_trunc_l5_r10_beam2", "x_beam2"),
        ("x_ppl", "x_ppl"), ("x_trunc_l5_k1_ppl", "x_ppl"), ("x_trunc_l5_k1_p-qwen_ppl", "x_p-qwen_ppl"),
    ],
)  # fmt: skip
def test_a_variant_is_compared_with_the_same_prompt_and_beams(name: str, baseline: str) -> None:
    assert parse(name).baseline == baseline == parse(baseline).baseline


def test_a_spec_is_frozen_and_can_be_a_key() -> None:
    spec = parse("x_trunc_l5_k9")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.beam = 3  # type: ignore[misc]
    assert {spec: 1}[parse("x_trunc_l5_k9")] == 1


@given(st.integers(0, 5000), st.integers(0, 100))
def test_a_ratio_is_rounded_half_up(tokens: int, percent: int) -> None:
    count = Stage(2, percent=percent).count(tokens)
    assert abs(count - tokens * percent / 100) <= 0.5
    assert 2 * count * 100 >= 2 * tokens * percent - 100
    assert Stage(2, percent=50).count(2 * tokens + 1) == tokens + 1
