"""``read(folder)`` turns either host's output tree into tidy frames; no cell that was begun is left out.

Imports neither torch nor the host. Failures are visible only in the host's ``status.json`` (its exit code is 0), so a
score file counts only where that file tells of no error.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from redrel_vlmeval import files
from redrel_vlmeval.host import (
    Cell,
    Given,
    Metric,
    ResultsError,
    find_cells,
    verdicts as questions,
)
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import comparisons, pairing, provenance, records
from redrel_vlmeval.results.cells import read_cells

__all__ = ["Results", "category_curves", "read", "Cell", "Given", "Metric", "ResultsError"]

IDENTITY = ["model", "base", "setting", "L", "K", "rule", "benchmark"]
SCORES = [*IDENTITY, "metric", "value", "delta", "n", "headline", "status", "reason", "note", "path"]
COMPARISONS = [*IDENTITY, "metric", "value", "delta", *comparisons.COLUMNS]
EFFICIENCY = [*IDENTITY, *records.COLUMNS, "path"]
PROVENANCE = ["model", "base", "setting", "benchmark", *provenance.COLUMNS, "path"]
# Rooms that know another host: each finds its cells in a folder, read already.
READERS = ("redrel_vlmeval.lmms",)


@dataclass(frozen=True, eq=False)
class Results:
    """Tidy frames of one output folder.

    ``scores``: one row per model x benchmark x metric, ``value`` and ``delta`` (to the base) in points; a cell without
    a score has one row with an empty metric. ``comparisons``: one row per headline, the variants tested against their
    bases. ``efficiency``: one row per model x benchmark with records: means, and
    medians of the times. ``provenance``: one row per model x benchmark: where its numbers came from, see
    :mod:`provenance`. ``judged``: by model and benchmark, one row per question that the headline is
    over (index, hit, picture). The answers themselves are read when asked for.
    """

    folder: Path
    scores: pd.DataFrame
    efficiency: pd.DataFrame
    cells: tuple[Cell, ...]
    judged: Mapping[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    provenance: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=PROVENANCE))

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """``COMPARISONS``: every headline beside its base, with interval, p and verdict, see :mod:`comparisons`."""
        rows = self.scores[self.scores["headline"]]
        return rows.join(comparisons.compare(self))[COMPARISONS].reset_index(drop=True)

    @property
    def failed(self) -> list[tuple[str, str, str]]:
        """(model, benchmark, reason) of every failed cell, and of those in which a question failed alone."""
        alone = self.efficiency[self.efficiency["errors"].notna()].assign(reason=lambda rows: rows["errors"])
        rows = pd.concat([self.scores[self.scores["status"] == "failed"], alone])
        rows = rows[["model", "benchmark", "reason"]].drop_duplicates(["model", "benchmark"])
        return list(rows.itertuples(index=False, name=None))

    def answers(self, model: str, benchmark: str) -> pd.DataFrame:
        """One row per question of a cell, see :func:`questions.answers`; read anew at each call, nothing is kept.

        A table that cannot be read, or a cell that is not there, gives no rows here; ``scores`` says so.
        """
        cell = self._by_key.get((model, benchmark))
        return questions.answers(cell) if cell else pd.DataFrame(columns=questions.ANSWERS)

    def groups(self, model: str, benchmark: str) -> pd.DataFrame:
        """Category, subject and grade of a cell's questions by index, where its table has them; read at each call."""
        cell = self._by_key.get((model, benchmark))
        return questions.groups(cell) if cell else pd.DataFrame()

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], Cell]:
        return {(cell.label, cell.benchmark): cell for cell in self.cells}

    @cached_property
    def questions(self) -> pd.DataFrame:
        """:meth:`answers` of all cells, with model and benchmark in front: as large as the tables, and kept."""
        frames = {(cell.label, cell.benchmark): questions.answers(cell) for cell in self.cells}
        told = [frame.assign(model=key[0], benchmark=key[1]) for key, frame in frames.items() if len(frame)]
        if not told:
            return pd.DataFrame(columns=questions.COLUMNS)
        return pd.concat(told, ignore_index=True)[questions.COLUMNS]


def read(folder: str | Path, all_runs: bool = False) -> Results:
    """Newest result of every model and benchmark under ``folder``.

    Args:
        folder: the runner's ``--work-dir``, a model's folder in it, or one run's folder.
        all_runs: keep also the runs that a newer one of the same model and benchmark replaces, as a model of their own
            named ``<model> [<run folder>]``.

    Raises:
        ResultsError: no such folder, or nothing in it that a host writes. A bad file fails its own cell only.
    """
    root = Path(folder)
    others = [cell for room in READERS for cell in importlib.import_module(room).find_cells(root)]
    cells = find_cells(root, all_runs, others)
    score_rows: list[dict[str, object]] = []
    efficiency_rows: list[dict[str, object]] = []
    sources: list[dict[str, object]] = []
    judged: dict[tuple[str, str], pd.DataFrame] = {}
    unfit: dict[tuple[str, str], str] = {}
    for cell, found in zip(cells, read_cells(cells), strict=True):
        key = cell.label, cell.benchmark
        unfit[key] = found.unfit
        if found.verdicts is not None:
            judged[key] = found.verdicts
        same = describe(cell.model) | {"model": cell.label, "benchmark": cell.benchmark}
        path = _relative(cell.metric or cell.predictions or cell.run, root)
        score_rows += [same | {"path": path} | row for row in found.scores]
        sources.append(same | {"path": path} | found.source)
        if found.measured:
            efficiency_rows.append(same | {"path": _relative(cell.run, root)} | found.measured)
    efficiency = _frame(efficiency_rows, EFFICIENCY)
    origins = pd.DataFrame(sources, columns=PROVENANCE)
    scores = pairing.with_deltas(_frame(score_rows, SCORES), efficiency, origins, cells, judged, unfit)
    return Results(root, scores, efficiency, tuple(cells), judged, origins)


def _frame(rows: list[dict[str, object]], columns: list[str]) -> pd.DataFrame:
    """L and K stay whole numbers beside the empty ones of a base, which pandas would turn into 5.0."""
    return pd.DataFrame(rows, columns=columns).astype({"L": "Int64", "K": "Int64"})


def describe(model: str) -> dict[str, object]:
    """Columns base, setting, L, K and rule of a name; one that is no variant name stands for itself.

    L and K are numbers: of a schedule of several stages neither is told, of a share of the tokens no K.
    """
    try:
        spec = parse(model)
    except KeyError:
        spec = VariantSpec()
    one = spec.stages[0] if len(spec.stages) == 1 else None
    words = [spec.ruling] + ([spec.row] if spec.row != "last" else []) + spec.words
    return {
        "model": model,
        "base": spec.baseline if spec.base else model,
        "setting": spec.setting,
        "L": one.layer if one else None,
        "K": one.keep if one else None,
        "rule": " ".join(words) if spec.stages else None,
    }


def _relative(path: Path, root: Path) -> str:
    base = Path(root).absolute()
    return files.told(path.relative_to(base) if path.is_relative_to(base) else path)


def category_curves(results: Results, base: str, benchmark: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """(frame with L, K, rule, category, value, n; the base's value by category), as :mod:`figures` draws it.

    Single-stage variants of ``base`` with whole-number K; category '' is the headline. Empty frame: none was run.
    """
    frame = results.scores
    frame = frame[(frame["benchmark"] == benchmark) & (frame["base"] == base) & (frame["status"] == "ok")]
    frame = frame[~frame["model"].isin({cell.label for cell in results.cells if cell.replaced})]
    first = frame.loc[frame["headline"], "metric"].unique()[:1]
    # Rows of other splits carry the split in brackets; they are no categories.
    category = ~frame["headline"] & ~frame["metric"].str.endswith("]")
    frame = frame[category | frame["metric"].isin(first)]
    frame = frame.assign(category=frame["metric"].where(~frame["headline"], ""))
    groups = results.groups(base, benchmark)
    sizes: Mapping | pd.Series = groups["category"].value_counts() if "category" in groups else {}
    frame["n"] = pd.Series(frame["category"].map(sizes).where(~frame["headline"], frame["n"]), dtype=float)
    of_base = frame[frame["model"] == base]
    baseline = {str(name): float(value) for name, value in zip(of_base["category"], of_base["value"], strict=True)}
    single = frame["L"].notna() & frame["K"].notna()
    return frame.loc[single, ["L", "K", "rule", "category", "value", "n"]].reset_index(drop=True), baseline
