"""The tokens of each setting that are computed anew: which they are, as the stages of its name make them fewer.

```
l2_k3_l4_k1     . . . I I . I t t     own tokens from block 3 on, entering with the states that left block 2
from block 5    . . . . I . . t t     what the setting's own tokens and block 4 show its rule decides
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from redrel_vlmeval.names import Stage
from redrel_vlmeval.sweep import later
from redrel_vlmeval.sweep.shared import Shared
from redrel_vlmeval.truncation import Attention, Decoder, Evidence, Prompt, merged


@dataclass(frozen=True)
class Tail:
    """The tokens of one setting that are computed anew: after block ``layer``, at ``index`` of the prompt (rising).

    ``turned``: where their rotary angles are taken from, if that is elsewhere. ``setting``: named where no other can
    share it, because its rule lets kept tokens take others in, or it has later stages.
    """

    layer: int
    index: tuple[int, ...]
    turned: tuple[int, ...] | None = None
    setting: str = ""


class Held:
    """The tokens of a continuation's rows: ``index`` in the prompt and ``angles`` (long [n]), row by row."""

    def __init__(self, decoder: Decoder, shared: Shared, tails: Sequence[Tail]) -> None:
        self.decoder, self.shared, self.tails = decoder, shared, tails
        device = shared.ids.device
        self.index = [torch.tensor(tail.index, dtype=torch.long, device=device) for tail in tails]
        self.angles = [
            index if tail.turned is None else torch.tensor(tail.turned, dtype=torch.long, device=device)
            for tail, index in zip(tails, self.index, strict=True)
        ]
        self._left: dict[int, torch.Tensor] = {}  # row -> the prompt's last position, where a later stage dropped it
        self._seen: dict[int, Evidence | None] = {}  # row -> what the block before a later stage has shown

    # -- first stages -------------------------------------------------------------------------------------------------

    def entering(self, row: int) -> torch.Tensor:
        """What enters the first block behind a row's first cut, [1, n, width]."""
        hidden = self.shared.hidden[self.tails[row].layer]
        place = (self.index[row] - self.shared.prefix).to(hidden.device)
        return self._merged(row, self.tails[row].layer, hidden, hidden.index_select(1, place))

    def _merged(self, row: int, layer: int, hidden: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
        """``short`` [1, n, width] with what a merging rule adds to it of own tokens ``hidden`` [1, n', width]."""
        prompt = self._prompt(row)
        if prompt is not None and layer in prompt.merges:
            stage = next(stage for stage in prompt.stages if stage.layer == layer)
            visual, kept = prompt.merging(stage, 0)
            prefix = self.shared.prefix
            short[0, (kept - prefix).to(short.device)] = merged(hidden[0], prompt.merges[layer][0], visual - prefix)
        return short

    def _prompt(self, row: int) -> Prompt | None:
        """The decisions of a setting that has its row for itself."""
        return self.shared.prompts.get(self.tails[row].setting)

    def add(self, block: int, row: int, hidden: torch.Tensor) -> None:
        """What a model adds to visual tokens behind its first blocks (DeepStack), to ``hidden`` [1, n, width]."""
        if block >= len(self.shared.added):
            return
        image = next(iter(self.shared.prompts.values())).image[0].to(self.index[row].device)
        there = image[self.index[row]]
        number = (image.cumsum(0) - 1)[self.index[row]][there]  # of each visual token among the features
        features = self.shared.added[block]
        hidden[0, there.to(hidden.device)] += features[number.to(features.device)].to(hidden.device, hidden.dtype)

    # -- later stages -------------------------------------------------------------------------------------------------

    def again(self, row: int, block: int) -> Stage | None:
        """The second or later stage of a row's setting that cuts before ``block``."""
        prompt = self._prompt(row)
        stages = prompt.stages[1:] if prompt is not None else []
        return next((stage for stage in stages if stage.layer == block), None)

    def watch(self, first: int, seen: Attention) -> None:
        """Note what a block shows of rows ``first``, ..: query [r, h, n, d], key and value [r, g, P + n, d]."""
        for number in range(len(seen.query)):
            row, mine = first + number, slice(number, number + 1)
            prompt, stage = self._prompt(row), self.again(row, seen.block + 1)
            if prompt is not None and stage is not None:
                mask = seen.mask if seen.mask is None or len(seen.mask) == 1 else seen.mask[mine]
                own = replace(seen, query=seen.query[mine], key=seen.key[mine], value=seen.value[mine], mask=mask)
                self._seen[row] = later.watched(self.shared, prompt, stage, own)

    def cut(self, row: int, stage: Stage, hidden: torch.Tensor) -> torch.Tensor:
        """Own tokens [1, n, width] that leave block L -> those that ``stage`` keeps."""
        prompt, prefix = self.shared.prompts[self.tails[row].setting], self.shared.prefix
        later.choose(self.decoder, self.shared, prompt, stage, hidden, self._seen.pop(row, None))
        view, ended = prompt.views[stage.layer], self._ends(row)
        own = view.index[0] >= prefix
        place = (view.within(prompt.view_before(stage.layer - 1))[0][own] - prefix).to(hidden.device)
        self.index[row], self.angles[row] = view.index[0][own], view.rotary[0][own]
        if ended and not self._ends(row):
            self._left[row] = hidden[:, -1:]
        return self._merged(row, stage.layer, hidden, hidden.index_select(1, place))

    # -- the end ------------------------------------------------------------------------------------------------------

    def last(self, row: int, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden state of the prompt's last position: a dropped token carries the one it left with."""
        if self._ends(row):
            return hidden[:, -1:]
        return self._left.get(row, self.shared.hidden[self.tails[row].layer][:, -1:]).to(hidden.device)

    def _ends(self, row: int) -> bool:
        """Whether the prompt's last position is among a row's tokens."""
        return bool(len(self.index[row])) and int(self.index[row][-1]) == self.shared.length - 1
