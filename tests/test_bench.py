"""The bench measures what it says: arms, FLOPs, caches, and bars that can be missed."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TinyModel, build

from redrel_vlmeval import rules
from redrel_vlmeval.bench import byhand, command, prefill as bench, ranking, subjects
from redrel_vlmeval.bench.command import Request
from redrel_vlmeval.bench.prefill import Arm
from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.models.checkpoint import CheckpointError
from redrel_vlmeval.models.qwen import checkpoint
from redrel_vlmeval.sheets import terminal
from redrel_vlmeval.truncation import find_decoder, truncated


def test_arms_are_timed_in_turn_and_leave_the_model_as_it_was(llava: TinyModel) -> None:
    seen: list[str] = []
    subject = subjects.llava_subject(llava.model, {"l2_k5": 1.5})
    arms = bench.bench(subject, ("l2_k5", "l1_k0"), rounds=2, new_tokens=3, tick=seen.append)
    names = ["base", "l2_k5", "l1_k0", "K = all", "published l2_k5", "published l1_k0", "base, hooks gone"]
    assert [arm.name for arm in arms] == names
    assert all(len(arm.prefill) == len(arm.decode) == 2 for arm in arms)
    assert llava.model.config._attn_implementation == "sdpa"
    assert len(seen) == 3 * len(arms)
    by = {arm.name: arm for arm in arms}
    assert by["base"].flops == by["base, hooks gone"].flops > by["l2_k5"].flops > by["l1_k0"].flops
    assert by["base"].kv == by["published l2_k5"].kv > by["l2_k5"].kv > by["l1_k0"].kv
    rows = bench.table(arms)
    assert rows[0]["prefill ratio"] == 1
    assert rows[1]["FLOPs ratio"] == by["l2_k5"].flops / by["base"].flops
    hand = by["l2_k5"].hand
    assert hand is not None and len(hand.prefill) == 2
    assert rows[1]["over by hand"] == by["l2_k5"].prefill_over(hand) and rows[0]["over by hand"] is None
    said = [check.what for check in bench.checks(arms, subject.bars)]
    assert said[:2] == ["l2_k5: prefill over base / FLOPs ratio", "l2_k5: prefill over rows cut by hand"]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("setting", ["l2_k3", "l1_k3_l3_k0", "l0_k3_random", "l1_a4", "l2_r50"])
def test_rows_cut_by_hand_are_as_many_as_the_setting_leaves(name: str, setting: str) -> None:
    tiny = build(name)
    model, inputs, decoder = tiny.model, tiny.prompt(), find_decoder(tiny.model)
    assert byhand.can_be_cut(decoder, setting) and not byhand.can_be_cut(decoder, f"{setting}_official")
    images = int(decoder.image_mask(inputs["input_ids"]).sum())
    with truncated(model, setting) as trace, torch.inference_mode():
        model(**inputs)
    with byhand.cut_by_hand(model, setting, images), torch.inference_mode():
        cache = model(**inputs).past_key_values
    assert [decoder.held_length(cache, block) for block in range(len(decoder.blocks))] == trace.prompts[0].kv
    assert not any(block._forward_pre_hooks for block in decoder.blocks)


def arm(name: str, prefill: float, flops: int, setting: str | None = None) -> Arm:
    return Arm(name, setting, lambda: None, prefill=[prefill], decode=[1.0], flops=flops)


@pytest.mark.parametrize(("hand", "verdicts"), [(52.0, ["MISSED", "holds"]), (53.0, ["by hand, too", "holds"])])
def test_a_bar_that_the_rows_alone_miss_is_the_machines(hand: float, verdicts: list[str]) -> None:
    variant = arm("l5_k128", 54, 500, "l5_k128")
    variant.hand = arm("by hand l5_k128", hand, 0)
    assert [check.verdict for check in bench.checks([arm("base", 100, 1000), variant], {"l5_k128": 1.05})] == verdicts
    variant.prefill = [hand * 1.05]
    assert bench.checks([arm("base", 100, 1000), variant], {"l5_k128": 1.05})[1].missed


@pytest.mark.parametrize(("prefill", "holds"), [(52.0, True), (53.0, False)])
def test_a_bar_is_missed_where_it_should_be(prefill: float, holds: bool) -> None:
    arms = [arm("base", 100, 1000), arm("l5_k128", prefill, 500, "l5_k128")]
    (check,) = bench.checks(arms, {"l5_k128": 1.05})
    assert check.holds is holds
    assert check.value == prefill / 100 / 0.5


def test_the_published_way_must_be_beaten_by_what_the_flops_allow() -> None:
    for published, holds in ((191.0, True), (189.0, False)):
        arms = [
            arm("base", 100, 1000),
            arm("l9_k1", 100, 500, "l9_k1"),
            arm("published l9_k1", published, 0, "l9_k1"),
        ]
        (check,) = bench.checks(arms, {"l5_k128": 1.05})
        assert check.holds is holds


def test_an_unknown_size_or_setting_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match="--size 'huge': choose one of small, 7b"):
        command.run(Request(size="huge", device="cpu"))
    with pytest.raises(ValueError, match="--family 'gpt': choose one of llava, qwen"):
        command.run(Request(family="gpt", device="cpu"))
    with pytest.raises(KeyError, match="no variant"):
        command.run(Request(settings="l5_kx_trunc_", device="cpu"))


def test_the_table_narrows_with_the_terminal() -> None:
    rows = bench.table([arm("untouched", 100, 1000), arm("l5_k128", 52, 500, "l5_k128")])
    whole = command.drawn(rows, None)
    assert len(whole.splitlines()) == 4 and "questions/s (10 tokens)" in whole and terminal.wide(whole) > 120
    assert command.drawn(rows, 200) == whole
    lines = command.drawn(rows, 60).splitlines()
    assert max(map(len, lines)) <= 60 and int(lines[-1].split()[0]) > 0 and "l5_k128" in lines[-2]


@pytest.mark.parametrize(("again", "verdict"), [(102.9, "MISSED"), (103.1, "too noisy"), (96.9, "too noisy")])
def test_a_noisy_machine_misses_no_bar(again: float, verdict: str) -> None:
    arms = [arm("base", 100, 1000), arm("l5_k128", 60, 500, "l5_k128"), arm(bench.GONE, again, 1000)]
    (check,) = bench.checks(arms, {"l5_k128": 1.04}, race=False)
    assert check.verdict == verdict and check.missed is (verdict == "MISSED")


def test_a_setting_that_keeps_everything_has_no_bar() -> None:
    arms = [arm("base", 100, 1000), arm("l5_k64", 99, 1000, "l5_k64"), arm("published l5_k64", 101, 0, "l5_k64")]
    assert bench.checks(arms, {}) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("l2_k3,l9_k8", "--settings l9_k8: layer 9, but .* has 5 decoder blocks: L is 0 to 4"),
        ("l5_k1", "--settings l5_k1: layer 5, but"),
        ("beam3", "--settings beam3: it truncates nothing; give such as l5_k128"),
    ],
)
def test_given_settings_without_room_are_refused_by_name(
    monkeypatch, llava: TinyModel, setting: str, said: str
) -> None:
    subject = subjects.llava_subject(llava.model, {})
    monkeypatch.setattr(Request, "build", lambda _: subject)
    monkeypatch.setattr(bench, "bench", lambda *_args, **_kwargs: pytest.fail("timed"))
    with pytest.raises(ValueError, match=said):
        command.run(Request(settings=setting))


def test_defaults_fit_the_model() -> None:
    assert command.defaults({}, 8, 64) == ("l5_k14", "l1_k0")
    assert command.defaults({}, 32, 576) == ("l5_k128", "l12_k0", "l1_k0")
    assert command.defaults({"l3_k64": 1.0}, 32, 256) == ("l3_k64", "l5_k128", "l12_k0", "l1_k0")


def test_a_model_too_small_to_be_timed_has_no_bars(monkeypatch, capsys, llava: TinyModel) -> None:
    subject = subjects.llava_subject(llava.model, {})
    monkeypatch.setattr(Request, "build", lambda _: subject)
    assert command.run(Request(settings="l2_k5", rounds=1, check=True)) == 0
    said = capsys.readouterr().out
    assert "published l2_k5" in said and "no bars: a prefill of" in said and "MISSED" not in said


def test_without_qwens_code_the_error_says_where_it_may_lie(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("REDREL_QWEN_VL", raising=False)
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder; give one that holds .*modeling_qwen\.py"):
        command.run(Request(family="qwen", code=str(tmp_path / "nowhere"), device="cpu"))

    def unreachable(*_args: object) -> str:
        raise CheckpointError("no network")

    monkeypatch.setattr(checkpoint, "from_hub", unreachable)
    with pytest.raises(CheckpointError, match="with --code or in REDREL_QWEN_VL"):
        command.run(Request(family="qwen", device="cpu"))


def test_names_of_the_host_are_timed_by_their_weights(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("redrel_vlmeval.models.LlavaCore", lambda name, **_: asked.append(name) or 1 / 0)
    for name in ("llava_v1.5_7b", "redrel_tiny", "own/folder"):
        with pytest.raises(ZeroDivisionError):
            subjects.loaded_subject("llava", name, None, None)
    assert asked == ["llava-hf/llava-1.5-7b-hf", "redrel_tiny", "own/folder"]
    with pytest.raises(InvalidValue, match="llava_next_72b.*LLaVA-1.5 and Qwen-VL alone"):
        subjects.loaded_subject("llava", "llava_next_72b", None, None)


def test_a_setting_leaves_something_to_choose() -> None:
    found = [ranking.setting_of(rules.find(name), 576) for name in ("attention", "random", "cls", "downsample")]
    assert found == ["l2_k64", "l0_k64_random", "l0_k64_cls", "l0_k64_downsample"]
    assert ranking.setting_of(rules.find("cls"), 64) == "l0_k16_cls" != ranking.setting_of(rules.find("cls"), 65)


def test_choosing_takes_time_and_a_refused_rule_none(llava: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "KEEP", 3)
    some = [rules.find(name) for name in ("next", "mmtok", "downsample")]
    prefills, costs = ranking.measure(subjects.llava_subject(llava.model, {}), some, rounds=2)
    assert len(prefills) == 2 and all(len(cost.seconds) == 2 and min(cost.seconds) > 0 for cost in costs[:2])
    assert "cannot be made one of 3" in costs[2].why and costs[2].seconds == []


@pytest.mark.parametrize(("seconds", "holds"), [(0.031, [False, True]), (0.101, [False] * 2), (0.029, [True] * 2)])
def test_choosing_has_a_bar_and_a_second_run_of_the_tower_none(seconds: float, holds: list[bool]) -> None:
    costs = [ranking.Cost(name, "", [seconds]) for name in ("divprune", "cdpruner", "downsample")]
    assert [check.holds for check in ranking.checks([1.0], costs)] == holds
