"""The arithmetic of maps, on tensors: what is differentiated; activation and gradient in, one number per cell out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import GROUPS

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


def pooled(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (eq. 2-3): A, G [..., n, c] -> [..., n]."""
    return torch.relu((gradient.mean(-2, keepdim=True) * activation).sum(-1))


def elementwise(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient times activation, summed over channels, positive part: A, G [..., n, c] -> [..., n].

    HiResCAM, in the words of pytorch-grad-cam.
    """
    return torch.relu((gradient * activation).sum(-1))


def official(activation: torch.Tensor, gradient: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """The published code's: relu on G, then pooling, then cells under ``threshold`` of the highest set to 0."""
    cam = pooled(activation, torch.relu(gradient))
    return cam * (cam >= threshold * cam.amax(-1, keepdim=True))


FORMULAS = {"elementwise": elementwise, "gradcam": pooled, "gradcam_official": official}


def attention_gradient(output_gradient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """dz/da of attention weights, without the weights: ``dz/da_hrj = (dz/do_rh) . v_jh``.

    Args:
        output_gradient: dz/do at the answer rows, o the attention's output before its projection: [b, r, h * d].
        value: [b, h_kv, s, d]; with grouped queries every value head serves ``h / h_kv`` heads.

    Returns:
        [b, h, r, s].
    """
    batch, rows, _ = output_gradient.shape
    kv_heads, width = value.shape[1], value.shape[3]
    by_head = output_gradient.view(batch, rows, kv_heads, -1, width).permute(0, 2, 3, 1, 4)
    product = by_head.flatten(2, 3) @ value.transpose(2, 3).to(by_head)
    return product.view(batch, kv_heads, -1, rows, value.shape[2]).flatten(1, 2)


def by_group(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Sums over the positions of each group: [..., s] and long [s] -> [..., g]."""
    sums = torch.zeros(*values.shape[:-1], len(GROUPS), dtype=values.dtype, device=values.device)
    return sums.index_add_(-1, group.to(values.device), values)


def noisy(noise: float, seed: int, copies: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Adds noise of ``noise`` times the pixels' range to a batch of copies, each drawn by seed and its own number.

    Drawn on the CPU, so that a seed means the same on any device and however the copies are dealt to batches.
    """

    def edit(pixels: torch.Tensor) -> torch.Tensor:
        scale = noise * float(pixels.max() - pixels.min())
        shape = (len(pixels) // len(copies), *pixels.shape[1:])
        drawn = [np.random.default_rng([seed, copy]).standard_normal(shape, np.float32) for copy in copies]
        return pixels + (scale * torch.from_numpy(np.concatenate(drawn))).to(pixels)

    return edit
