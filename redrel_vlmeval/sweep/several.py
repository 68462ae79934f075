"""Answers to several questions, token by token: the newest of each go through a block side by side in one row.

```
question 1, 3 settings   a a a         [1, 3 + 2, D]   one row through norms, projections and FFN
question 2, 2 settings         b b                     ... and attention by each question's own continuation
```

Prompts are continued question by question: what one question's settings add to a prompt fills a call by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from redrel_vlmeval.sweep.continuation import Continuation
from redrel_vlmeval.sweep.tails import Tail
from redrel_vlmeval.truncation import Attention, Decoder


class Several:
    """What :class:`Continuation` is for one prompt, of several; all with equal ``room``."""

    def __init__(self, decoder: Decoder, parts: Sequence[Continuation]) -> None:
        self.decoder, self.parts = decoder, parts
        self.tails: Sequence[Tail] = [tail for part in parts for tail in part.tails]
        self._current = list(parts)

    def prefill(self) -> torch.Tensor:
        """As :meth:`Continuation.prefill`."""
        logits = []
        for part in self.parts:
            self._current = [part]
            logits.append(part.prefill())
        self._current = list(self.parts)
        return torch.cat(logits)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """As :meth:`Continuation.step`."""
        for part in self.parts:
            part.begin()
        hidden = self.decoder.embed(ids[None])
        for block in range(len(self.decoder.blocks)):
            given = [part.newest(block) for part in self.parts]
            tables = zip(*(one[self.decoder.rotary] for one in given), strict=True)
            kwargs = given[0] | {self.decoder.rotary: tuple(torch.cat(table, -2) for table in tables)}
            hidden = self.parts[0].through(block, hidden, kwargs)
        for part in self.parts:
            part.made += 1
        return self.decoder.logits(hidden.transpose(0, 1))

    def attend(self, seen: Attention) -> Any:
        """Each question's tokens by themselves."""
        if len(self._current) == 1:
            return self._current[0].attend(seen)
        outputs, start = [], 0
        for part in self._current:
            count = len(part.tails)
            own = (tensor.narrow(2, start, count) for tensor in (seen.query, seen.key, seen.value))
            query, key, value = own
            outputs.append(part.attend(replace(seen, query=query, key=key, value=value))[0])
            start += count
        return torch.cat(outputs, 1), None
