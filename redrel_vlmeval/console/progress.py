"""How far a command has come: a bar at the terminal, a line each tenth where output is a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)  # fmt: skip
from rich.text import Text


class Speed(ProgressColumn):
    """How many a second."""

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "")


class Bar:
    """What moves it on."""

    def __init__(self, progress: Progress, task: Task) -> None:
        self._progress, self._task = progress, task

    def on(self, by: int = 1) -> None:
        self.to(int(self._task.completed) + by)

    def to(self, done: int, what: str | None = None) -> None:
        """So many are done; ``what`` renames what is counted."""
        task, console = self._task, self._progress.console
        before = _tenths(task)
        self._progress.update(task.id, completed=done, description=what or task.description)
        if not console.is_terminal and not self._progress.disable and before < _tenths(task) < 10:
            speed = f", {task.speed:.2f}/s, {task.time_remaining or 0:.0f} s left" if task.speed else ""
            console.print(f"{task.description} {done}/{task.total:.0f}{speed}", highlight=False)


def _tenths(task: Task) -> int:
    return int(10 * task.completed / max(task.total or 0, 1))


@contextmanager
def bar(console: Console, what: str, total: int, *, shown: bool = True, transient: bool = False) -> Iterator[Bar]:
    """Within the context a bar of ``total`` steps with speed and time left; ``transient``: gone with the context."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    hidden = console.quiet or not shown
    with Progress(*columns, console=console, transient=transient, disable=hidden) as progress:
        number = progress.add_task(what, total=total)
        yield Bar(progress, next(task for task in progress.tasks if task.id == number))
