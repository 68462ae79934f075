"""Attention of chosen query rows, without any other row of the matrix. Pure functions; b = prompts, h = heads."""

from __future__ import annotations

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
        mask: of the block: None (causal), additive float or bool [b or 1, 1, q, k], which says all, or padding [b, k]
            (flash kernels; causal).
        softcap: ``softcap * tanh(x / softcap)`` before masking, for models that have it.
        causal: without such a mask a query sees no key behind it; False for a vision tower.

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
    if causal and (mask is None or mask.ndim == 2):
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


def row_mean(attention: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Attention [b, r, k] of ``rows`` (long [b, r]) -> its mean over them, [b, k]; a repeated row counts once."""
    fresh = rows.diff(dim=1, prepend=rows[:, :1] - 1) > 0  # shorter prompts repeat their last row
    return (attention * fresh[..., None]).sum(1) / fresh.sum(1, keepdim=True)
