"""Not worse by a margin: against published values, exact enumeration, and the cases where other tests break."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import multinomial, norm

from redrel_vlmeval.results.noninferiority import Cliff, Paired, cliff, fewest, p_not_worse, score


def paired(up: int, down: int, n: int, pictures: list | None = None) -> Paired:
    base = np.array([0] * up + [1] * down + [1] * (n - up - down))
    variant = np.array([1] * up + [0] * down + [1] * (n - up - down))
    return Paired.of(base, variant, pictures)


def z_of(up: int, down: int, n: int, margin: float) -> float:
    return float(paired(up, down, n).z(margin)[0])


def test_tangos_own_example():
    """Soft contact lenses, n = 44, cells 43, 0, 1, 0, margin 0.1: Z = 1.709, p = 0.044 (Tango 1998, section 5)."""
    z = z_of(0, 1, 44, 0.1)
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
    assert z_of(up, down, n, margin) == pytest.approx(expected, rel=2e-3)


def test_under_the_null_it_is_seldom_fooled():
    """Exact size by enumeration: a variant worse by the margin itself passes in about 5 % of samples."""
    n, margin, down = 60, 0.1, 0.2
    size = 0.0
    for ups in range(n + 1):
        for downs in range(n + 1 - ups):
            if z_of(ups, downs, n, margin) > norm.ppf(0.95):
                size += multinomial.pmf([ups, downs, n - ups - downs], n, [down - margin, down, 1 - 2 * down + margin])
    assert 0.03 < size < 0.065


def test_without_any_flip_the_number_of_questions_decides():
    assert z_of(0, 0, 100, 0.02) < norm.ppf(0.95) < z_of(0, 0, 200, 0.02)
    graded = [Paired.of([0.5] * n, np.full(n, 0.5)) for n in (100, 200)]
    assert graded[0].z(0.02)[0] < norm.ppf(0.95) < graded[1].z(0.02)[0]


@pytest.mark.parametrize("margin", [0.5, 2.0, 10.0, 60.0])
def test_the_fewest_questions_are_those_with_which_no_flip_is_enough(margin):
    enough = fewest(margin)
    assert cliff(grid([0.0], enough), [1], margin).at_most == 1
    assert enough == 1 or cliff(grid([0.0], enough - 1), [1], margin).at_most == inf
    shared = [number // 2 for number in range(2 * enough)]
    assert Paired.of(np.ones(2 * enough), np.ones(2 * enough), shared).z(margin / 100)[0] > norm.ppf(0.95)


@pytest.mark.parametrize("margin", [0.0, 100.0])
def test_no_number_of_questions_shows_a_margin_that_is_none(margin):
    with pytest.raises(ValueError, match="points above 0 and below 100"):
        fewest(margin)


def test_questions_of_one_picture_count_less_than_independent_ones():
    alone, shared = paired(0, 20, 400), paired(0, 20, 400, [number // 20 for number in range(400)])
    assert len(shared.size) == 20 and shared.z(0.1)[0] < alone.z(0.1)[0]


def test_graded_scores_without_a_rare_great_loss_are_tested_as_by_a_z_test():
    """Where the mean is as low as the margin no unseen loss is needed, and the spread is the one that is seen."""
    rng = np.random.default_rng(1)
    base, change = rng.random(3000), rng.normal(-0.02, 0.05, 3000)
    found = Paired.of(base, base + change).z(0.02)[0]
    assert found == pytest.approx((change.mean() + 0.02) / (change.std() / np.sqrt(3000)), abs=0.01)


@pytest.mark.parametrize("graded", [False, True])
def test_one_lost_question_proves_nothing_that_none_does_not(graded):
    """A spread that is read from the flips themselves said p = .077 with no flip of 400, and 1e-12 with one."""
    pictures = None if graded else [number // 4 for number in range(400)]
    lost = np.array([np.arange(400) < 400 - down for down in (0, 1, 2, 4)], dtype=float)
    base = np.full(400, 0.5) if graded else np.ones(400)
    z = Paired.of(base, lost * base[0], pictures).z(0.02)
    assert (np.diff(z) < 0).all() and (graded or (z < norm.ppf(0.95)).all())


UNITS = st.lists(st.tuples(st.integers(1, 6), st.floats(-1, 1)), min_size=1, max_size=30)


@given(UNITS, st.data(), st.sampled_from([0.005, 0.02, 0.1, 0.5]), st.booleans())
def test_p_never_falls_when_something_more_is_lost(units, data, margin, whole):
    """A question lost, or a gain gone, on any picture, whatever the pictures' sizes and scores."""
    size, share = np.array(units, dtype=float).T
    change = np.round(share * size) if whole else share * size
    place = data.draw(st.integers(0, len(size) - 1))
    worst = change[place] + size[place]
    less = change.copy()
    less[place] -= float(data.draw(st.integers(0, round(worst)))) if whole else data.draw(st.floats(0, 1)) * worst
    before, after = (p_not_worse(score(one, size, margin)) for one in (change, less))
    assert after >= before - 1e-9


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 200), st.sampled_from([0.01, 0.02, 0.1, 0.4]))
def test_on_questions_right_or_wrong_it_is_tangos_closed_form(up, down, same, margin):
    n, bound = up + down + same, -margin
    b, c = -up - down + (2 * n - up + down) * bound, -down * bound * (1 - bound)
    share = (np.sqrt(b * b - 8 * n * c) - b) / (4 * n)
    expected = (up - down - n * bound) / np.sqrt(n * (2 * share + bound * (1 - bound)))
    assert z_of(up, down, n, margin) == pytest.approx(expected, abs=1e-6)


def grid(rates: list[float], n: int = 400) -> Paired:
    """Variants that get this share of the questions wrong which the base gets right, none of the others."""
    return Paired.of(np.ones(n), np.array([np.arange(n) >= rate * n for rate in rates]).astype(float))


def test_the_cliff_is_where_all_deeper_layers_pass_and_all_before_it_are_worse():
    assert cliff(grid([0.5, 0.0, 0.2, 0.005, 0.0]), [1, 2, 3, 5, 8], 2.0) == Cliff(2, 5)  # layer 2 passes, 3 does not
    assert cliff(grid([0.0, 0.0]), [1, 2], 2.0) == Cliff(0, 1)
    assert cliff(grid([0.5, 0.4]), [1, 2], 2.0) == Cliff(3, inf)
    assert cliff(grid([0.021, 0.019]), [1, 2], 2.0) == Cliff(0, inf)


def test_the_ends_close_in_on_the_layer_with_more_questions():
    rates, layers, width = np.array([0.12, 0.06, 0.04, 0.002, 0.0]), [1, 2, 3, 4, 5], []
    for n in (200, 1000, 5000):
        rng = np.random.default_rng(5)
        found = [cliff(Paired.of(np.ones(n), 1.0 - (rng.random((5, n)) < rates[:, None])), layers, 2.0) for _ in "ab"]
        width += [max(min(one.at_most, 6) - one.at_least for one in found)]
    assert width[0] > width[1] >= width[2] == 0


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
