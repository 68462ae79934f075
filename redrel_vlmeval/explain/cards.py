"""The cards of one answer's maps: where each points, where that is known, and the tests that were asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tabulate import tabulate

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
    return _mean(maps.values if explained.attention is None else through(maps.values, explained.attention))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is there; NaN where nothing is."""
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


def swapped(first: Stored, second: Stored) -> None:
    """Put into both explanations' cards how like their maps of one picture are, layer by layer: the question swap."""
    for name, entry in first.manifest["maps"].items():
        where, _, method = name.partition("/")
        if where != "decoder" or name not in second.manifest["maps"]:
            continue
        maps = [stored.maps(where, method) for stored in (first, second)]
        for place, layer in enumerate(entry["layers"]):
            one, two = (_mean(values)[place] for values in maps)
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
