"""The processes of one sweep, by ``torchrun`` or alone: who this one is. They meet nowhere but in the sweep's folder.

Each has a file of answers of its own there. Whoever ends last finds all answers, or answers what a dead one has left,
and goes on alone; so nobody waits for anybody, and a process that was killed and started again needs no other to know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redrel_vlmeval.errors import InvalidValue

# What torchrun sets; a child process with a torch.distributed of its own must not see it.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Group:
    """``rank`` 0 to ``size`` - 1; a size of 1 is a process on its own."""

    rank: int = 0
    size: int = 1

    def share(self, positions: int) -> range:
        """This process's questions: every ``size``-th, whatever the others have answered already."""
        return range(self.rank, positions, self.size)


def group() -> Group:
    """The place of this process, as ``RANK`` and ``WORLD_SIZE`` in the environment say; takes its own GPU.

    Raises:
        InvalidValue: they are no numbers, or do not fit one another.
    """
    words = {name: os.environ.get(name) or default for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    rank, size = (int(word) if word.isascii() and word.isdecimal() else -1 for word in words.values())
    if not 0 <= rank < size:
        raise InvalidValue(f"RANK={words['RANK']}, WORLD_SIZE={words['WORLD_SIZE']}: a rank is 0 to the size less one")
    if size > 1:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or rank) % torch.cuda.device_count())
    return Group(rank, size)


@contextmanager
def alone() -> Iterator[None]:
    """Within the context the environment names no other processes: transformers would split a model over them."""
    hidden = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
