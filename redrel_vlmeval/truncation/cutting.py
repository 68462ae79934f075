"""Hidden states of one forward call: where tokens leave, and back to full length behind the last block."""

from __future__ import annotations

from typing import Any

import torch

from redrel_vlmeval.names import Stage
from redrel_vlmeval.rules import Choice
from redrel_vlmeval.truncation.prompt import Prompt
from redrel_vlmeval.truncation.views import View, take


class Cuts:
    """What left at which stage of this call.

    ```
    block L      [b, n, D]   a b C D E f        C D E visual tokens
    drop         [b, n', D]  a b D f            the whole of [b, n, D] is put aside
    blocks >L    ...
    restore      [b, n, D]   a' b' C D' E f'    C and E as they left
    ```
    """

    def __init__(self) -> None:
        self._saved: list[tuple[View, torch.Tensor]] = []
        self._grown: dict[int, View] = {}

    def grown(self, view: View, length: int) -> View:
        """The view of this call: longer than the prompt's where a step without cache computes everything again."""
        return self._grown.setdefault(view.layer, view.extended(length))

    def drop(self, prompt: Prompt, stage: Stage, hidden: torch.Tensor, length: int) -> torch.Tensor:
        """Hidden states [b, n, D] -> [b, n', D], kept tokens with what a merging rule adds to them."""
        view = self.grown(prompt.views[stage.layer], length)
        outer = prompt.view_before(stage.layer - 1) if stage.layer else None
        place = view.within(None if outer is None else self.grown(outer, length))
        self._saved.append((View(stage.layer, hidden.shape[1], place, view.valid), hidden))
        short = take(hidden, place, 1)
        for row, choice in prompt.merges.get(stage.layer, {}).items():
            visual, kept = prompt.merging(stage, row)
            short[row, kept.to(short.device)] = merged(hidden[row], choice, visual)
        return short

    def restore(self, hidden: torch.Tensor) -> torch.Tensor:
        """What leaves the last block -> full length; dropped positions carry the hidden state they left with."""
        for view, left in reversed(self._saved):
            before = left.to(hidden.device)  # blocks may stand on several devices
            if view.valid is not None:
                # a filler has been through blocks that it was hidden in: it goes back as it came
                hidden = torch.where(view.valid[..., None].to(hidden.device), hidden, take(before, view.index, 1))
            where = view.index[..., None].expand(len(hidden), -1, hidden.shape[-1])
            hidden = before.scatter(1, where.to(hidden.device), hidden)
        return hidden


def merged(hidden: torch.Tensor, choice: Choice, visual: torch.Tensor) -> torch.Tensor:
    """What kept tokens become, [K, D], of the visual tokens at ``visual`` (long [n]) of ``hidden`` [s, D]."""
    return choice.applied(hidden.index_select(0, visual.to(hidden.device)))


def restored(output: Any, cuts: Cuts) -> Any:
    """A block's output, a tensor or a tuple that begins with it, at full length."""
    if isinstance(output, torch.Tensor):
        return cuts.restore(output)
    return (cuts.restore(output[0]), *output[1:])
