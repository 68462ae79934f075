"""``redrel report``: results -> one HTML page that needs no network: leaderboard, figures, flips, provenance."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import redrel_vlmeval
from redrel_vlmeval.bases import cautions
from redrel_vlmeval.files import WriteError, atomically, make_parent
from redrel_vlmeval.results import Results, comparisons
from redrel_vlmeval.sheets.figures import curves_of, looks
from redrel_vlmeval.sheets.offline import encoded, render
from redrel_vlmeval.sheets.page import board, changes, curves, gallery, pictures
from redrel_vlmeval.sheets.page.explained import coverage, links
from redrel_vlmeval.sheets.tables import KNOWN, cells, field, runs, summed_up

HERE = Path(__file__).resolve().parent
NAMED = 3  # bases that the title names
NOTED = (
    "L", "K", "rule", "backend", "kept", "average tokens", "FLOPs ratio", "KV ratio",
)  # fmt: skip
OWN_NOTES = {
    "interval": "the bar runs from the lower to the upper end of its 95 % confidence interval, of this variant alone: "
    "Newcombe's square-and-add method for paired proportions; where questions share pictures or scores are graded, a "
    "bootstrap over pictures",
    "flips": f"▲ up: {comparisons.MEANINGS['up']}; ▼ down: {comparisons.MEANINGS['down']}",
    "model": "name given to the runner; of a variant its setting: what is truncated, prompt and decoding",
    "score": "in points, by the host's own evaluation; a dash where a cell has none",
}
FACTS = (
    "model", "benchmark", "host", "host_version", "commit", "judge", "judge_ran", "backend", "weights", "revision",
    "torch", "transformers", "redrel_vlmeval", "device", "dtype", "kernel", "prompt", "decoding", "date", "arguments",
    "run", "path",
)  # fmt: skip


class ReportError(WriteError):
    """A page that cannot be written; the text names the file and what would work."""


def write(
    results: Results, path: str | Path, most_pictures: int = 0, data_folder: Path | None = None,
    explained: Path | None = None, say: Callable[[str], object] = lambda _: None,
) -> Path:  # fmt: skip
    """The page at ``path``, whole or not at all.

    Args:
        most_pictures: thumbnails of at most so many distinct pictures, of the questions with most flips and of those
            that are right without one by turns.
        data_folder: where the benchmarks' TSV files lie; $LMUData, the results' LMUData or ~/LMUData if not given.
        explained: folder of redrel explain's pages, which flips then link to.
        say: is told how many flips have such a page, and which pictures cannot be shown.

    Raises:
        ReportError: another ending than .html, or a place that cannot be written.
        PictureError: pictures were asked for, and no benchmark's TSV is there.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ReportError(f"{str(path)!r}: unknown ending {path.suffix!r}, a report is written as .html")
    if path.is_dir():
        atomically(path, lambda _stream: None, ReportError)  # says what is wrong before the work, not after it
    make_parent(path, ReportError)
    text = html(results, most_pictures, data_folder, explained, path, say)
    return atomically(path, lambda stream: stream.write(encoded(text)), ReportError)


def html(
    results: Results, most_pictures: int = 0, data_folder: Path | None = None, explained: Path | None = None,
    path: Path = Path("report.html"), say: Callable[[str], object] = lambda _: None,
) -> str:  # fmt: skip
    """The page as text; see :func:`write`."""
    rows = board.rows(results, comparisons.compare(results))
    found = changes.collect(results, list(dict.fromkeys(str(row["model"]) for row in rows)))
    unaided = gallery.collect(results)
    questions = _in_turn(changes.most_flipped(found), gallery.wanted(unaided))
    shown = _pictures(results, questions, most_pictures, data_folder)
    for line in shown.told():
        say(f"no picture: {line}")
    drawn = curves_of(results)
    pages = links(found, explained, path)
    if explained is not None:
        say(coverage(found, pages, explained))
    facts = {"unseen": shown.told()} | _meta(results, rows) | {"pictures": len(shown.pictures), "asked": most_pictures}
    data = {
        "rows": rows,
        "glance": board.glance(results, rows),
        "notes": _notes(),
        "grids": curves.heat_maps(drawn),
        "curves": curves.lines(drawn),
        "looks": looks.numbers(str(row["rule"]) for row in rows if row["rule"]),
        "changes": changes.payload(results, found, shown.where) | {"pictures": shown.pictures},
        "gallery": gallery.payload(unaided, shown.where),
        "explained": pages,
        "provenance": _provenance(results),
        "meta": facts,
    }
    shown_first = _field(results)
    return render(HERE, "report.html.j2", f"{facts['title']}: redrel report", data, meta=facts, field=shown_first,
                  blind=bool(unaided))  # fmt: skip


def _field(results: Results) -> list[dict[str, Any]]:
    """The tables of ``redrel table`` as texts, none in other folders; a column without an entry is left out."""
    found = []
    for table in summed_up(field(results)):
        shown = replace(table, frame=table.frame.dropna(axis=1, how="all"))
        found.append({"name": table.name, "caption": table.caption, "remarks": table.remarks}
                     | {"columns": shown.layout, "rows": cells(shown.frame, shown.layout)})  # fmt: skip
    return found


def _in_turn(first: list[tuple[str, str]], second: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One of each by turns, each once, so that few pictures serve both."""
    return list(dict.fromkeys(one for pair in zip_longest(first, second) for one in pair if one is not None))


def _pictures(
    results: Results, questions: list[tuple[str, str]], most: int, data_folder: Path | None
) -> pictures.Shown:
    """Thumbnails of (benchmark, index), in their order; none where none were asked for."""
    if most <= 0:
        return pictures.Shown()
    names = list(dict.fromkeys(benchmark for benchmark, _ in questions))
    places = pictures.folders(results.folder, data_folder)
    tables = pictures.find_tables(names, places)
    shown = pictures.thumbnails(questions, tables, most)
    missing = [f"{name}: no {name}.tsv in {', '.join(map(str, places))}" for name in names if name not in tables]
    shown.unseen[:0] = missing
    return shown


def _meta(results: Results, rows: list[dict[str, Any]]) -> dict[str, Any]:
    states = results.scores.drop_duplicates(["model", "benchmark"])["status"].value_counts().sort_index()
    return {
        "title": _title(results, [row["base"] for row in rows]),
        "folder": results.folder.absolute().name,
        "models": len({row["model"] for row in rows}),
        "benchmarks": len({row["benchmark"] for row in rows}),
        "states": {str(state): int(count) for state, count in states.items() if state != "ok"},
        "version": redrel_vlmeval.__version__,
        "written": time.strftime("%Y-%m-%d %H:%M", time.localtime()),
        "toys": cautions(row["base"] for row in rows),
        "all_toys": all(cautions([row["base"]]) for row in rows),
    }


def _title(results: Results, bases: list[str]) -> str:
    """The bases and the day of their newest run; of many bases their number."""
    named = list(dict.fromkeys(bases))
    who = ", ".join(named) if len(named) <= NAMED else f"{len(named)} bases"
    days = [str(date)[:10] for date in results.provenance["date"].dropna()]
    return " · ".join([who or results.folder.absolute().name, *([max(days)] if days else [])])


def _notes() -> dict[str, str]:
    """What each quantity of the page means: the sheets' own words."""
    return {name: KNOWN[name].meaning for name in NOTED} | comparisons.MEANINGS | OWN_NOTES


def _provenance(results: Results) -> dict[str, Any]:
    """Columns and rows of what each cell ran on, columns that say nothing left out."""
    frame = runs(results)
    names = [name for name in FACTS if name in frame and frame[name].notna().any()]
    return {"columns": names, "rows": frame[names].to_numpy().tolist()}
