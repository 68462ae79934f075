"""Rules that read the decoder: whom a query row of block L attends to (the paper, FastV) and its kin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redrel_vlmeval.rules.ordering import highest
from redrel_vlmeval.rules.registry import rule

if TYPE_CHECKING:
    from torch import Tensor

    from redrel_vlmeval.rules.seen import Seen


@rule("attention", needs={"attention"}, says="that {row} most")
def attention(seen: Seen, budget: int) -> Tensor:
    """The paper's rule, and FastV's: the row of the last prompt token in block L, eq. 7-10."""
    return highest(seen.attention, budget)


@rule("next", needs={"next_attention"}, says="that {row} most in the block after L")
def next_block(seen: Seen, budget: int) -> Tensor:
    """PyramidDrop's: the same row of block L+1, on the states that leave block L."""
    return highest(seen.next_attention, budget)
