"""``redrel sweep``: a grid of (L, K), or settings by name, on every question; resumed, scored by the host, drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from redrel_vlmeval import results
from redrel_vlmeval.console import bar
from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.files import is_held, usable
from redrel_vlmeval.host import benchmark
from redrel_vlmeval.models import batch_size
from redrel_vlmeval.results import Budget
from redrel_vlmeval.rules import DEFAULT
from redrel_vlmeval.sweep import handover, preview
from redrel_vlmeval.sweep.asking import HostSource
from redrel_vlmeval.sweep.distributed import Group, alone, group
from redrel_vlmeval.sweep.plan import Plan, PlanError, read_plan
from redrel_vlmeval.sweep.store import Store, StoreError
from redrel_vlmeval.sweep.work import Sweep

INTERRUPTED = 130  # the exit code that shells give for Ctrl-C


@dataclass(frozen=True)
class Request:
    """The command line of ``redrel sweep``."""

    model: str
    data: str
    layers: str = ""
    keep: str = ""
    rules: str = DEFAULT
    limit: int | None = None
    work_dir: Path = Path("outputs")
    memory: str | None = None
    dry_run: bool = False
    budget: str | None = None
    judge: str = "exact_matching"
    margin: float = 2.0
    settings: str | None = None
    batch: int | None = None  # questions at once; None: as REDREL_BATCH says
    base_there: bool = False  # the base has a score here, which is left as it is


# Results, base, benchmark, folder for figures, console, margin, budget -> the exit code.
Show = Callable[[results.Results, str, str, Path, Console, float, Budget | None], int]


def run(request: Request, show: Show) -> int:
    """The whole sweep; the exit code: 1 where a question or a cell failed. ``show`` is given what the host scored.

    Raises:
        PlanError: arguments that mean nothing. StoreError: a folder with other answers, or a full disk.
        Busy: another sweep is in this folder. HostMissing, TruncationError, CheckpointError: as for a single variant.
    """
    asked = request.layers, request.keep, request.rules, request.limit, request.settings
    plan = replace(read_plan(request.model, request.data, *asked), base_there=request.base_there)
    memory = read_memory(request.memory)
    budget = Budget.read(request.budget) if request.budget is not None else None
    if not 0 < request.margin < 100:
        raise PlanError(f"--margin {request.margin}: points above 0 and below 100")
    batch = batch_size(request.batch)
    console = Console()
    if request.dry_run:
        with alone():
            preview.check_data(plan.data, console)
            preview.show(plan, console)
        return 0
    work_dir = request.work_dir.absolute()
    store = Store(work_dir / "sweep" / f"{plan.base}_{plan.data}")
    target = handover.Target(work_dir, plan.data, request.judge, store.folder)
    place = group()
    console.quiet = place.rank > 0
    sweep = Sweep(plan, HostSource(plan.data, plan.limit), store, place, console)
    try:
        with said_once(place):
            if not is_held(store.folder):  # another process of this sweep that ended first hands over by now
                check_free(plan, target)
            benchmark.check(plan.data)
            usable(work_dir, "--work-dir")
        with sweep.held() as locks:
            target.locks[:] = locks
            code = carry_out(sweep, target, memory, batch)
            if not sweep.scored:
                return code
            found = results.read(work_dir)
            return max(code, show(found, plan.base, plan.data, target.folder, console, request.margin, budget))
    except KeyboardInterrupt:
        console.print(stopped(sweep), soft_wrap=True, highlight=False)
        return INTERRUPTED


@contextmanager
def said_once(place: Group) -> Iterator[None]:
    """What every process finds wrong is said by the first; the others end with 2, as it does."""
    try:
        yield
    except (RedrelError, OSError):
        if place.rank:
            raise SystemExit(2) from None
        raise


def carry_out(sweep: Sweep, target: handover.Target, memory: int | None, batch: int) -> int:
    """Ask and let the host score; the exit code. ``sweep.scored`` afterwards in the process that has the results."""
    if not sweep.go(memory, batch):
        return 0
    if len(sweep.failed) == len(sweep.entries):
        sweep.console.print("every question failed: nothing to score", style="red")
        return 1
    hand_over(sweep, target)
    sweep.scored = True
    return int(bool(sweep.failed))


def stopped(sweep: Sweep) -> str:
    """How far a sweep had come that was stopped from the keyboard."""
    done, count = sweep.progress()
    where = f"at {done}/{count} questions" if count else "before the questions were read"
    return f"stopped {'while the host scored the answers' if sweep.entries else where}; the same command goes on"


def read_memory(text: str | None) -> int | None:
    """``8G``, ``500M`` or a number of bytes -> bytes.

    Raises:
        PlanError: anything else, or nothing at all.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([KMGTkmgt]?)i?B?", text.strip())
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise PlanError(f"--memory {text}: give a size such as 8G or 500M, for what is held beside the weights")
    return size


def check_free(plan: Plan, target: handover.Target) -> None:
    """Refuse to replace what someone's ordinary runs have measured.

    Raises:
        StoreError: names the runs.
    """
    if there := handover.occupied(target, plan.scored.values()):
        raise StoreError(
            f"{target.work_dir} holds ordinary runs on {plan.data} that a sweep would replace "
            f"({', '.join(there[:3])}{', ...' * (len(there) > 3)}): give another --work-dir"
        )


def hand_over(sweep: Sweep, target: handover.Target) -> None:
    """Give the host every setting's answers and records, and let it score them.

    Raises:
        EvaluationError, StoreError: as :func:`hostfiles.write`.
    """
    head = sweep.store.head() or {}
    facts = {name: head.get(name) for name in ("backend", "weights", "revision", "versions")}
    settings = sweep.plan.scored
    runs = ((model, *run_of(sweep, setting, facts)) for setting, model in settings.items())  # one at a time in memory
    with bar(sweep.console, "scored by the host", len(settings)) as progress:
        handover.write(target, runs, sweep.plan.limit, progress.to)
        progress.to(len(settings))


def run_of(sweep: Sweep, setting: str, facts: Mapping[str, Any]) -> tuple[dict[Any, str], list[dict[str, Any]]]:
    """Answers by the host's own index, and efficiency records, of one setting."""
    plan, answers, records = sweep.plan, {}, []
    for original in sweep.source.indices:
        entry = sweep.entries[str(original)]
        if entry.index in sweep.failed:
            answers[original] = handover.FAILED
            continue
        answer = entry.answers[setting]
        answers[original] = answer["text"]
        head = {
            "version": 1,
            "index": original.item() if hasattr(original, "item") else original,
            "model": plan.settings[setting],
            "dataset": plan.data,
            "base": plan.base,
            "setting": setting,
        }
        own = {"source": handover.SOURCE, "time": answer["time"]}
        records.append(head | json.loads(answer["record"]) | dict(facts) | own)
    return answers, records
