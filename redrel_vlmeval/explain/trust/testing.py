"""The cards of all of an answer's maps: where each points, if that is known, and the tests that were asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from tabulate import tabulate

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked, Item, tokens_on
from redrel_vlmeval.explain.draw import mean_known
from redrel_vlmeval.explain.maps import Explained, Maps, Request, explain, grids, pixels, through
from redrel_vlmeval.explain.store import ROW, Stored
from redrel_vlmeval.explain.trust.faithfulness import card, compare, delete_test, randomisation


def cards(asked: Asked, explained: Explained, request: Request, item: Item, tested: bool) -> list[dict[str, Any]]:
    """One card for each decoder map whose target is known, and, ``tested``, one per method at its strongest layer.

    Tests (deletion, insertion, shuffled weights) take some hundred forward calls, so they are made at one layer: that
    whose map has the highest sum.

    Raises:
        ExplainError: see :func:`examine`.
    """
    found = []
    target = _target(asked, explained, item)
    known = {} if target is None else {"asked_cells": target[0], "other_cells": target[1]}
    for maps in (maps for maps in explained.maps if maps.where == "decoder"):
        values = on_picture(maps, explained)
        strongest = int(np.nan_to_num(values).sum(1).argmax())
        for place, layer in enumerate(maps.layers):
            if tested and maps.method != ROW and place == strongest and any(row[place] == "ok" for row in maps.status):
                found.append(examine(asked, request, maps.method, layer, blocks=_blocks(asked), **known))  # type: ignore[arg-type]
            elif target is not None:
                found.append(card(maps.where, maps.method, layer, values[place], **known))  # type: ignore[arg-type]
    return found


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
    if asked.embedded and pixels is None:
        return False
    return rows == cols and (pixels is None or (pixels.ndim == 4 and len(pixels) == 1))


def _blocks(asked: Asked) -> list[int]:
    """How many of the last blocks to shuffle: one, half, all."""
    count = len(asked.decoder.blocks)
    return sorted({1, max(1, count // 2), count})


def on_picture(maps: Maps, explained: Explained) -> np.ndarray:
    """[l, cells]: mean over answer tokens, on the patches where the tokens themselves have no place."""
    return mean_known(maps.values if explained.attention is None else through(maps.values, explained.attention))


def _target(asked: Asked, explained: Explained, item: Item) -> tuple[list[int], list[int]] | None:
    """Tokens on the object asked for, and on the others; None where that is not known."""
    if not item.regions:
        return None
    (grid,) = pixels.grids(asked, "decoder" if explained.attention is None else "pixels")
    return tokens_on(grid, item.regions), tokens_on(grid, item.others)


def swapped(first: Stored, second: Stored) -> None:
    """Put into both explanations' cards how like their maps of one picture are, layer by layer: the question swap."""
    for name, entry in first.manifest["maps"].items():
        where, _, method = name.partition("/")
        if where != "decoder" or name not in second.manifest["maps"]:
            continue
        maps = [stored.maps(where, method) for stored in (first, second)]
        for place, layer in enumerate(entry["layers"]):
            one, two = (mean_known(values)[place] for values in maps)
            for stored in (first, second):
                _add(stored.manifest["cards"], card(where, method, layer, one, swap=compare(one, two)))


def _add(known: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """To the card of the same map, or as one of its own."""
    for old in known:
        if all(old[name] == new[name] for name in ("where", "method", "layer")):
            old.update(new)
            return
    known.append(new)


def swap_text(one: Stored) -> str:
    """The question swap as a person reads it."""
    order = list(one.manifest["maps"])
    found = [item for item in one.manifest["cards"] if "question_swap" in item]
    found.sort(key=lambda item: (order.index(f"{item['where']}/{item['method']}"), item["layer"]))
    rows = [[item["method"], item["layer"], *item["question_swap"].values()] for item in found]
    title = "the same picture under the other question: how like each layer's map stays"
    return f"{title}\n{tabulate(rows, headers=['method', 'block', 'rank correlation', 'same peak'], floatfmt='.2f')}"
