"""Figures and pages from stored explanations alone, in files named after them; needs no torch and no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.draw import arcfigures, camfigures, flowfigures, page, panels, view
from redrel_vlmeval.explain.store import Stored, load, own_name
from redrel_vlmeval.explain.trust import Change, comparing

KINDS = (".png", ".pdf")


def stem(stored: Stored) -> Path:
    """The path of a stored explanation without its ending."""
    if stored.path is None:
        raise ExplainError("an explanation that was never saved has no name")
    return stored.path.with_suffix("")


def ended(name: Path, end: str) -> Path:
    """``name`` with more at its end; names hold dots, so none of it is taken for an ending."""
    return name.with_name(name.name + end)


def write_own(
    found: Sequence[list[Stored]], changes: Sequence[Change | None], scale: str, console: Console
) -> list[Path]:
    """All figures and the page of the questions of one call, and what changed, in words."""
    flat = [stored for group in found for stored in group]
    written = [path for stored in flat for path in draw_maps(stored, stem(stored), scale=scale)]
    for one, group in zip(changes, found, strict=True):
        if one is not None:
            console.print(comparing.to_text(one), highlight=False)
            written += _together(group, _joined(group), scale, one)
    if len(found) > 1:
        written += _together(flat, _joined(flat), scale, None)
    if len(flat) > 1:
        written.append(page.write(flat, ended(_joined(flat), ".html")))
    else:
        written.append(page.write(flat, ended(stem(flat[0]), ".html")))
    return written


def _joined(group: Sequence[Stored]) -> Path:
    """A name for what shows several explanations, all of one folder: the first's, and how the others differ from it."""
    first, *others = (stem(stored) for stored in group)
    models = [str(stored.manifest.get("model")) for stored in group]
    if len(group) == 2 and models[0] != models[1]:
        return ended(first, f"_vs_{own_name(models[1])}")
    head = first.name.rpartition("_")[0]
    ends = [name if name.rpartition("_")[0] != head else name.rpartition("_")[2] for name in (o.name for o in others)]
    return ended(first, f"_and_{own_name('_and_'.join(ends))}")


def _together(group: Sequence[Stored], name: Path, scale: str, one: Change | None) -> list[Path]:
    """Rows to compare, for each method that all of them have."""
    labels = [label(stored) for stored in group]
    written = []
    for where, method in view.pairs(group[0]):
        if where == "decoder" and all((where, method) in view.pairs(other) for other in group):
            notes = None if one is None else comparing.notes(one, method)
            figure = camfigures.rows(group, labels, where, method, scale=scale, notes=notes)
            written += _both(figure, ended(name, f"_{where}_{method}"))
    return written


def label(stored: Stored) -> str:
    """What one row of a comparison is."""
    own = "" if stored.manifest.get("own") else f" (its own: {stored.manifest.get('reply', '')!r})"
    question = " ".join(str(stored.manifest.get("question", "")).split())
    return f"{stored.manifest.get('model')}, answer {view.said(stored)!r}{own}\n{question}"


def draw_maps(stored: Stored, name: Path, **options: object) -> list[Path]:
    """A figure of every method at every place, as .png and .pdf."""
    written = []
    for where, method in view.pairs(stored):
        written += _both(camfigures.grid(stored, where, method, **options), ended(name, f"_{where}_{method}"))  # type: ignore[arg-type]
    return written


def draw_flow(stored: Stored, name: Path, groups: str | None = None) -> list[Path]:
    """The curves (Fig. 2b), and of one question's flow the arcs (Fig. 1), as .png and .pdf."""
    written = _both(flowfigures.curves(stored, groups=groups), ended(name, "_curves"))
    if "flow/rows" in stored.arrays:
        written += _both(arcfigures.arcs(stored), ended(name, "_arcs"))
    return written


def write_flows(found: Sequence[Stored], groups: str) -> list[Path]:
    """Figures and page of each question's flow."""
    written = []
    for stored in found:
        written += [*draw_flow(stored, stem(stored), groups), page.write([stored], ended(stem(stored), ".html"))]
    return written


def draw(
    files: Sequence[Path], output: Path | None = None, *, where: Sequence[str] | None = None,
    methods: Sequence[str] | None = None, layers: Sequence[int] | None = None, token: int | None = None,
    picture: int = 0, scale: str = "shared", width: float = panels.WIDTH, groups: str | None = None,
) -> list[Path]:  # fmt: skip
    """Figures and page of one or several .npz again, with other settings.

    Args:
        output: a folder for all of them, or one file: .html (the page), .png or .pdf (one figure). Beside the first
            .npz if not given. token, picture: from 0. groups: of tokens in a flow's curves, ``all`` or ``paper``; as
            made if not given.

    Raises:
        ExplainError: no such file, map, layer or token; one figure asked for where there are several.
    """
    found = [load(path) for path in files]
    flows = [path for path, stored in zip(files, found, strict=True) if not view.pairs(stored)]
    if flows and len(found) > 1:
        raise ExplainError(
            f"{flows[0]}: holds no maps; several files are compared by their maps, a flow is drawn alone"
        )
    kind = output.suffix.lower() if output is not None else ""
    if output is not None and kind == ".html":
        return [page.write(found, output)]
    options = {"layers": layers, "token": token, "picture": picture, "scale": scale, "width": width}
    figures = list(_figures(found, where, methods, options, groups))
    if output is not None and kind in KINDS:
        if len(figures) != 1:
            names = ", ".join(name for name, _ in figures) or "none"
            raise ExplainError(f"{output} is one figure, the file has {names}: choose with --where and --methods")
        return [panels.save(figures[0][1], output)]
    if not figures:
        raise ExplainError(f"{files[0]}: nothing to draw with these --where and --methods; it holds {_known(found[0])}")
    name = stem(found[0]) if len(found) == 1 else _joined(found)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        name = output / name.name
    written = [path for end, figure in figures for path in _both(figure, ended(name, f"_{end}"))]
    return [*written, page.write(found, ended(name, ".html"))]


def _figures(
    found: Sequence[Stored],
    where: Sequence[str] | None,
    methods: Sequence[str] | None,
    options: dict,
    groups: str | None,
) -> Iterator[tuple[str, Figure]]:
    """(end of its name, figure) of all that is asked for."""
    first = found[0]
    one = comparing.change(*found) if len(found) == 2 and comparing.same_answer(*found) else None
    for place, method in view.pairs(first):
        if (where and place not in where) or (methods and method not in methods):
            continue
        if len(found) == 1:
            yield f"{place}_{method}", camfigures.grid(first, place, method, **options)
        elif all((place, method) in view.pairs(other) for other in found):
            notes = comparing.notes(one, method) if one is not None and place == "decoder" else None
            names = [label(stored) for stored in found]
            yield f"{place}_{method}", camfigures.rows(found, names, place, method, notes=notes, **options)
    if not where and not methods and len(found) == 1 and any(name.startswith("flow/") for name in first.arrays):
        yield "curves", flowfigures.curves(first, options["width"], groups)
        if "flow/rows" in first.arrays:
            yield "arcs", arcfigures.arcs(first, options["token"] or 0, options["layers"], options["width"])


def _known(stored: Stored) -> str:
    return ", ".join(f"{where}/{method}" for where, method in view.pairs(stored)) or "no maps"


def _both(figure: Figure, name: Path) -> list[Path]:
    return [panels.save(figure, ended(name, kind)) for kind in KINDS]
