"""Curves over layers: where one goes flat, and means over questions with bootstrap intervals; numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redrel_vlmeval.errors import ExplainError

FLAT = 0.1  # of the whole rise of a causal curve: what may still be missing where it counts as flat


def cliff(causal: np.ndarray, flat: float = FLAT) -> int:
    """The first layer from which on a causal curve [l + 1] stays within ``flat`` of its rise from its end."""
    rise = abs(float(causal[-1] - causal[0]))
    late = np.abs(causal - causal[-1]) <= flat * rise
    return int(len(late) - np.argmin(late[::-1])) if not late.all() else 0


@dataclass(frozen=True)
class Band:
    """A mean over questions with its bootstrap interval; arrays of one shape."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    questions: int


def band(samples: Sequence[np.ndarray] | np.ndarray, level: float = 0.95, seed: int = 0, draws: int = 2000) -> Band:
    """Mean over questions (first axis) and its percentile bootstrap interval, NaN left out; one question has no width.

    Raises:
        ExplainError: no question.
    """
    values = np.asarray(samples, np.float64)
    if not len(values):
        raise ExplainError("no question was explained: nothing to draw a curve from")
    generator = np.random.default_rng(seed)
    drawn = np.stack([_mean(values[generator.integers(len(values), size=len(values))]) for _ in range(draws)])
    side = (1 - level) / 2
    low, high = np.quantile(drawn, [side, 1 - side], axis=0)
    return Band(_mean(values), low, high, len(values))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where nothing else is."""
    known = ~np.isnan(values)
    count = known.sum(0)
    total = np.where(known, values, 0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def cliff_interval(causal: np.ndarray, level: float = 0.95, seed: int = 0, draws: int = 2000) -> tuple[int, int, int]:
    """(cliff layer of the mean of [questions, l + 1] causal curves, low, high), the interval by bootstrap."""
    generator = np.random.default_rng(seed)
    size = len(causal)
    found = [cliff(causal[generator.integers(size, size=size)].mean(0)) for _ in range(draws)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return cliff(causal.mean(0)), int(low), int(high)
