"""Paired tests between a variant and its base on the same questions: arrays in, numbers and plain words out.

Scores are per question, in 0..1. Questions answered right or wrong get the exact McNemar test and Newcombe's interval;
graded scores, and questions that share pictures, get a sign-flip test and a bootstrap over pictures, both seeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

import numpy as np
from scipy.special import bdtr
from scipy.stats import norm

LEVEL = 0.05
Z = float(norm.ppf(1 - LEVEL / 2))
SEED = 20240617
RESAMPLES = 9999
# Resampling fewer units than this gives intervals that are far too narrow.
FEWEST = 10


Scores = Sequence[float] | np.ndarray  # one per question


@dataclass(frozen=True)
class Comparison:
    """A variant beside its base over ``n`` questions; ``difference``, ``low`` and ``high`` are in points.

    ``up`` and ``down`` count questions whose score rose and fell. ``pictures`` is None where each question counts as
    independent of the others. The 95 % interval is of this one comparison; it is empty (nan) below ten units.
    """

    n: int
    up: int
    down: int
    difference: float
    low: float
    high: float
    p: float
    pictures: int | None = None


def compare(base: Scores, variant: Scores, pictures: Sequence[object] | None = None) -> Comparison:
    """The variant against the base, question by question; ``pictures`` names the picture of each question.

    Raises:
        ValueError: no questions, unequal lengths, or a score that is no number.
    """
    before, after = np.asarray(base, dtype=float), np.asarray(variant, dtype=float)
    if before.ndim != 1 or before.shape != after.shape or not before.size:
        raise ValueError(f"scores of shapes {before.shape} and {after.shape}: expected two of one length, not 0")
    if np.isnan(before).any() or np.isnan(after).any():
        raise ValueError(f"{int(np.isnan(before).sum() + np.isnan(after).sum())} scores are no numbers")
    change = after - before
    # Thirds and tenths summed in another order differ in the last bits, which is no change of a score.
    up, down = int((change > 1e-9).sum()), int((change < -1e-9).sum())
    sums, sizes = _by_picture(change, pictures)
    shared = len(sums) < len(change)
    if not shared and np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        both = int(((before == 1) & (after == 1)).sum())
        low, high = newcombe(both, up, down, before.size - both - up - down)
        p = mcnemar(up, down)
    else:
        low, high = bootstrap(sums, sizes)
        p = sign_flip(sums)
    difference = 100 * float(change.mean())
    return Comparison(before.size, up, down, difference, 100 * low, 100 * high, p, len(sums) if shared else None)


def interval(scores: Scores, pictures: Sequence[object] | None = None) -> tuple[float, float]:
    """95 % interval of a mean score, in points: Wilson's, or drawn over pictures where :func:`compare` does so."""
    values = np.asarray(scores, dtype=float)
    sums, sizes = _by_picture(values, pictures)
    if len(sums) == len(values) and np.isin(values, (0, 1)).all():
        low, high = wilson(int(values.sum()), len(values))
    else:
        low, high = bootstrap(sums, sizes)
    return 100 * low, 100 * high


def _by_picture(change: np.ndarray, pictures: Sequence[object] | None) -> tuple[np.ndarray, np.ndarray]:
    """Summed change and number of questions of each picture; each question is its own picture if none are given."""
    if pictures is None:
        return change, np.ones(len(change))
    if len(pictures) != len(change):
        raise ValueError(f"{len(pictures)} pictures for {len(change)} questions")
    place = {picture: number for number, picture in enumerate(dict.fromkeys(pictures))}
    where = np.array([place[picture] for picture in pictures])
    return np.bincount(where, weights=change), np.bincount(where).astype(float)


def mcnemar(up: int, down: int) -> float:
    """Two-sided exact McNemar p: are the questions that changed as likely to rise as to fall? 1 if none changed."""
    # At a chance of one half both tails are equal, so that no search for the other one is needed.
    return min(1.0, 2 * float(bdtr(min(up, down), up + down, 0.5)))


def newcombe(both: int, up: int, down: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, (both + up)/n - (both + down)/n.

    Square-and-add of the two Wilson intervals with the continuity-corrected correlation: method 10 of R. G. Newcombe,
    Improved confidence intervals for the difference between binomial proportions based on paired data, Statistics in
    Medicine 17 (1998), 2635-2650.
    """
    n = both + up + down + neither
    after, before = both + up, both + down
    (low1, high1), (low2, high2) = wilson(after, n), wilson(before, n)
    below1, above1, below2, above2 = after / n - low1, high1 - after / n, before / n - low2, high2 - before / n
    excess = float(both * neither - up * down)
    excess = max(excess - n / 2, 0.0) if excess > 0 else excess
    margins = sqrt(after * (n - after)) * sqrt(before * (n - before))
    phi = excess / margins if margins else 0.0
    down_by = sqrt(max(below1**2 - 2 * phi * below1 * above2 + above2**2, 0))
    up_by = sqrt(max(above1**2 - 2 * phi * above1 * below2 + below2**2, 0))
    return (up - down) / n - down_by, (up - down) / n + up_by


def wilson(count: int, n: int) -> tuple[float, float]:
    """E. B. Wilson's 95 % interval of a proportion (1927)."""
    middle = (count + Z * Z / 2) / (n + Z * Z)
    half = Z * sqrt(count * (n - count) / n + Z * Z / 4) / (n + Z * Z)
    return middle - half, middle + half


def sign_flip(sums: np.ndarray) -> float:
    """Two-sided p of the summed change, if each picture's change were as likely to have the other sign.

    Exact for whole sums (questions right or wrong), where the distribution is built up picture by picture; with one
    question per picture it is the exact McNemar test. For graded scores 9999 seeded draws stand in for it.
    """
    moved = np.abs(sums[np.abs(sums) > 1e-9])
    if not moved.size:
        return 1.0
    observed = abs(float(sums.sum()))
    if np.allclose(moved, np.round(moved), rtol=0, atol=1e-9):
        steps = np.round(moved).astype(int)
        chances = np.ones(1)
        for step in steps:
            wider = np.zeros(len(chances) + 2 * step)
            wider[: len(chances)] += chances / 2
            wider[2 * step :] += chances / 2
            chances = wider
        totals = np.arange(len(chances)) - steps.sum()
        return min(1.0, float(chances[np.abs(totals) >= observed - 1e-6].sum()))
    sizes, counts = np.unique(np.round(moved, 9), return_counts=True)
    drawn = 2 * np.random.default_rng(SEED).binomial(counts, 0.5, size=(RESAMPLES, len(counts))) - counts
    return float((np.abs(drawn @ sizes) >= observed - 1e-6).sum() + 1) / (RESAMPLES + 1)


def bootstrap(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean change per question, over 9999 seeded draws of whole pictures.

    Empty (nan) for fewer than ten pictures. Equal pictures are drawn together, which is the same and much faster.
    """
    if len(sums) < FEWEST:
        return nan, nan
    kinds, counts = np.unique(np.stack([np.round(sums, 9), sizes]), axis=1, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(sums), counts / len(sums), size=RESAMPLES)
    low, high = np.quantile((drawn @ kinds[0]) / (drawn @ kinds[1]), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each p times the number of those not yet rejected, never falling, at most 1."""
    corrected, highest = [1.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected


def outcome(comparison: Comparison, corrected: float) -> str:
    """'better', 'worse' or 'not separable', by the corrected p at the level of 5 %."""
    if corrected >= LEVEL:
        return "not separable"
    return "better" if comparison.difference > 0 else "worse"


def sentence(comparison: Comparison, corrected: float, variants: int = 1) -> str:
    """The comparison in plain words, with the corrected p where the table has several variants."""
    low, high = comparison.low, comparison.high
    span = f"95 % CI {low:+.1f}..{high:+.1f}" if not isnan(low) else f"fewer than {FEWEST} units: no CI"
    after = f" (Holm {p_text(corrected)} over {variants})" if variants > 1 else ""
    units = f" in {comparison.pictures} pictures" if comparison.pictures else ""
    equals = "" if comparison.p < 0.001 else "= "
    found = f"{comparison.difference:+.1f} ({span}), p {equals}{p_text(comparison.p)}{after}"
    flips = f"{comparison.up} up / {comparison.down} down{units}"
    said = outcome(comparison, corrected)
    return f"{found}, {flips}: {said} {'from' if said == 'not separable' else 'than'} the base"


def p_text(value: float) -> str:
    """A p-value without its leading zero: two digits, or as many as keep a value below the level below it."""
    if value < 0.001:
        return "< .001"
    kept = (d for d in range(2, 9) if round(value, d) and (round(value, d) < LEVEL) == (value < LEVEL))
    digits = next(kept, 9)
    return f"{value:.{digits}f}".removeprefix("0")
