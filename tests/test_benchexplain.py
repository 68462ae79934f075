"""The bench of explanations compares like with like, measures what it says, and its bars can be missed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import BLOCKS, TinyModel, build

from redrel_vlmeval.bench import maps, subjects
from redrel_vlmeval.bench.command import Request
from redrel_vlmeval.bench.maps import Arm
from redrel_vlmeval.explain.maps import gradcam


def test_loop_and_pass_give_the_same_maps() -> None:
    tiny = build("llava", dtype=torch.float64)
    asked = maps.question(subjects.llava_subject(tiny.model, {}))
    loop = torch.stack(maps.trainable_loop(asked)).numpy()
    one = gradcam.explain(asked, maps.MAPS).maps[0].values[0]
    assert np.abs(loop - one).max() == 0 and one.max() > 0
    assert all(parameter.requires_grad for parameter in tiny.model.parameters())


def test_arms_are_timed_in_turn(llava: TinyModel) -> None:
    asked = maps.question(subjects.llava_subject(llava.model, {}))
    seen: list[str] = []
    arms = maps.measure(asked, 2, seen.append)
    assert [len(arm.seconds) for arm in arms] == [2, 2, 2, 10, 10]
    assert all(arm.peak is None or arm.peak >= 0 for arm in arms)
    whole = maps.rows_pass(asked, True)
    length = asked.prompt + len(asked.answer)
    assert whole == BLOCKS * 4 * (length + 4 * 5) and maps.rows_pass(asked, False) == 0
    found = maps.checks(arms, whole, BLOCKS)
    assert found[-1].holds and found[-1].value == pytest.approx(whole * 32 / BLOCKS / 1e6)


def arms(loop: float, one: float, rows: float, peak: int) -> list[Arm]:
    times = {"a pass per layer": loop, "one pass": one, "one pass, checkpointed": one}
    times |= {"prefill": 1.0, "prefill with answer rows": rows}
    found = [Arm(name, lambda: None, [seconds]) for name, seconds in times.items()]
    found[0].peak, found[1].peak, found[2].peak = 100, peak, peak
    return found


def test_bars_are_missed_where_they_should_be() -> None:
    good = maps.checks(arms(8.0, 1.0, 1.05, 60), 10**6, 32)
    assert [check.holds for check in good] == [True] * 5
    bad = maps.checks(arms(7.9, 1.0, 1.11, 61), 2 * 10**6 + 1, 32)
    assert [check.holds for check in bad] == [False] * 5


def test_the_table_is_printed_and_a_missed_bar_is_an_exit_code(capsys, monkeypatch) -> None:
    monkeypatch.setattr(maps, "FASTER", 10**6)
    assert maps.run(Request(model="redrel_tiny", device="cpu", rounds=1, check=True)) == 1
    printed = capsys.readouterr().out
    assert "a pass per layer" in printed and "MISSED" in printed and "maps of 8 layers" in printed
    with pytest.raises(ValueError, match="--size 'huge'"):
        maps.run(Request(size="huge", device="cpu"))
