"""Levels by simulation, small: what is claimed of margins, cliff layers and choices is wrong as seldom as is said."""

from __future__ import annotations

import pytest

from tools import simulate_statistics as simulate


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("flips", simulate.FLIPS)
@pytest.mark.parametrize("pictures, questions", [(100, 4), (200, 18)])
def test_a_variant_that_loses_the_margin_is_seldom_shown_to_be_not_worse(pictures, questions, flips, alike):
    assert simulate.level(pictures, questions, *flips, alike, draws=300) <= 0.05 + 3 * 0.0126


@pytest.mark.parametrize("curve", [simulate.STEEP, simulate.SMOOTH])
def test_each_end_of_the_cliff_layer_holds(curve):
    low, high, exact = simulate.cliff_ends(curve, 700, 0.06, draws=200)
    assert max(low, high) <= 0.05 + 3 * 0.0154 and exact < 1


def test_the_cheapest_is_seldom_worse_by_the_margin_and_is_found_with_enough_questions():
    few, many, grid = (simulate.picks(n, 200, keeps) for n, keeps in ((140, 1), (2017, 1), (700, 4)))
    assert max(few[0], many[0], grid[0]) <= 0.05 + 3 * 0.0154
    assert simulate.picks(700, 200, 4, simulate.LEVEL)[0] <= 0.05 + 3 * 0.0154, "where every choice is wrong"
    assert many[1] < 0.2 < few[1] and many[2] < 2


def test_the_best_of_many_is_flattered_and_the_other_half_is_not():
    flattered, honest = simulate.winner(300, draws=30)
    assert flattered > 5 and abs(honest) < 1.5
