"""What a rule sees of one prompt, and what it may return.

```
                                   system text   <- visual tokens ->   question ...  last
positions of the prompt            0 1 2 ... P-1  P ........... P+N-1  P+N ......... S-1
                                                  |__ n of them __|    |___ m ______|
block L   attention of one row     [ row ] ------>  attention [n]
          keys, values             [g, n, d]        text_keys, text_values [g, m, d]
          queries                  [h, n, d]        text_queries [h, m, d]
leaving L states                   [n, D]           text_states [m, D]
entering  embeddings               [n, D]           text [m, D]
block 1
the tower features                 [n, C]
```

``n`` counts the visual tokens that are still there when the rule chooses: all of the prompt's at the first stage. They
are numbered 0..n-1 in raster order, pictures one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from redrel_vlmeval.errors import InvalidValue, RedrelError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from redrel_vlmeval.rules.clip import Clip

# Field of Seen -> what it is. `needs` of a rule names some of these.
FIELDS = {
    "attention": "float32 [n]: the ranking row's softmax in block L, averaged over heads (eq. 7-9)",
    "next_attention": "float32 [n]: the same of block L+1, on the states that leave L",
    "text_attention": "float32 [h, m, n]: the rows of the text after the pictures, in block L, head by head",
    "queries": "[h, n, d]: of block L, rotated",
    "keys": "[g, n, d]: of block L, rotated; g key heads",
    "values": "[g, n, d]: of block L",
    "text_queries": "[h, m, d]: queries of the text after the pictures; the last is the prompt's last token",
    "text_keys": "[g, m, d]: its keys",
    "text_values": "[g, m, d]: its values",
    "states": "[n, D]: hidden states that leave block L; at l0 those that enter block 1",
    "text_states": "[m, D]: the same of the text after the pictures",
    "normed": "[n, D]: states under the norm that stands behind the last block",
    "text_normed": "[m, D]: the same of the text after the pictures",
    "embeddings": "[n, D]: block 1's input",
    "entered": "[N, D]: the same of all visual tokens of the prompt, also of those that an earlier stage dropped",
    "text": "[m, D]: the same of the text after the pictures",
    "ones": "[n, d]: a vector of ones, rotated as queries and keys of block L are",
    "text_ones": "[m, d]: the same of the text after the pictures",
    "places": "long [n]: places in the prompt, 0 its first token",
    "text_places": "long [m]: the same of the text after the pictures",
    "question": "str: the text after the pictures, as the model's tokenizer reads it",
    "clip": "Clip: the CLIP that REDREL_CLIP names, whose vision tower is the model's",
    "tower": "Tower: what the vision tower makes of the pictures, token by token",
    "smaller": "Smaller: the pictures' tokens, had the pictures been made smaller; before block 1 alone",
    "generator": "torch.Generator on the CPU, seeded by the prompt's token ids and the name's _seed<n>",
}
# What exists only once a block has attended.
AFTER_A_BLOCK = frozenset(
    {"attention", "text_attention", "queries", "keys", "values", "text_queries", "text_keys", "text_values"}
)
# What takes the place of block 1's input, so that a later block has no use for it.
BEFORE_BLOCK_1 = frozenset({"smaller"})


class Picture(NamedTuple):
    """Visual tokens ``first`` .. ``first + size - 1`` are of one picture; ``grid`` (rows, columns), None if unknown."""

    first: int
    size: int
    grid: tuple[int, int] | None


class Sight:
    """What one block of a vision tower attended to, one entry per visual token; computed when it is asked for.

    Where several patches become one visual token, the token has the mean of theirs.

    Attributes:
        attention: float32 [n], the class token's row, softmax over class token and patches, mean over heads; `received`
            where the tower has no class token. received: float32 [n], mean over all rows and heads.
        keys: [n, C'], mean over heads.
    """

    def __init__(self, attention: Callable[[], Tensor], received: Callable[[], Tensor], keys: Callable[[], Tensor]):
        self._attention, self._received, self._keys = attention, received, keys

    @cached_property
    def attention(self) -> Tensor:
        return self._attention()

    @cached_property
    def received(self) -> Tensor:
        return self._received()

    @cached_property
    def keys(self) -> Tensor:
        return self._keys()

    def at(self, index: Tensor) -> Sight:
        """The same of the tokens at ``index``; what is computed is still computed once, for all."""

        def taken(name: str) -> Callable[[], Tensor]:
            return lambda: finite(f"tower's {name}", _rows(getattr(self, name), index))

        return Sight(taken("attention"), taken("received"), taken("keys"))


@dataclass(frozen=True)
class Tower:
    """The vision tower at the visual tokens; 0 everywhere at tokens that stand for no patch, such as newlines.

    Attributes:
        features: [n, C], what the projector reads. read: the block that these leave.
        middle: the block after three eighths of the tower (9 of 24), Qwen-VL's after half. last: the last block of all.
        grids: rows and columns of each picture's tokens, where the tower tells them and none has been dropped.
    """

    features: Tensor
    read: Sight
    middle: Sight
    last: Sight
    grids: tuple[tuple[int, int] | None, ...] = ()

    def at(self, index: Tensor) -> Tower:
        """The same of the tokens at ``index`` (long [n])."""
        grids = self.grids if len(index) == len(self.features) else ()
        read, middle, last = (sight.at(index) for sight in (self.read, self.middle, self.last))
        return Tower(_rows(self.features, index), read, middle, last, grids)


@dataclass(frozen=True)
class Smaller:
    """A prompt's pictures, and what enters block 1 for them when their pixels are made fewer.

    Attributes:
        grids: rows and columns of each picture's tokens, as it is.
        made: (picture, rows, columns) -> [rows * columns, D], in raster order.
    """

    grids: tuple[tuple[int, int], ...]
    made: Callable[[int, int, int], Tensor]


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor.index_select(0, index.to(tensor.device))


def finite(name: str, tensor: Tensor) -> Tensor:
    """``tensor`` itself, which a rule may compare.

    Raises:
        InvalidValue: it has NaN or an infinity, as half precision that overflows; every order of it is arbitrary.
    """
    wrong = int((~tensor.isfinite()).sum())
    if wrong:
        raise InvalidValue(f"{wrong} of {tensor.numel()} numbers of the {name} are NaN or infinite, so none is best")
    return tensor


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
    text_queries: Tensor
    text_keys: Tensor
    text_values: Tensor
    states: Tensor
    text_states: Tensor
    normed: Tensor
    text_normed: Tensor
    embeddings: Tensor
    entered: Tensor
    text: Tensor
    ones: Tensor
    text_ones: Tensor
    places: Tensor
    text_places: Tensor
    question: str
    clip: Clip
    tower: Tower
    smaller: Smaller
    generator: Generator

    def __init__(self, n: int, layer: int = 0, pictures: Sequence[Picture] = (), **given: Any) -> None:
        self.n, self.layer, self.pictures = n, layer, tuple(pictures) or (Picture(0, n, None),)
        self.__dict__.update(given)

    def check(self) -> None:
        """Refuse what no rule can choose by.

        Raises:
            InvalidValue: NaN or infinities in a field; names it. What a tower attended to is checked when it is read.
        """
        for name, value in vars(self).items():
            if isinstance(value, Tower):
                finite("tower's features", value.features)
            elif hasattr(value, "is_floating_point") and value.is_floating_point():
                finite(name, value)

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


@dataclass(frozen=True)
class Replaced:
    """Kept tokens that become others: kept token ``i`` becomes ``rows[i]``, whatever it was.

    ``indices``: K of 0..n-1, whose places in the prompt are taken. ``rows``: [K, D], in the same order.
    """

    indices: Any
    rows: Tensor
