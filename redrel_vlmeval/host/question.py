"""Which benchmark question the host is asking right now, of which line, and where it will write the answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from redrel_vlmeval.host import pictures

HOST_MODULES = ("vlmeval.inference", "vlmeval.inference_mt", "vlmeval.inference_video")
failures: set[tuple[str, str, str]] = set()  # model, benchmark and index of the questions that failed alone


@dataclass(frozen=True)
class HostQuestion:
    """The host's own view of the question at hand."""

    index: Any
    model: str
    dataset: str
    folder: Path
    line: Any = field(default=None, compare=False, repr=False)
    message: Any = field(default=None, compare=False, repr=False)
    benchmark: Any = field(default=None, compare=False, repr=False)

    @property
    def record_path(self) -> Path:
        """Where efficiency records go: beside the predictions; each rank of several has its own file."""
        world = int(os.environ.get("WORLD_SIZE") or 1)
        rank = f"_rank{os.environ.get('RANK', '0')}" if world > 1 else ""
        return self.folder / f"{self.model}_{self.dataset}_redrel{rank}.jsonl"

    @property
    def stale_pictures(self) -> list[str]:
        """Pictures of the message that are not the benchmark's own: names of files that the host kept of others."""
        shown = list(pictures.shown(self.message))
        return [] if self.line is None else [path.name for path in pictures.stale(self.line, shown)]


def asked_by_host() -> HostQuestion | None:
    """Read from the host's inference loop up the call stack; None outside of one."""
    frame = _loop()
    if frame is None:
        return None
    names = frame.f_locals
    model, folder = str(names["model_name"]), Path(str(names["work_dir"]))
    dataset = _result_name(frame, model) or str(names["dataset_name"])
    return HostQuestion(names["idx"], model, dataset, folder, _line(names), names.get("struct"), names.get("dataset"))


def _result_name(frame: FrameType, model: str) -> str | None:
    """The benchmark's name in the names of its files; None where the loop was not called by the host's own job.

    The loop over videos has another: that of the class (``Video-MME`` for ``Video-MME_8frame``), or of a part.
    """
    outer = frame.f_back
    file = None if outer is None else outer.f_locals.get("result_file")
    name = "" if file is None else Path(str(file)).stem
    return name.removeprefix(f"{model}_") if name.startswith(f"{model}_") else None


def failed_answer() -> str | None:
    """What the host's own classes answer where they could not; None where a question must not fail by itself.

    That is so outside of the host's loop, and where the loop ends with this question and none has an answer: then the
    benchmark as a whole cannot be asked, and a score of it would be none.
    """
    frame = _loop()
    if frame is None or not {"i", "res"} <= frame.f_locals.keys():
        return None
    names, mark = frame.f_locals, str(frame.f_globals["FAIL_MSG"])
    count = names["lt"] if "lt" in names else len(names["sample_indices_subrem"])
    others = names["i"] + 1 < count or any(mark not in str(answer) for answer in names["res"].values())
    return mark if others else None


def message_of(dataset: Any, model: Any, line: Any, name: str) -> Any:
    """The message of one line of benchmark ``name``, as ``vlmeval.inference.infer_data`` builds it.

    Raises:
        What the host raises for a line that it cannot ask.
    """
    if not getattr(dataset, "force_use_dataset_prompt", False) and model.use_custom_prompt(name):
        return model.build_prompt(line, dataset=name)
    return dataset.build_prompt(line)


def upcoming(model: Any, after: int = 1) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """Index, and what builds the message, of each question that the host's loop over single ones asks ``model`` next.

    ``after``: 0 begins with the question at hand.
    """
    frame = _loop()
    names: Mapping[str, Any] = {} if frame is None else frame.f_locals
    data: Any = names.get("data")
    place, dataset = names.get("i"), names.get("dataset")
    if frame is None or frame.f_globals["__name__"] != HOST_MODULES[0] or dataset is None:
        return
    if not hasattr(data, "iloc") or not isinstance(place, int):  # a loop of another make
        return
    answered = names.get("res", {})
    for number in range(place + after, len(data)):
        line = data.iloc[number].copy()  # a view in some releases of pandas, of which a benchmark may change cells
        if line["index"] not in answered:
            yield line["index"], partial(message_of, dataset, model, line, names["dataset_name"])


def _loop() -> FrameType | None:
    """The frame of the host's loop over questions; None outside of one.

    The host hands a model the message and the dataset's name, neither the question's index nor the folder, and offers
    no callback; its loop's local variables are the only place that has both whatever ``--work-dir`` was given.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        names = frame.f_locals
        if (
            frame.f_globals.get("__name__") in HOST_MODULES
            and {"idx", "work_dir", "model_name", "dataset_name"} <= names.keys()
        ):
            return frame
        frame = frame.f_back
    return None


def _line(names: Mapping[str, Any]) -> Any:
    """The line of the host's table that its loop stands at; None in a loop of another make."""
    data: Any = names.get("data")
    place = names.get("i")
    if not hasattr(data, "iloc") or not isinstance(place, int) or not 0 <= place < len(data):
        return None
    line = data.iloc[place]
    return line if str(line.get("index")) == str(names["idx"]) else None
