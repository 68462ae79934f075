"""What a cell's numbers came from: host, judge, weights, versions, device, arguments and date, one row per cell.

Facts are those that the run itself wrote down: the efficiency records first, then the host's ``status.json``. What
neither tells is None, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from redrel_vlmeval import files
from redrel_vlmeval.host import MS, UPSTREAM, Cell, Columns, arguments
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results.records import SETTINGS

COLUMNS = [
    "host", "host_version", "commit", "judge", "judge_ran", "backend", "weights", "revision", "torch", "transformers",
    "redrel_vlmeval", "device", "dtype", "kernel", "prompt", "decoding", "pictures", "date", "arguments", "run",
]  # fmt: skip
HOSTS = {MS: "ms", UPSTREAM: "upstream"}
# What the host writes into a judged table when the judge gave no answer.
_FELL_BACK = "no GPT-based answer matching"
_RANDOM = "randomly generate one"


def of_cell(cell: Cell, measured: Mapping[str, Any] | None, table: Columns | None) -> dict[str, object]:
    """A value for each of ``COLUMNS``; ``measured`` is the cell's row of records, ``table`` its judged table."""
    measured = measured or (cell.given.run if cell.given else {})
    versions = _versions(measured.get("versions"))
    known = {name: measured.get(name) for name in SETTINGS}
    known |= {name: versions.get(name) for name in ("torch", "transformers", "redrel_vlmeval")}
    spec = _spec(cell.model)
    argv = _argv(cell)
    return (
        known
        | _host(cell, measured, versions.get("vlmeval"), argv)
        | {
            "judge": cell.judge,
            "judge_ran": judge_ran(cell.judge, table),
            "prompt": spec.prompt,
            "decoding": spec.decoding if measured else None,
            "pictures": measured.get("stale_pictures"),
            "date": measured.get("started") or cell.status.get("created_at") or cell.entry.get("updated_at"),
            "arguments": arguments(argv[1:]) if argv else measured.get("arguments"),
            "run": files.told(cell.run.name),
        }
    )


def judge_ran(judge: str | None, table: Columns | None) -> str | None:
    """``yes`` or ``no`` and why, from the judged table; None where it does not show.

    A judge that needs an API key and has none is replaced by exact matching, or by random letters, without an error.
    """
    if table is None or judge is None:
        return None
    if judge == "exact_matching":
        return "yes: exact matching needs nothing"
    if "eval_score" in table:
        return "no: this benchmark is scored by rule"
    if "extracted" in table:
        unread = sum(value == "Unknown" for value in table["extracted"])
        return f"no: {unread} of {len(table['extracted'])} answers were left unread" if unread else None
    log = [str(line) for line in table.get("log", [])]
    for words, what in ((_RANDOM, "were given a random letter"), (_FELL_BACK, "were counted wrong without a judge")):
        if count := sum(words in line for line in log):
            return f"no: {count} of {len(log)} answers {what}"
    # An answer that the host reads by itself is its own log.
    given = [str(value) for value in table.get("prediction", [])]
    asked = sum(line.startswith("Match Log:") and said not in line for line, said in zip(log, given, strict=False))
    if asked:
        return f"yes: it read {asked} of {len(log)} answers"
    return f"not needed: all {len(log)} answers were read by exact matching" if log else None


def _host(cell: Cell, measured: Mapping[str, Any], version: str | None, argv: list[str]) -> dict[str, object]:
    """Which of the two hosts; the commit that ms-vlmeval notes is that of whatever repository it is installed in."""
    name, _, number = (version or "").partition(" ")
    found = measured.get("host") or HOSTS.get(name) or _host_by_command(argv[0] if argv else "")
    commit = measured.get("commit") or (cell.status.get("commit") if found == "upstream" else None)
    return {
        "host": found,
        "host_version": measured.get("host_version") or number or None,
        "commit": None if commit == "unknown" else commit,
    }


def _host_by_command(command: str) -> str | None:
    """``python -m vlmeval`` is ms-vlmeval's way to start; upstream has only a ``run.py``."""
    parts = re.split(r"[\\/]", command)
    return "ms" if parts[-2:] == ["vlmeval", "__main__.py"] else "upstream" if parts[-1] == "run.py" else None


def _argv(cell: Cell) -> list[str]:
    found = cell.status.get("argv")
    return [str(word) for word in found] if isinstance(found, list) else []


def _versions(text: object) -> dict[str, str]:
    """``torch 2.1, vlmeval ms-vlmeval 0.0.20`` -> the number, or the distribution and its number, by name."""
    found: dict[str, list[str]] = {}
    for piece in re.split(r", | \| ", text) if isinstance(text, str) else ():
        name, _, value = piece.partition(" ")
        found.setdefault(name, []).append(value if name == "vlmeval" else value.removeprefix(f"{name} "))
    return {name: " | ".join(dict.fromkeys(values)) for name, values in found.items()}


def _spec(model: str) -> VariantSpec:
    try:
        return parse(model)
    except KeyError:
        return VariantSpec()
