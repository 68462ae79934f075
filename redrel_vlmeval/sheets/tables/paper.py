"""The paper's Table 1 (models, with and without truncation) and Table 2 (prompts and decoding), and printed rows.

Printed rows are grey: they stand beside the measured ones and in no mean, no test and no choice of the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import Results, choosing, comparisons, grid, published
from redrel_vlmeval.sheets.tables.leaders import ScoreColumn, averaged_columns, measured, score_columns
from redrel_vlmeval.sheets.tables.table import Table, best

BESIDE = ("delta", "p (Holm)", "verdict")


def board(results: Results) -> Table:
    """Every model with all its statistics, and printed numbers of the same benchmarks."""
    found = score_columns(results)
    table = measured(results)
    remarks = []
    if averaged := averaged_columns(results):
        others = [column.title for column in found if column not in averaged]
        left = f"; not in it: {', '.join(others)}" if others else ""
        remarks.append(f"mean: over {', '.join(column.title for column in averaged)}, measured rows only{left}")
    printed = _printed(published.on({column.benchmark for column in found}, results.scores["base"]), found)
    frame, grey = _beside(table.frame, printed)
    if table.outcomes:
        remarks.append(
            "delta in green: better, in red: worse than the base at p (Holm) < .05; the columns folded "
            "beside it hold interval, counts, p and, with more than two scores, the verdict in words"
        )
    remarks += _disclaimer(grey)
    scores = [column.title for column in found] + ["mean"] * ("mean" in frame)
    return replace(table, frame=frame, remarks=tuple(remarks), grey=grey, bold=best(frame, scores, grey))


def table_1(results: Results) -> Table:
    """Each base and its best variant, controls aside, on each benchmark, as the paper's Table 1; printed rows grey."""
    found = score_columns(results)
    table = measured(results)
    rows = _stock(table.frame)
    lines: list[dict[str, Any]] = []
    for base, group in rows.groupby("base", sort=False):
        winners, variants = _winners(group, found)
        plain = group[group["model"] == base].to_dict("records")
        halves = {column.title: _half(results, column, plain) for column in found}
        for row in group.to_dict("records"):
            if row["model"] != base and row["model"] not in winners:
                continue
            facts = published.facts(str(base))
            line = {"model": row["model"], "base": base, "setting": _spec(row["model"]).setting or None,
                    "language model": facts.backbone or None, "resolution": facts.resolution}  # fmt: skip
            line |= {"average tokens": row.get("average tokens")} | _scores(row, table)
            won = [f"{variants} on {title}{halves[title]}" for title in winners.get(row["model"], ())]
            lines.append(line | {"best of": "; ".join(won) or None, "note": row["note"] or None})
    text = published.on({column.benchmark for column in found}, results.scores["base"])
    printed = _printed(text[text["method"] != "prompt"], found)
    frame, grey = _beside(_frame(lines, found, ["language model", "resolution", "best of"]), printed)
    remarks = [] if lines else ["no rows of this folder: no model ran with its stock prompt and greedy search"]
    if lines and not any(line["best of"] for line in lines):
        remarks.append("no variant but controls has a score in this folder: bases only")
    if any(line["best of"] for line in lines):
        remarks.append(
            "best of: the best of many on the same questions looks better than it is; chosen on one half of the "
            "questions and scored on the other it does not"
        )
    empty = [name for name in ("language model", "resolution", "note") if frame[name].isna().all()]
    frame = frame.drop(columns=empty)
    scores = tuple(column.title for column in found)
    caption = "the paper's Table 1: models with and without truncation; every other variant is in the Leaderboard"
    return replace(table, name="Table 1", frame=frame, caption=caption, remarks=(*remarks, *_disclaimer(grey)),
                   grey=grey, bold=best(frame, scores, grey))  # fmt: skip


def table_2(results: Results) -> Table:
    """Prompts and decoding, as the paper's Table 2; the stock prompt with greedy search stands first."""
    found = score_columns(results)
    table = measured(results)
    rows = table.frame
    specs = {model: _spec(model) for model in rows["model"]}
    asked = {spec.base for spec in specs.values() if not _is_stock(spec)}
    lines = []
    for row in rows.to_dict("records"):
        spec = specs[row["model"]]
        if spec.base not in asked or (_is_stock(spec) and spec.stages):
            continue
        cut = VariantSpec(stages=spec.stages, rule=spec.rule, row=spec.row, official=spec.official)
        line = {"model": row["model"], "base": row["base"], "prompt": _order_of(spec.prompt)}
        line |= {"decoding": spec.decoding, "truncation": str(cut) or None} | _scores(row, table)
        lines.append(line | {"note": row["note"] or None})
    text = published.on({column.benchmark for column in found}, results.scores["base"])
    printed = _printed(text[text["method"] == "prompt"], found)
    for line in printed:
        prompt, _, rest = str(line["setting"]).partition(" ")
        beams = int(rest.removeprefix("beam ")) if "beam" in rest else 1
        line |= {"prompt": _order_of(prompt), "decoding": VariantSpec(beam=beams).decoding}
        line["setting"] = None
    frame, grey = _beside(_frame(lines, found, ["prompt", "decoding", "truncation"]), printed)
    remarks = [] if lines else [
        "no rows of this folder: no model ran under another prompt (_p-cqm) or with other decoding (_beam3, _ppl)"
    ]  # fmt: skip
    frame = frame.drop(columns=[name for name in ("setting", "note") if name in frame and frame[name].isna().all()])
    scores = tuple(column.title for column in found)
    caption = "the paper's Table 2: order of the prompt and decoding; delta and verdict compare truncated with not"
    return replace(table, name="Table 2", frame=frame, caption=caption, remarks=(*remarks, *_disclaimer(grey)),
                   grey=grey, bold=best(frame, scores, grey))  # fmt: skip


def _spec(model: str) -> VariantSpec:
    """What a name says; that of a replaced run, ``<model> [<run>]``, is its model's."""
    name = model.partition(" [")[0]
    try:
        return parse(name)
    except KeyError:
        pass
    try:
        return VariantSpec(base=name)
    except ValueError:  # hosts allow names that no variant could have: "My model (v2)"
        return VariantSpec()


def _is_stock(spec: VariantSpec) -> bool:
    """Whether the host's own prompt and greedy search were used."""
    return spec.prompt == "stock" and spec.decoding == "greedy search"


def _stock(rows: pd.DataFrame) -> pd.DataFrame:
    specs = [_spec(model) for model in rows["model"]]
    return rows[[_is_stock(spec) and " [" not in model
                 for spec, model in zip(specs, rows["model"], strict=True)]]  # fmt: skip


def _winners(group: pd.DataFrame, found: Sequence[ScoreColumn]) -> tuple[dict[str, list[str]], int]:
    """Variants with the best score of a column, cheaper first on a tie, and how many there are to choose from."""
    ranked = group[(group["model"] != group["base"]) & ~group["model"].map(choosing.is_control)]
    winners: dict[str, list[str]] = {}
    for column in found:
        values = pd.to_numeric(ranked[column.title], errors="coerce")
        if values.notna().any():
            top = ranked[values == values.max()]
            cost = top["average tokens"].astype(float) if "average tokens" in top else pd.Series(0.0, top.index)
            first = top.loc[cost.sort_values(kind="stable").index[0]]
            winners.setdefault(first["model"], []).append(column.title)
    return winners, len(ranked)


def _half(results: Results, column: ScoreColumn, plain: list[dict[Any, Any]]) -> str:
    """What the best variant, controls aside, chosen on one half of the questions, scores on the other.

    ``plain`` is the base's row, if it has one. Empty where the score is no mean of verdicts that are known.
    """
    here = {row["model"]: row | {"benchmark": column.benchmark, "value": row[column.title]} for row in plain}
    for scores in grid.scores_of(results):
        base = here.get(scores.base)
        if base is None or scores.benchmark != column.benchmark or not comparisons.is_mean(results, base):
            continue
        found = choosing.best(scores.only(~scores.cells["model"].map(choosing.is_control).to_numpy(dtype=bool)))
        if found is None or found.candidates < 2:
            continue
        setting = _spec(found.model).setting
        return f" ({setting} chosen on one half: {found.score:.1f} on the other, base {found.baseline:.1f})"
    return ""


def _scores(row: dict[Any, Any], table: Table) -> dict[str, Any]:
    """A row's scores with ``BESIDE``, the verdict in two words."""
    found: dict[str, Any] = {}
    for column in table.columns.values():
        if (column.score or column.statistic in BESIDE) and column.name in row:
            outcome = table.outcomes.get((row["model"], column.of)) if column.statistic == "verdict" else None
            found[column.name] = row[column.name] if column.statistic != "verdict" else outcome and outcome.words
    return found


def _order_of(prompt: str) -> str:
    return "stock" if prompt == "stock" else f"{prompt.upper()}-A"


def _frame(lines: list[dict[str, Any]], found: Sequence[ScoreColumn], own: list[str]) -> pd.DataFrame:
    """The rows with their columns in order, also when there are none."""
    names = list(dict.fromkeys(name for line in lines for name in line)) or ["model", "base", *own, "note"]
    missing = [column.title for column in found if column.title not in names]
    names[-1:-1] = missing
    return pd.DataFrame(lines, columns=names)


def _printed(rows: pd.DataFrame, found: Sequence[ScoreColumn]) -> list[dict[str, Any]]:
    """Printed numbers as rows of a board: those of one model, method, setting and source share a row."""
    lines = []
    for key, group in rows.groupby(["model", "method", "setting", "source"], sort=False):
        model, method, setting, source = map(str, key)
        line: dict[str, Any] = {}
        told = []
        for row in group.to_dict("records"):
            metrics = (*published.METRICS[row["metric"]], "")
            titles = [c.title for c in found if c.benchmark == row["benchmark"] and c.metric in metrics]
            line |= dict.fromkeys(titles[:1], row["value"])
            note = f"{row['benchmark']}: {row['note']}" if len(group) > 1 else row["note"]
            told += [note] if row["note"] and titles else []
        if not line:
            continue
        facts = published.facts(model)
        what = setting if method == "prompt" else " ".join(filter(None, [method, setting]))
        line |= {"model": model, "base": facts.names[0] if facts.names else None, "setting": what, "source": source}
        line |= {"language model": facts.backbone or None, "resolution": facts.resolution}
        disputed = "yes" if group["disputed"].any() else None
        lines.append(line | {"disputed": disputed, "note": "; ".join(told) or None, "names": facts.names})
    return lines


def _beside(frame: pd.DataFrame, printed: list[dict[str, Any]]) -> tuple[pd.DataFrame, frozenset[int]]:
    """Printed rows below the measured ones of the same weights, others at the end; and their positions."""
    if not printed:
        return frame.reset_index(drop=True), frozenset()
    roots = [_spec(str(base)).base for base in frame["base"]]
    rows: list[dict[Any, Any]] = []
    grey: set[int] = set()
    waiting = list(printed)
    measured: list[dict[Any, Any]] = frame.to_dict("records")
    if "setting" not in frame:
        measured = [{"setting": _spec(row["model"]).setting or None} | row for row in measured]
    for position, row in enumerate(measured):
        rows.append(row)
        if roots[position] in roots[position + 1 :]:
            continue
        for line in [line for line in waiting if roots[position] in line["names"]]:
            waiting.remove(line)
            grey.add(len(rows))
            rows.append(line | {"base": roots[position]})
    grey |= set(range(len(rows), len(rows) + len(waiting)))
    extra = ["source", "disputed"]
    names = [str(name) for name in frame.columns if name != "note"]
    if "setting" not in names:
        names.insert(1, "setting")
    both = pd.DataFrame([*rows, *waiting], columns=[*names, *extra, "note"], dtype=object)
    return both, frozenset(grey)


def _disclaimer(grey: frozenset[int]) -> list[str]:
    words = "grey rows were printed by others (see source), not measured here; they are in no mean, test or best"
    return [words] if grey else []
