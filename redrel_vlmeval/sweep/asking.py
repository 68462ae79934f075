"""The host's questions as its own loop asks them, each answered for every setting, written down, and counted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, Protocol

from redrel_vlmeval.host import Benchmark, benchmark, build_base, models, pictures
from redrel_vlmeval.models import now
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.sweep.distributed import alone
from redrel_vlmeval.sweep.plan import Plan, PlanError
from redrel_vlmeval.sweep.store import Entry, compact

logger = logging.getLogger("redrel_vlmeval")
# A sweep says nothing about the time of a single variant, since what was shared is nobody's own; the rest is the same
# in every record and stands in sweep.json.
LEFT_OUT = ("prefill_ms", "decode_ms_per_token", "backend", "weights", "revision", "versions")


class Answers(Protocol):
    """What :class:`Sweeper` offers: answers of all its settings, and of the untouched base under ''."""

    def answer(self, message: Any, dataset: str) -> dict[str, Any]: ...

    def answers(
        self, messages: Sequence[Any], dataset: str, again: Callable[[int], Any]
    ) -> list[dict[str, Any] | None]: ...

    def expect(self, messages: Sequence[Any], later: Sequence[Any]) -> None: ...


@dataclass(frozen=True)
class Task:
    """One question to be asked: its place in the benchmark, and the settings whose answers are missing."""

    position: int
    index: str
    question: str
    missing: tuple[str, ...]


class HostSource:
    """A benchmark of the host, cut to its first ``limit`` questions, and a model of the host to be asked."""

    def __init__(self, data: str, limit: int | None) -> None:
        self.data, self.limit = data, limit
        self.indices: list[Any] = []

    def read(self) -> None:
        """Import the host and load the questions.

        Raises:
            HostMissing: there is none. InvalidValue: it does not know the benchmark, or cannot read its table.
            PlanError: the benchmark cannot be asked in single turns about pictures or text.
        """
        found = Benchmark(self.data, self.limit)
        if found.kind.startswith("VIDEO") or found.kind.endswith(" MT"):
            raise PlanError(f"--data {self.data}: {found.kind}; a sweep asks single questions about pictures or text")
        self.benchmark, self.indices = found, found.indices
        if len({str(index) for index in self.indices}) < len(self.indices):
            raise PlanError(f"--data {self.data}: several questions have one index, so answers cannot be told apart")
        if "answer" not in found.lines and self.data not in benchmark.known():
            raise PlanError(f"--data {self.data}: no column 'answer', so the host could not score a sweep")

    def load(self, plan: Plan) -> dict[str, Any]:
        """Build the model and say what every record of it says.

        Raises:
            TruncationError: it cannot be truncated. PlanError: unknown to the host, or not so deep.
        """
        from redrel_vlmeval.models import TruncatedVLM, find_torch_model
        from redrel_vlmeval.truncation import find_decoder

        with alone():
            self.model = host_model(plan.base, str(plan.specs[0]))
        decoder = find_decoder(find_torch_model(self.model, plan.base))
        plan.check_depth(len(decoder.blocks))
        self.benchmark.prepare(self.model)
        weights = next(decoder.text.parameters())
        return TruncatedVLM(self.model, plan.specs[0].setting).recorder.facts | {
            "dtype": str(weights.dtype).removeprefix("torch."),
            "device": weights.device.type,
            "kernel": decoder.kernel,
        }

    def digest(self, position: int) -> str:
        """See :meth:`Benchmark.digest`."""
        return self.benchmark.digest(position)

    def message(self, position: int) -> Any:
        """See :meth:`Benchmark.message`."""
        return self.benchmark.message(self.model, position)

    def ahead(self, position: int) -> Any:
        """The message of a question that is not asked yet; nothing remembers that it was built."""
        from redrel_vlmeval.models import as_before

        with as_before(self.model, self.benchmark.dataset):
            return self.message(position)

    def sweeper(self, specs: Sequence[VariantSpec], memory: int | None) -> Answers:
        """What answers for these settings.

        Raises:
            TruncationError: a setting or a model that cannot be swept.
        """
        from redrel_vlmeval.sweep.sweeper import Sweeper

        return Sweeper(self.model, specs, memory)


def missing(entry: Entry | None, question: str, settings: Iterable[str]) -> tuple[str, ...]:
    """Settings without an answer to this very question."""
    known = entry.answers if entry is not None and entry.question == question else {}
    return tuple(setting for setting in settings if setting not in known)


def answer_all(
    tasks: Sequence[Task],
    message: Callable[[Task], Any],
    sweeper: Callable[[tuple[str, ...]], Answers],
    dataset: str,
    keep: Callable[[Entry], None],
    batch: int = 1,
    ahead: Callable[[Task], Any] | None = None,
) -> None:
    """Ask the tasks, ``batch`` at a time, and ``keep`` what came of each, at once; a failed one is kept as failed.

    ``message`` builds what a task asks, and ``ahead`` as well, of a task that is not asked yet.

    Raises:
        StoreError, or what the model raises: nothing that was kept before is lost.
    """
    from redrel_vlmeval.models import AtOnce

    at_once, left = AtOnce(batch, lambda words: logger.warning("sweep: %s", words)), list(tasks)
    while left:
        group = _alike(left, at_once.size)
        asked = sweeper(group[0].missing)
        later = _messages(_alike(left[len(group) :], at_once.size), ahead or message)
        messages = _messages(group, message)  # built last, as if nothing had been looked ahead for
        asked.expect(list(messages.values()), list(later.values()))
        again = partial(_again, list(messages), message)
        found = at_once.answers(list(messages.values()), partial(asked.answers, dataset=dataset, again=again))
        known = dict(zip(messages, found or (), strict=False))
        group = group[: at_once.size]  # fewer than before where memory ran out
        for task in group:
            if (answers := known.get(task)) is not None:
                keep(_entry(task, messages[task], answers))
            else:
                build = partial(messages.get, task) if list(messages) == [task] else partial(message, task)
                keep(_alone(task, build, asked, dataset, bool(at_once.failed)))
        left = left[len(group) :]


def _alike(tasks: Sequence[Task], most: int) -> list[Task]:
    """The first tasks, up to ``most``, that miss the same answers."""
    return list(takewhile(lambda task: task.missing == tasks[0].missing, tasks[:most]))


def _messages(tasks: Sequence[Task], message: Callable[[Task], Any]) -> dict[Task, Any]:
    """What the model is asked; without those that cannot be built, which their own turn tells about."""
    found = {}
    for task in tasks:
        with contextlib.suppress(Exception):
            found[task] = message(task)
    return found


def _again(tasks: Sequence[Task], message: Callable[[Task], Any], place: int) -> Any:
    return message(tasks[place])


def _alone(task: Task, build: Callable[[], Any], asked: Answers, dataset: str, failed: bool) -> Entry:
    """A question by itself; ``failed``: it may be the one that others failed with, and is named if it is."""
    try:
        said = build()
        found = asked.answer(said, dataset)
    except pictures.UNREADABLE as error:
        if pictures.of_the_disk(error):
            raise
        reason = f"{type(error).__name__}: {pictures.without_addresses(error)}"
        return Entry(task.index, task.question, error=reason[:300])
    except Exception as error:
        if failed:
            logger.error("it was question %s of %s: %s", task.index, dataset, error)
        raise
    return _entry(task, said, found)


def _entry(task: Task, said: Any, found: Mapping[str, Any]) -> Entry:
    text_only = not any(item.get("type") == "image" for item in said if isinstance(item, dict))
    time = now()
    answers = {
        setting: {
            "text": str(answer.text),
            # As text: a grid of 155 settings has 300,000 records on ScienceQA, of hundreds of numbers each.
            "record": compact({name: value for name, value in answer.record.items() if name not in LEFT_OUT}),
            "time": time,
        }
        for setting, answer in found.items()
        if setting in task.missing
    }
    if left := [setting for setting in task.missing if setting not in answers]:
        raise RuntimeError(f"question {task.index}: no answer of {', '.join(repr(setting) for setting in left)}")
    return Entry(task.index, task.question, text_only, answers)


def host_model(base: str, variant: str) -> Any:
    """The host's model of that name, built for ``variant`` and others.

    Raises:
        PlanError: the host knows no such model. TruncationError: it is known that it cannot be truncated.
    """
    try:
        builder = models()[base]
    except KeyError as error:
        raise PlanError(f"--model {base}: {error.args[0]}") from error
    return build_base(variant, base, builder, {})
