"""Maps outside of the decoder: vision blocks and projector, and which patches the image tokens are made of.

What a tower's node looks like, for c copies of a question with p pictures of q patches, d channels each::

    LLaVA, InternVL    [c * p, 1 + q, d]     a class token in front, which is no place on the picture
    Qwen2-VL           [c * p * q, d]        all patches of a copy in one row
    Qwen-VL            [q, c * p, d]         patches first
                    -> [c * p, q, d]         what every formula is given (_patches)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked
from redrel_vlmeval.explain.maps.formulas import FORMULAS
from redrel_vlmeval.explain.maps.pixels import rollout
from redrel_vlmeval.explain.maps.taken import Node, Taken


def made_of(asked: Asked, taken: Taken, tower: bool) -> np.ndarray | None:
    """Attention from image tokens to patches, mean over noisy copies; see :class:`gradcam.Explained`."""
    found = taken.resampled
    if found is None and tower:
        if not taken.tower:
            raise ExplainError(
                "tower: this release of transformers does not show what the vision tower attends to; take a newer one "
                "(4.57 does), or leave it out"
            )
        last = tower_depth(asked, len(taken.tower))
        found = rollout([taken.tower[block] for block in range(last)])
        if found.shape[0] * found.shape[1] != len(taken.held) * len(taken.image):
            raise ExplainError(
                f"tower: {type(asked.model).__name__} has {len(taken.image)} image tokens a question, its tower "
                f"{found.shape[0] * found.shape[1] // len(taken.held)} patches: no one path leads back from token to "
                "patch; leave it out"
            )
    if found is None:
        return None
    return np.asarray(found.unflatten(0, (len(taken.held), -1)).mean(0).cpu().numpy(), np.float32)


def tower_depth(asked: Asked, blocks: int) -> int:
    """How many blocks of the vision tower stand before the one whose output is read (LLaVA: all but the last)."""
    layer = getattr(getattr(asked.model, "config", None), "vision_feature_layer", -1)
    if not isinstance(layer, int):
        raise ExplainError(f"vision_feature_layer {layer!r}: several blocks are read, no one path leads back")
    return layer if layer >= 0 else blocks + 1 + layer


Drawn = tuple[list[torch.Tensor], str]  # a map at one layer for each copy of a pass, [n] each, and its status


def average(passes: Sequence[Drawn]) -> tuple[torch.Tensor, str]:
    """Mean over all noisy copies, each cell over those that hold it; ``blank`` where nothing is positive."""
    copies = [copy for drawn, _ in passes for copy in drawn]
    states = [state for _, state in passes]
    state = "ok" if "ok" in states else states[0]
    mean = copies[0] if len(copies) == 1 else torch.stack(copies).nanmean(0)
    if state == "ok" and not bool((mean.nan_to_num() > 0).any()):
        state = "blank"
    return mean, state


def outside(taken: Taken, gradients: dict[Node, torch.Tensor | None], where: str, method: str, block: int) -> Drawn:
    """A formula at a vision block or the projector, over all patches of all pictures."""
    node = (where, block)
    activation, gradient = taken.nodes.get(node), gradients.get(node)
    if activation is None:
        return [torch.full((1,), torch.nan)], "no_gradient"
    activation = _patches(activation.detach(), taken)
    if gradient is None or not bool(gradient.any()):
        return [torch.full((activation.shape[0] * activation.shape[1] // len(taken.held),), torch.nan)], "no_gradient"
    cam = FORMULAS[method](activation, _patches(gradient, taken))
    return list(cam.reshape(len(taken.held), -1).cpu()), "ok"


def _patches(tensor: torch.Tensor, taken: Taken) -> torch.Tensor:
    """A vision node as [copies * pictures, patches, c], a class token in front left out.

    Some towers give all patches of a copy in one row, [copies * patches, c]; Qwen-VL's own code has them first,
    [patches, copies * pictures, c].
    """
    if tensor.ndim == 2:
        return tensor.unflatten(0, (len(taken.held), -1))
    # only a resampler's output says how many pictures there are, which tells the two axes apart
    pictures = None if taken.resampled is None else len(taken.resampled)
    if pictures is not None and tensor.shape[0] != pictures and tensor.shape[1] == pictures:
        tensor = tensor.transpose(0, 1)
    # a square and one more: the one is the class token (no square has a square as its neighbour, but 0 and 1)
    side = int((tensor.shape[1] - 1) ** 0.5)
    return tensor[:, 1:] if side > 1 and side * side == tensor.shape[1] - 1 else tensor
