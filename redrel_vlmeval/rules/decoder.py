"""Rules that read the decoder: whom a query row of block L attends to (the paper, FastV) and its kin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redrel_vlmeval.rules.geometry import unit
from redrel_vlmeval.rules.ordering import highest
from redrel_vlmeval.rules.registry import rule
from redrel_vlmeval.rules.text import asked

if TYPE_CHECKING:
    from torch import Tensor

    from redrel_vlmeval.rules.seen import Seen


@rule("attention", needs={"attention"}, says="that {row} most")
def attention(seen: Seen, budget: int) -> Tensor:
    """The paper's rule, and FastV's: the row of the last prompt token in block L, eq. 7-10."""
    return highest(seen.attention, budget)


@rule("next", needs={"next_attention"}, says="that {row} most in the block after L")
def next_block(seen: Seen, budget: int) -> Tensor:
    """PyramidDrop's (CVPR 2025): the same row of block L+1, on the states that leave block L."""
    return highest(seen.next_attention, budget)


# -- SparseVLM+ -------------------------------------------------------------------------------------------------------


def raters(embeddings: Tensor, text: Tensor) -> Tensor:
    """SparseVLM's raters, bool [m]: text tokens that the picture is more like than it is on average.

    ``embeddings`` [N, D] and ``text`` [m, D] are block 1's input, alike by their plain products.
    """
    weight = (embeddings.float() @ text.float().T).softmax(-1).mean(0)
    above = weight > weight.mean()
    return above | ~above.any()  # all alike: everybody rates


def rated(rows: Tensor, by: Tensor, bias: Tensor | None = None, heads: int = 14) -> Tensor:
    """SparseVLM+'s scores, float [n].

    Args:
        rows: attention of the text after the pictures, [h, m, n]. by: its raters, bool [m].
        bias: float [m, n], what distance alone does to that attention, see :func:`distance_bias`; it is divided by it.
        heads: so many are asked, those whose raters attend to the picture most.
    """
    rows = rows.float() if bias is None else rows.float() / bias
    rows = rows[:, by]
    asked = highest(rows.sum((1, 2)), min(heads, len(rows)))
    return rows[asked].mean((0, 1))


def distance_bias(text_ones: Tensor, ones: Tensor) -> Tensor:
    """Products of rotated vectors of ones, [m, d] with [n, d], over ``sqrt(d)``: float [m, n]."""
    return text_ones.float() @ ones.float().T / ones.shape[-1] ** 0.5


@rule(
    "raters",
    needs={"text_attention", "entered", "text", "ones", "text_ones"},
    cost=lambda tokens, images, shape: (
        (tokens - images) * (tokens * shape.heads * shape.head_dim + images * shape.width)
    ),
    says="that the question's words nearest to the picture attend to most",
)
def by_raters(seen: Seen, budget: int) -> Tensor:
    """SparseVLM+'s (ICML 2025); its raters are those of the whole picture, whatever an earlier stage dropped."""
    by = raters(seen.entered, asked(seen.text))
    return highest(rated(seen.text_attention, by, distance_bias(seen.text_ones, seen.ones)), budget)


# -- DART -------------------------------------------------------------------------------------------------------------


def key_norms(keys: Tensor) -> Tensor:
    """L1 norms of keys [g, n, d], heads side by side: float [n]."""
    return keys.float().abs().sum((0, 2))


def unlike_pivots(
    norms: tuple[Tensor, Tensor],
    normed: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor],
    count: int,
    pivots: tuple[int, int] = (4, 4),
) -> list[int]:
    """DART's choice of ``count`` visual tokens: pivots, and for each the tokens least like it.

    Pivots are the visual tokens and the text tokens with the largest norm. Each adds the same number of visual tokens
    that are neither pivots nor taken; what cannot be dealt out evenly goes one each to the first.

    Args:
        norms: L1 norms of the keys of the n visual and the m text tokens.
        normed: states under the model's last norm, [n, D] and [m, D].
        places: in the prompt, long [n] and [m]. pivots: how many of either.
    """
    own = highest(norms[0], min(pivots[0], count)).tolist()
    other = highest(norms[1], pivots[1]).tolist()
    rows = {int(places[0][j]): normed[0][j] for j in own} | {int(places[1][j]): normed[1][j] for j in other}
    chosen, each = list(own), (count - len(own)) // len(rows)
    more = (count - len(own)) % len(rows)
    directions = unit(normed[0])
    free = [j for j in range(len(directions)) if j not in set(own)]
    # The authors' code goes in the order of a Python set of places, made of a list: that of a dict has another order.
    for number, place in enumerate(set(list(rows))):  # noqa: C414
        wanted = each + (number < more)
        likeness = directions[free] @ unit(rows[place][None])[0]
        taken = {free[j] for j in highest(-likeness, wanted).tolist()}
        chosen += sorted(taken)
        free = [j for j in free if j not in taken]
    return chosen


@rule(
    "dart",
    needs={"keys", "text_keys", "normed", "text_normed", "places", "text_places"},
    cost=lambda tokens, images, shape: 8 * images * shape.width,
    says="that are least like a few pivots with large keys, and those pivots",
)
def dart(seen: Seen, budget: int) -> list[int]:
    """DART's (EMNLP 2025). Of a budget K, 4 are pivots and the rest is dealt out to 8; its "128" is 132."""
    norms = (key_norms(seen.keys), key_norms(seen.text_keys))
    return unlike_pivots(norms, (seen.normed, seen.text_normed), (seen.places, seen.text_places), budget)


# -- FlowCut ----------------------------------------------------------------------------------------------------------


def flow_scores(rel: Tensor, sem: Tensor, v: Tensor) -> Tensor:
    """FlowCut's scores of one block, float [n]: ``(rel / sum rel + sem / sum sem) |v|_1``; v is [n, d]."""
    return (rel / rel.sum() + sem / sem.sum()) * v.float().abs().sum(-1)


def flowing(last: Tensor, tokens: Tensor) -> Tensor:
    """Softmax over the visual tokens of ``last`` [h, d] with ``tokens`` [g, n, d] over sqrt(d), mean over heads: [n].

    Where there are fewer key heads than query heads, neighbouring query heads share one.
    """
    tokens = tokens.float().repeat_interleave(len(last) // len(tokens), 0)
    return ((tokens @ last.float()[:, :, None])[:, :, 0] / last.shape[-1] ** 0.5).softmax(-1).mean(0)


@rule(
    "flow",
    needs={"keys", "values", "text_queries", "text_values"},
    cost=lambda tokens, images, shape: images * (shape.heads + shape.kv_heads) * shape.head_dim,
    says="that the last token queries and resembles, and whose values are large",
)
def flow(seen: Seen, budget: int) -> Tensor:
    """FlowCut's second stage (NeurIPS 2025), of one block."""
    last = asked(seen.text_queries.transpose(0, 1))[-1]
    rel, sem = flowing(last, seen.keys), flowing(seen.text_values[:, -1], seen.values)
    return highest(flow_scores(rel, sem, seen.values.float().mean(0)), budget)
