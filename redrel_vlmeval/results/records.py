"""The efficiency records of a cell -> one row: mean tokens, FLOPs and bytes, median times, what it ran on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

import pandas as pd

from redrel_vlmeval.errors import one_line
from redrel_vlmeval.host import RECORDS, STATUS, Cell, ResultsError, read_json
from redrel_vlmeval.names import parse

SETTINGS = ("backend", "weights", "revision", "device", "dtype", "kernel")
_MEDIANS = ("prefill_ms", "decode_ms_per_token")
# of each time the median, and where the middle half of its questions begins and ends
TIMES = tuple(f"{name}{part}" for name in _MEDIANS for part in ("", "_from", "_to"))
COLUMNS = (
    "n", "image_tokens", "kept", "average_image_tokens", "prefill_flops", "flops_ratio", "kv_bytes",
    "kv_ratio", *TIMES, "batch", "mode", *SETTINGS, "versions", "kv_bytes_measured",
    "questions_per_second", "peak_bytes", "new_tokens", "tokens_per_block", "errors",
)  # fmt: skip
# What a run says of itself, for the provenance of its cell.
RUN = ("host", "host_version", "commit", "arguments")
_MEANS = ("image_tokens", "average_image_tokens", "prefill_flops", "kv_bytes", "kv_bytes_measured", "new_tokens")
SHOWN = 3  # errors of single questions that a sheet quotes


def read_records(path: Path) -> dict[str, dict[str, object]]:
    """Efficiency records by question; the last line of an index wins, torn lines (killed runs) are passed over.

    ``run`` of each is the head that stood before it: what its run said of itself, and empty in older files.

    Raises:
        ResultsError: the file cannot be opened.
    """
    records: dict[str, dict[str, object]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ResultsError(f"{path.name} cannot be read: {one_line(error)}") from error
    run: object = {}
    for line in lines:
        # A killed run leaves a line without its end, and the next run's first record follows on the same line.
        start = max(line.rfind('{"version"'), 0)
        try:
            record = json.loads(line[start:])
        except ValueError:
            continue
        if isinstance(record, dict) and "index" in record:
            records[str(record["index"])] = record | {"run": run}
        elif isinstance(record, dict) and isinstance(record.get("run"), dict):
            run = record["run"]
    return records


def records_of(cell: Cell) -> dict[str, dict[str, object]]:
    """Records of a cell and of the runs that it went on from: upstream resumes into a new folder.

    Those that another model, setting or benchmark wrote, in a file that was renamed or copied, are left out.

    Raises:
        ResultsError: a file of records cannot be opened.
    """
    return {index: record for index, record in _found(cell).items() if not _stranger(cell, record)}


def _stranger(cell: Cell, record: Mapping[str, object]) -> str:
    """Whose a record is, if it says that it is not this cell's."""
    own = {"model": cell.model, "dataset": cell.benchmark, "setting": setting_of(cell.model)}
    # The setting counts beside the model's name, since a name of the user's own can say any setting.
    other = [str(record[name] or "untouched") for name, value in own.items() if record.get(name) not in (None, value)]
    return " ".join(other)


def setting_of(model: str) -> str:
    """The setting that a model's name says; '' for a name that is none of ours."""
    try:
        return parse(model).setting
    except KeyError:
        return ""


def _found(cell: Cell) -> dict[str, dict[str, object]]:
    """The last record of each question, whoever wrote it."""
    if cell.given is not None:
        return {index: dict(record) for index, record in cell.given.records.items()}
    run, entry, seen = cell.run, dict(cell.entry), {cell.run.name}
    folders = [run]
    while (source := str(entry.get("source_run") or "")) and source not in seen:
        seen.add(source)
        # Run folders stand side by side; a flat folder has its own T... folder inside.
        inside = next((path for path in (run.parent / source, run / source) if path.is_dir()), None)
        if inside is None:
            break
        run = inside
        folders.append(run)
        try:
            entry = dict(read_json(run / STATUS)["datasets"][cell.benchmark])
        except (ResultsError, KeyError, TypeError, ValueError):
            break
    found: dict[str, dict[str, object]] = {}
    name = f"{cell.model}_{cell.benchmark}"
    for folder in reversed(folders):
        files = (file for file in os.listdir(folder) if file.startswith(name))
        for file in sorted(file for file in files if RECORDS.fullmatch(file, len(name))):
            for index, record in read_records(folder / file).items():
                # Ranks are dealt anew on a resume: the same question can stand in two ranks' files.
                if str(record.get("time") or "") >= str(found.get(index, {}).get("time") or ""):
                    found[index] = record
    return found


def summary(cell: Cell) -> tuple[dict[str, object] | None, str]:
    """One value for each of ``COLUMNS`` and ``RUN``, started and stale_pictures, None without records; and a remark.

    Several values of what is the same for a run are all listed. The remark tells of records that do not count, and of
    questions that were asked with the wrong picture.

    Raises:
        ResultsError: a file of records cannot be opened.
    """
    found = _found(cell)
    others = {index: whose for index, record in found.items() if (whose := _stranger(cell, record))}
    records = {index: record for index, record in found.items() if index not in others}
    said = [f"{len(others)} efficiency records are of {_values(others.values())!r} and do not count"] * bool(others)
    if not records:
        return None, "; ".join(said)
    row = _row(records)
    if row["stale_pictures"]:
        said.append(f"asked with {row['stale_pictures']}")
    return row, "; ".join(said)


def _row(records: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    frame = pd.DataFrame(list(records.values()))
    frame["kept"] = pd.Series([_last(record.get("images_per_block")) for record in records.values()], dtype=object)
    row: dict[str, object] = {"n": len(frame)}
    row |= {name: _numbers(frame, name).mean() for name in ("kept", *_MEANS)}
    quartiles = {"": 0.5, "_from": 0.25, "_to": 0.75}
    row |= {f"{name}{end}": _numbers(frame, name).quantile(q) for name in _MEDIANS for end, q in quartiles.items()}
    row["batch"] = _values(record.get("batch", 1) for record in records.values())
    row["flops_ratio"] = _ratio(_numbers(frame, "prefill_flops"), _numbers(frame, "prefill_flops_untouched"))
    row["kv_ratio"] = _ratio(_numbers(frame, "kv_bytes"), _numbers(frame, "kv_bytes_untouched"))
    row |= {name: _values(frame.get(name, ())) for name in ("mode", *SETTINGS)}
    found = [value for value in frame.get("versions", ()) if isinstance(value, Mapping)]
    row["versions"] = _values(", ".join(f"{name} {number}" for name, number in value.items()) for value in found)
    seconds = _numbers(frame, "seconds")
    row["questions_per_second"] = float(seconds.notna().sum() / seconds.sum()) if seconds.sum() else None
    row["peak_bytes"] = _numbers(frame, "peak_bytes").max()
    row["tokens_per_block"] = _per_block(frame.get("tokens", ()))
    said = [str(record["error"]) for record in records.values() if isinstance(record.get("error"), str)]
    row["errors"] = "; ".join([*said[:SHOWN], *[f"and {len(said) - SHOWN} more"] * (len(said) > SHOWN)]) or None
    runs = [run for run in frame["run"] if isinstance(run, Mapping)]
    row |= {name: _values(run.get(name) for run in runs) for name in RUN}
    times = [*(run.get("started") for run in runs), *frame.get("time", ())]
    row["started"] = min((when for when in times if isinstance(when, str)), default=None)
    row["stale_pictures"] = _stale(records)
    return row


def _stale(records: Mapping[str, Mapping[str, object]]) -> str | None:
    """The host keeps pictures by name, and shows an old one where the table's has changed."""
    names = [record["stale_pictures"] for record in records.values() if record.get("stale_pictures")]
    if not names:
        return None
    first = names[0][0] if isinstance(names[0], list) else names[0]
    return f"pictures that are not those of the benchmark's table in {len(names)} of {len(records)} questions ({first})"


def _per_block(lists: Iterable[object]) -> str | None:
    """Tokens entering each decoder block, mean over questions: ``134 x 2, 78 x 6`` for two blocks of 134, six of 78."""
    rows = [row for row in lists if isinstance(row, list) and row]
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    means = [f"{sum(column) / len(rows):.1f}".removesuffix(".0") for column in zip(*rows, strict=True)]
    return ", ".join(f"{mean} x {len(list(same))}" for mean, same in groupby(means))


def _last(blocks: object) -> object:
    """Image tokens entering the last block: what is kept after the last stage."""
    return blocks[-1] if isinstance(blocks, list) and blocks else None


def _numbers(frame: pd.DataFrame, name: str) -> pd.Series:
    column = frame[name] if name in frame else pd.Series([None] * len(frame), dtype=object)
    return pd.to_numeric(column, errors="coerce").astype(float)


def _ratio(part: pd.Series, whole: pd.Series) -> float | None:
    """Sum over sum of the questions that have both, so that long prompts weigh as much as they cost."""
    both = part.notna() & whole.notna()
    return float(part[both].sum() / whole[both].sum()) if whole[both].sum() else None


def _values(values: Iterable[object]) -> str | None:
    return " | ".join(sorted({str(value) for value in values if value is not None and value == value})) or None
