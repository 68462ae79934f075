"""Arithmetic that rules share: unit vectors, the greedy loop, a budget dealt out.

Everything is computed in float32, whatever the model's type: half precision has ties where the methods have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from redrel_vlmeval.rules.seen import Seen


def unit(rows: Tensor) -> Tensor:
    """Float32 [n, d] of length 1, so that ``unit(a) @ unit(b).T`` are cosines; a row of zeros stays one."""
    rows = rows.float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def greedy(
    count: int, gain: Callable[[], Tensor], take: Callable[[Tensor], None], taken: Sequence[Tensor] = ()
) -> Tensor:
    """``count`` different tokens, each the one with the largest gain given those before it; ties to the lowest.

    Args:
        gain: float [n], what each token would add now.
        take: told the choice, long [1], so that the next ``gain`` knows it.
        taken: long [1] each, chosen already; they count.

    Returns:
        long [count], in the order of choice. No step waits for the device.
    """
    import torch

    chosen = list(taken)
    for number in range(count - len(chosen)):
        gains = gain()
        if chosen:
            gains = gains.index_fill(0, torch.cat(chosen), -torch.inf)
        chosen.append(gains.argmax()[None])
        if number + 1 < count - len(taken):
            take(chosen[-1])
    return torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.long)


def shares(budget: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """``budget`` (at most the sum of ``sizes``) dealt out in proportion to ``weights``, no share beyond its size.

    Each gets the whole part of its due, and what is left goes one each to the largest weights. What is then beyond a
    size goes on, one each, to the largest weights with room.

    Example:
        >>> shares(10, [0.5, 0.3, 0.2], [8, 2, 8])
        [6, 2, 2]
    """
    positive = [max(weight, 0.0) for weight in weights]
    total = sum(positive)
    given = [int(budget * weight / total) if total > 0 else 0 for weight in positive]
    order = sorted(range(len(sizes)), key=lambda part: (-weights[part], part))
    for room in ([budget] * len(sizes), sizes):
        given = [min(one, most) for one, most in zip(given, room, strict=True)]
        left = budget - sum(given)
        while left > 0:
            open_ones = [part for part in order if given[part] < room[part]][:left]
            for part in open_ones:
                given[part] += 1
            left -= len(open_ones)
    return given


def by_picture(seen: Seen, budget: int) -> list[tuple[slice, int]]:
    """The tokens of each picture (or tile) and its share of the budget, in proportion to its tokens.

    A tower sees one picture at a time, and what it says of two cannot be compared.
    """
    sizes = [picture.size for picture in seen.pictures]
    dealt = shares(budget, [float(size) for size in sizes], sizes)
    places = [slice(picture.first, picture.first + picture.size) for picture in seen.pictures]
    return [(place, share) for place, share in zip(places, dealt, strict=True) if share]
