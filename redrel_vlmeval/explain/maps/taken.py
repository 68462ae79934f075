"""What a pass is asked to keep, and what it kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from redrel_vlmeval.errors import ExplainError

Node = tuple[str, int]  # kind (input_norm, middle_norm, attention_output, vision, projector) and block, from 0
Edit = Callable[[torch.Tensor], torch.Tensor]


HALF = (torch.float16, torch.bfloat16)
SCALES = (4096.0, 256.0, 16.0, 1.0)  # of z in float16, the first at which no gradient overflows


@dataclass
class Wanted:
    """What a pass is to keep.

    Attributes:
        nodes: whose activation, and gradient, to keep.
        rows: blocks (from 0) whose attention at the answer rows to keep, for each head.
        groups: long [s]; keep sums by group and the mean over heads in their place, which is far less.
        values: keep those blocks' values, too, which ``dz/dA`` is made of.
        emit: rows of the answer's own tokens instead of those that predict them.
        positions: rows of the prompt instead of the answer's.
        tower: keep the attention of the vision tower's blocks up to the last one that anything is read from.
    """

    nodes: Sequence[Node] = ()
    rows: Sequence[int] = ()
    groups: torch.Tensor | None = None
    values: bool = False
    emit: bool = False
    positions: Sequence[int] = ()
    tower: bool = False


@dataclass
class Taken:
    """What a pass kept; b copies of the sequence, t answer tokens, s' positions that a block still held.

    Attributes:
        nodes: activation of a node, [b, s', c] in the decoder.
        rows: block -> float32 [b, h, t, s'], attention of the answer rows, h = 1 with ``groups``.
        shares: block -> float32 [h, t, g], with ``groups``. values: block -> [b, h_kv, s', d].
        held: for each copy and block the positions held, long [s'] ; None for all of them.
        resampled: Qwen-VL's resampler, [b * pictures, queries, patches]. tower: block -> [b * pictures, s, s].
        kept: stage layer -> image tokens kept, of the first copy.
        logits: [b, t, vocabulary], of the rows that predict the answer.
        image, predict: long [n], [t], positions of the image tokens and of the rows that predict the answer.
        length: positions of the sequence.
    """

    held: list[list[torch.Tensor | None]]
    logits: torch.Tensor
    image: torch.Tensor
    predict: torch.Tensor
    length: int
    nodes: dict[Node, torch.Tensor] = field(default_factory=dict)
    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    shares: dict[int, torch.Tensor] = field(default_factory=dict)
    resampled: torch.Tensor | None = None
    tower: dict[int, torch.Tensor] = field(default_factory=dict)
    kept: dict[int, list[int]] = field(default_factory=dict)

    def forget(self) -> None:
        """Let go of every tensor."""
        self.nodes.clear()
        self.rows.clear()
        self.values.clear()
        self.shares.clear()
        self.tower.clear()
        self.resampled = None
        self.logits = self.logits.detach()

    def gradients(self, z: torch.Tensor, again: bool = False) -> dict[Node, torch.Tensor | None]:
        """``dz/d(node)`` of every node from one backward; None where z does not depend on it. ``again``: keep graph.

        In float32 or wider. In float16 z is scaled up on the way, as in training: unscaled, most gradients of a large
        model's late blocks are smaller than float16's normal numbers.

        Raises:
            ExplainError: no gradient reaches the answer at all.
        """
        if not z.requires_grad:
            raise ExplainError(
                "no gradient reaches the answer: this model's layers cannot be differentiated (quantised weights?); "
                "load it in float16, bfloat16 or float32, or take method 'attn', which needs none"
            )
        nodes = [node for node, tensor in self.nodes.items() if tensor.requires_grad]
        tensors = [self.nodes[n] for n in nodes]
        half = any(tensor.dtype == torch.float16 for tensor in tensors)
        for scale in SCALES if half else SCALES[-1:]:
            found = torch.autograd.grad(z * scale, tensors, retain_graph=again or scale > 1, allow_unused=True)
            if scale == 1 or all(one is None or bool(one.isfinite().all()) for one in found):
                break
        wide = [one if one is None or one.dtype not in HALF else one.float() / scale for one in found]
        return dict.fromkeys(self.nodes) | dict(zip(nodes, wide, strict=True))


def image_places(image: torch.Tensor, held: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the image tokens that a block holds stand among its positions, and their numbers among all image tokens."""
    if held is None:
        return image, torch.arange(len(image))
    here = torch.isin(image, held)
    return torch.searchsorted(held, image[here]), here.nonzero()[:, 0]
