"""What a file of ``configs/`` costs, as arithmetic: the GPU hours of docs/configs.md are this, none was measured.

seconds of a run = questions x (2 x MACs / (peak x utilisation) + new tokens x weight bytes / (bandwidth x utilisation))

MACs are those of one prefill (vision tower and truncated decoder blocks, once per beam); a decode step reads every
weight once. Loading, the judge and the CPU's work on pictures are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redrel_vlmeval.models.efficiency import prefill_flops
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.truncation.decoders.base import BlockShape

CONFIGS = Path(__file__).parent.parent / "configs"
PEAK, COMPUTE = 312e12, 0.4  # A100: FLOPs a second in 16 bits, and how much of it is reached
BANDWIDTH, MEMORY = 2.0e12, 0.3  # bytes a second of its memory, and how much of it is reached at a batch of one
TEXT = 128  # tokens of a question with its options and hint, and the system prompt
QUESTIONS = {"ScienceQA_TEST": 2017, "POPE": 5127, "TextVQA_VAL": 5000}
LETTER, REASONING, CONTINUED = 2, 256, 32  # new tokens: a letter and the end, steps of thought, no end (base models)


@dataclass(frozen=True)
class Sizes:
    """Decoder blocks, image tokens, the vision tower's multiply-adds a picture, and all parameters."""

    blocks: int
    image: int
    shape: BlockShape
    vision: float
    parameters: float


CLIP, BIG_G = 0.30e9 * 577, 1.9e9 * 1024  # parameters x patches
_QWEN = Sizes(32, 256, BlockShape(4096, 32, 32, 128, 11008), BIG_G, 9.6e9)
SIZES = {
    "llava_v1.5_7b": Sizes(32, 576, BlockShape(4096, 32, 32, 128, 11008), CLIP, 7.1e9),
    "llava_v1.5_13b": Sizes(40, 576, BlockShape(5120, 40, 40, 128, 13824), CLIP, 13.4e9),
    "qwen_base": _QWEN,
    "qwen_chat": _QWEN,
}


def models(config: dict[str, Any]) -> dict[str, VariantSpec]:
    """Run name -> what is run, its base one that the registry knows."""
    found = {}
    for name, entry in config["model"].items():
        spec = parse(name)
        base = entry.get("base", spec.base)
        found[name] = parse(f"{base}{str(spec).removeprefix(spec.base)}")
    return found


def image_tokens(spec: VariantSpec, sizes: Sizes) -> list[int]:
    """Image tokens that enter each block."""
    found = [sizes.image] * sizes.blocks
    for stage in spec.stages:
        found[stage.layer :] = [stage.count(sizes.image)] * (sizes.blocks - stage.layer)
    return found


def new_tokens(spec: VariantSpec, benchmark: str) -> int:
    if spec.ppl:
        return 0  # all options from the prefill
    if spec.prompt.startswith("p1") or spec.prompt.startswith("cqm-p"):
        return REASONING
    return CONTINUED if spec.base == "qwen_base" else LETTER if benchmark != "TextVQA_VAL" else 2 * LETTER


def seconds(spec: VariantSpec, benchmark: str) -> float:
    sizes = SIZES[spec.base]
    macs = sizes.vision + prefill_flops([TEXT + n for n in image_tokens(spec, sizes)], sizes.shape)
    step = 2 * sizes.parameters / (BANDWIDTH * MEMORY)
    return QUESTIONS[benchmark] * (2 * macs * spec.beam / (PEAK * COMPUTE) + new_tokens(spec, benchmark) * step)


def hours(path: Path) -> float:
    """GPU hours of all runs of one file."""
    config = json.loads(path.read_text())
    return sum(seconds(spec, benchmark) for spec in models(config).values() for benchmark in config["data"]) / 3600


def rows() -> list[tuple[str, int, int, float]]:
    """Of each file but the toy's: name, runs (models x benchmarks), questions a model, GPU hours."""
    found = []
    for path in sorted(CONFIGS.glob("*.json")):
        config = json.loads(path.read_text())
        if path.stem != "demo":
            asked = sum(QUESTIONS[name] for name in config["data"])
            found.append((path.name, len(config["model"]) * len(config["data"]), asked, hours(path)))
    return found


if __name__ == "__main__":
    for name, runs, asked, cost in rows():
        print(f"| `{name}` | {runs} | {asked} | {cost:.1f} |")
