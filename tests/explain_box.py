"""Questions to random tiny models and to the model in the box, asked as the host would, for the explanation tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import IMAGE, TEXT, TinyModel, build

from redrel_vlmeval.explain.ask.asking import Asked, ask_model
from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.tiny import scenes
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import truncated


def ask_tiny(
    tiny: TinyModel, layout: str = "tttIttttt", new: int = 3, setting: str | None = None, **options: Any
) -> Asked:
    """A greedy answer of ``new`` tokens to a random prompt, with a truncation or without."""
    inputs = tiny.prompt(layout)
    spec = parse(setting) if setting else None
    with torch.no_grad():  # random weights are not to answer with a picture's mark, or with nothing
        tiny.model.get_output_embeddings().weight[[IMAGE, TEXT["eos_token_id"], TEXT["pad_token_id"]]] = 0

    def say() -> str:
        with torch.inference_mode():  # as the host's classes do
            if spec is None:
                tiny.model.generate(**inputs, max_new_tokens=new, do_sample=False, **options)
            else:
                with truncated(tiny.model, spec):
                    tiny.model.generate(**inputs, max_new_tokens=new, do_sample=False, **options)
        return "said"

    tiny.model.generation_config.suppress_tokens = None  # else the answer is no plain argmax
    return ask_model(tiny.model, say, spec=spec)


def build_double(name: str) -> TinyModel:
    """A random family's model in float64."""
    return build(name, dtype=torch.float64)


def ask_box(core: Any, path: Path, things: Sequence[scenes.Thing], line: dict[str, Any]) -> Asked:
    """A question about a scene to ``redrel_tiny``'s core, whose picture is written to ``path``."""
    scenes.render(list(things)).save(path)
    message = [{"type": "image", "value": str(path)}, {"type": "text", "value": input.question_text(line)}]
    return ask_model(core.model, lambda: core.reply(message), core.tokenizer, pictures=[str(path)])
