"""The processes of one sweep, by ``torchrun`` or alone: who does what, and one word for all from the first of them.

Only control messages pass between processes (gloo, also beside GPUs); answers go through files in the shared folder.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
# What torchrun sets; a child process with a torch.distributed of its own must not see it.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
# Ranks with easy questions wait at the end for the others.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """``rank`` 0 to ``size`` - 1; a size of 1 is a process on its own and sends nothing."""

    rank: int = 0
    size: int = 1

    def on_first(self, action: Callable[[], T]) -> T:
        """Runs ``action`` on rank 0, gives its value to all; an exception is raised there, the others end with 2."""
        if self.size == 1:
            return action()
        import torch.distributed as dist

        if self.rank == 0:
            try:
                value = action()
            except BaseException:
                dist.broadcast_object_list([None, True], src=0)
                raise
            dist.broadcast_object_list([value, False], src=0)
            return value
        received: list = [None, None]
        dist.broadcast_object_list(received, src=0)
        if received[1]:
            raise SystemExit(2)
        return received[0]

    def collect(self, value: T) -> list[T]:
        """Every rank's value, by rank; waits for the last one."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list = [None] * self.size
        dist.all_gather_object(found, value)
        return found


@contextmanager
def joined() -> Iterator[Group]:
    """The group of this process, as ``torchrun`` says in the environment."""
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        yield Group()
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    own = dist.PrefixStore(meeting(store, rank, size), store)
    dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Group(rank, size)
    finally:
        dist.destroy_process_group()


def meeting(store: Any, rank: int, size: int) -> str:
    """A word that these processes agree on and no earlier start of them has used.

    Restarted workers can be given the store of those that died, with their addresses in it, and would wait for them
    for ever; the number of restarts in the environment is that of one node only. So rank 0 answers every rank's own
    token until each has said that it heard, which the dead never do.
    """
    if rank:
        token = secrets.token_hex(8)
        store.set(f"sweep/hello/{rank}", token)
        word = str(store.get(f"sweep/welcome/{token}").decode())
        store.set(f"sweep/heard/{word}/{rank}", "1")
        return word
    word = secrets.token_hex(8)
    waiting = set(range(1, size))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"sweep/hello/{other}"]):
                store.set(f"sweep/welcome/{store.get(f'sweep/hello/{other}').decode()}", word)
            if store.check([f"sweep/heard/{word}/{other}"]):
                waiting.discard(other)
        time.sleep(0.02)
    return word


@contextmanager
def alone() -> Iterator[None]:
    """Within the context the environment names no other processes: transformers would split a model over them."""
    hidden = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
