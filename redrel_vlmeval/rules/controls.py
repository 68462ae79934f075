"""What methods are compared with: choices that know nothing, or know it the wrong way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.rules.geometry import by_picture
from redrel_vlmeval.rules.ordering import highest
from redrel_vlmeval.rules.registry import rule
from redrel_vlmeval.rules.seen import Replaced

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


# -- fewer pixels -----------------------------------------------------------------------------------------------------

_STRETCH = 2.0  # a smaller picture's proportions differ from the picture's by this factor at most


def smaller_grid(grid: tuple[int, int], count: int) -> tuple[int, int]:
    """Rows and columns of a picture with ``count`` tokens, as close to the proportions of ``grid`` as can be.

    Raises:
        InvalidValue: none is close; names the numbers of tokens on either side for which one is.
    """
    if found := _fitting(grid, count):
        return found
    sides = range(count, 0, -1), range(count, grid[0] * grid[1])
    able = [next((one for one in side if _fitting(grid, one)), 0) for side in sides]
    raise InvalidValue(
        f"a picture of {grid[0]} x {grid[1]} tokens cannot be made one of {count}; near it are "
        f"{' and '.join(str(one) for one in able if one)}"
    )


def _fitting(grid: tuple[int, int], count: int) -> tuple[int, int] | None:
    pairs = [(rows, count // rows) for rows in range(1, grid[0] + 1) if count % rows == 0 and count // rows <= grid[1]]
    stretch = {(r, c): max(r * grid[1] / (c * grid[0]), c * grid[0] / (r * grid[1])) for r, c in pairs}
    best = min(pairs, key=stretch.__getitem__, default=None)
    return best if best is not None and stretch[best] <= _STRETCH else None


@rule(
    "downsample",
    needs={"smaller"},
    says="of the picture itself, made smaller until it has no more",
    control=True,
)
def downsample(seen: Seen, budget: int) -> Replaced:
    """What methods save tokens for, had by fewer pixels. Tokens stand where the middles of their cells stood.

    Raises:
        InvalidValue: a picture's share of the budget is no grid of about its proportions.
    """
    import torch

    numbers = {picture.first: number for number, picture in enumerate(seen.pictures)}
    indices, rows = [], []
    for place, share in by_picture(seen, budget):
        number, size = numbers[place.start], place.stop - place.start
        high, wide = seen.smaller.grids[number] if number < len(seen.smaller.grids) else (0, 0)
        if high * wide != size:
            raise InvalidValue(f"picture {number + 1} has {size} tokens, not {high} x {wide} as the tower was shown")
        some, across = smaller_grid((high, wide), share)
        down = ((2 * torch.arange(some) + 1) * high) // (2 * some)
        right = ((2 * torch.arange(across) + 1) * wide) // (2 * across)
        indices.append((down[:, None] * wide + right).flatten() + place.start)
        rows.append(seen.smaller.made(number, some, across))
    return Replaced(torch.cat(indices), torch.cat(rows))
