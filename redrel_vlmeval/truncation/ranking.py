"""From one attention row to the image tokens that stay. Pure tensor functions; b = prompts, n = tokens, h = heads."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch


def attention_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    rows: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of chosen query rows, averaged over heads (eq. 7): float32 [b, r, k]; see :func:`head_rows`."""
    return head_rows(query, key, rows, scaling, mask, softcap).mean(1)


def head_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    rows: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    softcap: float | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """Attention of chosen query rows for each head, without any other row of the matrix.

    Args:
        query: [b, h, q, d], rotated.
        key: [b, h_kv, k, d], rotated; with grouped queries every key head serves ``h / h_kv`` query heads.
        rows: long [b, r], positions among the q queries. The last query stands at the last key.
        scaling: factor on the dot products.
        mask: of the block: None (causal), additive float or bool [b or 1, 1, q, k], or padding [b, k] (flash kernels).
        softcap: ``softcap * tanh(x / softcap)`` before masking, for models that have it.
        causal: a query sees no key behind it; False for a vision tower.

    Returns:
        float32 [b, h, r, k]; every row sums to 1.
    """
    batch, heads, queries, width = query.shape
    groups, keys = heads // key.shape[1], key.shape[2]
    chosen = query.gather(2, rows[:, None, :, None].expand(batch, heads, rows.shape[1], width)).float()
    chosen = chosen.view(batch, key.shape[1], groups * rows.shape[1], width)
    scores = (chosen @ key.float().transpose(2, 3)).view(batch, heads, rows.shape[1], keys) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        ahead = torch.arange(keys, device=key.device) > (rows + keys - queries)[..., None]
        scores = scores.masked_fill(ahead[:, None], -torch.inf)
    if mask is not None and mask.ndim == 2:
        scores = scores.masked_fill(mask[:, None, None, -keys:] == 0, -torch.inf)
    elif mask is not None:
        per_row = mask.expand(batch, -1, -1, -1).take_along_dim(rows[:, None, :, None], 2)[..., :keys]
        if per_row.dtype == torch.bool:
            scores = scores.masked_fill(~per_row, -torch.inf)
        else:
            scores = scores + per_row.float()
    return scores.softmax(-1)


def best(scores: torch.Tensor, candidates: torch.Tensor, counts: torch.Tensor, lowest: bool = False) -> torch.Tensor:
    """The ``counts[i]`` candidates of each row that score highest (eq. 10), or lowest; ties go to the lower index.

    Args:
        scores: float [b, n]; candidates: bool [b, n]; counts: long [b].

    Returns:
        bool [b, n].
    """
    signed = -scores if lowest else scores
    order = signed.masked_fill(~candidates, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return candidates & (place < counts[:, None])


def uniform(candidates: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """``counts[i]`` evenly spaced candidates a row, bool [b, n]: number j of m is kept where floor(j k / m) steps."""
    number = candidates.long().cumsum(1)
    total = candidates.sum(1, keepdim=True).clamp(min=1)
    counts = counts[:, None]
    steps = torch.div((2 * number - 1) * counts + total, 2 * total, rounding_mode="floor")
    before = torch.div((2 * number - 3) * counts + total, 2 * total, rounding_mode="floor")
    return candidates & (steps > before)


def random(candidates: torch.Tensor, counts: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """A random choice of ``counts[i]`` candidates of each row, bool [b, n]; the same for the same seed anywhere.

    Scores are drawn per candidate, on the CPU, so neither padding, batch nor device changes the choice.
    """
    scores = torch.zeros(candidates.shape)
    mask = candidates.cpu()
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        scores[row, mask[row]] = torch.rand(int(mask[row].sum()), generator=generator)
    return best(scores.to(candidates.device), candidates, counts)


def sample_seed(token_ids: Sequence[int]) -> int:
    """A seed from a prompt's token ids (padding left out)."""
    return zlib.crc32(",".join(map(str, token_ids)).encode())
