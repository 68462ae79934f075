"""``read(folder)`` turns either host's output tree into tidy frames; no cell that was begun is left out.

Imports neither torch nor the host. Failures are visible only in the host's ``status.json`` (its exit code is 0), so a
score file counts only where that file tells of no error.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from redrel_vlmeval import files
from redrel_vlmeval.host import (
    STATUS,
    SWEEPING,
    Cell,
    Columns,
    Given,
    Metric,
    NoRule,
    ResultsError,
    facts,
    find_cells,
    flat,
    metrics_of,
    read_json,
    read_rows,
    verdicts as questions,
)
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import comparisons, pairing, provenance, records

__all__ = ["Results", "category_curves", "read", "Cell", "Given", "Metric", "ResultsError"]

IDENTITY = ["model", "base", "setting", "L", "K", "rule", "benchmark"]
SCORES = [*IDENTITY, "metric", "value", "delta", "n", "headline", "status", "reason", "note", "path"]
COMPARISONS = [*IDENTITY, "metric", "value", "delta", *comparisons.COLUMNS]
EFFICIENCY = [*IDENTITY, *records.COLUMNS, "path"]
PROVENANCE = ["model", "base", "setting", "benchmark", *provenance.COLUMNS, "path"]
# The state of a cell whose numbers are shown as they stand, because nothing says which of them counts.
NO_RULE = "no rule"
# Rooms that know another host: each finds its cells in a folder, read already.
READERS = ("redrel_vlmeval.lmms",)
# The host's reasons for "predictions only, on purpose"; any other skip_reason is a failure.
_NO_METRIC_WANTED = (
    "mode_infer", "Incomplete infer result", "official_submission_only", "evaluation_not_supported",
    "external_submission_required", "test_split_without_ground_truth", "mmbench_evaluation_requires_official_server",
)  # fmt: skip


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
    for cell, found in zip(cells, _read_cells(cells), strict=True):
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


def _read_cells(cells: list[Cell]) -> list[_Read]:
    """:func:`_read_cell` of each; several at once, since unpacking and parsing an xlsx needs no interpreter."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool, no_collection():
        return list(pool.map(_read_cell, cells))


@contextmanager
def no_collection() -> Iterator[None]:
    """Within the context Python looks for no cycles: large folders make millions of objects, and hardly a cycle."""
    # Because it is an eighth of the time: 12 cells of 4000 questions are read in 0.59 s of CPU, in 0.67 s without.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True, eq=False)
class _Read:
    """What one cell holds; ``unfit`` says why its score is not that of its verdicts."""

    scores: list[dict[str, object]]
    measured: dict[str, object] | None
    verdicts: pd.DataFrame | None
    source: dict[str, object]
    unfit: str = ""


def _read_cell(cell: Cell) -> _Read:
    """Score rows, efficiency row, verdicts, provenance of a cell; what cannot be read fails this cell and no other."""
    status, reason = _state(cell)
    metrics: list[Metric] = []
    table, measured, verdicts, unfit = None, None, None, ""
    try:
        table, given = questions.table_of(cell), questions.predictions(cell)
        measured, foreign = records.summary(cell)
        if status in ("ok", NO_RULE):
            metrics, status, reason = _metrics(cell, status, reason)
        if status == "ok" and cell.given is None:
            metrics, reason = _with_headline(metrics, table)
        if status == "ok":
            unfit = questions.misfit(metrics, table) or questions.rejudged(table, given)
            split = next((metric.split for metric in metrics if metric.headline), None)
            verdicts = None if unfit else questions.verdicts(table, split)
            if verdicts is None and not unfit:
                reason = "; ".join(filter(None, [reason, f"{_unjudged(cell)}: no interval, no test"]))
        alone = str((measured or {}).get("errors") or "")
        reason = "; ".join(filter(None, [reason, unfit, questions.remark(table, given), alone, foreign]))
    except ResultsError as error:
        # A score whose neighbour file is torn (full disk, killed run) is not to be trusted either.
        status, reason, metrics = "failed", f"{reason}; {error}" if reason else str(error), []
    if status != "ok" and "error_message" not in cell.entry and _is_swept(cell):
        status, reason, metrics = "running", SWEEPING, []
    rows = [
        {"metric": metric.name, "value": metric.value, "headline": metric.headline, "status": status, "reason": reason}
        | {"n": _size(metric, table)}
        for metric in metrics or [Metric("", float("nan"), headline=True)]
    ]
    return _Read(rows, measured, verdicts, provenance.of_cell(cell, measured, table), unfit)


def _unjudged(cell: Cell) -> str:
    """Said of a score that no verdicts stand beside, so that it has neither interval nor test."""
    others = ", ".join(cell.judged) if cell.per_sample is None else ""
    return pairing.UNJUDGED + (f" by {cell.judge}, only by {others}" if others else "")


def _is_swept(cell: Cell) -> bool:
    return cell.sweep is not None and files.is_held(cell.sweep)


def _size(metric: Metric, table: Columns | None) -> int | None:
    """Questions that a metric is over; not known for a category, whose name the host may have abbreviated."""
    if metric.part or table is None:
        return None
    if metric.split is None:
        return len(next(iter(table.values()), []))
    return sum(str(split) == metric.split for split in table["split"]) if "split" in table else None


def _metrics(cell: Cell, status: str, reason: str) -> tuple[list[Metric], str, str]:
    """Metrics, status and reason; what no rule knows is shown as it stands, beside an empty headline."""
    path = cell.metric
    if cell.given is not None:
        return list(cell.given.metrics), status, cell.given.reason
    if path is None:
        found: Mapping[str, float] = flat(cell.entry.get("metrics"))
    else:
        try:
            value = read_json(path) if path.suffix == ".json" else None
            return metrics_of(value if isinstance(value, dict) else read_rows(path)), status, reason
        except NoRule as error:
            status, reason, found = NO_RULE, f"{path.name}: {error}", error.found
        except ValueError as error:
            raise ResultsError(f"{path.name}: {error}") from error
    return [Metric("", float("nan"), True), *(Metric(*pair, part=True) for pair in found.items())], status, reason


def _state(cell: Cell) -> tuple[str, str]:
    """ok, failed, partial (answers without a score), running or no rule, and why."""
    entry, stage = cell.entry, cell.entry.get("status")
    if cell.problem:
        return "failed", cell.problem
    if "error_message" in entry:  # also when empty: a bare assert has no text
        return "failed", facts.noted(entry["error_message"])
    if skip := str(entry.get("skip_reason") or ""):
        wanted = skip.startswith(_NO_METRIC_WANTED) and cell.predictions is not None
        return ("partial", f"not evaluated: {skip}") if wanted else ("failed", f"skipped by the host: {skip}")
    if stage in ("pending", "infer", "eval"):
        when = f", last sign of life {entry['updated_at']}" if "updated_at" in entry else ""
        return "running", f"stage {stage!r} was begun and not ended: still running, or killed{when}"
    if cell.metric is not None or cell.given is not None:
        return "ok", ""
    if flat(cell.entry.get("metrics")):
        return NO_RULE, f"no rule for a benchmark that is known from {STATUS} only: its metrics as they stand there"
    if cell.predictions is not None:
        return "partial", "predictions without a score file: not evaluated, or by a benchmark that has no rule here"
    return "failed", f"neither predictions nor a score file in {cell.run.name}"


def _with_headline(metrics: list[Metric], table: Columns | None) -> tuple[list[Metric], str]:
    """Where no split is known as the headline, the mean over all questions is."""
    if any(metric.headline for metric in metrics):
        return metrics, ""
    if table is None or "hit" not in table:
        names = ", ".join(sorted({str(metric.split) for metric in metrics}))
        raise ResultsError(f"none of the splits {names} is known as the headline, and there is no per-question table")
    mean = float(pd.to_numeric(pd.Series(table["hit"], dtype=object), errors="coerce").mean() * 100)
    return [Metric("Overall", mean, headline=True), *metrics], "headline: mean over the questions of all splits"


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
