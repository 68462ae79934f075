"""Paired tests against published tables, brute-force enumeration, simulation with fixed seeds, and their symmetries."""

from __future__ import annotations

from itertools import product
from math import comb, isnan

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest

from redrel_vlmeval.results import paired_tests
from redrel_vlmeval.results.paired_tests import bootstrap, compare, holm, mcnemar, newcombe, p_text, sentence, sign_flip

HITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def vectors(both: int, up: int, down: int, neither: int) -> tuple[list[int], list[int]]:
    """(base, variant) with these counts."""
    return [1] * both + [0] * up + [1] * down + [0] * neither, [1] * both + [1] * up + [0] * down + [0] * neither


# Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8: airway hyper-
# responsiveness (Bentur et al. 2009) and complete response (Cavo et al. 2012).
@pytest.mark.parametrize(
    ("table", "interval", "p"),
    [((1, 1, 7, 12), (-0.507, -0.026), 0.0703125), ((59, 6, 16, 80), (-0.1186, -0.0046), 0.052479)],
)
def test_textbook_tables(table: tuple[int, int, int, int], interval: tuple[float, float], p: float) -> None:
    low, high = newcombe(*table)
    assert (low, high) == pytest.approx(interval, abs=5e-4)
    assert mcnemar(*table[1:3]) == pytest.approx(p, abs=5e-7)
    found = compare(*vectors(*table))
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high))
    assert (found.n, found.up, found.down) == (sum(table), *table[1:3])
    assert found.difference == pytest.approx(100 * (table[1] - table[2]) / sum(table)) and found.pictures is None


def test_the_margins_intervals_are_wilsons() -> None:
    for count, n in ((0, 7), (3, 7), (7, 7), (61, 2017)):
        expected = binomtest(count, n).proportion_ci(0.95, "wilson")
        assert paired_tests.wilson(count, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_flips_of_whole_sums_are_enumerated(sums: list[int]) -> None:
    totals = [abs(int(np.dot(signs, sums))) for signs in product((1, -1), repeat=len(sums))]
    assert sign_flip(np.array(sums, dtype=float)) == pytest.approx(np.mean([t >= abs(sum(sums)) for t in totals]))


def test_drawn_sign_flips_come_near_the_enumerated_ones() -> None:
    sums = np.array([0.3, 0.6, -0.1, 0.5, 0.9, 0.3, -0.2, 0.7, 0.4])
    totals = [abs(np.dot(signs, sums)) for signs in product((1, -1), repeat=len(sums))]
    exact = np.mean([total >= abs(sums.sum()) - 1e-9 for total in totals])
    assert exact < 0.05 and sign_flip(sums) == pytest.approx(exact, abs=0.005)
    assert sign_flip(sums) == sign_flip(sums), "seeded"


@given(st.integers(0, 40), st.integers(0, 40))
def test_with_one_question_per_picture_the_sign_flip_test_is_mcnemars(up: int, down: int) -> None:
    n = up + down
    tail = sum(comb(n, k) for k in range(min(up, down) + 1)) / 2**n
    assert mcnemar(up, down) == pytest.approx(min(1.0, 2 * tail))
    assert sign_flip(np.array([1.0] * up + [-1.0] * down)) == pytest.approx(mcnemar(up, down), abs=1e-12)


@given(HITS)
def test_swapping_the_sides_turns_everything_round(pairs: list[tuple[bool, bool]]) -> None:
    base, variant = zip(*pairs, strict=True)
    there, back = compare(base, variant), compare(variant, base)
    assert (there.up, there.down, there.p) == (back.down, back.up, pytest.approx(back.p))
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert -100 <= there.low <= there.difference <= there.high <= 100 and 0 < there.p <= 1


@given(st.lists(st.sampled_from([0, 1, 0.3, 0.6]), min_size=1, max_size=40), st.booleans())
def test_nothing_changed_is_p_1_and_no_difference(scores: list[float], shared: bool) -> None:
    found = compare(scores, scores, [0] * len(scores) if shared else None)
    assert (found.up, found.down, found.difference, found.p) == (0, 0, 0, 1)
    assert paired_tests.outcome(found, found.p) == "not separable"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_and_keeps_their_order(values: list[float]) -> None:
    corrected = holm(values)
    assert all(raw <= after <= 1 for raw, after in zip(values, corrected, strict=True))
    for (raw, after), (raw2, after2) in product(zip(values, corrected, strict=True), repeat=2):
        assert after <= after2 or raw > raw2
    assert max(corrected) >= min(1, len(values) * min(values))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2]


def test_newcombes_interval_covers_the_true_difference() -> None:
    """Variant and base right in 0.70 and 0.75 of 120 questions, answers correlated."""
    drawn = np.random.default_rng(1).multinomial(120, [0.62, 0.08, 0.13, 0.17], size=3000)
    inside = [low <= -0.05 <= high for low, high in (newcombe(*map(int, row)) for row in drawn)]
    assert 0.935 < np.mean(inside) < 0.975


def pictures(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """60 pictures of 6 questions; what truncation does to a picture befalls nearly all of its questions alike."""
    effect = rng.choice([-1, 0, 1], p=[0.2, 0.6, 0.2], size=60).repeat(6) * (rng.random(360) < 0.8)
    base = np.where(effect < 0, 1, np.where(effect > 0, 0, rng.random(360) < 0.7)).astype(int)
    return base, base + effect, list(np.arange(60).repeat(6))


def test_pictures_with_several_questions_are_what_is_resampled() -> None:
    """Without any effect on the whole: by picture the error rates hold, by question they are far off."""
    rng, wrong, naive, covered, narrow = np.random.default_rng(2), 0, 0, 0, 0
    for _ in range(200):
        base, variant, groups = pictures(rng)
        found, alone = compare(base, variant, groups), compare(base, variant)
        assert (found.pictures, found.n, alone.pictures) == (60, 360, None)
        wrong, naive = wrong + (found.p < 0.05), naive + (alone.p < 0.05)
        covered, narrow = covered + (found.low <= 0 <= found.high), narrow + (alone.low <= 0 <= alone.high)
    assert wrong <= 18 and covered >= 180, "5 % and 95 % of 200, within what chance allows"
    assert naive > 50 and narrow < 150


def test_graded_scores_are_bootstrapped() -> None:
    rng = np.random.default_rng(3)
    base = rng.choice([0, 0.3, 0.6, 0.9, 1], size=400)
    variant = np.where(rng.random(400) < 0.3, np.clip(base - 0.3, 0, 1), base)
    found = compare(base, variant)
    expected = 1.96 * np.std(variant - base) / 20 * 100
    assert found.high - found.difference == pytest.approx(expected, rel=0.1)
    assert found.difference - found.low == pytest.approx(expected, rel=0.1)
    assert found.p == 1e-4 and found.up == 0 and found.down == ((variant - base) < -1e-9).sum()
    assert compare(base, variant) == found, "seeded"


@settings(max_examples=20)
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0]), min_size=10, max_size=30))
def test_the_bootstrap_draws_whole_pictures(sums: list[float]) -> None:
    sizes = np.full(len(sums), 2.0)
    low, high = bootstrap(np.array(sums), sizes)
    assert min(sums) / 2 <= low <= high <= max(sums) / 2
    assert bootstrap(np.array(sums[::-1]), sizes) == (low, high), "the order of the questions does not matter"


def test_few_pictures_give_no_interval() -> None:
    found = compare([0, 1] * 8, [1, 1] * 8, [0, 1] * 8)
    assert isnan(found.low) and isnan(found.high) and found.p == 1
    assert "no CI" in sentence(found, 1.0) and "in 2 pictures" in sentence(found, 1.0)


@pytest.mark.parametrize(
    ("base", "variant", "groups", "message"),
    [([], [], None, "not 0"), ([1], [1, 0], None, r"\(1,\) and \(2,\)"), ([1, float("nan")], [1, 0], None, "1 scores"),
     ([1, 0], [1, 0], ["a"], "1 pictures for 2 questions")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(base: list, variant: list, groups: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(base, variant, groups)


def test_plain_words() -> None:
    found = compare(*vectors(1200, 61, 31, 725))
    assert sentence(found, 0.0023) == "+1.5 (95 % CI +0.6..+2.4), p = .002, 61 up / 31 down: better than the base"
    assert sentence(found, 0.09, 16) == (
        "+1.5 (95 % CI +0.6..+2.4), p = .002 (Holm .09 over 16), 61 up / 31 down: not separable from the base"
    )
    worse = compare(*vectors(1200, 10, 60, 747))
    assert sentence(worse, worse.p).endswith("p < .001, 10 up / 60 down: worse than the base")


def test_a_printed_p_never_crosses_the_level() -> None:
    shown = {0.09: ".09", 0.0496: ".0496", 0.05: ".05", 0.004: ".004", 0.0009: "< .001", 1.0: "1.00", 0.0146: ".01"}
    assert {value: p_text(value) for value in shown} == shown


def test_interval_of_a_score_is_wilsons_or_drawn_over_pictures():
    wilson = binomtest(17, 40).proportion_ci(method="wilson")
    assert paired_tests.interval([1] * 17 + [0] * 23) == pytest.approx((100 * wilson.low, 100 * wilson.high))
    low, high = paired_tests.interval([1] * 40)
    assert 90 < low < 92 and high == pytest.approx(100)
    shared = paired_tests.interval([1] * 20 + [0] * 20, [n // 4 for n in range(40)])
    alone = paired_tests.interval([1] * 20 + [0] * 20)
    assert shared[1] - shared[0] > alone[1] - alone[0]
    graded = paired_tests.interval([0.2, 0.4] * 20)
    assert 20 < graded[0] < 30 < graded[1] < 40
