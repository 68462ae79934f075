"""Slow arithmetic in float64, one token at a time, to re-state formulas with."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import settings, strategies as st

Rows = list[list[float]]
FEW = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


@st.composite
def sized(draw: Any, most: int = 40, least: int = 2) -> tuple[int, int, torch.Generator]:
    """n tokens, a budget of 1 to n of them, and a source of numbers."""
    n = draw(st.integers(least, most))
    return n, draw(st.integers(1, n)), torch.Generator().manual_seed(draw(seeds))


def numbers(source: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=source)


def attention(source: torch.Generator, n: int) -> torch.Tensor:
    return (1.5 * numbers(source, n)).softmax(0)


def dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def cos(one: list[float], other: list[float]) -> float:
    return dot(one, other) / math.sqrt(dot(one, one) * dot(other, other))


def cosines(rows: torch.Tensor) -> Rows:
    listed = rows.tolist()
    return [[cos(one, other) for other in listed] for one in listed]


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(one - top) for one in row]
    return [one / math.fsum(powers) for one in powers]


def ranked(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda j: (-scores[j], j))


def follows(order: list[int], scores: Any, start: int = 0) -> None:
    """Every choice of ``order`` is as good as the best that was left, by ``scores(chosen before, token)``."""
    assert len(set(order)) == len(order)
    for step in range(start, len(order)):
        before = order[:step]
        found = {j: scores(before, j) for j in scores.tokens if j not in before}
        assert found[order[step]] >= max(found.values()) - 1e-5, (step, order)


class Scores:
    def __init__(self, tokens: int, of: Any) -> None:
        self.tokens, self.of = range(tokens), of

    def __call__(self, before: list[int], j: int) -> float:
        return float(self.of(before, j))
