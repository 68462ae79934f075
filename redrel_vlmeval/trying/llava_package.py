"""A stand-in for the package ``llava`` of LLaVA-NeXT and LLaVA-OneVision, as far as the host's classes import it.

What matters is between question and decoder: the id -200 stands for a picture of any number of features, which take its
place among the embeddings; ``generate`` hands those to transformers' own.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, StoppingCriteria

from redrel_vlmeval.trying.tokens import save, text_config, tokenizer

IMAGE, SIDE, PATCH = -200, 48, 12


class LlavaQwenConfig(Qwen2Config):
    model_type = "llava_qwen"


AutoConfig.register(LlavaQwenConfig.model_type, LlavaQwenConfig, exist_ok=True)


class LlavaQwenForCausalLM(Qwen2ForCausalLM):
    config_class = LlavaQwenConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.tower = nn.Conv2d(3, 16, PATCH, PATCH)
        self.model.mm_projector = nn.Linear(16, config.hidden_size)
        self.model.image_newline = nn.Parameter(torch.randn(config.hidden_size))
        self.post_init()

    def get_vision_tower(self) -> Any:
        return SimpleNamespace(num_patches_per_side=SIDE // PATCH)

    def features(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles [t, 3, h, w] -> [n, D], a newline behind each tile."""
        found = self.model.mm_projector(self.model.tower(tiles).flatten(2).transpose(1, 2))
        return torch.cat([found, self.model.image_newline.expand(len(found), 1, -1)], 1).flatten(0, 1)

    def prepare_inputs_labels_for_multimodal(self, ids: torch.Tensor, images: Any) -> torch.Tensor:
        """Ids [1, n] -> embeddings [1, m, D] with every picture's features in place of its -200."""
        marks = (ids[0] == IMAGE).nonzero()[:, 0].tolist()
        texts = [ids[0, a + 1 : b] for a, b in zip([-1, *marks], [*marks, ids.shape[1]], strict=True)]
        parts = [self.get_input_embeddings()(texts[0])]
        for image, text in zip([] if images is None else images, texts[1:], strict=True):
            tiles = image if image.ndim == 4 else image[None]
            parts += [self.features(tiles), self.get_input_embeddings()(text)]
        return torch.cat(parts)[None]

    @torch.no_grad()
    def generate(self, inputs: Any = None, images: Any = None, image_sizes: Any = None, **kwargs: Any) -> Any:
        kwargs.pop("attention_mask", None)  # of the ids; that package makes one as long as the embeddings
        embeddings = self.prepare_inputs_labels_for_multimodal(inputs, images)
        return super().generate(inputs_embeds=embeddings, **kwargs)


class Conversation:
    """Turns of a user and an assistant."""

    sep, sep2, sep_style, roles = "<|im_end|>", None, "one", ("user", "assistant")

    def __init__(self) -> None:
        self.turns: list[tuple[str, str | None]] = []

    def append_message(self, role: str, text: str | None) -> None:
        self.turns.append((role, text))

    def get_prompt(self) -> str:
        return "".join(f"<|im_start|>{role}\n{text or ''}" for role, text in self.turns)

    def copy(self) -> Conversation:
        return copy.deepcopy(self)


class KeywordsStoppingCriteria(StoppingCriteria):
    def __init__(self, *_args: Any) -> None:
        pass

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_kwargs: Any) -> torch.Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool)


def tokenizer_image_token(prompt: str, words: Any, index: int = IMAGE, return_tensors: str = "pt") -> torch.Tensor:
    """Ids [n] of a prompt, ``index`` for every ``<image>``."""
    first, *others = (words(text, add_special_tokens=False)["input_ids"] for text in prompt.split("<image>"))
    return torch.tensor([*first, *(token for ids in others for token in (index, *ids))])


def preprocess(picture: Any, return_tensors: str = "pt") -> dict[str, torch.Tensor]:
    import numpy as np

    pixels = torch.from_numpy(np.asarray(picture.resize((SIDE, SIDE)), dtype=np.float32))
    return {"pixel_values": (pixels.permute(2, 0, 1) / 255 - 0.5)[None]}


def process_images(pictures: list[Any], processor: Any, config: Any) -> list[torch.Tensor]:
    """Every picture as a whole and, where it is wider than high, its two halves."""
    found = []
    for picture in pictures:
        wide, high = picture.size
        parts = [picture] + [picture.crop((x, 0, x + wide // 2, high)) for x in (0, wide // 2)] * (wide > high)
        found.append(torch.cat([processor.preprocess(part)["pixel_values"] for part in parts]))
    return found


def load_pretrained_model(path: str, *_args: Any, **_kwargs: Any) -> tuple[Any, ...]:
    model = LlavaQwenForCausalLM.from_pretrained(path).eval()
    return AutoTokenizer.from_pretrained(path), model, SimpleNamespace(preprocess=preprocess), 2048


MODULES: dict[str, dict[str, Any]] = {
    "llava": {},
    "llava.constants": {
        "DEFAULT_IM_END_TOKEN": "<im_end>",
        "DEFAULT_IM_START_TOKEN": "<im_start>",
        "DEFAULT_IMAGE_TOKEN": "<image>",
        "IGNORE_INDEX": -100,
        "IMAGE_TOKEN_INDEX": IMAGE,
    },
    "llava.conversation": {
        "SeparatorStyle": SimpleNamespace(TWO="two"),
        "conv_templates": {"qwen_1_5": Conversation(), "llava_llama_3": Conversation()},
    },
    "llava.mm_utils": {
        "KeywordsStoppingCriteria": KeywordsStoppingCriteria,
        "get_model_name_from_path": lambda path: Path(path).name,
        "process_images": process_images,
        "tokenizer_image_token": tokenizer_image_token,
    },
    "llava.model": {},
    "llava.model.builder": {"load_pretrained_model": load_pretrained_model},
}


@contextmanager
def lent() -> Iterator[None]:
    """Within the context ``import llava`` finds this stand-in."""
    made = {}
    for name, parts in MODULES.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(parts, __spec__=ModuleSpec(name, None))
    with patch.dict(sys.modules, made):
        yield


def make(folder: Path, _name: str) -> dict[str, Any]:
    """A checkpoint of that package."""
    words = tokenizer(["<|im_start|>", "<|im_end|>"])
    save(folder, LlavaQwenForCausalLM(LlavaQwenConfig(**text_config(words), image_aspect_ratio="anyres_max_9")), words)
    return {}
