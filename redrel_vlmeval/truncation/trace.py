"""What a truncated model did, prompt by prompt: the numbers that sheets print and tests compare with the claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class PromptTrace:
    """One prompt (one row of a batch; with beams, one row per beam).

    Attributes:
        tokens: real tokens that entered each decoder block at prefill.
        images: image tokens among them, per block.
        kept: stage layer -> the visual tokens kept there, numbered 0.. within the prompt's visual tokens, ascending.
        merged: stage layer -> weights, float [K, n], of a rule that merges: kept token i became ``sum_j w_ij x_j``.
        kv: keys held by each block after the latest forward call, this prompt's own (padding and fillers left out).
        mode: ``dropped``, ``official`` (masked, nothing dropped) or ``untouched``.
    """

    tokens: list[int]
    images: list[int]
    kept: dict[int, list[int]] = field(default_factory=dict)
    merged: dict[int, Any] = field(default_factory=dict)
    kv: list[int] = field(default_factory=list)
    mode: str = "untouched"

    @property
    def average_image_tokens(self) -> float:
        """Image tokens averaged over blocks: ``(n L + K (N - L)) / N`` for one stage."""
        return sum(self.images) / len(self.images)


@dataclass
class Trace:
    """Everything that happened inside one ``with truncated(...)``; ``prompts`` has one entry per prompt, in order.

    ``clock``: where it is set, ``ranking`` is how long choosing has taken by it: reading what rules need, and rules.
    """

    variant: str
    blocks: int
    prompts: list[PromptTrace] = field(default_factory=list)
    clock: Callable[[], float] | None = None
    ranking: float = 0.0

    def timed(self, do: Callable[..., Any], *args: Any) -> Any:
        """``do(*args)``, counted as ranking."""
        if self.clock is None:
            return do(*args)
        begin = self.clock()
        try:
            return do(*args)
        finally:
            self.ranking += self.clock() - begin

    @property
    def last(self) -> PromptTrace:
        """The latest prompt.

        Raises:
            IndexError: no prompt has gone through the model yet.
        """
        if not self.prompts:
            raise IndexError(f"no prompt has gone through the model truncated as {self.variant} yet")
        return self.prompts[-1]
