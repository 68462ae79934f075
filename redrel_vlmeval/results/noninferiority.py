"""Is a variant not worse than its base by more than a margin, and from which layer on? Arrays in, numbers out.

Scores are per question, in 0..1; margins are in points. Questions answered right or wrong are tested by Tango's score
test on the flips; graded scores, and questions that share pictures, by a z test whose variance is taken over pictures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isnan, nan

import numpy as np
from scipy.stats import norm

from redrel_vlmeval.errors import InvalidValue

LEVEL = 0.05  # one-sided
SEED = 20240617
DRAWS = 1999
# Resampling fewer units than this gives intervals that are far too narrow.
FEWEST = 10


def tango(up: np.ndarray | float, down: np.ndarray | float, n: np.ndarray | float, margin: float) -> np.ndarray:
    """Score statistic of H0: share(up) - share(down) <= -margin; above 1.645 the variant is not worse (one-sided 5 %).

    T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998), 891-908. Defined without a single flip as well, where a Wald test is not.

    Args:
        margin: as a share, above 0 and below 1.
    """
    up, down, n = (np.asarray(value, dtype=float) for value in (up, down, n))
    bound = -margin
    a, b, c = 2 * n, -up - down + (2 * n - up + down) * bound, -down * bound * (1 - bound)
    share = (np.sqrt(np.maximum(b * b - 4 * a * c, 0)) - b) / (2 * a)
    variance = n * (2 * share + bound * (1 - bound))
    return (up - down - n * bound) / np.sqrt(np.maximum(variance, 1e-12))


@dataclass(frozen=True, eq=False)
class Paired:
    """Scores of a base and of several variants on the same questions, summed by picture.

    ``change``: variants x pictures, variant minus base; ``size``: questions per picture; ``up`` and ``down`` count the
    flips by picture. ``binary``: every question is right or wrong and has a picture of its own.
    """

    change: np.ndarray
    size: np.ndarray
    up: np.ndarray
    down: np.ndarray
    binary: bool

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
        change = after - before

        def by_picture(values: np.ndarray) -> np.ndarray:
            return np.stack([np.bincount(where, weights=row, minlength=len(place)) for row in values])

        whole = bool(np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all())
        return cls(
            by_picture(change),
            np.bincount(where).astype(float),
            by_picture(change > 1e-9),
            by_picture(change < -1e-9),
            whole and len(place) == before.size,
        )

    def z(self, margin: float, weights: np.ndarray | None = None) -> np.ndarray:
        """Test statistic of each variant, for pictures weighted by ``weights`` (draws x pictures): draws x variants."""
        drawn = np.ones((1, len(self.size))) if weights is None else weights
        n = (drawn @ self.size)[:, None]
        if self.binary:
            return tango(drawn @ self.up.T, drawn @ self.down.T, n, margin)
        mean = drawn @ self.change.T / n
        square, cross, sizes = drawn @ (self.change**2).T, drawn @ (self.change * self.size).T, drawn @ self.size**2
        spread = np.maximum(square - 2 * mean * cross + mean**2 * sizes[:, None], 0) / n**2
        # Without any change there is no spread to judge by: how rare changes must then be, Tango's test says.
        still = tango(0.0, 0.0, drawn.sum(axis=1)[:, None], margin) * np.ones_like(mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.where(spread > 0, (mean + margin) / np.sqrt(spread), np.where(mean + margin > 0, inf, -inf))
        return np.where(square > 0, moved, still)

    def draws(self) -> np.ndarray:
        """Seeded bootstrap weights of the pictures, draws x pictures; the same for all variants: they are paired."""
        return _draws(len(self.size))


@lru_cache(maxsize=1)
def _draws(units: int) -> np.ndarray:
    drawn = np.random.default_rng(SEED).multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(float)
    drawn.flags.writeable = False  # all callers share it
    return drawn


def p_not_worse(z: float) -> float:
    """One-sided p of H0 'worse by the margin or more'."""
    return float(norm.sf(z))


def fewest(margin: float) -> int:
    """How many questions it takes, without a single flip, to show "not worse by ``margin`` points or more".

    With fewer no result says anything of the margin. Where questions share pictures, it is as many pictures.

    Raises:
        ValueError: a margin out of range.
    """
    if not 0 < margin < 100:
        raise InvalidValue(f"margin {margin}: expected points above 0 and below 100")

    def shown(n: int) -> bool:
        return float(tango(0, 0, n, margin / 100)) > norm.ppf(1 - LEVEL)

    most = 1
    while not shown(most):
        most *= 2
    return 1 + bisect_left(range(1, most + 1), True, key=shown)


@dataclass(frozen=True)
class Cliff:
    """``layer``: the smallest from which, and for every deeper one tested, the variant is not worse; inf if none is.

    ``low`` and ``high``: 95 % bootstrap interval over pictures (inf: deeper than any tested; nan: too few pictures).
    """

    layer: float
    low: float
    high: float

    def __str__(self) -> str:
        def word(layer: float) -> str:
            return "none" if layer == inf else f"{layer:.0f}"

        span = f"{word(self.low)} to {word(self.high)}" if not isnan(self.low) else f"fewer than {FEWEST} pictures"
        return f"{word(self.layer)} ({span})"


def cliff(paired: Paired, layers: Sequence[int], margin: float) -> Cliff:
    """The cliff layer of variants at rising ``layers``, ``margin`` in points.

    Layers are tested from the deepest up, stopping at the first that is not shown to be not worse: a fixed sequence,
    so that the level of 5 % holds for the whole answer without a correction.

    Raises:
        ValueError: layers that do not rise or do not fit, or a margin out of range.
    """
    if list(layers) != sorted(set(layers)) or len(layers) != len(paired.change):
        raise InvalidValue(f"layers {list(layers)} for {len(paired.change)} variants: expected as many, rising")
    if not 0 < margin < 100:
        raise InvalidValue(f"margin {margin}: expected points above 0 and below 100")
    found = _first(paired.z(margin / 100), layers)[0]
    if len(paired.size) < FEWEST:
        return Cliff(float(found), nan, nan)
    drawn = np.sort(_first(paired.z(margin / 100, paired.draws()), layers))
    # Order statistics, since between a layer and 'none' there is nothing to interpolate.
    low, high = drawn[int(0.025 * (DRAWS - 1))], drawn[int(np.ceil(0.975 * (DRAWS - 1)))]
    return Cliff(float(found), float(low), float(high))


def _first(z: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """Of each draw, the layer from which all statistics pass."""
    passed = z > norm.ppf(1 - LEVEL)
    onward = np.logical_and.accumulate(passed[:, ::-1], axis=1).sum(axis=1)
    ends = np.array([inf, *reversed(layers)], dtype=float)
    return ends[onward]
