"""The cards of one answer's maps: where each points, where that is known, and the tests that were asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from redrel_vlmeval.explain import pixels
from redrel_vlmeval.explain.asking import Asked
from redrel_vlmeval.explain.faithfulness import card, compare, delete_test, randomisation
from redrel_vlmeval.explain.gradcam import Explained, Maps, Request, explain
from redrel_vlmeval.explain.grid import through
from redrel_vlmeval.explain.items import Item, tokens_on
from redrel_vlmeval.explain.store import Stored


def cards(asked: Asked, explained: Explained, request: Request, item: Item, tested: bool) -> list[dict[str, Any]]:
    """One card for each decoder map whose target is known, and, ``tested``, one per method at its strongest layer.

    Tests (deletion, insertion, weight randomisation) take some hundred forward calls, so they are made at one layer:
    that whose map has the highest sum.

    Raises:
        ExplainError: pictures of this family cannot be erased cell by cell.
    """
    found = []
    for maps in (maps for maps in explained.maps if maps.where == "decoder"):
        values = on_picture(maps, explained)
        target = _target(asked, explained, item)
        strongest = int(np.nan_to_num(values).sum(1).argmax())
        for place, layer in enumerate(maps.layers):
            test = tested and place == strongest and any(row[place] == "ok" for row in maps.status)
            if target is None and not test:
                continue
            known: dict[str, Any] = {} if target is None else {"asked_cells": target[0], "other_cells": target[1]}
            if test:
                known |= _tests(asked, request, maps.method, layer, values[place], target)
            found.append(card(maps.where, maps.method, layer, values[place], **known))
    return found


def on_picture(maps: Maps, explained: Explained) -> np.ndarray:
    """[l, cells]: mean over answer tokens, on the patches where the tokens themselves have no place."""
    values = maps.values if explained.attention is None else through(maps.values, explained.attention)
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(total.shape, np.nan, np.float32), where=known.any(0))


def _target(asked: Asked, explained: Explained, item: Item) -> tuple[list[int], list[int]] | None:
    """Tokens on the object asked for, and on the others; None where that is not known."""
    if not item.cells:
        return None
    (grid,) = pixels.grids(asked, "decoder" if explained.attention is None else "pixels")
    return tokens_on(grid, item.cells), tokens_on(grid, item.others)


def _tests(
    asked: Asked, request: Request, method: str, layer: int, values: np.ndarray,
    target: tuple[list[int], list[int]] | None,
) -> dict[str, Any]:  # fmt: skip
    oracle = None if target is None else target[0]
    one = replace(request, methods=(method,), where=("decoder",), layers=(layer,))

    def draw(changed: Asked) -> np.ndarray:
        again = explain(changed, one)
        return on_picture(again.maps[0], again)[0]

    blocks = len(asked.decoder.blocks)
    return {
        "deleted": delete_test(asked, values, oracle, seed=request.seed),
        "inserted": delete_test(asked, values, oracle, insertion=True, seed=request.seed),
        "randomised": randomisation(asked, draw, sorted({1, blocks // 2, blocks} - {0}), request.seed),
    }


def swapped(first: Stored, second: Stored) -> list[dict[str, Any]]:
    """How like two questions' maps of one picture are, layer by layer: the question swap, as cards."""
    found = []
    for name, entry in first.manifest["maps"].items():
        where, _, method = name.partition("/")
        if where != "decoder" or name not in second.manifest["maps"]:
            continue
        one, two = (stored.maps(where, method).mean(0) for stored in (first, second))
        for place, layer in enumerate(entry["layers"]):
            found.append(card(where, method, layer, one[place], swap=compare(one[place], two[place])))
    return found
