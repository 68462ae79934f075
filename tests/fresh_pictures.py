"""How often a model of ours is right about pictures that neither its training nor its benchmark holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from redrel_vlmeval.models.llava.core import LlavaCore

Drawn = tuple[Image.Image, str, str]  # a picture, a question, its answer


def right_answers(core: LlavaCore, folder: Path, draw: Callable[[np.random.Generator], Drawn], count: int) -> int:
    """Of ``count`` questions drawn by ``draw``."""
    right = 0
    for number in range(count):
        picture, question, answer = draw(np.random.default_rng([5, number]))
        path = folder / f"{number}.png"
        picture.save(path)
        right += core.reply([{"type": "image", "value": str(path)}, {"type": "text", "value": question}]) == answer
    return right
