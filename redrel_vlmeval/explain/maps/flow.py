"""Information flow to the answer, layer by layer: attention shares, gradient shares, and what a cut really changes.

Attention is not flow: a row can give the picture most of its attention in layers where the picture could be cut
without any effect. So three curves belong side by side: the share of attention (eqs. 4-6), the share of gradient, and
the *causal* curve, the answer's margin when blocks after L see no image token (``l<L>_k0``).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import GROUPS, Asked
from redrel_vlmeval.explain.maps.bands import Band, band, flat_from, flat_interval
from redrel_vlmeval.explain.maps.formulas import by_group, objective
from redrel_vlmeval.explain.maps.gradcam import row_gradient
from redrel_vlmeval.explain.maps.passes import run
from redrel_vlmeval.explain.maps.taken import Taken, Wanted
from redrel_vlmeval.names import Stage, VariantSpec


@dataclass(frozen=True)
class Flow:
    """The flow of one answer; l layers, h heads, t answer tokens, g groups (:data:`spans.GROUPS`), s positions.

    Attributes:
        attention: float32 [l, h, t, g], sums to 1 over g (eqs. 4-6, with ``out``).
        rows: float32 [l, t, s], attention of the answer rows, mean over heads (eq. 7); 0 where a token was dropped.
        gradient: float32 [l, g], share of ``|G . A|`` summed over a group's positions at the blocks' input norms; sums
            to 1; NaN where no gradient is. None without a backward.
        saliency: float32 [l, t, g], ``|sum_h a dz/da|`` summed over a group's columns (label words). None likewise.
        causal: float32 [l + 1], margin (``contrast``, mean over answer tokens) with the picture cut after block 0, 1,
            ..., and, last, not at all. None if not asked for.
        sizes: positions in each group.
    """

    attention: np.ndarray
    rows: np.ndarray
    gradient: np.ndarray | None
    saliency: np.ndarray | None
    causal: np.ndarray | None
    sizes: dict[str, int]

    @property
    def flat_from(self) -> int | None:
        """The layer after which a cut changes the margin no more; see :func:`bands.flat_from`."""
        return None if self.causal is None else flat_from(self.causal)


def flow(
    asked: Asked, *, gradients: bool = True, cuts: bool = True, rows: str = "predict", kind: str = "logit",
    others: Sequence[int] | None = None, checkpointing: bool = False,
) -> Flow:  # fmt: skip
    """An answer's flow: attention without ``output_attentions``, gradients from one backward, cuts by the engine.

    Args:
        rows: ``predict`` or ``emit``, for the attention; gradients are always those of the predicting rows.
        kind, others: objective of the gradients and options for the margin; see :func:`passes.objective`.

    Raises:
        ExplainError, TruncationError: see :func:`passes.run`.
    """
    attention, mean = attention_flow(asked, rows)
    gradient, saliency = gradient_flow(asked, kind, others, checkpointing) if gradients else (None, None)
    causal = causal_curve(asked, others) if cuts else None
    return Flow(attention, mean, gradient, saliency, causal, asked.spans().sizes())


def attention_flow(asked: Asked, rows: str = "predict") -> tuple[np.ndarray, np.ndarray]:
    """(shares [l, h, t, g], mean over heads [l, t, s]), float32, from one forward call; no attention matrix is made."""
    if rows not in ("predict", "emit"):
        raise ExplainError(f"rows {rows!r}: choose one of predict, emit")
    blocks = range(len(asked.decoder.blocks))
    group = _groups(asked)
    with run(asked, Wanted(rows=blocks, groups=group, emit=rows == "emit"), grad=False) as taken:
        means = []
        for block in blocks:
            held, weights = taken.held[0][block], taken.rows[block][0, 0].cpu()
            mean = torch.zeros(len(weights), taken.length)
            mean[:, slice(None) if held is None else held] = weights
            means.append(mean)
        shares = [taken.shares[block].cpu() for block in blocks]
        return torch.stack(shares).numpy(), torch.stack(means).numpy()


def gradient_flow(
    asked: Asked, kind: str = "logit", others: Sequence[int] | None = None, checkpointing: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(share of gradient [l, g], saliency [l, t, g]), float32, from one forward call and one backward."""
    blocks = range(len(asked.decoder.blocks))
    group = _groups(asked)
    nodes = [(node, block) for node in ("input_norm", "attention_output") for block in blocks]
    with run(asked, Wanted(nodes, blocks, values=True), checkpointing=checkpointing) as taken:
        gradients = taken.gradients(objective(taken.logits, asked.answer, kind, others).sum())
        shares, saliency = [], []
        for block in blocks:
            held = taken.held[0][block]
            here = group if held is None else group[held]
            shares.append(_share(taken, gradients[("input_norm", block)], block, here))
            slope = gradients[("attention_output", block)]
            if slope is None:
                saliency.append(torch.zeros(len(taken.predict), len(GROUPS)))
                continue
            change = taken.rows[block] * row_gradient(taken, slope, block).to(taken.rows[block])
            saliency.append(by_group(change.sum(1).abs()[0], here).cpu())
        return torch.stack(shares).numpy(), torch.stack(saliency).float().numpy()


def _share(taken: Taken, gradient: torch.Tensor | None, block: int, group: torch.Tensor) -> torch.Tensor:
    if gradient is None:
        return torch.full((len(GROUPS),), torch.nan)
    change = (gradient * taken.nodes[("input_norm", block)].detach())[0].float().sum(-1).abs()
    sums = by_group(change, group).cpu()
    return sums / sums.sum() if bool(sums.sum() > 0) else torch.full_like(sums, torch.nan)


def _groups(asked: Asked) -> torch.Tensor:
    return torch.from_numpy(asked.spans().group).long()


def causal_curve(asked: Asked, others: Sequence[int] | None = None) -> np.ndarray:
    """Margin of the answer with the picture cut after block 0, 1, ..., N - 1, and not at all: float32 [N + 1].

    The margin is the ``contrast`` objective, mean over the answer's tokens. Under a variant a cut comes on top of
    the stages before it.
    """
    margins = []
    for layer in range(len(asked.decoder.blocks) + 1):
        with run(replace(asked, spec=cut(asked, layer), own=False), Wanted(), grad=False) as taken:
            margins.append(float(objective(taken.logits, asked.answer, "contrast", others).mean()))
    return np.array(margins, np.float32)


def cut(asked: Asked, layer: int) -> VariantSpec | None:
    """The asked model's setting with no image token after block ``layer``; as it is at the number of blocks."""
    spec = asked.spec or VariantSpec()
    if layer >= len(asked.decoder.blocks):
        return asked.spec
    return replace(spec, stages=(*(stage for stage in spec.stages if stage.layer < layer), Stage(layer, keep=0)))


@dataclass(frozen=True)
class Curves:
    """A benchmark's curves: :class:`Band` of [l, g] attention and gradient shares and of the [l + 1] causal curve, and
    the layer from which on the mean causal curve is flat, with its bootstrap interval; no ends of few pictures."""

    attention: Band
    gradient: Band | None
    causal: Band | None
    flat_from: tuple[int, ...] | None


def curves(flows: Sequence[Flow], pictures: Sequence[Hashable] | None = None, seed: int = 0) -> Curves:
    """Means over a benchmark's questions; heads and answer tokens of a question are averaged first.

    Args:
        pictures: the picture of each question, which is what intervals resample; each has its own if none are given.
    """
    shown = list(range(len(flows))) if pictures is None else list(pictures)
    attention = band([flow.attention.mean((1, 2)) for flow in flows], shown, seed)
    gradients = [(flow.gradient, name) for flow, name in zip(flows, shown, strict=True) if flow.gradient is not None]
    causal = [(flow.causal, name) for flow, name in zip(flows, shown, strict=True) if flow.causal is not None]

    def banded(found: list[tuple[np.ndarray, Hashable]]) -> Band | None:
        return band([values for values, _ in found], [name for _, name in found], seed) if found else None

    margins, names = np.array([margin for margin, _ in causal]), [name for _, name in causal]
    flat = flat_interval(margins, names, seed) if causal else None
    return Curves(attention, banded(gradients), banded(causal), flat)


def records(flow: Flow, index: str) -> list[dict[str, object]]:
    """One row per layer and group for a benchmark's table; ``margin`` is that with the picture cut after the layer."""
    found: list[dict[str, object]] = []
    attention = flow.attention.mean((1, 2))
    for layer, shares in enumerate(attention, start=1):
        for number, group in enumerate(GROUPS):
            gradient = None if flow.gradient is None else float(flow.gradient[layer - 1, number])
            saliency = None if flow.saliency is None else float(flow.saliency[layer - 1, :, number].mean())
            margin = None if flow.causal is None else float(flow.causal[layer])
            found.append(
                {"index": index, "layer": layer, "group": group, "tokens": flow.sizes[group]}
                | {"attention": float(shares[number]), "gradient": gradient, "saliency": saliency, "margin": margin}
            )
    return found
