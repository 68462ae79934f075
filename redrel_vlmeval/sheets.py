"""Results -> one comparison table as text, xlsx, csv or markdown; a file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from redrel_vlmeval import comparisons
from redrel_vlmeval.results import Results
from redrel_vlmeval.statistics import p_text
from redrel_vlmeval.writing import WriteError, atomically

INTERVAL = "95 % CI"
NOT_RUN = f"{comparisons.NO_TEST}: not run"
LEGEND = "verdict: paired test of each variant against its base; better or worse where p (Holm) < .05"
STATES = ("failed", "running", "partial", "no rule", "ok")
NOTES = {
    "model": "name given to the runner",
    "base": "the untruncated model that a variant is compared with: same prompt, same number of beams",
    "L": "decoder blocks that see every token; ranking happens at the end of block L. Several stages: several numbers",
    "K": "image tokens kept after block L; with % a share of the prompt's image tokens",
    "rule": "what the kept tokens are picked by: attention (of the last prompt token), or a control of the same budget",
    "backend": "the class that ran the model; base and variant are compared only when it is the same",
    "image tokens": "image tokens of the prompt, mean over questions",
    "kept": "image tokens left after the last stage, mean over questions",
    "average tokens": "image tokens entering a decoder block, mean over blocks and questions",
    "FLOPs ratio": "prefill FLOPs / those of the untouched model on the same prompts; below 1 is cheaper",
    "KV ratio": "KV cache bytes / those of the untouched model on the same prompts",
    "prefill GFLOPs": "floating point operations of the prefill, in 1e9, mean over questions",
    "prefill TFLOPs": "floating point operations of the prefill, in 1e12, mean over questions",
    "KV KiB": "bytes of the KV cache when the answer ends, in 1024, mean over questions",
    "KV MB": "bytes of the KV cache when the answer ends, in 1e6, mean over questions",
    "prefill ms": "wall time of the prefill, median over questions; of several benchmarks the weighted mean",
    "decode ms/token": "wall time of one decoding step, median over questions; of several benchmarks the weighted mean",
    "status": "worst state of the row's cells: ok, no rule (numbers as they stand, none of them the benchmark's), "
    "partial (answers, no score), running (begun, not ended), failed",
    "note": "why a cell has no score, why a score has no delta, and what to know of the run",
}


class SheetError(WriteError):
    """A sheet that cannot be written; the text names the file and what would work."""


def leaderboard(results: Results) -> pd.DataFrame:
    """One row per model, bases first; a benchmark that failed shows its state in place of a score.

    Score columns are in points; beside them the delta to the base and what a paired test says of it, see
    :mod:`redrel_vlmeval.comparisons`. What each column means: :func:`notes`.
    """
    models = results.scores.drop_duplicates("model")
    frame = models[["model", "base", "L", "K", "rule"]].set_index("model", drop=False)
    backends = results.efficiency.dropna(subset=["backend"]).groupby("model")["backend"]
    frame["backend"] = backends.agg(lambda names: " | ".join(sorted(set(names)))).reindex(frame.index)
    variants = bool((frame["base"] != frame["model"]).any())
    compared = comparisons.compare(results)
    for column, rows in _score_columns(results.scores):
        rows = rows.join(compared).set_index("model")
        shown = rows["value"].astype(object).where(rows["status"] == "ok", rows["status"])
        frame[column] = shown.reindex(frame.index)
        if variants:
            beside = rows[list(comparisons.MEANINGS)].reindex(frame.index)
            beside.loc[~frame.index.isin(rows.index) & (frame["base"] != frame["model"]), "verdict"] = NOT_RUN
            frame = frame.join(beside.add_prefix(f"{column} "))
    frame = frame.join(_costs(results.efficiency))
    cells = {model: results.scores[results.scores["model"] == model] for model in frame.index}
    frame["status"] = [min(rows["status"], key=STATES.index) for rows in cells.values()]
    frame["note"] = [_notes(rows) for rows in cells.values()]
    return frame.loc[_order(frame)].reset_index(drop=True)


def _score_columns(scores: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(title, one row per model): benchmarks with several headlines (POPE F1, acc) get a column for each."""
    columns = []
    headlines = scores[scores["headline"]]
    for benchmark in sorted(set(headlines["benchmark"].astype(str))):
        rows = headlines[headlines["benchmark"] == benchmark]
        metrics = [str(metric) for metric in rows["metric"].unique() if metric]
        for metric in metrics or [""]:
            title = f"{benchmark} {metric}" if len(metrics) > 1 else benchmark
            columns.append((title or "(no benchmark)", rows[rows["metric"].isin([metric, ""])]))
    return columns


def _costs(efficiency: pd.DataFrame) -> pd.DataFrame:
    """Efficiency per model: means over its benchmarks, weighted by questions; units by size."""
    names = ["image_tokens", "kept", "average_image_tokens", "prefill_flops", "flops_ratio", "kv_bytes", "kv_ratio",
             "prefill_ms", "decode_ms_per_token"]  # fmt: skip
    numbers = efficiency[names].astype(float)
    weights = numbers.notna().mul(efficiency["n"].astype(float), axis=0)
    frame = (numbers * weights).groupby(efficiency["model"]).sum() / weights.groupby(efficiency["model"]).sum()
    flops, flops_unit = (1e12, "TFLOPs") if frame["prefill_flops"].max() >= 1e12 else (1e9, "GFLOPs")
    size, size_unit = (1e6, "MB") if frame["kv_bytes"].max() >= 1e7 else (1024, "KiB")
    frame = frame.assign(prefill_flops=frame["prefill_flops"] / flops, kv_bytes=frame["kv_bytes"] / size)
    titles = ["image tokens", "kept", "average tokens", f"prefill {flops_unit}", "FLOPs ratio", f"KV {size_unit}",
              "KV ratio", "prefill ms", "decode ms/token"]  # fmt: skip
    return frame.rename(columns=dict(zip(names, titles, strict=True)))


def _notes(rows: pd.DataFrame) -> str:
    """Each reason once, with its benchmark where the model has several."""
    alone = rows["benchmark"].nunique() == 1
    told: dict[str, None] = {}
    for benchmark, *texts in rows[["benchmark", "reason", "note"]].astype(str).itertuples(index=False, name=None):
        told |= dict.fromkeys(text if alone or not benchmark else f"{benchmark}: {text}" for text in texts if text)
    return "; ".join(told)


def _order(frame: pd.DataFrame) -> list[str]:
    """Models by base, each base before its variants, these by rule, then L and K as numbers."""

    def key(row: dict[Any, Any]) -> tuple:
        numbers = [(0, value, "") if isinstance(value, int) else (1, 0, str(value)) for value in (row["L"], row["K"])]
        control = row["rule"] not in ("attention", None)
        return row["base"], row["model"] != row["base"], control, str(row["rule"]), numbers, row["model"]

    return [row["model"] for row in sorted(frame.to_dict("records"), key=key)]


def notes(frame: pd.DataFrame) -> dict[str, str]:
    """What each column of a leaderboard means, with its unit."""
    found = {}
    for column in map(str, frame.columns):
        if column in NOTES:
            found[column] = NOTES[column]
        elif beside := statistic(column):
            found[column] = comparisons.MEANINGS[beside]
        else:
            found[column] = "score in points, by the host's own evaluation, or the state of a cell that has none"
    return found


def statistic(column: str) -> str:
    """What a column beside a score holds (``delta``, ``p``, ...); empty for any other column."""
    return next((name for name in comparisons.MEANINGS if column.endswith(f" {name}")), "")


def number_format(column: str) -> str:
    """Python format of a column's numbers; 'p' for a p-value."""
    beside = statistic(column)
    if column in ("L", "K") or beside in ("up", "down"):
        return "d"
    if column in ("FLOPs ratio", "KV ratio"):
        return ".3f"
    if beside:
        return "p" if beside.startswith("p") else "+.1f"
    return ".2f" if column.startswith(("prefill ", "decode ms", "KV ")) else ".1f"


def _text(column: str, value: Any, width: int | None = None) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        form = number_format(column)
        return p_text(value) if form == "p" else format(int(value) if form == "d" else value, form)
    text = " ".join(str(value).split())
    return text if width is None or len(text) <= width else text[: width - 3] + "..."


def _cells(frame: pd.DataFrame, width: int | None = None) -> list[list[str]]:
    rows = frame.itertuples(index=False, name=None)
    return [[_text(str(name), value, width) for name, value in zip(frame.columns, row, strict=True)] for row in rows]


def to_text(frame: pd.DataFrame) -> str:
    """The leaderboard for a terminal: no empty columns, and of the statistics those that decide.

    Below it what all rows share, and every note.
    """
    shown, below = _without_shared(_shortened(frame).drop(columns="note").dropna(axis=1, how="all"))
    if any(statistic(name) == "p (Holm)" for name in shown.columns):
        below.append(LEGEND)
    below += [f"{row['model']}: {text}" for row in frame.to_dict("records") for text in _remarks(row)]
    left = ("model", "base", "rule", "backend", "status")
    align = ["left" if name in left or statistic(name) == "verdict" else "right" for name in shown.columns]
    # A statistic stands right of its benchmark, whose name would only widen the table.
    headers = [INTERVAL if name.endswith(INTERVAL) else statistic(name) or name for name in shown.columns]
    headers = [name if name == INTERVAL else name.replace(" ", "\n") for name in headers]
    table = tabulate(_cells(shown, 60), headers=headers, disable_numparse=True, colalign=align)
    return "\n".join([table, *([""] if below else []), *below])


def _shortened(frame: pd.DataFrame) -> pd.DataFrame:
    """Delta, p (Holm) and a verdict of two words at most; the interval too of a single score; files have all of it."""
    scores = [str(name).removesuffix(" verdict") for name in frame.columns if statistic(str(name)) == "verdict"]
    short = frame.assign(**{f"{name} verdict": frame[f"{name} verdict"].map(_two_words) for name in scores})
    if len(scores) == 1:
        low, high = (frame[f"{scores[0]} {end}"] for end in ("CI low", "CI high"))
        spans = [None if x != x else f"{x:+.1f}..{y:+.1f}" for x, y in zip(low, high, strict=True)]
        short.insert(list(frame.columns).index(f"{scores[0]} CI low"), f"{scores[0]} {INTERVAL}", spans)
    long = [name for name in frame.columns if statistic(str(name)) in ("CI low", "CI high", "up", "down", "p")]
    return short.drop(columns=long)


def _two_words(verdict: Any) -> Any:
    if not isinstance(verdict, str):
        return verdict
    if verdict.startswith(comparisons.NO_TEST):
        return "not run" if verdict == NOT_RUN else comparisons.NO_TEST
    return verdict.rpartition(": ")[2].removesuffix(" the baseline").removesuffix(" than").removesuffix(" from")


def _without_shared(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Columns that say the same in each of several rows become lines below the table."""
    same = [name for name in ("backend", "base", "image tokens", "status") if name in frame and len(frame) > 1]
    same = [name for name in same if frame[name].nunique(dropna=name == "backend") == 1]
    return frame.drop(columns=same), [f"{name}: {_text(name, frame[name].dropna().iloc[0])}" for name in same]


def _remarks(row: dict[Any, Any]) -> list[str]:
    """The row's note, and why a score is not tested where the note does not say so."""
    verdicts = [(name, text) for name, text in row.items() if statistic(str(name)) == "verdict"]
    untold = [
        f"{str(name).removesuffix(' verdict')}: {text}"
        for name, text in verdicts
        if str(text).startswith(f"{comparisons.NO_TEST}: ") and text != NOT_RUN
        and (why := text.removeprefix(f"{comparisons.NO_TEST}: ")) not in (*STATES, row["note"])
        and why not in row["note"]
    ]  # fmt: skip
    return [*([row["note"]] if row["note"] else []), *untold]


def to_markdown(frame: pd.DataFrame) -> str:
    """A pipe table that renders, whatever the cells hold, and the meaning of each column below it."""
    rows = [list(map(_escape, row)) for row in _cells(frame)]
    headers = [_escape(str(column)) for column in frame.columns]
    table = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)
    return "\n".join([table, "", *(f"- **{_escape(name)}**: {text}" for name, text in notes(frame).items())]) + "\n"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def write(results: Results, path: str | Path) -> Path:
    """Writes the leaderboard as the file's ending says: .xlsx, .csv or .md.

    Raises:
        SheetError: another ending, or a place that cannot be written; what was there before is untouched.
    """
    path = Path(path)
    writers = {".xlsx": write_xlsx, ".csv": write_csv, ".md": write_markdown}
    if path.suffix.lower() not in writers:
        raise SheetError(f"{str(path)!r}: unknown ending {path.suffix!r}, choose one of {', '.join(writers)}")
    return writers[path.suffix.lower()](results, path)


def write_csv(results: Results, path: str | Path) -> Path:
    """The leaderboard with full precision, UTF-8."""
    text = leaderboard(results).to_csv(index=False, lineterminator="\n")
    return atomically(path, lambda stream: stream.write(text.encode()), SheetError)


def write_markdown(results: Results, path: str | Path) -> Path:
    """The leaderboard as a pipe table with its column notes."""
    text = to_markdown(leaderboard(results))
    return atomically(path, lambda stream: stream.write(text.encode()), SheetError)


def write_xlsx(results: Results, path: str | Path) -> Path:
    """A workbook with the sheets Leaderboard, Scores, Efficiency and Notes."""
    from redrel_vlmeval.workbook import build

    board = leaderboard(results)
    book = build(board, results, notes(board), number_format)
    return atomically(path, book.save, SheetError)
