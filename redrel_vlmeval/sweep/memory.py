"""How many settings fit into memory at a time, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from redrel_vlmeval.bases import BlockShape
from redrel_vlmeval.sweep.tails import Tail

ACTIVATIONS = 2**24  # bytes that one call of a block may take even where the prompt itself takes less
FALLBACK = 2**31  # where the system does not say what is free


def default_budget(device: torch.device) -> int:
    """Bytes a sweep may use unless told: a power of two, at most 4/5 of a GPU's free memory, 1/4 of the computer's."""
    if device.type == "cuda":
        # what torch holds without using it is free to us
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        share = int((torch.cuda.mem_get_info(device)[0] + spare) * 0.8)
    else:
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
        except OSError:
            return FALLBACK
        free = next((line for line in lines if line.startswith("MemAvailable")), None)
        share = FALLBACK if free is None else int(free.split()[1]) * 1024 // 4
    return 1 << max(share.bit_length() - 1, 0)


@dataclass(frozen=True)
class Sizes:
    """What tokens cost in a decoder: ``blocks`` of ``shape``, numbers of ``item`` bytes, ``vocabulary`` logits."""

    shape: BlockShape
    blocks: int
    item: int
    vocabulary: int
    eager: bool = False

    @property
    def kv(self) -> int:
        """Bytes of keys and values of one token in one block."""
        return 2 * self.shape.kv_heads * self.shape.head_dim * self.item

    @property
    def active(self) -> int:
        """Bytes that a token takes within a block's call: hidden states, projections, FFN."""
        shape = self.shape
        inner = shape.heads * shape.head_dim
        return (4 * shape.width + 4 * inner + 3 * shape.ffn) * self.item

    def at_once(self, length: int) -> int:
        """Tokens that may go through a block in one call: as many as the prompt, more where tokens are small."""
        return max(length, ACTIVATIONS // self.active)

    def call(self, tokens: int, keys: int) -> int:
        """Bytes of one block's call with ``tokens``, of settings that hold up to ``keys``."""
        mask = tokens * keys * self.item
        scores = 2 * tokens * keys * self.shape.heads * 4 if self.eager else 0
        return tokens * self.active + mask + scores

    def tail(self, tail: Tail, prefix: int, room: int) -> int:
        """Bytes that one setting holds until its answer is complete."""
        count = len(tail.index)
        cached = (self.blocks - tail.layer) * (prefix + count + room) + tail.layer * room
        return cached * self.kv + 2 * count * self.shape.width * self.item + 8 * self.vocabulary

    def together(self, tails: Sequence[Tail], length: int, prefix: int, room: int) -> int:
        """Bytes of all ``tails`` at a time."""
        longest = max((prefix + len(tail.index) for tail in tails), default=0)
        return sum(self.tail(tail, prefix, room) for tail in tails) + self.call(self.at_once(length), longest)

    def batches(self, tails: Sequence[Tail], length: int, prefix: int, room: int, budget: int) -> Iterator[list[Tail]]:
        """Tails in order, as many at a time as ``budget`` bytes hold, at least one."""
        batch: list[Tail] = []
        held = 0
        longest = max((prefix + len(tail.index) for tail in tails), default=0)
        spare = budget - self.call(self.at_once(length), longest)
        for tail in tails:
            need = self.tail(tail, prefix, room)
            if batch and held + need > spare:
                yield batch
                batch, held = [], 0
            batch.append(tail)
            held += need
        if batch:
            yield batch
