"""Which benchmark question the host is asking right now, and where it will write the answer."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST_MODULES = ("vlmeval.inference", "vlmeval.inference_mt", "vlmeval.inference_video")


@dataclass(frozen=True)
class HostQuestion:
    """The host's own view of the question at hand."""

    index: Any
    model: str
    dataset: str
    folder: Path

    @property
    def record_path(self) -> Path:
        """Where efficiency records go: beside the predictions; each rank of several has its own file."""
        world = int(os.environ.get("WORLD_SIZE") or 1)
        rank = f"_rank{os.environ.get('RANK', '0')}" if world > 1 else ""
        return self.folder / f"{self.model}_{self.dataset}_redrel{rank}.jsonl"


def asked_by_host() -> HostQuestion | None:
    """Read from the host's inference loop up the call stack; None outside of one.

    The host hands a model the message and the dataset's name, neither the question's index nor the folder, and offers
    no callback; its loop's local variables are the only place that has both whatever ``--work-dir`` was given.
    """
    frame = sys._getframe(1)
    while frame is not None:
        names = frame.f_locals
        if (
            frame.f_globals.get("__name__") in HOST_MODULES
            and {"idx", "work_dir", "model_name", "dataset_name"} <= names.keys()
        ):
            return HostQuestion(
                names["idx"], str(names["model_name"]), str(names["dataset_name"]), Path(str(names["work_dir"]))
            )
        frame = frame.f_back  # type: ignore[assignment]
    return None
