"""From what the model's blocks show of a whole batch to what a rule sees of one prompt.

```
block L attends            -> gathered()    attention rows, queries, keys, values       of b prompts, n' tokens held
states leave block L       -> evidence.states, and block L+1's row on them             (padding and fillers among them)
                              one_prompt()  Seen: n visual tokens, m text tokens       of one prompt, nothing else
```
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.rules import AFTER_A_BLOCK, Picture, Seen, Smaller, Tower, clip
from redrel_vlmeval.truncation.decoders import Attention, Decoder, mean_of
from redrel_vlmeval.truncation.ranking import head_rows, row_mean

OF_HEADS = AFTER_A_BLOCK - {"attention"}  # of each by itself, not of their mean
OF_TOWER = frozenset({"tower", "smaller"})
OF_INPUT = frozenset({"embeddings", "entered", "text"})  # of block 1
# Field of Seen -> what of the evidence it is taken from, along which axis of one prompt, and where.
TAKEN = {
    "attention": ("attention", 0, "visual"),
    "next_attention": ("next_attention", 0, "visual"),
    "embeddings": ("embeddings", 0, "visual_full"),
    "entered": ("embeddings", 0, "entered"),
    "text": ("embeddings", 0, "text_full"),
}
for _name, _axis in {"queries": 1, "keys": 1, "values": 1, "states": 0, "normed": 0, "ones": 0}.items():
    TAKEN |= {_name: (_name, _axis, "visual"), f"text_{_name}": (_name, _axis, "text")}


@dataclass
class Evidence:
    """What was seen around one cut, for the n' tokens that are held there; what nobody asked for is None.

    attention, next_attention: float32 [b, n'], the ranking rows' mean. text_attention: float32 [b, h, r, n'], the r
    rows of the longest text after the pictures. queries [b, h, n', d]; keys, values [b, g, n', d]; states [b, n', D].
    normed: states under the last norm. ones [b, n', d]: vectors of ones, rotated. embeddings [b, s, D]: of all s
    positions of the prompt. towers, smaller: one per prompt, of all its visual tokens.
    questions: of every prompt the text after its pictures, in words.
    """

    attention: torch.Tensor | None = None
    next_attention: torch.Tensor | None = None
    text_attention: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    states: torch.Tensor | None = None
    normed: torch.Tensor | None = None
    ones: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    towers: Sequence[Tower | None] = ()
    smaller: Sequence[Smaller | None] = ()
    questions: Sequence[str] = ()

    def look_behind(
        self, decoder: Decoder, needs: Collection[str], hidden: torch.Tensor, kwargs: Mapping[str, Any]
    ) -> None:
        """Take in what ``needs`` ask of ``hidden`` [b, n', D], which leaves block L, and of block L+1's arguments."""
        if {"states", "text_states"} & set(needs):
            self.states = hidden
        with torch.no_grad():
            if {"normed", "text_normed"} & set(needs):
                self.normed = decoder.normed(hidden)
            if {"ones", "text_ones"} & set(needs):
                self.ones = rotated_ones(kwargs).expand(len(hidden), -1, -1)


def gathered(seen: Attention, needs: Collection[str], rows: torch.Tensor, text: torch.Tensor) -> Evidence:
    """What the kernel of block L was given, as far as ``needs`` ask.

    ``rows``: long [b, r], query rows to rank by, as places among the held tokens; ``text``: those of the text.
    """
    found = Evidence()
    if "attention" in needs:
        found.attention = mean_row(seen, rows)
    if "text_attention" in needs:
        places = text.to(seen.query.device)
        found.text_attention = head_rows(seen.query, seen.key, places, seen.scaling, seen.hidden, seen.softcap)
    if {"queries", "text_queries"} & set(needs):
        found.queries = seen.query.detach()
    if {"keys", "text_keys"} & set(needs):
        found.keys = seen.key.detach()
    if {"values", "text_values"} & set(needs):
        found.values = seen.value.detach()
    return found


def mean_row(seen: Attention, rows: torch.Tensor) -> torch.Tensor:
    """Softmax over all keys of ``rows`` (long [b, r]), averaged over heads and rows: float32 [b, k] (eq. 7)."""
    rows = rows.to(seen.query.device)
    with torch.no_grad():
        own = head_rows(seen.query, seen.key, rows, seen.scaling, seen.hidden, seen.softcap).mean(1)
        return row_mean(mean_of(own, seen.group), rows)


def rotated_ones(kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Vectors of ones [b or 1, s, d], turned by the rotary tables in a block's arguments as queries and keys are.

    Raises:
        TruncationError: the tables are laid out otherwise.
    """
    tables = kwargs.get("position_embeddings")
    if not isinstance(tables, tuple) or any(table.ndim != 3 for table in tables):
        raise TruncationError("the rotary tables are not [b, s, d], as rules that need 'ones' know them")
    cos, sin = (table.float().chunk(2, -1) for table in tables)
    return torch.cat([cos[0] - sin[0], cos[1] + sin[1]], -1)


class _Enough(Exception):
    """The kernel's arguments are known; nothing behind them is computed."""


def peeked(decoder: Decoder, block: int, hidden: torch.Tensor, kwargs: Mapping[str, Any]) -> Attention:
    """What the kernel of ``block`` (from 0) would be given for ``hidden`` [b, n', D]; no cache is touched.

    The block's own forward runs until its kernel is asked: input norm, projections and rotary angles are the model's.
    """
    found: list[Attention] = []

    def stop(seen: Attention) -> Any:
        found.append(seen)
        raise _Enough

    with torch.no_grad(), decoder.attending([block], stop):
        try:
            decoder.blocks[block].forward(hidden, **decoder.uncached(kwargs))
        except _Enough:
            return found[0]
    raise decoder.unseen(block)


def one_prompt(
    evidence: Evidence,
    needs: Set[str],
    row: int,
    where: Mapping[str, torch.Tensor],
    pictures: Sequence[Picture],
    layer: int,
    seed: int,
) -> Seen:
    """What the rule sees of prompt number ``row``.

    ``where``: long tensors of places, "visual" and "text" among the held tokens; "visual_full", "text_full" and
    "entered" (all visual tokens, dropped ones too) among all positions of the prompt, of which "first" is the first.
    """
    visual = where["visual"]
    given: dict[str, Any] = {}
    for name in needs & TAKEN.keys():
        source, dim, places = TAKEN[name]
        tensor = getattr(evidence, source)  # there, because whoever gathered was told the same needs
        given[name] = tensor[row].detach().index_select(dim, where[places].to(tensor.device))
    if "text_attention" in needs:
        assert evidence.text_attention is not None
        rows = evidence.text_attention[row][:, : len(where["text"])]
        given["text_attention"] = rows.index_select(2, visual.to(rows.device))
    for name, full in (("places", "visual_full"), ("text_places", "text_full")):
        if name in needs:
            given[name] = where[full] - where["first"]
    if "tower" in needs:
        whole = evidence.towers[row]
        assert whole is not None  # a prompt with a choice to make has visual tokens
        given["tower"] = whole.at(torch.searchsorted(where["entered"], where["visual_full"]))
    if "smaller" in needs:
        given["smaller"] = evidence.smaller[row]
    if "question" in needs:
        given["question"] = evidence.questions[row]
    if "clip" in needs:
        given["clip"] = clip.given()
    if "generator" in needs:
        given["generator"] = torch.Generator().manual_seed(seed)
    return Seen(len(visual), layer, pictures, **given)


def sample_seed(token_ids: Sequence[int], draw: int = 0) -> int:
    """A seed from a prompt's token ids (padding left out) and the name's ``_seed<n>``."""
    return zlib.crc32((",".join(map(str, token_ids)) + f";{draw}" * bool(draw)).encode())


def pictures_of(image: torch.Tensor, per_picture: int | None) -> list[Picture]:
    """Which visual tokens of a prompt (``image``: bool [s]) belong together: runs of them, cut into equal pictures.

    ``per_picture``: tokens of every picture where all have equally many; pictures may then touch one another, and are
    square. Of others no grid is told: 36 tokens may be 4 x 9, or tiles with newlines between them.
    """
    numbers = image.long().cumsum(0) - 1
    starts = image & ~torch.nn.functional.pad(image[:-1], (1, 0), value=False)
    firsts = numbers[starts].tolist()
    found = []
    for first, end in zip(firsts, [*firsts[1:], int(image.sum())], strict=True):
        size = per_picture if per_picture and (end - first) % per_picture == 0 else end - first
        side = math.isqrt(size)
        grid = (side, side) if size == per_picture == side * side else None
        found += [Picture(begin, size, grid) for begin in range(first, end, size)]
    return found


def remaining(pictures: Sequence[Picture], kept: torch.Tensor) -> list[Picture]:
    """The same pictures after an earlier stage kept the visual tokens ``kept`` (long, ascending) of them."""
    found, first = [], 0
    for picture in pictures:
        inside = int(((kept >= picture.first) & (kept < picture.first + picture.size)).sum())
        if inside == picture.size:
            found.append(Picture(first, inside, picture.grid))
        elif inside:
            found.append(Picture(first, inside, None))
        first += inside
    return found
