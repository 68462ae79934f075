"""Is a variant not worse than its base by more than a margin, and from which layer on? Arrays in, numbers out.

Scores are per question, in 0..1; margins are in points. One score test serves all of them: on questions that are right
or wrong it is Tango's, and where questions share pictures, or scores are graded, the same with a picture as the unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from redrel_vlmeval.errors import InvalidValue

LEVEL = 0.05  # one-sided
MARGIN = 2.0  # points that still count as not worse, where nothing else is asked for


def score(change: np.ndarray, size: np.ndarray, margin: float) -> float:
    """Score statistic of H0: the mean change per question is -margin; normal under H0, however pictures' answers agree.

    Above 1.645 the variant is shown to be not worse by the margin, below -1.645 to be worse by more (one-sided 5 %)::

        change   0  0 -1  0 +2 ...   summed over each picture's questions      z = sum(excess) / sqrt(units * variance)
        size     4  4  4  4  4 ...   its questions
        excess   change + margin * size, of mean 0 under H0

    The variance is that under H0: of the distribution under which the data are likeliest among those whose mean is 0
    (empirical likelihood). A change that was not seen can be in it, a whole picture lost (or won): with a few flips,
    or none, the flips seen say little of the spread, so a Wald test would be certain of too much. With one question a
    picture, right or wrong, this is the test of T. Tango, Equivalence test and confidence interval for the difference
    in proportions for the paired-sample design, Statistics in Medicine 17 (1998), 891-908.

    Args:
        change: [pictures], variant minus base, summed over a picture's questions.
        size: [pictures], questions of each.
        margin: as a share, above 0 and below 1.
    """
    excess = change + margin * size
    total = float(excess.sum())
    if abs(total) < 1e-9:  # rounding, which may be all the spread there is
        return 0.0
    sign = 1.0 if total > 0 else -1.0
    typical = float((size**2).sum() / size.sum())  # questions on the picture of a question
    unseen = -(1 - sign * margin) * typical
    weights, rest = _likeliest(sign * excess, unseen)
    variance = float((weights * excess**2).sum()) + rest * unseen**2
    return total / sqrt(len(size) * variance)


def _likeliest(excess: np.ndarray, unseen: float) -> tuple[np.ndarray, float]:
    """Weights of the units [pictures] and of one unit not seen, of weighted mean 0, whose likelihood is highest.

    Lagrange: a unit's weight is 1 / (units * (1 + slope * excess)); what they leave is the unseen unit's, which has
    any only where the slope is at its bound ``-1 / unseen``.
    """
    bound = -1 / min(float(excess.min()), unseen)

    def left(slope: float) -> float:
        return float((excess / (1 + slope * excess)).sum())

    slope = bound * (1 - 1e-12)  # at the bound itself a unit as bad as the unseen one would divide by 0
    if left(slope) < 0:
        slope = brentq(left, 0, slope) if left(0) > 0 else 0.0
    weights = 1 / (len(excess) * (1 + slope * excess))
    return weights, max(1 - float(weights.sum()), 0.0)


@dataclass(frozen=True, eq=False)
class Paired:
    """Scores of a base and of several variants on the same questions, summed by picture.

    ``change``: variants x pictures, variant minus base; ``size``: questions per picture.
    """

    change: np.ndarray
    size: np.ndarray

    @classmethod
    def of(
        cls, base: Sequence[float] | np.ndarray, variants: np.ndarray, pictures: Sequence[object] | None = None
    ) -> Paired:
        """From scores per question; ``variants`` is variants x questions.

        Raises:
            ValueError: no questions, shapes that do not fit, or scores that are no numbers.
        """
        before, after = np.asarray(base, dtype=float), np.atleast_2d(np.asarray(variants, dtype=float))
        if before.ndim != 1 or not before.size or after.shape[1:] != before.shape:
            raise InvalidValue(f"scores of shapes {before.shape} and {after.shape}: expected n and variants x n, n > 0")
        if np.isnan(before).any() or np.isnan(after).any():
            raise InvalidValue(f"{int(np.isnan(before).sum() + np.isnan(after).sum())} scores are no numbers")
        names = list(range(before.size)) if pictures is None else list(pictures)
        if len(names) != before.size:
            raise InvalidValue(f"{len(names)} pictures for {before.size} questions")
        place = {name: number for number, name in enumerate(dict.fromkeys(names))}
        where = np.array([place[name] for name in names])
        change = np.stack([np.bincount(where, weights=row, minlength=len(place)) for row in after - before])
        return cls(change, np.bincount(where).astype(float))

    def z(self, margin: float) -> np.ndarray:
        """:func:`score` of each variant, [variants]; ``margin`` as a share."""
        return np.array([score(change, self.size, margin) for change in self.change])


def p_not_worse(z: float) -> float:
    """One-sided p of H0 'worse by the margin or more'; it never falls when a question more is lost."""
    return float(norm.sf(z))


def fewest(margin: float, level: float = LEVEL) -> int:
    """How many questions it takes, without a single flip, to show "not worse by ``margin`` points or more".

    With fewer no result says anything of the margin. Where questions share pictures, it is as many pictures.

    Raises:
        ValueError: a margin out of range.
    """
    share = _share(margin)
    # Without a flip z**2 is n * share / (1 - share), which has to lie above the level's quantile.
    return int(float(norm.isf(level)) ** 2 * (1 - share) / share) + 1


def _share(margin: float) -> float:
    if not 0 < margin < 100:
        raise InvalidValue(f"margin {margin}: expected points above 0 and below 100")
    return margin / 100


@dataclass(frozen=True)
class Cliff:
    """Where the cliff layer lies: the smallest from which on, at every deeper one too, less than the margin is lost.

    ``at_most``: shown by the layers from it on, each not worse by the margin; inf if none is. ``at_least``: shown by
    the layers before it, each worse by more than the margin; 0 if none is. Each end holds at 95 %, one-sided.
    """

    at_least: float
    at_most: float


def cliff(paired: Paired, layers: Sequence[int], margin: float) -> Cliff:
    """The cliff layer of variants at rising ``layers``, ``margin`` in points.

    Layers are tested from the deepest up, stopping at the first that is not shown to be not worse; and from the
    shallowest down, stopping at the first that is not shown to be worse. Both are fixed sequences, so the level of
    5 % holds for each end without a correction, for these variants: of several such answers each has its own 5 %.

    Raises:
        ValueError: layers that do not rise or do not fit, or a margin out of range.
    """
    if list(layers) != sorted(set(layers)) or len(layers) != len(paired.change):
        raise InvalidValue(f"layers {list(layers)} for {len(paired.change)} variants: expected as many, rising")
    z, bar = paired.z(_share(margin)), float(norm.isf(LEVEL))
    worse, fine = _run(z < -bar), _run(z[::-1] > bar)
    return Cliff(layers[worse - 1] + 1 if worse else 0, layers[-fine] if fine else inf)


def _run(passed: np.ndarray) -> int:
    """How many pass before the first that does not."""
    return int(np.logical_and.accumulate(passed).sum())
