"""The questions of a task, as lmms-eval logs them (``--log_samples``): verdict, answer and record of each.

{"doc_id": 3, "input": ..., "filtered_resps": "A", "target": "B", "doc_hash": ...,
 "exact_match": 0.0,                          a metric judges the question by a number, or by an object with one
 "token_counts": [{..., "redrel": {...}}]}    what it cost
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from redrel_vlmeval.results import ResultsError

Line = Mapping[str, Any]


def path_of(results: Path, task: str) -> Path:
    """Where the questions of a task are, beside the results of its run."""
    return results.with_name(results.name.replace("_results.json", f"_samples_{task}.jsonl"))


def read(path: Path, run: Mapping[str, Any], task: str, filters: int) -> list[Line]:
    """One line per question, of the first of the task's filters; none where the file is not there.

    Raises:
        ResultsError: a line cannot be read; or they are not those that the run says it wrote: some are lost, or stand
            twice, as those of two runs of the same second do.
    """
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        first = {line["doc_id"]: line for line in reversed(lines)}
        found = [first[number] for number in sorted(first)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error
    if len(lines) > len(first) * max(filters, 1):
        raise ResultsError(f"{path.name}: {len(lines)} lines for {len(first)} questions: several runs wrote here")
    asked = _entry(_entry(run, "n-samples"), task).get("effective")
    if isinstance(asked, int) and len(first) != asked:
        raise ResultsError(f"{path.name}: {len(first)} questions, the run asked {asked}")
    known = _entry(run, "task_hashes").get(task)
    if known and known != _digest(lines):
        raise ResultsError(f"{path.name}: its questions are not those that the run wrote (task_hashes)")
    return found


def _entry(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, Mapping) else {}


def _digest(lines: Iterable[Line]) -> str:
    """As the harness makes it of the questions, in the order of the file."""
    text = "".join(f"sample_{number}{line.get('doc_hash')}" for number, line in enumerate(lines))
    return hashlib.sha256(text.encode()).hexdigest()


def judge(lines: Sequence[Line], names: Sequence[str]) -> str | None:
    """The first metric that judges every question: others are over a part of them."""
    return next((name for name in names if lines and all(name in line for line in lines)), None)


def table(lines: Sequence[Line], names: Sequence[str], key: str) -> dict[str, list[Any]]:
    """Columns as VLMEvalKit's judged tables have them; ``split`` is the metric that judges a question.

    Args:
        lines: of a task. names: its metrics, the headline first. key: where a metric's object has its number.
    """
    judged = [_verdict(line, names, key) for line in lines]
    return {
        "index": [line["doc_id"] for line in lines],
        "question": [line.get("input") for line in lines],
        "prediction": [_text(line.get("filtered_resps")) for line in lines],
        "answer": [line.get("target") for line in lines],
        "split": [name for name, _, _ in judged],
        "hit": [hit for _, hit, _ in judged],
        "category": [category for _, _, category in judged],
    }


def index_of(line: Line, task: str = "") -> str:
    """A question's number; of one of several tasks, behind the task's name."""
    return f"{task}/{line['doc_id']}" if task else str(line["doc_id"])


def joined(tables: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """Tables of several tasks as one, see :func:`index_of`; a question's category is its task."""
    found: dict[str, list[Any]] = {}
    for task, columns in tables.items():
        size = len(columns["index"])
        own = {"index": [index_of({"doc_id": n}, task) for n in columns["index"]], "category": [task] * size}
        for name, column in {**columns, **own}.items():
            found.setdefault(name, []).extend(column)
    return found


def whole(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The table without the columns that not every question has."""
    ends: dict[str, Any] = {
        "hit": lambda hit: hit is not None and 0 <= hit <= 1,
        "category": lambda word: isinstance(word, str),
    }
    return {name: column for name, column in columns.items() if name not in ends or all(map(ends[name], column))}


def _verdict(line: Line, names: Sequence[str], key: str) -> tuple[str | None, float | None, object]:
    """(metric, score, category) of a question: a task says a number, or an object with a number in it."""
    name = next((name for name in names if name in line), None)
    said = line.get(name) if name else None
    inside = said if isinstance(said, Mapping) else {}
    score = inside.get(key) if inside else said
    hit = float(score) if isinstance(score, (bool, int, float)) and math.isfinite(score) else None
    return name, hit, line.get("category", inside.get("category"))


def _text(answers: object) -> str:
    return _text(answers[0]) if isinstance(answers, list) and answers else str(answers)


def record(line: Line) -> dict[str, Any]:
    """What a question cost; empty where it was not measured."""
    counts = line.get("token_counts") or [None]
    return dict((counts[0] or {}).get("redrel") or {})
