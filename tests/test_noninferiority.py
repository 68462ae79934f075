"""Not worse by a margin: against published values, exact enumeration, and the cases where other tests break."""

from __future__ import annotations

from math import inf, isnan

import numpy as np
import pytest
from scipy.stats import multinomial, norm

from redrel_vlmeval.results.noninferiority import FEWEST, Cliff, Paired, cliff, fewest, p_not_worse, tango


def paired(up: int, down: int, n: int, pictures: list | None = None) -> Paired:
    base = np.array([0] * up + [1] * down + [1] * (n - up - down))
    variant = np.array([1] * up + [0] * down + [1] * (n - up - down))
    return Paired.of(base, variant, pictures)


def test_tangos_own_example():
    """Soft contact lenses, n = 44, cells 43, 0, 1, 0, margin 0.1: Z = 1.709, p = 0.044 (Tango 1998, section 5)."""
    z = float(tango(0, 1, 44, 0.1))
    assert z == pytest.approx(1.709, abs=5e-4) and p_not_worse(z) == pytest.approx(0.0437, abs=2e-4)


TABLES = [(4, 9, 60, 0.05), (0, 0, 300, 0.02), (12, 3, 80, 0.1), (0, 7, 50, 0.2)]


@pytest.mark.parametrize("up, down, n, margin", TABLES)
def test_the_score_statistic_is_the_one_of_the_restricted_likelihood(up, down, n, margin):
    """The share of downs under H0 maximises the likelihood along share(up) = share(down) - margin, found by a grid."""
    shares = np.linspace(margin, (1 + margin) / 2, 200_001)[:-1]
    ups = shares - margin
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = np.where(up > 0, up * np.log(ups), 0) + np.where(down > 0, down * np.log(shares), 0)
        likelihood = likelihood + (n - up - down) * np.log(1 - shares - ups)
    down_share = shares[np.nanargmax(likelihood)]
    variance = n * (2 * down_share - margin - margin**2)
    expected = (up - down + n * margin) / np.sqrt(variance)
    assert float(tango(up, down, n, margin)) == pytest.approx(expected, rel=2e-3)


def test_under_the_null_it_is_seldom_fooled():
    """Exact size by enumeration: a variant worse by the margin itself passes in about 5 % of samples."""
    n, margin, down = 60, 0.1, 0.2
    size = 0.0
    for ups in range(n + 1):
        for downs in range(n + 1 - ups):
            if float(tango(ups, downs, n, margin)) > norm.ppf(0.95):
                size += multinomial.pmf([ups, downs, n - ups - downs], n, [down - margin, down, 1 - 2 * down + margin])
    assert 0.03 < size < 0.065


def test_without_any_flip_the_number_of_questions_decides():
    assert float(tango(0, 0, 100, 0.02)) < norm.ppf(0.95) < float(tango(0, 0, 200, 0.02))
    graded = [Paired.of([0.5] * n, np.full(n, 0.5)) for n in (100, 200)]
    assert graded[0].z(0.02)[0, 0] < norm.ppf(0.95) < graded[1].z(0.02)[0, 0]


@pytest.mark.parametrize("margin", [0.5, 2.0, 10.0, 60.0])
def test_the_fewest_questions_are_those_with_which_no_flip_is_enough(margin):
    enough = fewest(margin)
    assert cliff(grid([0.0], enough), [1], margin).layer == 1
    assert enough == 1 or cliff(grid([0.0], enough - 1), [1], margin).layer == inf
    shared = [number // 2 for number in range(2 * enough)]
    assert Paired.of(np.ones(2 * enough), np.ones(2 * enough), shared).z(margin / 100)[0, 0] > norm.ppf(0.95)


@pytest.mark.parametrize("margin", [0.0, 100.0])
def test_no_number_of_questions_shows_a_margin_that_is_none(margin):
    with pytest.raises(ValueError, match="points above 0 and below 100"):
        fewest(margin)


def test_questions_of_one_picture_count_less_than_independent_ones():
    alone, shared = paired(0, 20, 400), paired(0, 20, 400, [number // 20 for number in range(400)])
    assert alone.binary and not shared.binary and len(shared.size) == 20
    assert shared.z(0.1)[0, 0] < alone.z(0.1)[0, 0]


def test_graded_scores_are_tested_as_a_paired_z_test():
    rng = np.random.default_rng(1)
    base = rng.random(300)
    change = rng.normal(-0.01, 0.05, 300)
    found = Paired.of(base, base + change).z(0.02)[0, 0]
    assert found == pytest.approx((change.mean() + 0.02) / (change.std() / np.sqrt(300)), rel=1e-6)


def grid(rates: list[float], n: int = 400) -> Paired:
    """Variants that get this share of the questions wrong which the base gets right, none of the others."""
    return Paired.of(np.ones(n), np.array([np.arange(n) >= rate * n for rate in rates]).astype(float))


def test_the_cliff_is_where_all_deeper_layers_pass():
    assert cliff(grid([0.5, 0.0, 0.2, 0.005, 0.0]), [1, 2, 3, 5, 8], 2.0).layer == 5  # layer 2 passes, 3 does not
    assert cliff(grid([0.0, 0.0]), [1, 2], 2.0) == Cliff(1, 1, 1)
    none = cliff(grid([0.5, 0.4]), [1, 2], 2.0)
    assert none == Cliff(inf, inf, inf) and str(none) == "none (none to none)"


def test_the_interval_is_as_wide_as_the_layers_are_alike():
    sure = cliff(grid([0.6, 0.3, 0.0]), [1, 2, 3], 2.0)
    unsure = cliff(grid([0.02, 0.012, 0.01, 0.008]), [1, 2, 3, 4], 2.5)
    assert (sure.low, sure.high) == (3, 3)
    assert unsure.low <= unsure.layer <= unsure.high and unsure.low < unsure.high


def test_the_interval_covers_the_layer_that_many_more_questions_show():
    rng = np.random.default_rng(5)
    rates, layers, inside = np.array([0.12, 0.06, 0.04, 0.002, 0.0]), [1, 2, 3, 4, 5], 0
    for _ in range(30):
        wrong = rng.random((5, 500)) < rates[:, None]
        found = cliff(Paired.of(np.ones(500), 1.0 - wrong), layers, 2.0)
        inside += found.low <= 4 <= found.high
    assert inside >= 26


def test_few_pictures_have_no_interval():
    found = cliff(grid([0.0], FEWEST - 1), [1], 30.0)
    assert isnan(found.low) and isnan(found.high) and "fewer than 10" in str(found)


@pytest.mark.parametrize("base, variants, pictures", [
    ([], np.zeros((1, 0)), None), ([1, 0], np.zeros((1, 3)), None), ([1, np.nan], np.zeros((1, 2)), None),
    ([1, 0], np.zeros((1, 2)), ["a"]),
])  # fmt: skip
def test_scores_that_do_not_fit_are_refused(base, variants, pictures):
    with pytest.raises(ValueError):
        Paired.of(base, variants, pictures)


@pytest.mark.parametrize("layers, margin", [([2, 1], 2.0), ([1], 2.0), ([1, 2], 0.0), ([1, 2], 100.0)])
def test_layers_and_margins_that_mean_nothing_are_refused(layers, margin):
    with pytest.raises(ValueError):
        cliff(grid([0.1, 0.0]), layers, margin)


def test_draws_are_the_same_each_time_and_cannot_be_changed():
    first, second = paired(1, 2, 50).draws(), paired(3, 0, 50).draws()
    assert (first == second).all() and (first.sum(axis=1) == 50).all()
    with pytest.raises(ValueError):
        first[0, 0] = 9
