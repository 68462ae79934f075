"""Where a model's vision tower can be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.decoders import Decoder

FLAT = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")  # all patches of all pictures in one row
SQUARE = ("llava", "internvl")  # equally many for every picture
TILED = ("llava_next", "llava_onevision")  # several tiles for every picture, with newline tokens behind their rows
KNOWN = (*SQUARE, *TILED, *FLAT)
CLASS_TOKENS = ("class_embedding", "cls_token")  # parameters


@dataclass
class Layout:
    """Where to look, found once for a model.

    blocks: the tower's, those looked at by number: read (the projector has its output), middle and last.
    projector: what is given the features. merge: patches of a token, along one side. visual: the tower. flat: it has
    all patches of all pictures in one row. classed: it has a class token.
    """

    blocks: list[nn.Module]
    read: int
    middle: int
    last: int
    projector: nn.Module
    merge: int
    visual: nn.Module
    flat: bool
    classed: bool
    model: Any


def layout_of(decoder: Decoder) -> Layout:
    """Where a model's tower can be looked at.

    Raises:
        TruncationError: it is not laid out as one of those known; names them.
    """
    config: Any = getattr(decoder.root, "config", None)
    kind = getattr(config, "model_type", type(decoder.root).__name__)
    if kind not in KNOWN:
        raise TruncationError(
            f"{kind}: what its vision tower attends to cannot be told apart by visual token; rules that need the tower "
            f"know {', '.join(KNOWN)}"
        )
    blocks, projector, visual = decoder.vision_blocks(), decoder.projector(), decoder.tower()
    count = len(blocks)
    attention_of(blocks[0])
    classed = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in visual.named_parameters())
    if kind in FLAT:
        full = sorted(getattr(visual, "fullatt_block_indexes", None) or range(count))
        half = [block for block in full if block <= count // 2 - 1] or full
        return Layout(
            blocks, full[-1], half[-1], full[-1], projector, int(config.vision_config.spatial_merge_size), visual, True,
            classed, decoder.root,
        )  # fmt: skip
    merge = round(1 / config.downsample_ratio) if kind == "internvl" else 1
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise TruncationError(f"{kind}: its projector reads several blocks {layer!r}, so none is the one to rank by")
    read = layer - 1 if layer >= 0 else count + layer
    if not 0 <= read < count:
        raise TruncationError(f"{kind}: its projector reads layer {layer}, before the tower's first block")
    middle = max(0, round(0.375 * count) - 1)
    return Layout(blocks, read, middle, count - 1, projector, merge, visual, False, classed, decoder.root)


def attention_of(block: nn.Module) -> nn.Module:
    """The attention module of a tower's block.

    Raises:
        TruncationError: it does not attend through transformers' attention interface.
    """
    for name in ("self_attn", "attn", "attention"):
        found = getattr(block, name, None)
        if isinstance(found, nn.Module) and hasattr(found, "config"):
            return found
    raise TruncationError(
        f"{type(block).__name__}: its attention does not go through transformers' attention interface; rules that need "
        "the vision tower cannot be used with this release"
    )
