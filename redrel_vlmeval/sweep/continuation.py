"""Many settings of one question at once, from the block where each of them cuts to the logits, and token by token.

Tokens of all settings go through a block side by side in one row, so that its weights are read once; only attention
tells them apart. Keys and values before the first image token are those of the untouched prefill, never recomputed.

```
prompt            p p p I I I I t t        P = 3 prefix tokens, computed once, shared by all
tail l2_k1              . I . . t t        enters at block 3 with the hidden states that left block 2: 3 tokens
tail l2_k2              I I . . t t                                                                 4 tokens
tail l4_k0              . . . . t t        enters at block 5                                        2 tokens

block 3 and 4     [1, 3 + 4, D]            one row through norms, projections and FFN ...
block 5 and on    [1, 3 + 4 + 2, D]
  attention       [1, h, 3, d] x [1, g, P + 3, d]   ... but each tail attends to the prefix and to itself alone;
                  [1, h, 4, d] x [1, g, P + 4, d]   tails of equal length stand together and go as a batch

newest tokens     [1, n, D]                one of each answer, likewise; blocks before a tail's cut hold the whole
                                           prompt's keys for it, which answers that share them read together
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.sweep.shared import Shared
from redrel_vlmeval.sweep.tails import Held, Tail
from redrel_vlmeval.truncation import Attention, Decoder


class OutOfRoom(Exception):
    """The answers have become longer than was planned for."""


@dataclass
class Segment:
    """Keys and values, [n, h_kv, filled and room, d], of neighbouring answers that hold equally many in a block."""

    first: int
    keys: torch.Tensor
    values: torch.Tensor
    filled: int

    @property
    def rows(self) -> slice:
        """Which of the answers."""
        return slice(self.first, self.first + len(self.keys))


@dataclass
class Own:
    """Keys and values, [n, h_kv, room, d], of the answers ``rows`` (long [n]), without their prompt's."""

    rows: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class Continuation:
    """Tails of one prompt, run together.

    Args:
        tails: sorted by number of tokens, then by layer, so that equal ones stand together.
        room: the most tokens that an answer may have but one.
        at_once: the most tokens that go through a block in one call, if a tail has no more.
    """

    def __init__(self, decoder: Decoder, shared: Shared, tails: Sequence[Tail], room: int, at_once: int) -> None:
        self.decoder, self.shared, self.tails, self.room, self.at_once = decoder, shared, tails, room, at_once
        self.blocks = len(decoder.blocks)
        self.device = shared.ids.device
        self.made = 0  # tokens of each answer that have been through all blocks
        self._answering = False
        self.segments: list[list[Segment]] = [[] for _ in range(self.blocks)]
        self.own: list[Any] = [None] * self.blocks  # of answers whose setting cuts after the block
        self._runs: list[tuple[int, int, int]] = []  # (first row, rows, tokens each) of the call at hand
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self.held = Held(decoder, shared, tails)

    # -- the prompt ---------------------------------------------------------------------------------------------------

    def prefill(self) -> torch.Tensor:
        """Logits of each setting's first token, [n, 1, vocabulary]; to be called while blocks attend by ``attend``."""
        hidden = self._room_for_hidden()
        for block in range(min(tail.layer for tail in self.tails), self.blocks):
            for row, tail in enumerate(self.tails):
                if tail.layer == block:
                    hidden[row].copy_(self.held.entering(row))
                elif (stage := self.held.again(row, block)) is not None:
                    hidden[row] = self.held.cut(row, stage, hidden[row])
            active = [row for row, tail in enumerate(self.tails) if tail.layer <= block]
            self.segments[block] = [self._segment(block, *run) for run in self._equal(active)]
            for chunk in self._chunks(active):
                self._runs = self._equal(chunk)
                together = torch.cat([hidden[row] for row in chunk], 1)
                out = self._block(block, together, torch.cat([self.held.angles[row] for row in chunk]))
                for row, part in zip(chunk, out.split([len(self.held.index[row]) for row in chunk], 1), strict=True):
                    hidden[row].copy_(part)
                    self.held.add(block, row, hidden[row])
        return self.decoder.logits(torch.cat([self.held.last(row, hidden[row]) for row in range(len(self.tails))]))

    def _room_for_hidden(self) -> list[torch.Tensor]:
        """The hidden states of every tail, [1, tokens, width]; written in place, so that memory is asked for once."""
        like = next(iter(self.shared.hidden.values()))
        held = []
        for _, rows, count in self._equal(range(len(self.tails))):
            held += like.new_empty(rows, count, like.shape[2]).split(1)
        return held

    def _chunks(self, rows: Sequence[int]) -> list[list[int]]:
        """Rows that have tokens, in order, cut where more than ``at_once`` tokens would come together."""
        chunks: list[list[int]] = []
        held = 0
        for row in rows:
            count = len(self.held.index[row])
            if not count:
                continue
            if not chunks or held + count > self.at_once:
                chunks.append([])
                held = 0
            chunks[-1].append(row)
            held += count
        return chunks

    def _equal(self, rows: Sequence[int]) -> list[tuple[int, int, int]]:
        """Runs of neighbouring rows with equally many tokens."""
        runs: list[tuple[int, int, int]] = []
        for row in rows:
            count = len(self.held.index[row])
            if runs and runs[-1][2] == count and runs[-1][0] + runs[-1][1] == row:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1, count)
            else:
                runs.append((row, 1, count))
        return runs

    def _block(self, block: int, hidden: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """One block over tokens in one row, [1, n, width], standing at ``places``; None: the newest of each answer."""
        arguments = self.shared.arguments[block]
        kwargs = self.newest(block) if places is None else self.decoder.at(block, arguments, places)
        return self.through(block, hidden, kwargs)

    def newest(self, block: int) -> dict[str, Any]:
        """A block's arguments for the newest token of each answer."""
        shared = self.shared
        given = (shared.arguments[block], shared.noted, shared.length, self.made, len(self.tails))
        return self.decoder.beyond(block, *given)

    def through(self, block: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """What leaves a block, [1, n, width]."""
        output = self.decoder.blocks[block](hidden.to(self.shared.keys[block].device), **kwargs)
        return output if isinstance(output, torch.Tensor) else output[0]

    # -- attention ----------------------------------------------------------------------------------------------------

    def attend(self, seen: Attention) -> Any:
        """In place of a block's attention: every setting's tokens by themselves."""
        if self._answering:
            return self._attend_newest(seen), None
        outputs, start = [], 0
        for row, rows, count in self._runs:
            query, key, value = (
                t[0, :, start : start + rows * count].unflatten(1, (rows, count)).transpose(0, 1)
                for t in (seen.query, seen.key, seen.value)
            )
            start += rows * count
            (segment,) = (s for s in self.segments[seen.block] if s.rows.start <= row < s.rows.stop)
            which = slice(row - segment.first, row - segment.first + rows)
            keys, values = segment.keys[which, :, : segment.filled], segment.values[which, :, : segment.filled]
            keys[:, :, -count:], values[:, :, -count:] = key, value
            mask = self._mask(seen.block, row, rows, query)
            self.held.watch(row, replace(seen, query=query, key=keys, value=values, mask=mask))
            out = seen.kernel(query, keys, values, mask)[0]
            outputs.append(out.flatten(0, 1))
        return torch.cat(outputs)[None], None

    def _segment(self, block: int, row: int, rows: int, count: int) -> Segment:
        """A new segment: the shared keys before the first image token, and room for the settings' and the answers'."""
        prefix = self.shared.prefix
        made = []
        for shared in (self.shared.keys[block], self.shared.values[block]):
            held = shared.new_empty(rows, shared.shape[1], prefix + count + self.room, shared.shape[3])
            held[:, :, :prefix] = shared[:, :, :prefix]
            made.append(held)
        return Segment(row, made[0], made[1], prefix + count)

    def _mask(self, block: int, row: int, rows: int, query: torch.Tensor) -> torch.Tensor | None:
        """The mask of ``rows`` answers' own tokens behind the prefix, [rows or 1, 1, count, prefix + count]."""
        each = [self.shared.mask_of(block, own) for own in self.held.index[row : row + rows]]
        made = [mask for mask in each if mask is not None]
        return torch.cat(made) if made else self._causal(query.shape[2], query)

    def _causal(self, count: int, like: torch.Tensor) -> torch.Tensor | None:
        """The mask of ``count`` tokens behind the prefix, additive [1, 1, count, prefix + count]."""
        if count == 1:
            return None
        key = (count, like.device.index or 0)
        if key not in self._masks:
            lowest = torch.full((count, count), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
            mask = torch.nn.functional.pad(lowest.triu(1), (self.shared.prefix, 0))
            self._masks[key] = mask[None, None]
        return self._masks[key]

    # -- the answer ---------------------------------------------------------------------------------------------------

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Every answer's newest token (long [n]) -> logits of the next, [n, 1, vocabulary]; called as ``prefill`` is.

        Raises:
            OutOfRoom, TruncationError: as :meth:`begin`.
        """
        self.begin()
        hidden = self.decoder.embed(ids[None])
        for block in range(self.blocks):
            hidden = self._block(block, hidden, None)
        self.made += 1
        return self.decoder.logits(hidden.transpose(0, 1))

    def begin(self) -> None:
        """Be ready for one more token of each answer.

        Raises:
            OutOfRoom: the answers are longer than the room made for them.
            TruncationError: or than a sliding window of the model.
        """
        if self.made == self.room:
            raise OutOfRoom
        held = self.shared.length + self.made + 1
        if self.shared.window is not None and held > self.shared.window:
            raise TruncationError(
                f"prompt and answer of {held} tokens exceed the sliding window of {self.shared.window} of the KV cache"
            )
        self._answering = True
        self._masks.clear()  # they grow from step to step
        self.decoder.forget_call()

    def _attend_newest(self, seen: Attention) -> torch.Tensor:
        """One new token of every answer, [1, n, h, d]: to its setting's keys, and to those of its answer so far."""
        query, key, value = (t[0].transpose(0, 1)[:, :, None] for t in (seen.query, seen.key, seen.value))
        out = query.new_empty(1, len(query), query.shape[1], seen.value.shape[-1])
        for segment in self.segments[seen.block]:
            end = segment.filled + self.made
            segment.keys[:, :, end : end + 1] = key[segment.rows]
            segment.values[:, :, end : end + 1] = value[segment.rows]
            held = (segment.keys[:, :, : end + 1], segment.values[:, :, : end + 1])
            out[0, segment.rows] = seen.kernel(query[segment.rows], *held, None)[0][:, 0]
        own = self._own(seen.block, key, value)
        if own is not None:
            # a query's own keys are hidden from the others in its call: not more of them than keys that all share
            every = torch.arange(len(own.rows), device=own.rows.device)
            for which in every.split(max(1, self.shared.length // (self.made + 1))):
                rows = own.rows[which]
                out[0, rows] = self._attend_whole(seen, query[rows], own, which)
        return out

    def _own(self, block: int, key: torch.Tensor, value: torch.Tensor) -> Own | None:
        """What the answers whose setting cuts after ``block`` hold of their own there, the newest token included."""
        if self.own[block] is None:
            rows = [row for row, tail in enumerate(self.tails) if tail.layer > block]
            if not rows:
                return None
            shape = (len(rows), key.shape[1], self.room)
            keys, values = key.new_empty(*shape, key.shape[3]), value.new_empty(*shape, value.shape[3])
            self.own[block] = Own(torch.tensor(rows, device=key.device), keys, values)
        own: Own = self.own[block]
        own.keys[:, :, self.made : self.made + 1] = key[own.rows]
        own.values[:, :, self.made : self.made + 1] = value[own.rows]
        return own

    def _attend_whole(self, seen: Attention, query: torch.Tensor, own: Own, which: torch.Tensor) -> torch.Tensor:
        """Answers that share every key of the prompt, as queries of one row: [n, h, d].

        The prompt's keys stand there once; behind them every answer's own, which a mask keeps from the others.
        """
        shared, count, held = self.shared, len(query), self.made + 1
        joined = []
        for whole, tensor in ((shared.keys[seen.block], own.keys), (shared.values[seen.block], own.values)):
            mine = tensor[which, :, :held].transpose(0, 1).flatten(1, 2)
            joined.append(torch.cat([whole[0], mine], 1)[None])
        mask = self._apart(count, held, query)
        return seen.kernel(query[:, :, 0].transpose(0, 1)[None], *joined, mask)[0][0]  # type: ignore[no-any-return]

    def _apart(self, count: int, held: int, like: torch.Tensor) -> torch.Tensor | None:
        """Additive [1, 1, count, S + count * held]: all of the prompt, and the ``held`` own keys of each query."""
        if count == 1:
            return None
        key = (count, like.device.index or 0)
        if key not in self._masks:
            other = torch.full((count, count), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
            other = other.fill_diagonal_(0).repeat_interleave(held, 1)
            self._masks[key] = torch.nn.functional.pad(other, (self.shared.length, 0))[None, None]
        return self._masks[key]
