"""One map put to every test that its question allows: the card that stands beside a figure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked
from redrel_vlmeval.explain.maps import Request, explain, grids, through
from redrel_vlmeval.explain.trust.faithfulness import card, compare, delete_test, randomisation


def one_map(asked: Asked, request: Request, method: str, layer: int) -> np.ndarray:
    """One decoder map of the whole answer on the picture's cells, [cells]; carried to patches where attention leads.

    Raises:
        ExplainError: see :func:`gradcam.explain`.
    """
    found = explain(asked, replace(request, methods=(method,), where=("decoder",), layers=(layer,), per_token=False))
    values = found.maps[0].values[0, 0]
    return values if found.attention is None else through(values, found.attention)


def examine(
    asked: Asked, request: Request, method: str, layer: int, *, asked_cells: Collection[int] | None = None,
    other_cells: Collection[int] = (), swapped: Asked | None = None, blocks: Collection[int] = (), orders: int = 4,
) -> dict[str, Any]:  # fmt: skip
    """The card of one decoder map: what it points at, deletion, insertion, another question, weights out of order.

    Args:
        request: objective, smoothing, seed and tower as the map is drawn with.
        asked_cells, other_cells: where the asked object and others are, where that is known.
        swapped: the same picture under another question.
        blocks: for each number, shuffle the weights of so many of the last decoder blocks.
        orders: random orders that deletion and insertion are compared with; 0 leaves both tests out, which several
            pictures, or tiles, do too.
    """
    values = one_map(asked, request, method, layer)
    oracle = None if asked_cells is None else sorted(asked_cells)
    tests: dict[str, Any] = {}
    if orders and _one_square(asked):
        seed = request.seed
        tests["deleted"] = delete_test(asked, values, oracle, seed=seed, orders=orders)
        tests["inserted"] = delete_test(asked, values, oracle, insertion=True, seed=seed, orders=orders)
    if swapped is not None:
        tests["swap"] = compare(values, one_map(swapped, request, method, layer))
    if blocks:
        numbers = sorted(blocks)
        tests["randomised"] = randomisation(asked, lambda q: one_map(q, request, method, layer), numbers, request.seed)
    return card("decoder", method, layer, values, asked_cells=asked_cells, other_cells=other_cells, **tests)


def _one_square(asked: Asked) -> bool:
    """Whether the question has one picture whose pixels are one square, so that its cells can be erased."""
    try:
        (grid,) = grids(asked, "pixels")
    except (ExplainError, ValueError):
        return False
    pixels = asked.inputs.get("pixel_values")
    rows, cols = grid.shape
    return rows == cols and (pixels is None or (pixels.ndim == 4 and len(pixels) == 1))
