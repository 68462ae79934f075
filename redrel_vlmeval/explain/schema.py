"""What an explanation's file has to hold: every array and every field of the manifest that anything reads.

A file may have been cut, edited, or written by another program. What is wrong in it is found here, once, and named;
figures, pages and comparisons then take it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from redrel_vlmeval.errors import ExplainError

STATUS = ("ok", "no_gradient", "blank", "pruned")
GROUPS = 5  # of tokens; spans.GROUPS
LAYERS = 512  # more blocks than any decoder has: a figure has a panel for each
SIDE = 1_000_000  # pixels of a picture; cells of a map

Check = Callable[[Any, str], None]  # of a value, and what it is called


class Wrong(ExplainError):
    """A field that does not hold what it should; its text names the field."""


def _demand(holds: bool, name: str, words: str) -> None:
    if not holds:
        raise Wrong(f"{name}: {words}")


# -- one value ---------------------------------------------------------------------------------------------------------


def text(value: Any, name: str) -> None:
    _demand(isinstance(value, str), name, f"a text, not {_said(value)}")


def flag(value: Any, name: str) -> None:
    _demand(isinstance(value, bool), name, f"true or false, not {_said(value)}")


def number(value: Any, name: str) -> None:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    _demand(fine, name, f"a number, not {_said(value)}")


def real(value: Any, name: str) -> None:
    """A number that a model made: perhaps none (nan)."""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    _demand(fine, name, f"a number, not {_said(value)}")


def anything(value: Any, name: str) -> None:
    """No more is asked of what is only shown."""


def whole(least: int, most: int = 2**31) -> Check:
    def check(value: Any, name: str) -> None:
        fine = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        _demand(fine, name, f"a whole number from {least} to {most}, not {_said(value)}")

    return check


def maybe(check: Check) -> Check:
    return lambda value, name: None if value is None else check(value, name)


def each(check: Check, count: int | None = None) -> Check:
    def checked(value: Any, name: str) -> None:
        _demand(isinstance(value, list), name, f"a list, not {_said(value)}")
        _demand(count is None or len(value) == count, name, f"{count} entries, not {len(value)}")
        for place, item in enumerate(value):
            check(item, f"{name}[{place}]")

    return checked


def table(check: Check) -> Check:
    """A mapping whose every value is checked."""

    def checked(value: Any, name: str) -> None:
        _demand(isinstance(value, dict), name, f"a mapping, not {_said(value)}")
        for key, item in value.items():
            check(item, f"{name}[{key!r}]")

    return checked


def record(required: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """A mapping with these fields; what else is in it, nobody reads."""

    def checked(value: Any, name: str) -> None:
        _demand(isinstance(value, dict), name, f"a mapping, not {_said(value)}")
        for key, check in required.items():
            _demand(key in value, f"{name}.{key}", "missing")
            check(value[key], f"{name}.{key}")
        for key, check in (others or {}).items():
            if key in value:
                check(value[key], f"{name}.{key}")

    return checked


def _said(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 40 else f"{words[:37]}..."


# -- the manifest ------------------------------------------------------------------------------------------------------


def _layer(value: Any, name: str) -> None:
    _demand(value.isascii() and value.isdigit() and len(value) < 5, name, f"a layer's number, not {_said(value)}")


def _kept(value: Any, name: str) -> None:
    table(each(whole(0)))(value, name)
    for layer in value:
        _layer(layer, name)


def _flat(value: Any, name: str) -> None:
    """A layer, and of a benchmark its interval, if there is one."""
    (each(whole(0), 1 if len(value) == 1 else 3) if isinstance(value, list) else whole(0))(value, name)


def _grid(value: Any, name: str) -> None:
    record({"index": each(each(whole(0))), "box": each(number, 4), "size": each(whole(1, SIDE), 2)})(value, name)
    rows = {len(row) for row in value["index"]}
    _demand(len(rows) == 1 and 0 not in rows, f"{name}.index", "rows of one length, at least one cell")
    left, top, right, bottom = value["box"]
    _demand(left < right and top < bottom, f"{name}.box", f"left, top, right, bottom, not {value['box']}")
    _demand(max(map(abs, value["box"])) <= SIDE, f"{name}.box", f"pixels up to {SIDE}")


_auc = record({"auc": number, "random": number}, {"oracle": maybe(number)})
_alike = record({"rank": maybe(number), "same_peak": flag})
_tests = {
    "points_at": text, "deletion": _auc, "insertion": _auc, "question_swap": _alike,
    "randomisation": each(record({"blocks": whole(1), "rank": maybe(number), "same_peak": flag})),
}  # fmt: skip
_card = record({"where": text, "method": text, "layer": whole(1)}, _tests)
_manifest = record(
    {"answer": each(record({"id": whole(0), "text": text})), "groups": table(whole(0))},
    {
        "model": maybe(text), "variant": maybe(text), "question": maybe(text), "reply": maybe(text), "own": flag,
        "benchmark": maybe(text), "index": maybe(text), "right": maybe(text), "objective": maybe(text), "rows": text,
        "locality": maybe(number), "questions": maybe(whole(1)), "grouping": text, "z": each(real),
        "tokens": each(maybe(text)), "kept": _kept, "cards": each(_card), "flat_from": maybe(_flat),
        "cliff": maybe(_flat),  # as 0.1.0 called it
        "maps": table(record({"layers": each(whole(1, LAYERS)), "status": each(each(text))})),
        "grids": table(each(_grid)), "pictures": each(record({"path": text, "size": each(whole(1, SIDE), 2)})),
        "targets": each(each(number, 4)), "row": record({"tokens": text, "positions": each(whole(0))}),
        "provenance": record({}, {"request": table(anything)}), "settings": table(anything),
    },
)  # fmt: skip


# -- the arrays, and that they fit the manifest ------------------------------------------------------------------------


def check_version(manifest: Any, known: int) -> None:
    """Refuse a manifest of a later release, whose fields are not ours to judge."""
    _demand(isinstance(manifest, dict), "manifest", f"a mapping, not {_said(manifest)}")
    version = manifest.get("version", 0)
    whole(0)(version, "manifest.version")
    _demand(version <= known, "manifest.version", f"written by a later release (format {version}, known {known})")


def check(arrays: Mapping[str, np.ndarray], manifest: Any) -> None:
    """Refuse what does not hold together.

    Raises:
        Wrong: names the array, or the field of the manifest.
    """
    _manifest(manifest, "manifest")
    for name, array in arrays.items():
        picture = name.startswith("picture/")
        kind = np.dtype(np.uint8 if picture else np.float32)
        _demand(array.dtype == kind, f"array {name}", f"{kind}, not {array.dtype}")
        _demand(array.ndim > 0 and array.size > 0, f"array {name}", f"nothing in it, its shape is {_shape(array)}")
        _demand(picture or not np.isinf(array).any(), f"array {name}", "a number without end in it")
        if picture:
            _demand(array.ndim == 3 and array.shape[2] == 3, f"array {name}", f"[h, w, 3], not {_shape(array)}")
    _check_maps(arrays, manifest)
    _check_flow(arrays, manifest)


def _check_maps(arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    known: Mapping[str, Any] = manifest.get("maps", {})
    for name, entry in known.items():
        field = f"manifest.maps[{name!r}]"
        _demand(f"maps/{name}" in arrays, f"array maps/{name}", "missing, though the manifest lists it")
        array = arrays[f"maps/{name}"]
        _demand(array.ndim == 3, f"array maps/{name}", f"[tokens, layers, cells], not {_shape(array)}")
        tokens, layers, _ = array.shape
        _demand(tokens in (1, len(manifest["answer"])), f"array maps/{name}", f"{tokens} maps of one answer")
        own = entry["layers"]
        _demand(len(own) == layers == len(set(own)), f"{field}.layers", f"{layers} different ones, not {_said(own)}")
        states = entry["status"]
        fits = len(states) == tokens and all(len(row) == layers and set(row) <= set(STATUS) for row in states)
        _demand(fits, f"{field}.status", f"{tokens} x {layers} of {', '.join(STATUS)}")
        where, carried = name.partition("/")[0], arrays.get(f"pixels/{name}")
        shown = array if carried is None else carried
        fits = carried is None or (carried.ndim == 3 and carried.shape[:2] == array.shape[:2])
        _demand(fits, f"array pixels/{name}", f"{_shape(array)} carried to cells, not {_shape(shown)}")
        _check_grids(manifest, where if carried is None else "pixels", shown.shape[2])
        if where == "decoder":
            last = max((max(kept, default=-1) for kept in manifest.get("kept", {}).values()), default=-1)
            _demand(last < array.shape[2], "manifest.kept", f"token {last} of {array.shape[2]}")
    for name in arrays:
        place, _, rest = name.partition("/")
        _demand(place not in ("maps", "pixels") or rest in known, f"array {name}", "not in the manifest's maps")


def _check_grids(manifest: Mapping[str, Any], where: str, cells: int) -> None:
    field = f"manifest.grids[{where!r}]"
    grids = manifest.get("grids", {}).get(where)
    _demand(bool(grids), field, "missing, though maps lie on it")
    for place, grid in enumerate(grids):
        top = max(max(row) for row in grid["index"])
        _demand(top < cells, f"{field}[{place}].index", f"cell {top} of maps that have {cells}")


def _check_flow(arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Every part of a flow has as many layers, answer tokens and positions as the others."""
    mean = "flow/mean/attention" in arrays
    if not any(name.startswith("flow/") for name in arrays):
        return
    first = "flow/mean/attention" if mean else "flow/attention"
    _demand(first in arrays, f"array {first}", "missing, though there is a flow")
    count, layers = len(manifest["answer"]), len(arrays[first])
    _demand(layers <= LAYERS, f"array {first}", f"{layers} layers; at most {LAYERS}")
    shapes: dict[str, tuple[int | None, ...]] = {
        "attention": (layers, None, count, GROUPS), "rows": (layers, count, len(manifest.get("tokens", []))),
        "gradient": (layers, GROUPS), "saliency": (layers, count, GROUPS), "causal": (layers + 1,),
    }  # fmt: skip
    shapes |= {f"{part}/{name}": shapes[name] for part in ("mean", "low", "high") for name in ("gradient", "causal")}
    shapes |= {f"{part}/attention": (layers, GROUPS) for part in ("mean", "low", "high")}
    for name, array in ((name[5:], array) for name, array in arrays.items() if name.startswith("flow/")):
        wanted = shapes.get(name, ())
        fits = array.ndim == len(wanted) and all(w in (None, n) for w, n in zip(wanted, array.shape, strict=True))
        _demand(fits, f"array flow/{name}", f"of shape {_said(list(wanted))}, not {_shape(array)}")
        part, _, rest = name.partition("/")
        # a mean stands alone where there were too few pictures for an interval; of an interval both ends are needed
        for end in {"low": ("mean", "high"), "high": ("mean", "low")}.get(part, ()):
            _demand(f"flow/{end}/{rest}" in arrays, f"array flow/{end}/{rest}", f"missing beside flow/{name}")
    if "flow/rows" in arrays:
        _demand(None in manifest["tokens"], "manifest.tokens", "no image token (null) in it")
        _demand("out" in manifest["groups"], "manifest.groups.out", "missing")


def _shape(array: np.ndarray) -> str:
    return str(list(array.shape))


def constant(name: str) -> float:
    """For :func:`json.loads`: NaN, which a file may hold, is read; numbers without end are not."""
    if name == "NaN":
        return math.nan
    raise Wrong(f"manifest: {name} is no number")
