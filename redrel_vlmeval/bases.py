"""What is known of base models before they are loaded: one row each, and nowhere else.

A base without a row truncates all the same. What needs a row (prices of a dry run, checks of a layer before anything is
downloaded, kept tokens drawn on the picture) says that it is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from redrel_vlmeval.errors import UnknownName


@dataclass(frozen=True)
class BlockShape:
    """Sizes of one decoder block: model width, query and key heads, head width, hidden width of the gated FFN."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int


@dataclass(frozen=True)
class Base:
    """One base model.

    Attributes:
        name: in the hosts' tables. weights: hub name, or the name of the model in the box.
        title, backbone, resolution: as papers print them.
        blocks, shape: of the decoder. tokens: visual tokens of one picture, where all pictures have equally many.
        layout: which part of a picture a visual token stands for; see :data:`LAYOUTS`.
        ours: the class of ours that runs it, "" for the host's own. unless: a package with which the host's own runs.
        alias: of another row with the same weights; of one of the two hosts only.
    """

    name: str
    weights: str
    title: str
    blocks: int
    shape: BlockShape
    tokens: int
    layout: str
    backbone: str = ""
    resolution: int | None = None
    ours: str = ""
    unless: str = ""
    alias: bool = False


# What a visual token stands for. square: a patch of the picture centred on a square, row by row. whole: a query that
# sees the whole picture.
LAYOUTS = ("square", "whole")
TINY = "redrel_tiny"  # the model in the box

_SEVEN = BlockShape(4096, 32, 32, 128, 11008)
_THIRTEEN = BlockShape(5120, 40, 40, 128, 13824)
BASES = {
    row.name: row
    for row in (
        Base(TINY, TINY, TINY, 8, BlockShape(128, 4, 4, 32, 352), 64, "square", ours="LLaVA15"),
        Base("llava_v1.5_7b", "llava-hf/llava-1.5-7b-hf", "LLaVA-1.5-7B", 32, _SEVEN, 576, "square", "Vicuna-7B", 336,
             "LLaVA15", unless="llava"),
        Base("llava_v1.5_13b", "llava-hf/llava-1.5-13b-hf", "LLaVA-1.5-13B", 40, _THIRTEEN, 576, "square",
             "Vicuna-13B", 336, "LLaVA15", unless="llava"),
        # Ours always: a variant's base must run on the variant's own path, and the hosts' classes load wrong weights
        # on some releases of transformers.
        Base("qwen_base", "Qwen/Qwen-VL", "Qwen-VL", 32, _SEVEN, 256, "whole", "Qwen-7B", 448, "RedrelQwenVL"),
        Base("qwen_chat", "Qwen/Qwen-VL-Chat", "Qwen-VL-Chat", 32, _SEVEN, 256, "whole", "Qwen-7B", 448,
             "RedrelQwenVLChat"),
        Base("qwen-vl-chat", "Qwen/Qwen-VL-Chat", "Qwen-VL-Chat", 32, _SEVEN, 256, "whole", "Qwen-7B", 448,
             "RedrelQwenVLChat", alias=True),
    )
}  # fmt: skip


def row(name: str) -> Base | None:
    """The row of a base, None where we know nothing of it."""
    return BASES.get(name)


def known(name: str) -> Base:
    """The row of a base.

    Raises:
        UnknownName: there is none; names those that there are.
    """
    if name not in BASES:
        raise UnknownName(f"{name!r}: its size is not known before it is loaded; known are {', '.join(BASES)}")
    return BASES[name]


def by_weights(weights: object) -> Base | None:
    """The base whose checkpoint ``weights`` names, None where we know nothing of it."""
    return next((base for base in BASES.values() if base.weights == weights), None)
