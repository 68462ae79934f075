"""The modules of a model by themselves: for continuing a prompt from the middle, and for maps of flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.decoders.calls import Observer


class Modules(ABC):
    """Where a model keeps its parts, from the pixels to the output layer."""

    root: nn.Module

    # -- before, in and behind the decoder blocks ---------------------------------------------------------------------

    @abstractmethod
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [b, n] -> what enters block 1, [b, n, width]."""

    @abstractmethod
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What leaves the last block, [b, 1, width] -> logits [b, 1, vocabulary]."""

    @abstractmethod
    def part(self, block: int, name: str) -> nn.Module:
        """A module of a block: ``input_norm``, ``middle_norm`` (before the FFN), or ``attention_output``.

        The last is the projection whose input [b, s, h * d] is the attention of all heads side by side.

        Raises:
            TruncationError: the block has no such module.
        """

    @abstractmethod
    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states under the norm that stands behind the last block."""

    @property
    def head(self) -> nn.Module:
        """The output layer: hidden states [b, s, d] -> logits.

        Raises:
            TruncationError: the model names none.
        """
        head = self.root.get_output_embeddings() if hasattr(self.root, "get_output_embeddings") else None
        head = getattr(self.root, "lm_head", None) if head is None else head
        if not isinstance(head, nn.Module):
            raise TruncationError(f"{type(self.root).__name__}: no output layer (lm_head) found")
        return head

    # -- the vision tower and what makes image tokens of its output ---------------------------------------------------

    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower; raises TruncationError where none is laid out as known."""

    @abstractmethod
    def vision_blocks(self) -> list[nn.Module]:
        """The blocks of the vision tower in the order they run.

        Raises:
            TruncationError: no vision tower is laid out as known.
        """

    @abstractmethod
    def projector(self) -> nn.Module:
        """The module whose output rows become the image tokens: a projector, merger or resampler.

        Raises:
            TruncationError: none is laid out as known.
        """

    def vision_probe(self, block: int, observer: Observer) -> AbstractContextManager[None]:
        """:meth:`probe` for a block of the vision tower.

        Raises:
            TruncationError: its attention cannot be looked at.
        """
        raise TruncationError(f"{type(self.root).__name__}: the attention of its vision tower cannot be looked at")

    def eye(self) -> nn.Module | None:
        """The module whose first argument are the pixels [n, 3, h, w], where a forward call brings none itself."""
        return None

    def resampling(self) -> nn.Module | None:
        """The attention whose second output [b, queries, patches] says which patches each image token is made of."""
        return None
