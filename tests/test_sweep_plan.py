"""Arguments of ``redrel sweep`` become the grid that was asked for or one clear error; costs are counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from redrel_vlmeval import bases
from redrel_vlmeval.host.runner import HostMissing
from redrel_vlmeval.models.efficiency import block_flops, prefill_flops
from redrel_vlmeval.names import parse
from redrel_vlmeval.rules import find
from redrel_vlmeval.sweep import preview
from redrel_vlmeval.sweep.plan import Plan, PlanError, Prompt, continued_flops, cost, read_plan
from redrel_vlmeval.sweep.run import read_memory

SHAPE = bases.known("redrel_tiny").shape


def test_ranges_become_the_grid_in_order():
    found = read_plan("redrel_tiny", "X", "5-6,1", "8,0", "attention,random", 3)
    assert (found.layers, found.keeps, found.rules, found.limit) == ((1, 5, 6), (0, 8), ("attention", "random"), 3)
    grid = [spec.setting for spec in found.specs]
    ranked = ["l1_k0", "l1_k8", "l5_k0", "l5_k8", "l6_k0", "l6_k8"]
    assert grid == [*ranked, "l1_k8_random", "l5_k8_random", "l6_k8_random"]
    assert list(found.settings.values()) == ["redrel_tiny", *(f"redrel_tiny_trunc_{setting}" for setting in grid)]
    assert all(str(parse(name)) == name for name in found.settings.values())


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"layers": "1-8"}, "--layers 8: redrel_tiny has 8 blocks, so L is 1 to 7"),
        ({"layers": "0-3", "keep": "8"}, "--layers 0-3: l0_k8: before block 1 there is no attention"),
        ({"layers": "3-1"}, "--layers '3-1' is neither a number to 999999 nor a range from small to large"),
        ({"layers": "1,2,x"}, "--layers 'x' is neither a number to 999999 nor a range"),
        ({"layers": "-1"}, "--layers '-1'"),
        ({"layers": "1-3,2"}, "--layers: 2 given more than once"),
        ({"layers": ""}, "at least"),
        ({"keep": "0,65"}, "--keep 65: a picture has 64 image tokens in redrel_tiny, so K is 0 to 64"),
        ({"keep": "8,0,8"}, "--keep: 8 given more than once"),
        ({"keep": "8.5"}, "--keep '8.5'"),
        ({"rules": "best"}, "--rules best: unknown rule 'best': choose one of attention"),
        ({"rules": "random,random"}, "--rules: random given more than once"),
        ({"limit": 0}, "--limit 0"),
        ({"model": "redrel_tiny_trunc_l1_k0"}, "give the base alone .redrel_tiny."),
        ({"model": "redrel_tiny_beam3"}, "give the base alone"),
        ({"model": "redrel_tiny_trunc_l1"}, "is no variant"),
        ({"data": ""}, "--data"),
    ],
)
def test_what_means_nothing_is_refused_by_name(changed, said):
    asked = {"model": "redrel_tiny", "data": "X", "layers": "1", "keep": "0"} | changed
    with pytest.raises(PlanError, match=said):
        read_plan(**asked)


def test_settings_by_name_stand_in_the_order_given():
    names = ["l2_k8_dart", "l0_k8_cls", "l2_k16_l4_k8_next_pos-new", "l0_k0", "l2_k8_random_seed3", "l2_a24"]
    found = read_plan("redrel_tiny", "X", settings=",".join(names))
    assert [spec.setting for spec in found.specs] == names and found.settings["l0_k0"] == "redrel_tiny_trunc_l0_k0"
    priced = cost(found.specs, Prompt(6, 64, 30), 8, SHAPE)
    assert priced.flops_shared < priced.flops_one_by_one


@pytest.mark.parametrize(
    "settings, said",
    [
        ("", "--settings: give a setting"),
        ("l2_k8,l2_k8", "--settings: l2_k8 given more than once"),
        ("l2_k8,l2_k8_foo", "--settings l2_k8_foo: .*unknown rule 'foo'"),
        ("l0_k8", "--settings l0_k8: .*before block 1"),
        ("l2_k8_l9_k4", "--settings l2_k8_l9_k4: redrel_tiny has 8 blocks"),
        ("l2_k65", "--settings l2_k65: a picture has 64 image tokens in redrel_tiny, so K is"),
        ("l4_a8", "--settings l4_a8: .*A is at least 32"),
        ("l2_k8_official", "--settings l2_k8_official: .*run redrel_tiny_trunc_l2_k8_official by its name"),
        ("l2_k8_p-qcm", "--settings l2_k8_p-qcm: a sweep takes the stock prompt"),
        ("l2_k8_beam3", "--settings l2_k8_beam3: a sweep takes the stock prompt and greedy decoding, not beams"),
    ],
)
def test_a_setting_that_cannot_be_swept_is_refused_by_name(settings, said):
    with pytest.raises(PlanError, match=said):
        read_plan("redrel_tiny", "X", settings=settings)


def test_a_grid_or_settings_but_not_both():
    with pytest.raises(PlanError, match="--settings: names settings one by one"):
        read_plan("redrel_tiny", "X", "1-3", "8", settings="l2_k8")
    with pytest.raises(PlanError, match="or --settings"):
        read_plan("redrel_tiny", "X")


def test_an_unknown_base_is_checked_when_its_depth_is_known():
    found = read_plan("host_7b", "X", "1-40", "0,1000")
    found.check_depth(41)
    with pytest.raises(PlanError, match="--layers 39, 40: host_7b has 39 blocks"):
        found.check_depth(39)


@pytest.mark.parametrize("text, size", [(None, None), ("8G", 8 * 2**30), ("1.5 MB", 3 * 2**19), ("512", 512)])
def test_memory_is_read(text, size):
    assert read_memory(text) == size


@pytest.mark.parametrize("text", ["", "0", "lots", "8X", "-1G"])
def test_memory_that_is_no_size_is_refused(text):
    with pytest.raises(PlanError, match="--memory"):
        read_memory(text)


def test_one_by_one_is_what_single_records_say():
    prompt, plan = Prompt(6, 64, 30), Plan("redrel_tiny", "X", (2,), (0, 8))
    whole, ranked = [100] * 8, [100] * 2 + [44] * 6
    expected = prefill_flops(whole, SHAPE) + prefill_flops([100] * 2 + [36] * 6, SHAPE)
    assert cost(plan.specs, prompt, 8, SHAPE).flops_one_by_one == expected + prefill_flops(
        ranked, SHAPE, [(2, find("attention"))], [64] * 8
    )


def test_shared_is_one_prefill_and_the_new_tokens_behind_the_prefix():
    prompt, plan = Prompt(6, 64, 30), Plan("redrel_tiny", "X", (2, 5), (8, 64))
    found = cost(plan.specs, prompt, 8, SHAPE)
    row = 100 * SHAPE.heads * SHAPE.head_dim
    new = 6 * continued_flops(38, 44, SHAPE) + 3 * continued_flops(38, 44, SHAPE)
    assert found.flops_shared == prefill_flops([100] * 8, SHAPE) + 2 * row + new  # K = 64 keeps all: nothing to do
    assert found.tokens_shared == 800 + 9 * 38 and found.tokens_one_by_one == 800 * 3 + 2 * 100 + 5 * 100 + 9 * 44
    assert continued_flops(44, 44, SHAPE) == block_flops(44, SHAPE)


def test_each_rule_shares_the_prefill_but_only_rankings_cost_a_row():
    prompt, plan = Prompt(6, 64, 30), Plan("redrel_tiny", "X", (2,), (8,))
    ranked, drawn = (cost(replace(plan, rules=(rule,)).specs, prompt, 8, SHAPE) for rule in ("attention", "random"))
    assert ranked.flops_shared - drawn.flops_shared == 100 * SHAPE.heads * SHAPE.head_dim


def test_dry_run_of_a_known_base_prints_the_plan_and_needs_neither_host_nor_weights(capsys):
    preview.show(read_plan("llava_v1.5_7b", "ScienceQA_TEST", "1-31", "0,72,128,244,432"), Console(width=200))
    said = capsys.readouterr().out
    assert "155 variants of llava_v1.5_7b" in said and said.count("llava_v1.5_7b_trunc_") == 2
    assert "31 layers x 5 K, from llava_v1.5_7b_trunc_l1_k0 to llava_v1.5_7b_trunc_l31_k432" in said
    assert "576 image" in said and "(text assumed), 32 blocks" in said
    assert "12.1 GiB for the decoder's weights in float16, 0.3 GiB for the keys and values" in said  # 6.5e9 weights
    assert len(said) < 1200
    (one,), (shared,) = ([line for line in said.splitlines() if line.startswith(word)] for word in ("one by", "in one"))
    ratio = float(shared.split()[-1])
    assert ratio == pytest.approx(float(shared.split()[-4]) / float(one.split()[-4]), abs=1e-3) and 0.2 < ratio < 0.3
    assert f"{100 * (1 - ratio):.0f} % of the decoder's prefill FLOPs" in said
    assert "TFLOPs, decoder" in said and "e+0" not in said
    flops, hours = float(shared.split()[-4]) * 1e12, float(shared.split()[-3])
    assert hours == pytest.approx(2 * flops * 1000 / 1e14 / 3600, rel=0.05)


@pytest.mark.parametrize("base, why", [
    ("nobody_7b", "its sizes are not known here"),
    ("llava_next_vicuna_7b", "a picture's tokens depend on the picture's size"),
])  # fmt: skip
def test_a_base_of_unknown_sizes_has_no_price(capsys, base, why):
    preview.show(read_plan(base, "X", "1-3", "0,8", "attention,random", 50), Console(width=200))
    said = capsys.readouterr().out
    assert "9 variants of " + base in said and "3 layers x 2 K x 2 rules" in said
    assert f"no price: {why}" in " ".join(said.split()) and "FLOPs" not in said


@pytest.mark.parametrize("flops, unit", [(5.8e9, "GFLOPs"), (9.99e11, "GFLOPs"), (1e12, "TFLOPs"), (3e19, "PFLOPs")])
def test_units_follow_the_size(flops, unit):
    size, name = preview.unit_of(flops)
    assert name == unit and (flops / size < 1000 or unit == "PFLOPs")


def test_without_a_host_a_dry_run_says_that_the_benchmark_was_not_checked(monkeypatch, capsys):
    def missing(_name: str) -> None:
        raise HostMissing("none")

    monkeypatch.setattr(preview.benchmark, "check", missing)
    preview.check_data("Nope", Console(width=200))
    assert "whether there is a benchmark Nope was not checked" in capsys.readouterr().out
