"""Stored explanations as one offline HTML page: layer slider, token picker, methods, hover values, the cards.

Every map goes in as one byte a cell, a share of its own layer's highest value, which is there in full.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import redrel_vlmeval
from redrel_vlmeval.bases import cautions
from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.draw import flowfigures, view
from redrel_vlmeval.explain.draw.panels import EMBER
from redrel_vlmeval.explain.store import Stored
from redrel_vlmeval.explain.trust import comparing
from redrel_vlmeval.files import atomically
from redrel_vlmeval.sheets import encoded, render

HERE = Path(__file__).resolve().parent
MOST = 2_900_000  # bytes of a page
FULL, NOTHING = 254, 255  # a byte's highest share; no token, or padding


def write(found: Sequence[Stored], path: Path) -> Path:
    """The page of one explanation, or of several side by side.

    Raises:
        ExplainError: another ending than .html, or more than a page can hold. WriteError: a place not to be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ExplainError(f"{str(path)!r}: a page is written as .html, got the ending {path.suffix!r}")
    text = html(found)
    return atomically(path, lambda stream: stream.write(encoded(text)))


def html(found: Sequence[Stored]) -> str:
    """The page as text, under 3 MB: where maps of the last answer tokens do not fit they are left out, and it says so.

    Raises:
        ExplainError: even one map for the whole answer does not fit.
    """
    if not found:
        raise ExplainError("no explanation to show")
    most = max(
        (len(values) for stored in found for name, values in stored.arrays.items() if name.startswith("maps/")),
        default=1,
    )
    for tokens in dict.fromkeys([most, *(most * part // 8 for part in range(7, 0, -1)), 0]):
        shown = [
            _entry(stored, tokens) | {"changes": made} for stored, made in zip(found, _changes(found), strict=True)
        ]
        meta = {
            "version": redrel_vlmeval.__version__,
            "targets": any(entry["targets"] for entry in shown),
            "toys": cautions(str(entry["model"]) for entry in shown),
        }
        data = {"entries": shown, "ramp": _ramp(), "left_out": most - tokens if most > 1 else 0, "states": view.STATES}
        data["veil"] = view.VEIL
        data |= {"looks": {name: look[0] for name, look in flowfigures.LOOKS.items()}, "groups": flowfigures.WORDS}
        text = render(
            HERE, "explain.html.j2", f"{_title(found)}: redrel explain", data, meta=meta, heading=_title(found)
        )
        if len(text.encode("utf-8", "replace")) <= MOST:
            return text
    raise ExplainError(f"a page holds {MOST / 1e6:.1f} MB, these {len(found)} explanations need more: give fewer files")


def _title(found: Sequence[Stored]) -> str:
    """Models and questions, each once."""
    models = dict.fromkeys(str(stored.manifest.get("model")) for stored in found)
    questions = dict.fromkeys(view.asked(stored) for stored in found)
    return ": ".join(filter(None, (" and ".join(models), " / ".join(filter(None, questions)))))


def _entry(stored: Stored, tokens: int) -> dict[str, Any]:
    """One explanation as plain values; ``tokens``: maps of how many single answer tokens."""
    manifest = stored.manifest
    names = ["model", "variant", "question", "reply", "right", "own", "objective", "benchmark", "index", "locality"]
    names += ["questions", "targets"]
    entry: dict[str, Any] = {name: manifest.get(name) for name in names}
    entry |= {"answer": stored.tokens, "z": manifest.get("z") or [], "cards": manifest.get("cards") or []}
    entry |= {"kept": manifest.get("kept") or {}, "provenance": _flat(manifest.get("provenance") or {})}
    count = len(manifest.get("pictures") or [])
    entry["pictures"] = [
        _picture(stored.arrays[f"picture/{number}"]) | {"size": manifest["pictures"][number]["size"]}
        for number in range(count)
        if f"picture/{number}" in stored.arrays
    ]
    entry["maps"] = [_maps(stored, where, method, tokens) for where, method in view.pairs(stored)]
    entry["flow"] = _flow(stored)
    return entry


def _maps(stored: Stored, where: str, method: str, tokens: int) -> dict[str, Any]:
    """A method's maps for each picture: ``sheets`` of bytes, token after token, layer after layer, row after row.

    With several answer tokens the first is the mean over all of them.
    """
    each = len(stored.maps(where, method))
    chosen: list[int | None] = [None] if each == 1 else [None, *range(min(each, tokens))]
    entry: dict[str, Any] = {"where": where, "method": method, "layers": stored.layers(where, method), "sheets": []}
    entry["words"] = view.quantity(stored, where, method)
    entry["tokens"] = [-1 if token is None else token for token in chosen]
    grids = "pixels" if f"pixels/{where}/{method}" in stored.arrays else where
    for picture in range(len(stored.manifest["grids"][grids])):
        sheets = [view.sheet(stored, where, method, token, picture) for token in chosen]
        peaks = [np.nanmax(one.values, axis=(1, 2), initial=0.0) for one in sheets]
        cells = b"".join(_bytes(one.values, peak).tobytes() for one, peak in zip(sheets, peaks, strict=True))
        entry["sheets"].append(
            {
                "shape": list(sheets[0].grid.shape), "box": list(sheets[0].box), "size": list(sheets[0].size),
                "inside": base64.b64encode(sheets[0].grid.inside().astype(np.uint8).tobytes()).decode(),
                "peaks": [[float(f"{value:.6g}") for value in peak] for peak in peaks],
                "sums": [[float(f"{np.nansum(layer):.6g}") for layer in one.values] for one in sheets],
                "cells": base64.b64encode(cells).decode(),
                "status": [list(one.status) for one in sheets],
            }
        )  # fmt: skip
    return entry


def _bytes(values: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """uint8 [l, r, c]: each layer as shares of its own peak, 0 to :data:`FULL`; :data:`NOTHING` for NaN."""
    shares = np.divide(values, peaks[:, None, None], out=np.zeros_like(values), where=peaks[:, None, None] > 0)
    return np.where(np.isnan(values), NOTHING, np.rint(np.nan_to_num(np.clip(shares, 0, 1)) * FULL)).astype(np.uint8)


def _flow(stored: Stored) -> dict[str, Any] | None:
    """Curves of a file that holds an information flow, with their bands where it is a benchmark's."""
    if not any(name.startswith("flow/") for name in stored.arrays):
        return None
    found = flowfigures.lines(stored)
    curves = {
        name: [None if part is None else np.round(part, 5).tolist() for part in (line.mean, line.low, line.high)]
        for name, line in found.items()
    }
    sizes = stored.manifest["groups"]
    shown = [flowfigures.GROUPS[place] for place in flowfigures.shown_groups(stored, found["attention"])]
    facts = {"groups": list(flowfigures.GROUPS), "shown": shown, "sizes": sizes}
    return {"curves": curves, "flat": asdict(flowfigures.flat(stored))} | facts


def _changes(found: Sequence[Stored]) -> list[list[dict[str, Any]]]:
    """For each explanation what comparing it says: the first one with every other model's of the same answer."""
    made: list[list[dict[str, Any]]] = [[] for _ in found]
    for place, other in enumerate(found[1:], 1):
        names = {str(stored.manifest.get("model")) for stored in (found[0], other)}
        if len(names) < 2 or not comparing.same_answer(found[0], other):
            continue
        one = comparing.change(found[0], other)
        facts = {"models": one.models, "replies": one.replies, "flip": one.flip, "kept": len(one.kept or [])}
        before = {method: _by_layer(layers, share) for method, (layers, share, _) in one.shares.items()}
        after = {method: _by_layer(layers, share) for method, (layers, _, share) in one.shares.items()}
        made[0].append(facts | {"shares": before})
        made[place].append(facts | {"shares": after})
    return made


def _by_layer(layers: Sequence[int], shares: np.ndarray) -> dict[int, float | None]:
    return {
        layer: None if np.isnan(share) else round(share, 4)
        for layer, share in zip(layers, shares.tolist(), strict=True)
    }


def _picture(pixels: np.ndarray) -> dict[str, Any]:
    """A data address, PNG where pixels count, else JPEG; and the mean colour."""
    small = max(pixels.shape[:2]) < 200
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG" if small else "JPEG", quality=82, optimize=True)
    text = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return {"src": text, "mean": [round(part) for part in view.ground(pixels)]}


def _ramp() -> list[list[float]]:
    """The figures' colours: red, green, blue 0 to 255 and opacity 0 to 1, 256 of them."""
    return [[*(round(255 * part) for part in color[:3]), round(float(color[3]), 3)] for color in EMBER(np.arange(256))]


def _flat(provenance: dict[str, Any]) -> dict[str, str]:
    """What was run, in one layer of names; settings that were not used left out."""
    flat: dict[str, str] = {}
    for name, value in provenance.items():
        if isinstance(value, dict):
            flat |= {str(key): _words(inner) for key, inner in value.items() if inner not in (None, False, [], "")}
        elif value not in (None, ""):
            flat[name] = _words(value)
    return flat


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
