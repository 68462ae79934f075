"""The host's questions as its own loop asks them, each answered for every setting, written down, and counted."""

from __future__ import annotations

import difflib
import errno
import hashlib
import importlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from redrel_vlmeval.models import now
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.sweep.distributed import alone
from redrel_vlmeval.sweep.plan import Plan, PlanError
from redrel_vlmeval.sweep.store import Entry, compact

# What a picture that is none raises in the host, in Pillow and here; no fault of the model or the disk is among them.
UNREADABLE = (ValueError, SyntaxError, AssertionError, EOFError, OSError, KeyError)
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# A sweep says nothing about the time of a single variant, since what was shared is nobody's own; the rest is the same
# in every record and stands in sweep.json.
LEFT_OUT = ("prefill_ms", "decode_ms_per_token", "backend", "weights", "revision", "versions")


class Answers(Protocol):
    """What :class:`Sweeper` offers: answers of all its settings, and of the untouched base under ''."""

    def answer(self, message: Any, dataset: str) -> dict[str, Any]: ...


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
            HostMissing: there is none.
            PlanError: it does not know the benchmark, or cannot ask it in single turns about pictures or text.
        """
        attach()
        self.dataset = importlib.import_module("vlmeval.dataset").build_dataset(self.data)
        if self.dataset is None:
            raise PlanError(unknown(self.data))
        kind = f"{getattr(self.dataset, 'MODALITY', 'IMAGE')} {getattr(self.dataset, 'TYPE', '')}".strip()
        if kind.startswith("VIDEO") or kind.endswith(" MT"):
            raise PlanError(f"--data {self.data}: {kind}; a sweep asks single questions about pictures or text")
        self.table = self.dataset.data.iloc[: self.limit]
        self.indices = list(self.table["index"])
        if not self.indices:
            raise PlanError(f"--data {self.data}: the benchmark has no questions")
        if len({str(index) for index in self.indices}) < len(self.indices):
            raise PlanError(f"--data {self.data}: several questions have one index, so answers cannot be told apart")

    def load(self, plan: Plan) -> dict[str, Any]:
        """Build the model and say what every record of it says.

        Raises:
            TruncationError: it cannot be truncated. PlanError: unknown to the host, or not so deep.
        """
        from redrel_vlmeval.models import TruncatedVLM, find_torch_model
        from redrel_vlmeval.truncation import find_decoder

        with alone():
            self.model = host_model(plan.base)
        decoder = find_decoder(find_torch_model(self.model, plan.base))
        plan.check_depth(len(decoder.blocks))
        self.model.set_dump_image(self.dataset.dump_image)
        weights = next(decoder.text.parameters())
        return TruncatedVLM(self.model, plan.specs[0].setting).recorder.facts | {
            "dtype": str(weights.dtype).removeprefix("torch."),
            "device": weights.device.type,
            "kernel": decoder.kernel,
        }

    def digest(self, position: int) -> str:
        """Short hash of everything the benchmark says about a question, picture and options included."""
        row = self.table.iloc[position]
        return hashlib.sha256("\x1f".join(f"{key}={row[key]}" for key in row.index).encode()).hexdigest()[:16]

    def message(self, position: int) -> Any:
        """The message of a question, built as ``vlmeval.inference.infer_data`` builds it."""
        line = self.table.iloc[position]
        if getattr(self.dataset, "force_use_dataset_prompt", False):
            return self.dataset.build_prompt(line)
        if self.model.use_custom_prompt(self.data):
            return self.model.build_prompt(line, dataset=self.data)
        return self.dataset.build_prompt(line)

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
) -> None:
    """Ask each task and ``keep`` what came of it, at once; a question that cannot be asked is kept as failed.

    Raises:
        StoreError, or what the model raises: nothing that was kept before is lost.
    """
    for task in tasks:
        keep(_answer(task, message, sweeper, dataset))


def _answer(
    task: Task, message: Callable[[Task], Any], sweeper: Callable[[tuple[str, ...]], Answers], dataset: str
) -> Entry:
    asked = sweeper(task.missing)
    try:
        said = message(task)
        found = asked.answer(said, dataset)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise
        # Pillow names the stream by its address, which would make the same failure look different each time.
        reason = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))
        return Entry(task.index, task.question, error=f"{type(error).__name__}: {reason}"[:300])
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


def check_benchmark(data: str) -> None:
    """Refuse a benchmark that the host does not know, before anything is loaded or made.

    Raises:
        HostMissing: there is no host. PlanError: no such benchmark, and no TSV of that name; says what may be meant.
    """
    attach()
    own = Path(importlib.import_module("vlmeval.smp").LMUDataRoot()) / f"{data}.tsv"
    if data not in known_benchmarks() and not own.exists():
        raise PlanError(unknown(data))


def known_benchmarks() -> list[str]:
    """Names that the imported host lists, videos too."""
    dataset = importlib.import_module("vlmeval.dataset")
    return [*dataset.SUPPORTED_DATASETS, *getattr(dataset, "supported_video_datasets", ())]


def unknown(data: str) -> str:
    """Why there is no such benchmark, and which one may be meant."""
    known = {name.lower(): name for name in known_benchmarks()}
    near = [known[name] for name in difflib.get_close_matches(data.lower(), known, n=3)]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"--data {data}: the host has no such benchmark, and no {data}.tsv is in LMUData{hint}"


def attach() -> None:
    """Import the host, with our names in its tables.

    Raises:
        HostMissing: there is none.
    """
    from redrel_vlmeval.host import runner

    runner.host_folder()
    import _redrel_vlmeval_hook as hook

    hook.install(strict=True)
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import vlmeval.config  # noqa: F401 (the hook answers this import)


def host_model(base: str) -> Any:
    """The host's model of that name, built.

    Raises:
        PlanError: the host knows no such model.
    """
    import vlmeval.config

    try:
        builder = vlmeval.config.supported_VLM[base]
    except KeyError as error:
        raise PlanError(f"--model {base}: {error.args[0]}") from error
    return builder()
