"""Curves over layers: from where on one is flat, and means over questions with bootstrap intervals; numpy only."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.results import FEWEST

FLAT = 0.1  # of the whole rise of a causal curve: what may still be missing where it counts as flat
DRAWS = 2000
ENDS = (0.025, 0.975)


def flat_from(causal: np.ndarray) -> int:
    """The first layer from which on a causal curve [l + 1] stays within :data:`FLAT` of its rise from its end.

    This is seen on the curve of margins; a sweep's *cliff layer* is another thing, tested on answers.
    """
    rise = abs(float(causal[-1] - causal[0]))
    late = np.abs(causal - causal[-1]) <= FLAT * rise
    return int(len(late) - np.argmin(late[::-1])) if not late.all() else 0


@dataclass(frozen=True)
class Band:
    """A mean over questions with its 95 % bootstrap interval; arrays of one shape.

    ``low`` and ``high`` are None for fewer than ten pictures: resampling so few gives a far too narrow interval.
    """

    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    questions: int


def band(samples: Sequence[np.ndarray] | np.ndarray, pictures: Sequence[Hashable] | None = None, seed: int = 0) -> Band:
    """Mean over questions (first axis), NaN left out, and its percentile interval over draws of whole pictures.

    Args:
        pictures: the picture of each question; each has its own where none are given.

    Raises:
        ExplainError: no question.
    """
    values = np.asarray(samples, np.float64)
    if not len(values):
        raise ExplainError("no question was explained: nothing to draw a curve from")
    drawn = _drawn(values, pictures, seed)
    low, high = (None, None) if drawn is None else np.quantile(drawn, ENDS, axis=0)
    return Band(_means(values, np.ones((1, len(values))))[0], low, high, len(values))


def flat_interval(causal: np.ndarray, pictures: Sequence[Hashable] | None = None, seed: int = 0) -> tuple[int, ...]:
    """(layer from which on the mean of [questions, l + 1] curves is flat, low, high); no ends for too few pictures."""
    drawn = _drawn(causal, pictures, seed)
    found = flat_from(causal.mean(0))
    if drawn is None:
        return (found,)
    low, high = np.quantile([flat_from(curve) for curve in drawn], ENDS, method="nearest")
    return found, int(low), int(high)


def _drawn(values: np.ndarray, pictures: Sequence[Hashable] | None, seed: int) -> np.ndarray | None:
    """Means of seeded draws of whole pictures, [draws, ...]; None for too few to draw from."""
    names = list(range(len(values))) if pictures is None else list(pictures)
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if len(place) < FEWEST:
        return None
    count = np.random.default_rng(seed).multinomial(len(place), np.full(len(place), 1 / len(place)), size=DRAWS)
    return _means(values, count[:, [place[name] for name in names]].astype(float))


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means over the first axis without NaN, one for each row of ``weights`` [draws, questions]; NaN where none is."""
    known = ~np.isnan(values)
    count = np.tensordot(weights, known.astype(float), 1)
    total = np.tensordot(weights, np.where(known, values, 0), 1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
