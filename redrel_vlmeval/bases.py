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
    """Sizes of one decoder block: model width, query and key heads, head width, hidden width of the gated FFN.

    Of experts ``ffn`` is the width of all that one token is sent to together, and ``held`` that of all there are.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    held: int = 0


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


# What a visual token stands for, in the words of docs/models.md.
LAYOUTS = {
    "square": "a patch of the picture centred on a square, row by row",
    "stretched": "a patch of the picture stretched to a square, row by row",
    "own": "a patch of the picture in nearly its own shape, row by row",
    "tiles": "a patch of the picture stretched to a square, then of its tiles together, each row with an end",
    "cut": "a patch of one tile after another, then of the picture stretched to a square",
    "whole": "a query that sees the whole picture: no place on it",
}
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
# Blocks and shapes of decoders that several bases have, as litgpt's table of configs has them (litgpt/config.py). Those
# of
# experts send a token to 8 of 128; which, a layer decides that is not counted, a hundredth of what they do.
_DECODERS = {
    "Qwen2-0.5B": (24, BlockShape(896, 14, 2, 64, 4864)),
    "Qwen2-1.5B": (28, BlockShape(1536, 12, 2, 128, 8960)),
    "Qwen2-7B": (28, BlockShape(3584, 28, 4, 128, 18944)),
    "Qwen2-72B": (80, BlockShape(8192, 64, 8, 128, 29568)),
    "Qwen2.5-3B": (36, BlockShape(2048, 16, 2, 128, 11008)),
    "Qwen2.5-14B": (48, BlockShape(5120, 40, 8, 128, 13824)),
    "Qwen2.5-32B": (64, BlockShape(5120, 40, 8, 128, 27648)),
    "Qwen3-1.7B": (28, BlockShape(2048, 16, 8, 128, 6144)),
    "Qwen3-4B": (36, BlockShape(2560, 32, 8, 128, 9728)),
    "Qwen3-8B": (36, BlockShape(4096, 32, 8, 128, 12288)),
    "Qwen3-32B": (64, BlockShape(5120, 64, 8, 128, 25600)),
    "Qwen3-30B-A3B": (48, BlockShape(2048, 32, 4, 128, 8 * 768, 128 * 768)),
    "Qwen3-235B-A22B": (94, BlockShape(4096, 64, 4, 128, 8 * 1536, 128 * 1536)),
    "SmolLM2-135M": (30, BlockShape(576, 9, 3, 64, 1536)),
    "SmolLM2-360M": (32, BlockShape(960, 15, 5, 64, 2560)),
    "SmolLM2-1.7B": (24, BlockShape(2048, 32, 32, 64, 8192)),
    "Gemma-3-4B": (34, BlockShape(2560, 8, 4, 256, 10240)),
    "Gemma-3-12B": (48, BlockShape(3840, 16, 8, 256, 15360)),
    "Gemma-3-27B": (62, BlockShape(5376, 32, 16, 128, 21504)),
}
_DECODERS |= {name.replace("Qwen2-", "Qwen2.5-"): of for name, of in _DECODERS.items()}  # the same shapes
BASES = {
    row.name: row
    for row in (
        Base(TINY, TINY, TINY, 8, BlockShape(128, 4, 4, 32, 352), 64, "square", ours="LLaVA15"),
        Base(SMOL, SMOL, SMOL, *_DECODERS["SmolLM2-135M"], 64, "square", "SmolLM2-135M", 96, "LLaVA15"),
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
        # On the hosts' own classes.
        *(Base(f"llava-onevision-qwen2-{size}-{kind}-hf", f"llava-hf/llava-onevision-qwen2-{size}-{kind}-hf",
               f"LLaVA-OneVision-{size.upper()}{more}", *_DECODERS[f"Qwen2-{size.upper()}"], None, "tiles",
               f"Qwen2-{size.upper()}")
          for size in ("0.5b", "7b") for kind, more in (("ov", ""), ("si", " (SI)"))),
        *(Base(f"llava_onevision_qwen2_{size}_{kind}", f"lmms-lab/llava-onevision-qwen2-{size}-{kind}{hub}",
               f"LLaVA-OneVision-{size.upper()}{more}", *_DECODERS[f"Qwen2-{size.upper()}"], None, "tiles",
               f"Qwen2-{size.upper()}")
          for size in ("0.5b", "7b", "72b")
          for kind, more, hub in (("ov", "", "-sft" * (size == "72b")), ("si", " (SI)", ""))),
        *(Base(f"{title}-Instruct", f"Qwen/{title}-Instruct", title, *_DECODERS[backbone], None, "own", backbone)
          for title, backbone in (
              ("Qwen2-VL-2B", "Qwen2-1.5B"), ("Qwen2-VL-7B", "Qwen2-7B"), ("Qwen2-VL-72B", "Qwen2-72B"),
              ("Qwen2.5-VL-3B", "Qwen2.5-3B"), ("Qwen2.5-VL-7B", "Qwen2.5-7B"), ("Qwen2.5-VL-32B", "Qwen2.5-32B"),
              ("Qwen2.5-VL-72B", "Qwen2.5-72B"),
          )),
        *(Base(f"Qwen3-VL-{size}-{kind}", f"Qwen/Qwen3-VL-{size}-{kind}", f"Qwen3-VL-{size}{more}",
               *_DECODERS[backbone], None, "own", backbone)
          for size, backbone in (
              ("2B", "Qwen3-1.7B"), ("4B", "Qwen3-4B"), ("8B", "Qwen3-8B"), ("32B", "Qwen3-32B"),
              ("30B-A3B", "Qwen3-30B-A3B"), ("235B-A22B", "Qwen3-235B-A22B"),
          )
          for kind, more in (("Instruct", ""), ("Thinking", "-Thinking"))),
        *(Base(f"InternVL3-{size}", f"OpenGVLab/InternVL3-{size}", f"InternVL3-{size}", *_DECODERS[backbone], None,
               "cut", backbone)
          for size, backbone in (
              ("1B", "Qwen2.5-0.5B"), ("2B", "Qwen2.5-1.5B"), ("8B", "Qwen2.5-7B"), ("14B", "Qwen2.5-14B"),
              ("38B", "Qwen2.5-32B"), ("78B", "Qwen2.5-72B"),
          )),
        *(Base(name, f"HuggingFaceTB/SmolVLM2-{hub}-Instruct", f"SmolVLM2-{hub.partition('-')[0]}",
               *_DECODERS[backbone], None, "cut", backbone)
          for name, hub, backbone in (
              ("SmolVLM2-256M", "256M-Video", "SmolLM2-135M"), ("SmolVLM2-500M", "500M-Video", "SmolLM2-360M"),
              ("SmolVLM2", "2.2B", "SmolLM2-1.7B"),
          )),
        *(Base(f"Gemma3-{size}", f"google/gemma-3-{size.lower()}-it", f"Gemma-3-{size}", *_DECODERS[f"Gemma-3-{size}"],
               256, "stretched", f"Gemma-3-{size}", 896)
          for size in ("4B", "12B", "27B")),
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


API = HostClass("", "", "refused", "an API holds no model whose tokens could be dropped", "read")


def cannot(name: str, base: str, why: str) -> str:
    """What is said of a variant ``name`` whose base is refused."""
    return f"{name!r}: base {base!r} cannot be truncated: {why}"


def host_class(kind: str, name: str) -> HostClass:
    """What is known of ``name``, a model that the host's class ``kind`` runs."""
    return next((row for row in _classes() if row.name == kind and re.search(row.names, name)), UNJUDGED)


@cache
def _classes() -> tuple[HostClass, ...]:
    with open(Path(__file__).with_name("classes.csv"), encoding="utf-8", newline="") as file:
        return tuple(HostClass(*line) for line in list(csv.reader(file))[1:])
