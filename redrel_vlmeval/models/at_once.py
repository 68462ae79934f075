"""How many questions are answered at once, and what follows where so many cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from redrel_vlmeval.errors import one_line
from redrel_vlmeval.models.calls import Alone

Answers = TypeVar("Answers")


class AtOnce:
    """``size`` questions at once, until that turns out to be too many; ``say`` tells of it.

    Attributes:
        failed: of the latest questions those that failed together, one of which may be the reason.
    """

    def __init__(self, size: int, say: Callable[[str], None]) -> None:
        self.size = self.wanted = size
        self.failed: Sequence[Any] = ()
        self._say = say

    def answers(self, questions: Sequence[Any], ask: Callable[[Sequence[Any]], Answers]) -> Answers | None:
        """What ``ask`` makes of the questions, or, where memory runs out, of the first ones; None: go one by one."""
        self.failed = ()
        while len(questions) > 1:
            try:
                return ask(questions)
            except Alone as reason:
                self.one_by_one(str(reason))
                return None
            except Exception as error:
                said, full = one_line(error), out_of_memory(error)
            # behind the handler: what the error held is free now
            count = len(questions)
            if not full:
                self.failed = questions
                self._say(f"{count} questions at once failed ({said}); they are asked one by one")
                return None
            torch.cuda.empty_cache()
            self.size = count // 2 if self.size == self.wanted else 1
            self._say(f"out of memory with {count} questions at once; from here on {self.size}")
            questions = questions[: self.size]
        return None

    def one_by_one(self, reason: str) -> None:
        """From here on each question by itself."""
        self.size = 1
        self._say(f"answers one by one: {reason}")


def out_of_memory(error: Exception) -> bool:
    """Of a GPU, or of the computer, where torch says it in words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
