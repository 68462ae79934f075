"""What is known of base models before they are loaded: one row each, and nowhere else.

A base without a row truncates all the same. What needs a row (prices of a dry run, checks of a layer before anything is
downloaded, kept tokens drawn on the picture) says that it is missing.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
        blocks, shape: of the decoder. tokens: visual tokens of one picture; None where that depends on its size.
        layout: which part of a picture a visual token stands for; see :data:`LAYOUTS`.
        ours: the class of ours that runs it, "" for the host's own. reformatted: its weights are of another format than
            those of the hosts' entries. alias: of another row with the same weights; of one of the two hosts only.
    """

    name: str
    weights: str
    title: str
    blocks: int
    shape: BlockShape
    tokens: int | None
    layout: str
    backbone: str = ""
    resolution: int | None = None
    ours: str = ""
    reformatted: bool = False
    alias: bool = False


# What a visual token stands for. square: a patch of the picture centred on a square, row by row. whole: a query that
# sees the whole picture. tiles: patches of the whole picture, then of its tiles, row by row, each row with an end.
# stretched: a patch of the picture stretched to a square, row by row.
LAYOUTS = ("square", "whole", "tiles", "stretched")
# Keywords of a host's entry that hand its model to another engine, and that engine.
ENGINES = {"use_vllm": "vLLM", "use_lmdeploy": "LMDeploy"}
TINY = "redrel_tiny"  # the model in the box
SMOL = "redrel_smol"  # the one whose decoder `redrel smol` fetches
# Those whose weights go by their own names, and what has to be known of their numbers.
BOXED = {
    TINY: "a toy, a 2 M parameter model trained on generated pictures",
    SMOL: "a toy, a language model of 135 M parameters that learnt to read generated pictures",
}

_SEVEN = BlockShape(4096, 32, 32, 128, 11008)
_THIRTEEN = BlockShape(5120, 40, 40, 128, 13824)
_GROUPED = BlockShape(4096, 32, 8, 128, 14336)  # Mistral-7B, Llama-3-8B
BASES = {
    row.name: row
    for row in (
        Base(TINY, TINY, TINY, 8, BlockShape(128, 4, 4, 32, 352), 64, "square", ours="LLaVA15"),
        Base(SMOL, SMOL, SMOL, 30, BlockShape(576, 9, 3, 64, 1536), 64, "square", "SmolLM2-135M", 96, "LLaVA15"),
        Base("llava_v1.5_7b", "llava-hf/llava-1.5-7b-hf", "LLaVA-1.5-7B", 32, _SEVEN, 576, "square", "Vicuna-7B", 336,
             "LLaVA15", reformatted=True),
        Base("llava_v1.5_13b", "llava-hf/llava-1.5-13b-hf", "LLaVA-1.5-13B", 40, _THIRTEEN, 576, "square",
             "Vicuna-13B", 336, "LLaVA15", reformatted=True),
        # The hosts' own class hands the processor prompt and pictures in an order that transformers changed in 4.50.
        *(Base(name, f"llava-hf/{hub}-hf", title, blocks, shape, None, "tiles", backbone, 336, "LLaVANext")
          for name, hub, title, backbone, blocks, shape in (
              ("llava_next_vicuna_7b", "llava-v1.6-vicuna-7b", "LLaVA-NeXT-7B", "Vicuna-7B", 32, _SEVEN),
              ("llava_next_vicuna_13b", "llava-v1.6-vicuna-13b", "LLaVA-NeXT-13B", "Vicuna-13B", 40, _THIRTEEN),
              ("llava_next_mistral_7b", "llava-v1.6-mistral-7b", "LLaVA-NeXT-Mistral-7B", "Mistral-7B", 32, _GROUPED),
              ("llava_next_yi_34b", "llava-v1.6-34b", "LLaVA-NeXT-34B", "Yi-34B", 60,
               BlockShape(7168, 56, 8, 128, 20480)),
              ("llava_next_llama3", "llama3-llava-next-8b", "LLaVA-NeXT-Llama3-8B", "Llama-3-8B", 32, _GROUPED),
              ("llava_next_72b", "llava-next-72b", "LLaVA-NeXT-72B", "Qwen1.5-72B", 80,
               BlockShape(8192, 64, 64, 128, 24576)),
              ("llava_next_110b", "llava-next-110b", "LLaVA-NeXT-110B", "Qwen1.5-110B", 80,
               BlockShape(8192, 64, 8, 128, 49152)),
          )),
        *(Base(name, f"llava-hf/{hub}-hf", title, 32, _SEVEN, 729, "stretched", "Qwen1.5-7B", 384, "LLaVANext")
          for name, hub, title in (
              ("llava_next_interleave_7b", "llava-interleave-qwen-7b", "LLaVA-interleave-7B"),
              ("llava_next_interleave_7b_dpo", "llava-interleave-qwen-7b-dpo", "LLaVA-interleave-7B-DPO"),
          )),
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


def cautions(names: Iterable[str]) -> list[str]:
    """Which of our own models are among bases or variants, and what each is."""
    found = tuple(names)
    return [f"{base} is {what}" for base, what in BOXED.items() if any(name.startswith(base) for name in found)]


@dataclass(frozen=True)
class HostClass:
    """What is known of truncating the names of one host class: a row of ``classes.csv``, the first that fits counts.

    Attributes:
        names: an expression that a name holds; empty fits all names of the class.
        verdict: ``works``, ``note`` (works, but), ``refused`` or ``unknown``. why: the reason of all but the first.
        evidence: ``measured`` on a tiny checkpoint in the class's own format; ``read`` in the code that calls the
            model; ``family``: of a family whose calls are known; ``none``.
    """

    name: str
    names: str
    verdict: str
    why: str
    evidence: str


UNJUDGED = HostClass("", "", "unknown", "not judged: a class that is not known here", "none")


def host_class(kind: str, name: str) -> HostClass:
    """What is known of ``name``, a model that the host's class ``kind`` runs."""
    return next((row for row in _classes() if row.name == kind and re.search(row.names, name)), UNJUDGED)


@cache
def _classes() -> tuple[HostClass, ...]:
    with open(Path(__file__).with_name("classes.csv"), encoding="utf-8", newline="") as file:
        return tuple(HostClass(*line) for line in list(csv.reader(file))[1:])
