"""The work of a sweep in one process: what is missing is asked, written down at once, merged when all are done."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import IO, Any, Protocol

from rich.console import Console

from redrel_vlmeval import files
from redrel_vlmeval.console import bar
from redrel_vlmeval.files import Busy, make_and_try
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.sweep.asking import Answers, Task, answer_all, missing
from redrel_vlmeval.sweep.distributed import Group
from redrel_vlmeval.sweep.plan import Plan
from redrel_vlmeval.sweep.store import Entry, Store, StoreError, Writer

# Facts that answers must agree in to stand in one table; a version of vlmeval does not change a model's answer.
SAME = ("base", "data", "backend", "weights", "revision", "dtype", "device", "kernel", "torch", "transformers")


class Source(Protocol):
    """Where questions and answers come from: the host and its model, see :class:`asking.HostSource`."""

    indices: list[Any]

    def read(self) -> None:
        """Load the questions."""

    def digest(self, position: int) -> str: ...

    def load(self, plan: Plan) -> dict[str, Any]:
        """Load the model; what every record of it says, and ``versions``."""

    def message(self, position: int) -> Any: ...

    def ahead(self, position: int) -> Any: ...

    def sweeper(self, specs: Sequence[VariantSpec], memory: int | None) -> Answers: ...


class Sweep:
    """One process's part in a sweep of ``plan`` in ``folder``; the last to finish ends with all entries.

    ``entries`` and ``failed`` (reason by index) hold what is known of the plan's questions after :meth:`go`.
    """

    def __init__(self, plan: Plan, source: Source, store: Store, group: Group, console: Console) -> None:
        self.plan, self.source, self.store, self.group, self.console = plan, source, store, group, console
        self.entries: dict[str, Entry] = {}
        self.failed: dict[str, str] = {}
        self.scored = False
        self._inside = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self) -> Iterator[list[IO[bytes]]]:
        """Within the context no other sweep can enter the folder, which is made if need be; yields the locks held.

        Raises:
            Busy: another one is in it. PermissionError: it cannot be written to.
        """
        self._make_folder()
        with self._inside:
            with self._turn():
                lock = self._inside.enter_context(files.only_one(self.store.folder, self.group.rank))
                if self.group.size == 1 and self._others():
                    raise Busy(f"{self.store.folder}: several processes are writing here; wait for them")
            yield [lock]

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        """Within it no other process of the sweep enters or leaves, and the store stays as it is but for new lines."""
        return files.in_turn(self.store.folder / ".turn")

    def _others(self) -> bool:
        return files.is_held(self.store.folder, self.group.rank)

    def go(self, memory: int | None = None, batch: int = 1) -> bool:
        """Answer what is missing of this process's share; True in the last one, where all entries are merged and known.

        Raises:
            StoreError: a full disk, or a folder with answers of another model.
        """
        with self._turn():  # as with the host: one process writes the benchmark's files, then the others find them
            self.source.read()
            tasks = self._tasks()
        share = set(self.group.share(len(self.source.indices)))
        mine = [task for task in tasks if task.position in share]
        facts: dict[str, Any] | None = None
        while True:
            if mine:
                if facts is None:
                    facts = self.source.load(self.plan)
                    with self._turn():
                        self._check_same(facts)
                self._answer(mine, memory, batch)
            with self._turn():
                if self._others():
                    self._inside.close()  # in this turn, so that the last one sees that it is the last
                    return False
                mine = self._left()
                if not mine:
                    self._merge()
                    break
        self._report()
        return True

    def _left(self) -> list[Task]:
        """What no process has tried: those who had it in their share are gone."""
        known = self.store.read()
        return [task for task in self._missing(known) if not ((entry := known.get(task.index)) and entry.error)]

    def _merge(self) -> None:
        self.store.merge([str(index) for index in self.source.indices])
        self.store.write_head((self.store.head() or {}) | {"questions": len(self.source.indices)})

    def progress(self) -> tuple[int, int]:
        """Questions with every answer, or why there is none, and all questions; 0, 0 before they are read."""
        entries, wanted = self.store.read().values(), list(self.plan.settings)
        done = {entry.index for entry in entries if entry.error or not missing(entry, entry.question, wanted)}
        return len(done & {str(index) for index in self.source.indices}), len(self.source.indices)

    def _make_folder(self) -> None:
        try:
            make_and_try(self.store.folder)
        except OSError as error:
            raise PermissionError(f"{self.store.folder}: cannot be written to ({error.strerror})") from error

    def _tasks(self) -> list[Task]:
        """What is to be asked, after saying what is there already."""
        self.store.repair()
        count, before = len(self.source.indices), int((self.store.head() or {}).get("questions", 0))
        if count < before:
            raise StoreError(
                f"{self.store.folder}: its runs are over {before} questions; runs over {count} could not be compared "
                "with them. Give the same --limit or a higher one, or another --work-dir"
            )
        known = self.store.read()
        tasks = self._missing(known)
        if known:
            self._say_reusable(known, self._digests, tasks)
        return tasks

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Index -> hash of the question."""
        return {str(index): self.source.digest(position) for position, index in enumerate(self.source.indices)}

    def _missing(self, known: Mapping[str, Entry]) -> list[Task]:
        wanted, tasks = list(self.plan.settings), []
        for position, (index, digest) in enumerate(self._digests.items()):
            if left := missing(known.get(index), digest, wanted):
                tasks.append(Task(position, index, digest, left))
        return tasks

    def _say_reusable(self, known: Mapping[str, Entry], digests: Mapping[str, str], tasks: Sequence[Task]) -> None:
        wanted = set(self.plan.settings)
        here = {setting for entry in known.values() for setting in entry.answers}
        changed = sum(index in digests and entry.question != digests[index] for index, entry in known.items())
        same = [entry for index, entry in known.items() if entry.question == digests.get(index)]
        reused = sum(len(wanted & entry.answers.keys()) for entry in same)
        parts = [f"{reused} answers to {len(same)} questions are there and reused"]
        parts += [f"{changed} questions have changed since and are asked again"] * bool(changed)
        parts += [f"{self.store.damaged} damaged lines are asked again"] * bool(self.store.damaged)
        parts += [f"new settings: {listed(wanted - here)}"] * bool(wanted - here)
        parts += [f"kept, not asked for now: {listed(here - wanted)}"] * bool(here - wanted)
        parts += [f"still to be asked: {len(tasks)} questions, {sum(len(task.missing) for task in tasks)} answers"]
        self.console.print("; ".join(parts), soft_wrap=True, highlight=False)

    def _check_same(self, facts: dict[str, Any]) -> None:
        """Answers of two models, or of two releases, do not go into one table."""
        head = {"version": 1, "base": self.plan.base, "data": self.plan.data, **facts}
        old = self.store.head()
        if old is not None:
            flat, was = head | facts["versions"], old | dict(old.get("versions") or {})
            names = [name for name in SAME if flat.get(name) != was.get(name)]
            if differ := [f"{name} is {flat.get(name)}, was {was.get(name)}" for name in names]:
                raise StoreError(
                    f"{self.store.folder}: none of its answers can be reused: {'; '.join(differ)}. "
                    "Delete the folder or give another --work-dir"
                )
            return
        self.store.write_head(head)

    def _answer(self, tasks: Sequence[Task], memory: int | None, batch: int) -> None:
        @cache
        def sweeper(settings: tuple[str, ...]) -> Answers:
            return self.source.sweeper([spec for spec in self.plan.specs if spec.setting in settings], memory)

        writer = Writer(self.store.folder, self.group.rank)
        with contextlib.closing(writer), bar(self.console, "questions", len(tasks)) as progress:

            def keep(entry: Entry) -> None:
                writer.append(entry)
                progress.on()

            def built(task: Task) -> Any:
                return self.source.message(task.position)

            def ahead(task: Task) -> Any:
                return self.source.ahead(task.position)

            answer_all(tasks, built, sweeper, self.plan.data, keep, batch, ahead)

    def _report(self) -> None:
        """Which questions failed, and how many have no picture."""
        self.console.quiet = False  # whoever is the last
        wanted = list(self.plan.settings)
        entries = self.store.read()
        self.entries = asked = {str(index): entries[str(index)] for index in self.source.indices}
        self.failed = {
            index: str(entry.error)
            for index, entry in asked.items()
            if any(setting not in entry.answers for setting in wanted)
        }
        text = sum(entry.text_only for entry in asked.values())
        words = f"{len(asked)} questions x {len(wanted) - 1} variants and the base"
        words += f"; {text} without a picture, where all answers are the same" if text else ""
        self.console.print(words, soft_wrap=True, highlight=False)
        for index, reason in list(self.failed.items())[:10]:
            self.console.print(f"failed for every variant: question {index}: {reason}", style="red", soft_wrap=True)
        if len(self.failed) > 10:
            self.console.print(f"and {len(self.failed) - 10} more failed questions", style="red")


def listed(settings: Collection[str], most: int = 6) -> str:
    """The settings by name, or how many there are."""
    return ", ".join(sorted(settings)) if len(settings) <= most else f"{len(settings)} settings"
