"""z, the one number per answer token whose gradients a map is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from redrel_vlmeval.errors import ExplainError

OBJECTIVES = ("logit", "logprob", "contrast")


def objective(
    logits: torch.Tensor, answer: Sequence[int], kind: str, others: Sequence[int] | None = None
) -> torch.Tensor:
    """z of every answer token (eq. 1 sums them): [b, t, vocabulary] -> [b, t], in float32 or wider.

    ``logit``; ``logprob``; ``contrast``: the answer's logit minus that of the best other token, among ``others`` (first
    tokens of the other options) where given, else of the whole vocabulary.

    Raises:
        ExplainError: unknown objective.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    tokens = torch.tensor(list(answer), device=logits.device).expand(len(logits), -1)[..., None]
    chosen = wide.gather(-1, tokens)[..., 0]
    if kind == "logit":
        return chosen
    if kind == "logprob":
        return chosen - wide.logsumexp(-1)
    if kind != "contrast":
        raise ExplainError(f"objective {kind!r}: choose one of {', '.join(OBJECTIVES)}")
    hidden = torch.zeros_like(wide, dtype=torch.bool)
    if others:
        hidden[..., :] = True
        hidden[..., list(others)] = False
    hidden = hidden.scatter(-1, tokens, True)
    return chosen - wide.masked_fill(hidden, -torch.inf).amax(-1)
