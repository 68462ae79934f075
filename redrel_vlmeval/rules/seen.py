r"""What a rule sees of one prompt, and what it may return.

```
                                   system text   <- visual tokens ->   question ...  last
positions of the prompt            0 1 2 ... P-1  P ........... P+N-1  P+N ......... S-1
                                                  \___ n of them ___/  \____ m _____/
block L   attention of one row     [ row ] ------>  attention [n]
          keys, values             [g, n, d]        text_keys [g, m, d]
          queries                  [h, n, d]
leaving L states                   [n, D]           text_states [m, D]
entering  embeddings               [n, D]           text [m, D]
block 1
```

``n`` counts the visual tokens that are still there when the rule chooses: all of the prompt's at the first stage. They
are numbered 0..n-1 in raster order, pictures one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from redrel_vlmeval.errors import RedrelError

if TYPE_CHECKING:
    from torch import Generator, Tensor

# Field of Seen -> what it is. `needs` of a rule names some of these.
FIELDS = {
    "attention": "float32 [n]: the ranking row's softmax in block L, averaged over heads (eq. 7-9)",
    "next_attention": "float32 [n]: the same of block L+1, on the states that leave L",
    "text_attention": "float32 [h, m, n]: the rows of the text after the pictures, in block L, head by head",
    "queries": "[h, n, d]: of block L, rotated",
    "keys": "[g, n, d]: of block L, rotated; g key heads",
    "values": "[g, n, d]: of block L",
    "text_keys": "[g, m, d]: keys of the text after the pictures",
    "states": "[n, D]: hidden states that leave block L; at l0 those that enter block 1",
    "text_states": "[m, D]: the same of the text after the pictures",
    "embeddings": "[n, D]: block 1's input",
    "text": "[m, D]: the same of the text after the pictures",
    "generator": "torch.Generator on the CPU, seeded by the prompt's token ids and the name's _seed<n>",
}
# What exists only once a block has attended.
AFTER_A_BLOCK = frozenset({"attention", "text_attention", "queries", "keys", "values", "text_keys"})


class Picture(NamedTuple):
    """Visual tokens ``first`` .. ``first + size - 1`` are of one picture; ``grid`` (rows, columns), None if unknown."""

    first: int
    size: int
    grid: tuple[int, int] | None


class Seen:
    """One prompt, without batch, padding or device bookkeeping; tensors lie on the model's device.

    Attributes:
        n: visual tokens to choose from. pictures: which of them belong together.
        layer: L, 0 before block 1.
        Others: see :data:`FIELDS`; there as far as the rule's ``needs`` ask.
    """

    n: int
    layer: int
    pictures: Sequence[Picture]
    attention: Tensor
    next_attention: Tensor
    text_attention: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    text_keys: Tensor
    states: Tensor
    text_states: Tensor
    embeddings: Tensor
    text: Tensor
    generator: Generator

    def __init__(self, n: int, layer: int = 0, pictures: Sequence[Picture] = (), **given: Any) -> None:
        self.n, self.layer, self.pictures = n, layer, tuple(pictures) or (Picture(0, n, None),)
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        if name in FIELDS:
            raise RedrelError(f"seen.{name} was not asked for: add {name!r} to the rule's needs")
        raise AttributeError(f"a rule sees no {name!r}: there are n, layer, pictures, {', '.join(FIELDS)}")


@dataclass(frozen=True)
class Merged:
    """Kept tokens that take others in: kept token ``i`` becomes ``sum_j weights[i, j] x_j``.

    ``indices``: K of 0..n-1. ``weights``: float [K, n], over the visual tokens, in the same order of rows.
    """

    indices: Any
    weights: Tensor
