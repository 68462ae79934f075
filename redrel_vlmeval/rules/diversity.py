"""Rules that spread the budget over what the tokens say: they need block 1's input alone, so they work at ``l0``.

In all of them X is float [n, D], the projected features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redrel_vlmeval.rules.geometry import greedy, unit
from redrel_vlmeval.rules.ordering import highest
from redrel_vlmeval.rules.registry import rule

if TYPE_CHECKING:
    from torch import Tensor

    from redrel_vlmeval.rules.seen import Seen


def max_min(distances: Callable[[Tensor], Tensor], first: Tensor, count: int) -> Tensor:
    """From ``first`` (long [1]) on, always the token that is farthest from the nearest one chosen: long [count].

    ``distances``: a token, long [1] -> its distances from all, float [n].
    """
    nearest = distances(first)

    def take(token: Tensor) -> None:
        nonlocal nearest
        nearest = nearest.minimum(distances(token))

    return greedy(count, lambda: nearest, take, [first])


def divprune_order(x: Tensor, count: int) -> Tensor:
    """DivPrune: max-min of cosine distances, from the token whose nearest other token is farthest."""
    x = unit(x)
    distances = 1 - x @ x.T
    second = distances.kthvalue(min(2, len(x)), dim=0).values  # the smallest is a token's distance from itself
    return max_min(lambda token: distances.index_select(0, token)[0], second.argmax()[None], count)


def farthest_points(x: Tensor, count: int) -> Tensor:
    """Farthest-point sampling: max-min of Euclidean distances, from the token farthest from the mean."""
    import torch

    x = x.float()

    def distances(token: Tensor) -> Tensor:  # of the chosen alone; exact, so that equal tokens tie
        return torch.cdist(x.index_select(0, token), x, compute_mode="donot_use_mm_for_euclid_dist")[0]

    return max_min(distances, (x - x.mean(0)).norm(dim=-1).argmax()[None], count)


def graph_flow(x: Tensor, threshold: float = 0.7, temperature: float = 0.03, steps: int = 5) -> Tensor:
    """G-Prune's scores [n]: lengths of X, sent ``steps`` times along a graph, over each token's number of links.

    Tokens are linked where their cosine exceeds ``threshold``, each with itself; of what a token has, link ij carries
    the share softmax_j(cos_ij / temperature).
    """
    directions = unit(x)
    cosines = directions @ directions.T
    linked = cosines > threshold
    linked.fill_diagonal_(True)
    flow = (cosines / temperature).masked_fill(~linked, float("-inf")).softmax(-1)
    scores = x.float().norm(dim=-1)
    for _ in range(steps):
        scores = scores @ flow
    return scores / linked.sum(-1)


def _pairs(tokens: int, images: int, shape: Any) -> int:
    """Multiply-adds of every pair's distance."""
    return images * images * int(shape.width)


@rule(
    "divprune",
    needs={"embeddings"},
    cost=_pairs,
    says="that are most unlike each other (largest least cosine distance)",
)
def divprune(seen: Seen, budget: int) -> Tensor:
    """DivPrune (CVPR 2025)."""
    return divprune_order(seen.embeddings, budget)


@rule("fps", needs={"embeddings"}, cost=_pairs, says="that lie farthest apart, chosen one after the other")
def fps(seen: Seen, budget: int) -> Tensor:
    """Farthest-point sampling, the plain form of the same idea."""
    return farthest_points(seen.embeddings, budget)


@rule(
    "gprune",
    needs={"embeddings"},
    cost=_pairs,
    says="that most reaches along a graph of like tokens, over their number of links",
)
def gprune(seen: Seen, budget: int) -> Tensor:
    """G-Prune (AAAI 2025)."""
    return highest(graph_flow(seen.embeddings), budget)
