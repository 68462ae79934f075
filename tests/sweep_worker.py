"""One process of a sweep over a source without host or model; started by torchrun in ``test_sweep_processes.py``.

Arguments: folder, limit, keeps. REDREL_TEST_KILL=<rank>:<count>: that rank kills itself after so many answers, once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from redrel_vlmeval.sweep.distributed import Group, group
from redrel_vlmeval.sweep.plan import read_plan
from redrel_vlmeval.sweep.store import Store
from redrel_vlmeval.sweep.work import Sweep

BAD = 3  # its picture cannot be read
TEXT = 5  # it has none


class Made:
    """Questions 0.. and answers that follow from question and setting alone."""

    def __init__(self, limit: int, rank: int, folder: Path, weights: str = "w") -> None:
        self.limit, self.rank, self.folder, self.weights = limit, rank, folder, weights
        self.indices: list[Any] = []
        self.asked: list[tuple[int, tuple[str, ...]]] = []

    def read(self) -> None:
        self.indices = list(range(100, 100 + self.limit))

    def digest(self, position: int) -> str:
        return f"question {position}"

    def load(self, plan: Any) -> dict[str, Any]:
        kill = "REDREL_TEST_KILL" in os.environ and not (self.folder / "killed").exists()
        while kill and len(list((self.folder / "sweep").glob(".redrel*.lock"))) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.01)  # answers are so quick that the first to start would give them all
        return {"backend": "made", "weights": self.weights, "revision": None, "dtype": "float32", "device": "cpu",
                "kernel": "sdpa", "versions": {"torch": "1", "transformers": "2"}}  # fmt: skip

    def message(self, position: int) -> Any:
        if position == BAD:
            raise OSError("broken data stream")
        picture = [] if position == TEXT else [{"type": "image", "value": "x.png"}]
        return [*picture, {"type": "text", "value": str(position)}]

    ahead = message

    def sweeper(self, specs: Any, memory: int | None) -> Any:
        settings = ["", *(spec.setting for spec in specs)]

        def answer(message: Any, dataset: str) -> dict[str, Any]:
            position = int(message[-1]["value"])
            self.asked.append((position, tuple(settings)))
            self._die()
            time.sleep(0.002)
            return {
                setting: SimpleNamespace(text=f"{position} {setting}", record={"prefill_ms": 1.0, "n": position})
                for setting in settings
            }

        together = lambda messages, dataset: [answer(message, dataset) for message in messages]  # noqa: E731
        return SimpleNamespace(answer=answer, answers=together, expect=lambda messages, later: None)

    def _die(self) -> None:
        rank, _, count = os.environ.get("REDREL_TEST_KILL", "-1:0").partition(":")
        once = self.folder / "killed"
        if self.rank == int(rank) and len(self.asked) > int(count) and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def sweep(folder: Path, limit: int, keeps: str, group: Group | None = None, batch: int = 1, **source: Any) -> Sweep:
    """Answer everything that is missing."""
    group = group or Group()
    plan = read_plan("redrel_tiny", "Made", "1-3", keeps, "attention", limit)
    console = Console(width=200, quiet=group.rank > 0)
    made = Sweep(plan, Made(limit, group.rank, folder, **source), Store(folder / "sweep"), group, console)
    with made.held():
        made.go(None, batch)
    return made


if __name__ == "__main__":
    place, count, kept = sys.argv[1:]
    sweep(Path(place), int(count), kept, group())
