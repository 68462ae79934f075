"""The cheapest setting that is shown to be not worse: which it is, when there is none, how often it is wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from redrel_vlmeval.results.choosing import Cheapest, cheapest
from redrel_vlmeval.results.grid import Scores

BASE = "redrel_tiny"


def scores(lost: dict[str, int], n: int = 1000, pictures: list | None = None) -> Scores:
    """Settings that lose so many of n questions; each costs less than the one before it."""
    models = [f"{BASE}_trunc_{setting}" for setting in lost]
    places = [setting.split("_")[:2] for setting in lost]
    cells = pd.DataFrame({"model": models, "rule": [setting.split("_")[2:] or ["attention"] for setting in lost]})
    cells["rule"] = cells["rule"].str[0]
    cells = cells.assign(L=[int(layer[1:]) for layer, _ in places], K=[int(keep[1:]) for _, keep in places])
    cells = cells.assign(tokens=1.0, flops=np.linspace(0.9, 0.1, len(lost)))
    after = np.array([np.arange(n) >= down for down in lost.values()], dtype=float)
    return Scores(BASE, "X", cells, np.ones(n), after, list(range(n)) if pictures is None else pictures)


def pick(lost: dict[str, int], n: int = 1000) -> str | None:
    model = cheapest(scores(lost, n)).model
    return model and model.removeprefix(f"{BASE}_trunc_")


def test_a_chain_is_followed_from_its_dearest_setting_to_the_first_that_is_not_shown():
    assert pick({"l8_k8": 0, "l6_k8": 2, "l4_k8": 5, "l2_k8": 50}) == "l4_k8"
    assert pick({"l8_k8": 0, "l6_k8": 30, "l4_k8": 0}) == "l8_k8", "after one that fails, luck is no proof"
    assert pick({"l2_k64": 0, "l2_k32": 0, "l2_k8": 50}) == "l2_k32", "budgets of one layer are a chain as well"


def test_a_chain_that_fails_does_not_end_the_others():
    lost = {"l7_k32": 0, "l7_k8": 0, "l5_k32": 90, "l6_k8": 0, "l5_k8": 90}
    assert pick(lost) == "l6_k8"


def test_controls_and_the_blind_run_are_no_choice():
    assert pick({"l6_k8": 1, "l6_k8_random": 0, "l6_k0": 0, "l0_k0": 0}) == "l6_k0"
    assert cheapest(scores({"l6_k8_random": 0, "l0_k0": 0})).candidates == 0


@pytest.mark.parametrize("settings, needed", [(["l6_k8"], 133), (["l6_k8", "l5_k0"], 189)])
def test_what_it_takes_is_said(settings, needed):
    """Without a flip, 133 questions show 2 points at 5 %; two unrelated settings have 2.5 % each."""
    found = cheapest(scores(dict.fromkeys(settings, 0), 100))
    assert found == Cheapest(None, 2.0, len(settings), 100, "questions", needed) and f"about {needed}." in str(found)
    assert cheapest(scores(dict.fromkeys(settings, 0), needed - 1)).model is None
    assert cheapest(scores(dict.fromkeys(settings, 0), needed)).model is not None
    shared = cheapest(scores(dict.fromkeys(settings, 0), 400, [number // 4 for number in range(400)]))
    assert (shared.units, shared.what, shared.needed) == (100, "pictures", needed)
    lost = cheapest(scores(dict.fromkeys(settings, 40), 400))
    assert lost.needed is None and "lost 2 points or more" in str(lost)


def test_settings_of_unknown_cost_are_no_choice():
    found = scores({"l6_k8": 0, "l5_k8": 0})
    found.cells.loc[1, "flops"] = np.nan
    assert cheapest(found).model == f"{BASE}_trunc_l6_k8"


def test_schedules_have_no_single_layer_and_are_a_chain_as_well():
    found = scores({"l8_k8": 5, "l7_k7": 0, "l6_k6": 90})
    found.cells[["L", "K"]] = found.cells[["L", "K"]].astype("Int64")
    found.cells.loc[1:, ["L", "K"]] = pd.NA
    assert cheapest(found).model == f"{BASE}_trunc_l7_k7"
