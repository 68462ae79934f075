"""A sweep's answers as the host's own runs: the host writes its prediction files and scores them, unmodified.

Upstream gets one run folder ``<work-dir>/<model>/T<date>-<time>/``, ms-vlmeval its flat ``<work-dir>/<model>/``. The
answers go in as the file from which the host's inference goes on (``01_<data>.pkl``), complete: it asks nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.files import write_whole
from redrel_vlmeval.host import STATUS, child, host_folder
from redrel_vlmeval.results import read_records
from redrel_vlmeval.sweep.distributed import alone
from redrel_vlmeval.sweep.store import StoreError

# The host's own word for an answer it did not get: counted as failed, judged wrong, asked again by its --reuse.
FAILED = "Failed to obtain answer via API."
WRITTEN = "written.json"
SOURCE = "sweep"


class EvaluationError(RedrelError, RuntimeError):
    """The host's runner stopped; says where its log lies."""


@dataclass(frozen=True)
class Target:
    """Where the runs of one benchmark go, and how they are to be judged."""

    work_dir: Path
    data: str
    judge: str
    folder: Path  # the sweep's own, for the log and for what was written before
    locks: list[IO[bytes]] = field(default_factory=list)  # held by the host's runner as well

    def of(self, model: str, run: str) -> Path:
        return self.work_dir / model / run if run else self.work_dir / model


def is_flat() -> bool:
    """True for a host that writes into the model's folder itself (ms-vlmeval)."""
    return (host_folder() / "__main__.py").is_file()


def occupied(target: Target, models: Iterable[str]) -> list[str]:
    """Models whose flat folder already holds an ordinary run on this benchmark, which a sweep would replace."""
    if not is_flat():
        return []
    return [model for model in models if _ordinary(target.work_dir / model, f"{model}_{target.data}")]


def _ordinary(folder: Path, stem: str) -> bool:
    tables = [folder / f"{stem}.{kind}" for kind in ("xlsx", "tsv", "json")]
    records = [path for path in folder.glob(f"{stem}_redrel*.jsonl") if path.is_file()]
    sources = {record.get("source") for path in records for record in read_records(path).values()}
    return bool(sources - {SOURCE}) or (not records and any(path.exists() for path in tables))


def write(
    target: Target,
    runs: Iterable[tuple[str, Mapping[Any, str], Sequence[Mapping[str, Any]]]],
    limit: int | None,
    seen: Callable[[int], None],
) -> int:
    """Hand each model's answers (by index) and efficiency records to the host; the number of models it evaluated.

    What was written before with the same answers, and is scored, is left as it is.

    Raises:
        EvaluationError: the host's runner failed as a whole; a failed cell stands in its status.json like any other.
        StoreError: a file cannot be written.
    """
    path = target.folder / WRITTEN
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    eval_id = time.strftime("T%Y%m%d-%H%M%S")
    changed: dict[str, dict[str, str]] = {}
    for model, answers, records in runs:
        lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        digest = hashlib.sha256(repr(sorted(answers.items(), key=str)).encode() + lines).hexdigest()[:16]
        digest += f" {target.judge}"
        last = before.get(model, {})
        if last.get("digest") == digest and _is_scored(target, model, last["run"]):
            continue
        run = "" if is_flat() else eval_id
        changed[model] = {"digest": digest, "run": run}
        _hand_over(target, model, run, answers, lines)
    if not changed:
        return 0
    # Before the scoring: killed in the middle, the next start scores only what has no score yet.
    write_whole(path, json.dumps(before | changed, indent=1).encode(), StoreError)
    _evaluate(target, list(changed), eval_id, limit, seen)
    return len(changed)


def _hand_over(target: Target, model: str, run: str, answers: Mapping[Any, str], records: bytes) -> None:
    folder = target.of(model, run)
    stem = f"{model}_{target.data}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder, target, stem)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); the sweep's answers are kept") from error
    write_whole(folder / f"{stem}_redrel.jsonl", records, StoreError)
    write_whole(folder / f"01_{target.data}.pkl", pickle.dumps(dict(answers)), StoreError)


def _clear(folder: Path, target: Target, stem: str) -> None:
    """Remove this benchmark's files of an earlier sweep: the host would take its verdicts for those of new answers."""
    words = r"acc(?:_all)?|score|auxmatch|results?|PREV|" + re.escape(target.judge) + "(?:_result)?"
    own = re.compile(re.escape(stem) + rf"(?:\.\w+|_redrel(?:_rank\d+)?\.jsonl|_(?:{words})\.\w+)")
    for path in folder.iterdir():
        if own.fullmatch(path.name):
            path.unlink()
    status = folder / STATUS
    if status.is_file():  # the host never takes 'done' back, so a killed evaluation would look finished
        value = json.loads(status.read_text(encoding="utf-8"))
        value.get("datasets", {}).pop(target.data, None)
        write_whole(status, json.dumps(value, indent=4).encode(), StoreError)


def _is_scored(target: Target, model: str, run: str) -> bool:
    folder = target.of(model, run)
    try:
        entry = json.loads((folder / STATUS).read_text(encoding="utf-8"))["datasets"][target.data]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    tables = [folder / f"{model}_{target.data}.{kind}" for kind in ("xlsx", "tsv", "json")]
    return entry.get("status") == "done" and "error_message" not in entry and any(path.is_file() for path in tables)


def _evaluate(target: Target, models: list[str], eval_id: str, limit: int | None, seen: Callable[[int], None]) -> None:
    """The host's runner in a process of its own, output in ``runner.log``; ``seen(done)`` is called as it goes."""
    arguments = ["--model", *models, "--data", target.data, "--judge", target.judge, "--keep-failed"]
    arguments += ["--work-dir", str(target.work_dir)]
    request = {"eval_id": eval_id, "limit": limit, "args": arguments}
    log = target.folder / "runner.log"
    run = "" if is_flat() else eval_id
    command = [sys.executable, "-m", "redrel_vlmeval.host.evaluate", json.dumps(request)]
    with alone(), open(log, "wb") as output:
        settings = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"} | os.environ
        with child.started(command, output, settings, target.locks) as process:
            while process.poll() is None:
                seen(sum(_is_scored(target, model, run) for model in models))
                time.sleep(0.3 + 0.01 * len(models))
    seen(sum(_is_scored(target, model, run) for model in models))
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise EvaluationError(f"the host's runner stopped with {process.returncode}: {last[0]} (its output: {log})")
