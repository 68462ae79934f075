"""What a cell's numbers came from: host, judge, weights, versions, device, arguments and date, one row per cell.

Facts are those that the run itself wrote down: the efficiency records first, then the host's ``status.json``. What
neither tells is None, never a guess.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.outputs import Cell

COLUMNS = [
    "host", "host_version", "commit", "judge", "judge_ran", "backend", "weights", "revision", "torch", "transformers",
    "redrel_vlmeval", "device", "dtype", "kernel", "prompt", "beams", "date", "arguments", "run",
]  # fmt: skip
HOSTS = {"ms-vlmeval": "ms", "vlmeval": "upstream"}
_FROM_RECORDS = ("backend", "weights", "revision", "device", "dtype", "kernel")
# Values of these options of the host are secrets, which no sheet may show.
_SECRET = re.compile(r"--[\w-]*(?:key|token|password)\b", re.IGNORECASE)
# What the host writes into a judged table when the judge gave no answer.
_FELL_BACK = "no GPT-based answer matching"
_RANDOM = "randomly generate one"


def of_cell(cell: Cell, measured: Mapping[str, Any] | None, table: pd.DataFrame | None) -> dict[str, object]:
    """A value for each of ``COLUMNS``; ``measured`` is the cell's row of records, ``table`` its judged table."""
    measured = measured or {}
    versions = _versions(measured.get("versions"))
    known = {name: measured.get(name) for name in _FROM_RECORDS}
    known |= {name: versions.get(name) for name in ("torch", "transformers", "redrel_vlmeval")}
    spec = _spec(cell.model)
    argv = _argv(cell)
    return known | _host(cell, measured, versions.get("vlmeval"), argv) | {
        "judge": cell.judge,
        "judge_ran": judge_ran(cell.judge, table),
        "prompt": spec.prompt,
        "beams": spec.beam if measured else None,
        "date": measured.get("started") or cell.status.get("created_at") or cell.entry.get("updated_at"),
        "arguments": arguments(argv[1:]) if argv else measured.get("arguments"),
        "run": cell.run.name,
    }


def judge_ran(judge: str | None, table: pd.DataFrame | None) -> str | None:
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
        unknown = int((table["extracted"].astype(str) == "Unknown").sum())
        return f"no: {unknown} of {len(table)} answers were left unread" if unknown else None
    if "log" not in table:
        return None
    log = table["log"].astype(str)
    for words, what in ((_RANDOM, "were given a random letter"), (_FELL_BACK, "were counted wrong without a judge")):
        if count := int(log.str.contains(words, regex=False).sum()):
            return f"no: {count} of {len(table)} answers {what}"
    return None


def arguments(argv: Sequence[str]) -> str:
    """A command line as text, with the values of keys and tokens left out."""
    shown: list[str] = []
    for word in map(str, argv):
        name, equals, _ = word.partition("=")
        if shown and _SECRET.fullmatch(shown[-1]):
            shown.append("...")
        else:
            shown.append(f"{name}=..." if equals and _SECRET.fullmatch(name) else word)
    return shlex.join(shown)


def _host(cell: Cell, measured: Mapping[str, Any], version: str | None, argv: list[str]) -> dict[str, object]:
    """Which of the two hosts; the commit that ms-vlmeval notes is that of whatever repository it is installed in."""
    name, _, number = (version or "").partition(" ")
    found = HOSTS.get(name) or measured.get("host") or _host_by_command(argv[0] if argv else "")
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
    found: dict[str, str] = {}
    for piece in text.split(", ") if isinstance(text, str) else ():
        name, _, value = piece.partition(" ")
        found[name] = value if name == "vlmeval" else value.removeprefix(f"{name} ")
    return found


def _spec(model: str) -> VariantSpec:
    try:
        return parse(model)
    except KeyError:
        return VariantSpec()
