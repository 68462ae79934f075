"""What all settings share of one question, once its prefill is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from redrel_vlmeval.rules import Tower
from redrel_vlmeval.truncation import Prompt


@dataclass
class Shared:
    """One prompt after its untouched prefill; S tokens, the first image token at position P.

    Attributes:
        ids: long [1, S]. prompts: setting -> its decisions, for every setting.
        hidden: layer L -> what enters block L + 1 (numbered from 1) from position P on, [1, S - P, width].
        keys, values: block (numbered from 0) -> [1, h_kv, S, d]; P only where no setting attends to the rest.
        masks: block -> which keys a token attends to, as the kernel is given it, [1, 1, S, S]; None where that is those
            up to its own, and no others. window: as :meth:`Decoder.window` has it.
        arguments: the blocks' other arguments. noted, added: see :meth:`Decoder.noting` and :meth:`Decoder.added`.
        embeddings: what entered block 1, [1, S, width], and towers: as :class:`Evidence` has them, where a later stage
            asks for them.
        logits: of the first new token, [vocabulary].
    """

    ids: torch.Tensor
    prefix: int
    prompts: dict[str, Prompt]
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    masks: dict[int, torch.Tensor | None] = field(default_factory=dict)
    window: int | None = None
    arguments: dict[int, dict[str, Any]] = field(default_factory=dict)
    noted: list[torch.Tensor] = field(default_factory=list)
    added: list[torch.Tensor] = field(default_factory=list)
    embeddings: torch.Tensor | None = None
    towers: Sequence[Tower | None] = ()
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def cut(self) -> dict[str, Prompt]:
        """The settings that drop a token of this prompt."""
        return {setting: prompt for setting, prompt in self.prompts.items() if prompt.stages}

    def mask_of(self, block: int, own: torch.Tensor) -> torch.Tensor | None:
        """The mask of the tokens ``own`` (long [n]) behind the prefix, [1, 1, n, prefix + n]; None as :attr:`masks`."""
        whole = self.masks[block]
        if whole is None:
            return None
        own = own.to(whole.device)
        return whole[:, :, own][..., torch.cat([torch.arange(self.prefix, device=own.device), own])]

    @property
    def later(self) -> frozenset[str]:
        """What the rules of second and later stages need."""
        rules = (prompt.spec.rule_of(stage) for prompt in self.prompts.values() for stage in prompt.stages[1:])
        return frozenset().union(*(rule.needs for rule in rules))

    @property
    def bytes(self) -> int:
        """Of the recorded tensors."""
        held = [*self.hidden.values(), *self.keys.values(), *self.values.values(), *self.added]
        held += [] if self.embeddings is None else [self.embeddings]
        held += {id(mask): mask for mask in self.masks.values() if mask is not None}.values()
        return sum(t.numel() * t.element_size() for t in held)
