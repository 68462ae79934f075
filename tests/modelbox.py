"""The host's model classes over the model in the box, pictures for it, and a stand-in for the host's loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from checkpoints import import_host

from redrel_vlmeval.models.tiny import scenes

TOKENS, BLOCKS = 64, 8


@cache
def classes() -> Any:
    """Both classes; importing them imports the host."""
    import_host()
    from redrel_vlmeval.models.llava.model import LLaVA15
    from redrel_vlmeval.models.variant import TruncatedVLM

    return SimpleNamespace(LLaVA15=LLaVA15, TruncatedVLM=TruncatedVLM)


@cache
def base_model() -> Any:
    """The model in the box, with answers long enough to tell settings apart."""
    return classes().LLaVA15("redrel_tiny", device="cpu", min_new_tokens=4, max_new_tokens=6)


def draw(folder: Path) -> list[str]:
    """Paths of four pictures."""
    for number in range(4):
        scenes.render(scenes.make_scene(np.random.default_rng(number))).save(folder / f"{number}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def message(pictures: list[str], *parts: int | str) -> list[dict[str, str]]:
    """Numbers are pictures."""
    return [
        {"type": "image", "value": pictures[part]} if isinstance(part, int) else {"type": "text", "value": part}
        for part in parts
    ]


QUESTION = "What color is the square?\nA. red\nB. blue\nC. green\nD. white\nAnswer the question directly."


HOST_LOOP = """
def infer_data(answer, idx, work_dir, model_name, dataset_name, data=None, struct=None, i=0):
    return answer()
"""


def in_host(
    answer: Callable[[], Any],
    index: Any,
    folder: Path,
    model: str = "redrel_tiny",
    module: str = "vlmeval.inference",
    **more: Any,
) -> Any:
    """Call ``answer`` from where the host calls a model: a function of that module with those local names.

    ``more``: ``data``, the host's table, and ``struct``, the message.
    """
    names: dict[str, Any] = {"__name__": module}
    exec(HOST_LOOP, names)
    return names["infer_data"](answer, index, str(folder), model, "RedRelShapes", **more)


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of questions, without the run's own line before them."""
    (path,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines() if '"index"' in line]
