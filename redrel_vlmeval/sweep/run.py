"""``redrel sweep``: every (L, K) of a grid on every question, resumed where it stopped, scored by the host, drawn."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from redrel_vlmeval import locking, results
from redrel_vlmeval.cliffs import Budget
from redrel_vlmeval.sweep import hostfiles, outcome, preview
from redrel_vlmeval.sweep.asking import HostQuestions, Task, answer_all, attach, host_model, missing
from redrel_vlmeval.sweep.distributed import Group, alone, joined
from redrel_vlmeval.sweep.plan import Plan, PlanError, read_plan
from redrel_vlmeval.sweep.store import Entry, Store, StoreError, Writer

# Facts that answers must agree in to stand in one table; a version of vlmeval does not change a model's answer.
SAME = ("base", "data", "backend", "weights", "revision", "dtype", "device", "kernel", "torch", "transformers")


@dataclass(frozen=True)
class Request:
    """The command line of ``redrel sweep``."""

    model: str
    data: str
    layers: str
    keep: str
    rules: str = "attention"
    limit: int | None = None
    work_dir: Path = Path("outputs")
    memory: str | None = None
    dry_run: bool = False
    budget: str | None = None
    judge: str = "exact_matching"
    margin: float = 2.0


def run(request: Request) -> int:
    """The whole sweep; the exit code: 1 where a question or a cell failed.

    Raises:
        PlanError: arguments that mean nothing. StoreError: a folder with other answers, or a full disk.
        Busy: another sweep is in this folder. HostMissing, TruncationError, CheckpointError: as for a single variant.
    """
    plan = read_plan(request.model, request.data, request.layers, request.keep, request.rules, request.limit)
    memory = read_memory(request.memory)
    budget = Budget.read(request.budget) if request.budget is not None else None
    if not 0 < request.margin < 100:
        raise PlanError(f"--margin {request.margin}: points above 0 and below 100")
    console = Console()
    if request.dry_run:
        with alone():
            preview.show(plan, console)
        return 0
    with joined() as group:
        console.quiet = group.rank > 0
        done = Sweep(plan, request, memory, group, console).go()
    if done is None:
        return 0
    done.hand_over()
    found = results.read(request.work_dir)
    code = outcome.show(found, plan.base, plan.data, done.folder, console, request.margin, budget)
    return max(code, int(bool(done.failed)))


def read_memory(text: str | None) -> int | None:
    """``8G``, ``500M`` or a number of bytes -> bytes.

    Raises:
        PlanError: anything else, or nothing at all.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise PlanError(f"--memory {text}: give a size such as 8G or 500M, for what is held beside the weights")
    return size


class Sweep:
    """One process's part in a sweep, and on rank 0 what comes of all parts."""

    def __init__(self, plan: Plan, request: Request, memory: int | None, group: Group, console: Console) -> None:
        self.plan, self.memory, self.group, self.console = plan, memory, group, console
        work_dir = request.work_dir.absolute()
        self.folder = work_dir / "sweep" / f"{plan.base}_{plan.data}"
        self.target = hostfiles.Target(work_dir, plan.data, request.judge, self.folder)
        self.store = Store(self.folder)
        self.failed: dict[str, str] = {}
        self.questions: HostQuestions
        self._model: Any = None

    def go(self) -> Sweep | None:
        """Answer what is missing; None on every rank but the first, whose entries are then whole and merged."""
        attach()
        self.group.on_first(self._prepare)
        # As the host does: rank 0 writes the benchmark's files, the others find them.
        if self.group.rank == 0:
            self.questions = HostQuestions(self.plan.data, self.plan.limit)
        self.group.on_first(lambda: None)
        if self.group.rank:
            self.questions = HostQuestions(self.plan.data, self.plan.limit)
        with locking.only_one(self.folder) if self.group.rank == 0 else contextlib.nullcontext():
            tasks = self.group.on_first(self._tasks)
            if tasks:
                facts = self._facts()
                self.group.on_first(lambda: self._check_same(facts))
                self._answer(tasks[self.group.rank :: self.group.size])
            self.group.collect(None)
            if self.group.rank:
                return None
            self.store.merge([str(index) for index in self.questions.indices])
        self._report(tasks)
        return self

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".writable").touch()
            (self.folder / ".writable").unlink()
        except OSError as error:
            where = f"--work-dir {self.target.work_dir}"
            raise PermissionError(f"{where}: cannot be written to ({error.strerror})") from error
        if there := hostfiles.occupied(self.target, self.plan.settings.values()):
            raise StoreError(
                f"{self.target.work_dir} holds ordinary runs on {self.plan.data} that a sweep would replace "
                f"({', '.join(there[:3])}{', ...' * (len(there) > 3)}): give another --work-dir"
            )

    def _tasks(self) -> list[Task]:
        """What is to be asked, after saying what is there already."""
        self.store.repair()
        known, wanted = self.store.read(), list(self.plan.settings)
        digests = [self.questions.digest(position) for position in range(len(self.questions.indices))]
        tasks = []
        for position, (index, digest) in enumerate(zip(map(str, self.questions.indices), digests, strict=True)):
            if left := missing(known.get(index), digest, wanted):
                tasks.append(Task(position, index, digest, left))
        if known:
            self._say_reusable(known, dict(zip(map(str, self.questions.indices), digests, strict=True)), tasks)
        return tasks

    def _say_reusable(self, known: dict[str, Entry], digests: dict[str, str], tasks: Sequence[Task]) -> None:
        wanted = set(self.plan.settings)
        here = {setting for entry in known.values() for setting in entry.answers}
        changed = sum(index in digests and entry.question != digests[index] for index, entry in known.items())
        same = [entry for index, entry in known.items() if entry.question == digests.get(index)]
        reused = sum(len(wanted & entry.answers.keys()) for entry in same)
        parts = [f"{reused} answers to {len(same)} questions are there and reused"]
        parts += [f"{changed} questions have changed since and are asked again"] * bool(changed)
        parts += [f"{self.store.damaged} damaged lines are asked again"] * bool(self.store.damaged)
        parts += [f"new settings: {', '.join(sorted(wanted - here))}"] * bool(wanted - here)
        parts += [f"kept, not asked for now: {', '.join(sorted(here - wanted))}"] * bool(here - wanted)
        parts += [f"still to be asked: {len(tasks)} questions, {sum(len(task.missing) for task in tasks)} answers"]
        self.console.print("; ".join(parts), soft_wrap=True, highlight=False)

    def _facts(self) -> dict[str, Any]:
        """Load the model and say what every record of it says.

        Raises:
            TruncationError: it cannot be truncated. PlanError: it is not so deep.
        """
        from redrel_vlmeval.models.variant import TruncatedVLM, find_torch_model
        from redrel_vlmeval.truncation.decoders import find_decoder

        with alone():
            self._model = host_model(self.plan.base)
        decoder = find_decoder(find_torch_model(self._model, self.plan.base))
        self.plan.check_depth(len(decoder.blocks))
        for rule in self.plan.rules:  # refuses now what it would refuse at the first question
            TruncatedVLM(self._model, next(spec.setting for spec in self.plan.specs if spec.rule == rule))
        weights = next(decoder.text.parameters())
        return TruncatedVLM(self._model, self.plan.specs[0].setting).recorder.facts | {
            "dtype": str(weights.dtype).removeprefix("torch."),
            "device": weights.device.type,
            "kernel": decoder.kernel,
        }

    def _check_same(self, facts: dict[str, Any]) -> None:
        """Answers of two models, or of two releases, do not go into one table."""
        head = {"version": 1, "base": self.plan.base, "data": self.plan.data, **facts}
        old = self.store.head()
        if old is not None:
            flat, was = head | facts["versions"], old | dict(old.get("versions") or {})
            names = [name for name in SAME if flat.get(name) != was.get(name)]
            if differ := [f"{name} is {flat.get(name)}, was {was.get(name)}" for name in names]:
                raise StoreError(
                    f"{self.folder}: none of its answers can be reused: {'; '.join(differ)}. "
                    "Delete the folder or give another --work-dir"
                )
            return
        self.store.write_head(head)

    def _answer(self, tasks: Sequence[Task]) -> None:
        self._model.set_dump_image(self.questions.dataset.dump_image)

        @cache
        def sweeper(settings: tuple[str, ...]) -> Any:
            from redrel_vlmeval.sweep.sweeper import Sweeper

            specs = [spec for spec in self.plan.specs if spec.setting in settings]
            return Sweeper(self._model, specs, self.memory)

        writer = Writer(self.folder, self.group.rank)
        try:
            with bar(self.console, "questions", len(tasks)) as advance:

                def keep(entry: Entry) -> None:
                    writer.append(entry)
                    advance()

                answer_all(
                    tasks,
                    lambda task: self.questions.message(self._model, task.position),
                    sweeper,
                    self.plan.data,
                    keep,
                )
        finally:
            writer.close()

    def _report(self, tasks: Sequence[Task]) -> None:
        """Which questions failed, and how many have no picture; on rank 0, after the merge."""
        wanted = list(self.plan.settings)
        entries = self.store.read()
        asked = {str(index): entries[str(index)] for index in self.questions.indices}
        self.failed = {
            index: str(entry.error)
            for index, entry in asked.items()
            if any(setting not in entry.answers for setting in wanted)
        }
        text = sum(entry.text_only for entry in asked.values())
        self.entries = asked
        words = f"{len(asked)} questions x {len(wanted) - 1} variants and the base"
        words += f"; {text} without a picture, where all answers are the same" if text else ""
        self.console.print(words, soft_wrap=True, highlight=False)
        for index, reason in list(self.failed.items())[:10]:
            self.console.print(f"failed for every variant: question {index}: {reason}", style="red", soft_wrap=True)
        if len(self.failed) > 10:
            self.console.print(f"and {len(self.failed) - 10} more failed questions", style="red")

    def hand_over(self) -> None:
        """Give the host its files and let it score them.

        Raises:
            EvaluationError, StoreError: as :func:`hostfiles.write`.
        """
        head = self.store.head() or {}
        facts = {name: head.get(name) for name in ("backend", "weights", "revision", "versions")}
        runs = {model: self._of(setting, model, facts) for setting, model in self.plan.settings.items()}
        with bar(self.console, "scored by the host", len(runs)) as advance:
            last = 0

            def seen(done: int, _all: int) -> None:
                nonlocal last
                advance(done - last)
                last = done

            hostfiles.write(self.target, runs, self.plan.limit, seen)
            advance(len(runs) - last)

    def _of(self, setting: str, model: str, facts: dict[str, Any]) -> tuple[dict[Any, str], list[dict[str, Any]]]:
        """Answers by the host's own index, and efficiency records, of one model name."""
        answers, records = {}, []
        for original in self.questions.indices:
            entry = self.entries[str(original)]
            if setting not in entry.answers or entry.index in self.failed:
                answers[original] = hostfiles.FAILED
                continue
            answer = entry.answers[setting]
            answers[original] = answer["text"]
            head = {
                "version": 1,
                "index": original.item() if hasattr(original, "item") else original,
                "model": model,
                "dataset": self.plan.data,
                "base": self.plan.base,
                "setting": setting,
            }
            records.append(head | answer["record"] | facts | {"source": hostfiles.SOURCE, "time": answer["time"]})
        return answers, records


class Speed(ProgressColumn):
    """Questions per second."""

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "")


@contextlib.contextmanager
def bar(console: Console, what: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar with speed and time left; yields what moves it on by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console.quiet) as progress:
        task = progress.add_task(what, total=total)
        yield lambda by=1: progress.advance(task, by)
