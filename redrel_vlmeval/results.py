"""``read(folder)`` turns either host's output tree into tidy frames; no cell that was begun is left out.

Imports neither torch nor the host. Failures are visible only in the host's ``status.json`` (its exit code is 0), so a
score file counts only where that file tells of no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from redrel_vlmeval import records
from redrel_vlmeval.benchmarks import Metric, metrics_of
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.outputs import Cell, ResultsError, count_rows, find_cells, read_json, read_table

__all__ = ["Results", "ResultsError", "category_curves", "read"]

IDENTITY = ["model", "base", "setting", "L", "K", "rule", "benchmark"]
SCORES = [*IDENTITY, "metric", "value", "delta", "n", "headline", "status", "reason", "note", "path"]
EFFICIENCY = [*IDENTITY, *records.COLUMNS, "path"]
QUESTIONS = ["model", "benchmark", "index", "prediction", "answer", "hit", "category", "split"]
# The host's reasons for "predictions only, on purpose"; any other skip_reason is a failure.
_NO_METRIC_WANTED = (
    "mode_infer", "Incomplete infer result", "official_submission_only", "evaluation_not_supported",
    "external_submission_required", "test_split_without_ground_truth", "mmbench_evaluation_requires_official_server",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Results:
    """Tidy frames of one output folder.

    ``scores``: one row per model x benchmark x metric, ``value`` and ``delta`` (to the base) in points; a cell without
    a score has one row with an empty metric. ``efficiency``: one row per model x benchmark with records: means, and
    medians of the times. ``questions`` is read when first asked for.
    """

    folder: Path
    scores: pd.DataFrame
    efficiency: pd.DataFrame
    cells: tuple[Cell, ...]

    @property
    def failed(self) -> list[tuple[str, str, str]]:
        """(model, benchmark, reason) of every failed cell."""
        rows = self.scores[self.scores["status"] == "failed"]
        return list(rows[["model", "benchmark", "reason"]].drop_duplicates().itertuples(index=False, name=None))

    @cached_property
    def questions(self) -> pd.DataFrame:
        """One row per question. ``hit`` is empty where nothing was judged; ``prediction`` is the raw answer.

        A table that cannot be read gives no rows here; ``scores`` says so.
        """
        frames = [frame for cell in self.cells if (frame := _questions(cell)) is not None]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=QUESTIONS)


def read(folder: str | Path) -> Results:
    """Newest result of every model and benchmark under ``folder``.

    Args:
        folder: the runner's ``--work-dir``, a model's folder in it, or one run's folder.

    Raises:
        ResultsError: no such folder, or nothing in it that a host writes. A bad file fails its own cell only.
    """
    root = Path(folder)
    cells = find_cells(root)
    score_rows: list[dict[str, object]] = []
    efficiency_rows: list[dict[str, object]] = []
    for cell in cells:
        found, measured = _read_cell(cell)
        same = describe(cell.model) | {"benchmark": cell.benchmark}
        path = _relative(cell.metric or cell.predictions or cell.run, root)
        score_rows += [same | {"path": path} | row for row in found]
        efficiency_rows += [same | {"path": _relative(cell.run, root)} | measured] if measured else []
    efficiency = _frame(efficiency_rows, EFFICIENCY)
    return Results(root, _with_deltas(_frame(score_rows, SCORES), efficiency), efficiency, tuple(cells))


def _frame(rows: list[dict[str, object]], columns: list[str]) -> pd.DataFrame:
    """L and K stay whole numbers beside the empty ones of a base, which pandas would turn into 5.0."""
    numbers = {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in ("L", "K")}
    return pd.DataFrame(rows, columns=columns).assign(**numbers)


def describe(model: str) -> dict[str, object]:
    """Columns base, setting, L, K and rule of a name; one that is no variant name stands for itself."""
    try:
        spec = parse(model)
    except KeyError:
        spec = VariantSpec()
    layers = [stage.layer for stage in spec.stages]
    keeps = [stage.keep if stage.percent is None else f"{stage.percent}%" for stage in spec.stages]
    words = [spec.rule] + ([spec.row] if spec.row != "last" else []) + ["official"] * spec.official
    return {
        "model": model,
        "base": spec.baseline if spec.base else model,
        "setting": spec.setting,
        "L": _one_or_list(layers),
        "K": _one_or_list(keeps),
        "rule": " ".join(words) if spec.stages else None,
    }


def _one_or_list(values: list) -> object:
    """A number stays a number, so that sheets can sort by it; several stages are text."""
    return values[0] if len(values) == 1 else ", ".join(map(str, values)) or None


def _read_cell(cell: Cell) -> tuple[list[dict[str, object]], dict[str, object] | None]:
    """Score rows and the efficiency row of a cell; what cannot be read fails this cell and no other."""
    status, reason = _state(cell)
    metrics: list[Metric] = []
    count, table, measured = None, None, None
    try:
        source = cell.per_sample or cell.predictions
        count = count_rows(source) if source else None
        measured = records.summary(cell)
        if status == "ok":
            metrics = _metrics(cell)
            table = read_table(source) if source and any(metric.split for metric in metrics) else None
            metrics, reason = _with_headline(metrics, table)
    except ResultsError as error:
        # A score whose neighbour file is torn (full disk, killed run) is not to be trusted either.
        status, reason, metrics = "failed", f"{reason}; {error}" if reason else str(error), []
    rows = [
        {"metric": metric.name, "value": metric.value, "headline": metric.headline, "status": status, "reason": reason}
        | {"n": _size(metric, count, table)}
        for metric in metrics or [Metric("", float("nan"), headline=True)]
    ]
    return rows, measured


def _size(metric: Metric, count: int | None, table: pd.DataFrame | None) -> int | None:
    """Questions that a metric is over; not known for a category, whose name the host may have abbreviated."""
    if metric.part:
        return None
    if metric.split is None or table is None:
        return count
    return int((table["split"].astype(str) == metric.split).sum()) if "split" in table else None


def _metrics(cell: Cell) -> list[Metric]:
    path = cell.metric
    if path is None:
        return []
    try:
        value = read_json(path) if path.suffix == ".json" else None
        return metrics_of(value if isinstance(value, dict) else read_table(path))
    except ValueError as error:
        raise ResultsError(f"{path.name}: {error}") from error


def _state(cell: Cell) -> tuple[str, str]:
    """ok, failed, partial (answers without a score) or running, and why."""
    entry, stage = cell.entry, cell.entry.get("status")
    if cell.problem:
        return "failed", cell.problem
    if "error_message" in entry:  # also when empty: a bare assert has no text
        return "failed", " ".join(str(entry["error_message"]).split())[:300] or "the host noted an error without a text"
    if skip := str(entry.get("skip_reason") or ""):
        wanted = skip.startswith(_NO_METRIC_WANTED) and cell.predictions is not None
        return ("partial", f"not evaluated: {skip}") if wanted else ("failed", f"skipped by the host: {skip}")
    if stage in ("pending", "infer", "eval"):
        when = f", last sign of life {entry['updated_at']}" if "updated_at" in entry else ""
        return "running", f"stage {stage!r} was begun and not ended: still running, or killed{when}"
    if cell.metric is not None:
        return "ok", ""
    if cell.predictions is not None:
        return "partial", "predictions without a score file: not evaluated, or by a benchmark that has no rule here"
    return "failed", f"neither predictions nor a score file in {cell.run.name}"


def _with_headline(metrics: list[Metric], table: pd.DataFrame | None) -> tuple[list[Metric], str]:
    """Where no split is known as the headline, the mean over all questions is."""
    if any(metric.headline for metric in metrics):
        return metrics, ""
    if table is None or "hit" not in table:
        names = ", ".join(sorted({str(metric.split) for metric in metrics}))
        raise ResultsError(f"none of the splits {names} is known as the headline, and there is no per-question table")
    mean = float(pd.to_numeric(table["hit"], errors="coerce").mean() * 100)
    return [Metric("Overall", mean, headline=True), *metrics], "headline: mean over the questions of all splits"


def _relative(path: Path, root: Path) -> str:
    base = Path(root).absolute()
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _with_deltas(scores: pd.DataFrame, efficiency: pd.DataFrame) -> pd.DataFrame:
    """Points to the base in the same folder; where the two were not run alike there is no delta but a note."""
    rows = scores.to_dict("records")
    settings = {(row["model"], row["benchmark"]): row for row in efficiency.to_dict("records")}
    states = {(row["model"], row["benchmark"]): row["status"] for row in rows}
    known = {(row["model"], row["benchmark"], row["metric"]): row for row in rows}
    sizes = {(row["model"], row["benchmark"]): row["n"] for row in rows if row["headline"]}
    deltas, notes = [float("nan")] * len(rows), [""] * len(rows)
    for i, row in enumerate(rows):
        if row["base"] == row["model"] or row["status"] != "ok":
            continue
        here = row["benchmark"]
        base, state = known.get((row["base"], here, row["metric"])), states.get((row["base"], here))
        if base is None or base["status"] != "ok":
            missing = f"is {state}" if state else "is not in this folder"
            notes[i] = f"no delta: base {row['base']!r} {missing if state != 'ok' else 'has no such metric'}"
        else:
            pair = [(name, here) for name in (row["model"], row["base"])]
            notes[i] = _difference([sizes.get(key) for key in pair], [settings.get(key) for key in pair])
            deltas[i] = float("nan") if notes[i] else row["value"] - base["value"]
    return scores.assign(delta=pd.Series(deltas, dtype=float, index=scores.index), note=notes)[SCORES]


def _difference(sizes: list, settings: list) -> str:
    """Why a variant and its base (in this order) cannot be compared, naming field and values; empty when they can."""
    if all(pd.notna(size) for size in sizes) and sizes[0] != sizes[1]:
        return f"no delta: {sizes[0]:.0f} questions, base {sizes[1]:.0f}"
    ours, theirs = settings
    if ours is None and theirs is None:
        return ""
    if ours is None or theirs is None:
        who = "the variant" if ours is None else "the base"
        return f"no delta: {who} has no efficiency records, so what it ran on is not known"
    for name in records.SETTINGS:
        if pd.notna(ours[name]) and pd.notna(theirs[name]) and ours[name] != theirs[name]:
            return f"no delta: {name} differs ({ours[name]}; base {theirs[name]})"
    return ""


def _questions(cell: Cell) -> pd.DataFrame | None:
    source = cell.per_sample or cell.predictions
    try:
        table = read_table(source) if source else None
        raw = read_table(cell.predictions) if cell.predictions else None
    except ResultsError:
        return None
    if table is None or "index" not in table or "prediction" not in table:
        return None
    verdict = next((name for name in ("hit", "score", "eval_score") if name in table), None)
    frame = table.reindex(columns=QUESTIONS[2:]).assign(model=cell.model, benchmark=cell.benchmark)
    frame["hit"] = pd.to_numeric(table[verdict], errors="coerce").astype(float) if verdict else float("nan")
    if raw is not None and "index" in raw and "prediction" in raw:
        # The judged table holds str(answer), where an empty answer has become the word 'nan'.
        answers = dict(zip(raw["index"].astype(str), raw["prediction"], strict=True))
        frame["prediction"] = [answers.get(str(i), p) for i, p in zip(frame["index"], frame["prediction"], strict=True)]
    return frame[QUESTIONS]


def category_curves(results: Results, base: str, benchmark: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """(frame with L, K, rule, category, value, n; the base's value by category), as :mod:`figures` draws it.

    Single-stage variants of ``base`` with whole-number K; category '' is the headline. Empty frame: none was run.
    """
    frame = results.scores
    frame = frame[(frame["benchmark"] == benchmark) & (frame["base"] == base) & (frame["status"] == "ok")]
    first = frame.loc[frame["headline"], "metric"].unique()[:1]
    # Rows of other splits carry the split in brackets; they are no categories.
    category = ~frame["headline"] & ~frame["metric"].str.endswith("]")
    frame = frame[category | frame["metric"].isin(first)]
    frame = frame.assign(category=frame["metric"].where(~frame["headline"], ""))
    asked = results.questions
    sizes = asked[(asked["model"] == base) & (asked["benchmark"] == benchmark)]["category"].value_counts()
    frame["n"] = pd.Series(frame["category"].map(sizes).where(~frame["headline"], frame["n"]), dtype=float)
    of_base = frame[frame["model"] == base]
    baseline = {str(name): float(value) for name, value in zip(of_base["category"], of_base["value"], strict=True)}
    single = [isinstance(row.L, int) and isinstance(row.K, int) for row in frame.itertuples()]
    return frame.loc[single, ["L", "K", "rule", "category", "value", "n"]].reset_index(drop=True), baseline
