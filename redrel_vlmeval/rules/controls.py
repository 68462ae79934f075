"""What methods are compared with: choices that know nothing, or know it the wrong way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redrel_vlmeval.rules.ordering import highest
from redrel_vlmeval.rules.registry import rule

if TYPE_CHECKING:
    from torch import Tensor

    from redrel_vlmeval.rules.seen import Seen


@rule("random", needs={"generator"}, says="drawn at random", control=True)
def random(seen: Seen, budget: int) -> Tensor:
    """The same draw for the same prompt in any batch and on any device: it is made on the CPU, token by token."""
    import torch

    return highest(torch.rand(seen.n, generator=seen.generator), budget)


@rule("uniform", says="evenly spaced", control=True)
def uniform(seen: Seen, budget: int) -> list[int]:
    """Number j of n is kept where the rounded ``(j + 1/2) K / n`` steps."""
    steps = [((2 * j + 1) * budget + seen.n) // (2 * seen.n) for j in range(-1, seen.n)]
    return [j for j in range(seen.n) if steps[j + 1] > steps[j]]


@rule("lowest", needs={"attention"}, says="that {row} least", control=True)
def lowest(seen: Seen, budget: int) -> Tensor:
    """The paper's rule upside down: whoever it hurts no more than the rule itself has learnt nothing from attention."""
    return highest(-seen.attention, budget)
