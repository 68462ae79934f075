"""What is known of one call: of the whole model's forward, and of one block's attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from redrel_vlmeval.truncation.views import causal, hide

Observer = Callable[..., None]


@dataclass(frozen=True)
class Attention:
    """What one block's attention kernel is given in one call, and the kernel.

    query: [b, h, q, d]; key, value: [b, h_kv, k, d]; rotated. ``kernel(query, key, value, mask)`` returns what the
    model's own returns: ([b, q, h, d], weights or None). ``group``: the processes that hold the other heads, or None.
    ``causal``: whether the kernel hides later keys by itself, whatever its mask says.
    """

    block: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    scaling: float
    softcap: float | None
    kernel: Callable[..., Any]
    group: Any = None
    causal: bool = False

    @property
    def hidden(self) -> Any:
        """A mask that says all that is hidden; None: what is behind a query."""
        if not self.causal or not isinstance(self.mask, torch.Tensor) or self.mask.ndim != 4:
            return self.mask
        return hide(self.mask, causal(self.query.shape[2], self.key.shape[2], self.mask.device))

    def own(self) -> Any:
        """What the model would have computed."""
        return self.kernel(self.query, self.key, self.value, self.mask)


Attend = Callable[[Attention], Any]


def observing(observer: Observer) -> Attend:
    """Attending as the model does, after ``observer`` has seen what its kernel is given."""

    def attend(seen: Attention) -> Any:
        observer(seen.query, seen.key, seen.hidden, seen.scaling, seen.softcap, seen.value)
        return seen.own()

    return attend


@dataclass(frozen=True)
class Call:
    """What one forward call of the outermost model was given.

    ``past`` is the cached length (0 at prefill), ``pictures`` whether pixels came along; ``positions``: None where the
    model counts them itself.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    cache: Any
    past: int
    pictures: bool
    positions: torch.Tensor | None = None
