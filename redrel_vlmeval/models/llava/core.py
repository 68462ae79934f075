"""LLaVA-1.5 on transformers' own class, fed exactly what the host's ``LLaVA`` feeds the original; needs no host."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.models.ahead import Ahead
from redrel_vlmeval.models.boxed import checkpoint_path
from redrel_vlmeval.models.checkpoint import choose_placement, load_model, load_part, weight_files
from redrel_vlmeval.models.llava import checkpoint, input
from redrel_vlmeval.models.pictures import opened
from redrel_vlmeval.truncation import image_token

logger = logging.getLogger("redrel_vlmeval")


class LlavaCore:
    """A loaded checkpoint that answers prompts.

    Args:
        model_path: hub name, local folder, ``redrel_tiny`` or ``redrel_smol``.
        revision: commit or tag on the hub.
        device, dtype: see :func:`choose_placement`.
        attn: attention kernel, as transformers names it.
        generation: keywords of ``generate``; the host's defaults are greedy and 2048 new tokens.

    Raises:
        CheckpointError: the checkpoint cannot be had or used.
    """

    def __init__(
        self, model_path: str, revision: str | None = None, device: str | None = None, dtype: str | None = None,
        attn: str = "sdpa", **generation: Any,
    ) -> None:  # fmt: skip
        self.weights = model_path
        path = checkpoint_path(model_path)
        config = checkpoint.read_config(path, revision)
        size, self.revision = weight_files(path, revision, checkpoint.HUB_NAMES)
        self.preprocessing = checkpoint.read_preprocessing(path, revision, config)
        self.ahead = Ahead(partial(_pixels, self.preprocessing))
        placement = choose_placement(device, dtype, size)
        self.model = load_model(path, revision, placement, attn, "LlavaForConditionalGeneration")
        self.tokenizer = load_part("AutoTokenizer", path, revision)
        self.sentencepiece = "\u2581" in self.tokenizer.get_vocab()
        own = {self.tokenizer.bos_token, self.tokenizer.eos_token, self.tokenizer.unk_token}
        # of tags that the conversion added (<image>, <pad>) the original's tokenizer knows nothing: there they are text
        self.tags = [tag for tag in self.tokenizer.get_added_vocab() if tag not in own]
        self.device, self.dtype = torch.device(placement.device), placement.dtype
        self.backend = f"transformers {type(self.model).__name__}"
        self.generation = {"do_sample": False, "num_beams": 1, "max_new_tokens": 2048, "use_cache": True} | generation
        self.image_token = image_token(self.model)
        vision = self.model.config.vision_config
        self.per_image = (vision.image_size // vision.patch_size) ** 2
        logger.info("%s: %s, %s on %s, %s attention", model_path, self.backend, placement.dtype, placement.device, attn)

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens around it."""
        if self.sentencepiece:
            return input.sentencepiece_ids(text, self._tokenize, self.tokenizer.eos_token_id)
        return self._tokenize(text)

    def _tokenize(self, text: str) -> list[int]:
        def known(part: str) -> list[int]:
            return list(self.tokenizer(part, add_special_tokens=False)["input_ids"])

        return input.tokenised_as_text(text, known, self.tags)

    def inputs(self, prompt: str, paths: Sequence[str]) -> dict[str, torch.Tensor]:
        """Prompt with ``<image>`` marks, paths -> input_ids and attention_mask [1, s], pixel_values [n, 3, h, w]."""
        marks = prompt.count(input.IMAGE)
        if marks != len(paths):
            raise InvalidValue(f"the prompt has {marks} {input.IMAGE} marks for {len(paths)} pictures")
        bos = self.tokenizer.bos_token_id
        ids = input.token_ids(prompt, self.encode, bos, self.image_token, self.per_image)
        tensors = {"input_ids": torch.tensor([ids], device=self.device)}
        tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
        if paths:
            stack = np.stack([self.pixels(path) for path in paths])
            tensors["pixel_values"] = torch.from_numpy(stack).to(self.device, self.dtype)
        return tensors

    def pixels(self, path: str) -> np.ndarray:
        """One picture as float32 [3, h, w].

        Raises:
            ValueError: the file is missing or no picture.
        """
        made: np.ndarray | None = self.ahead.take(path)
        return _pixels(self.preprocessing, path) if made is None else made

    @torch.inference_mode()
    def answer(self, prompt: str, paths: Sequence[str]) -> str:
        """The model's continuation of a prompt, without special tokens, stripped."""
        inputs = self.inputs(prompt, paths)
        output = self.model.generate(**inputs, **self.generation)
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True)).strip()

    def reply(self, content: Sequence[Mapping[str, Any]]) -> str:
        """Answer to one question: items of type ``text`` and ``image``, interleaved as given."""
        return self.answer(*input.single_prompt(content))

    def chat(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """Answer to the last turn of a conversation, which must be the user's."""
        if not turns or turns[-1].get("role") != "user":
            raise InvalidValue("a conversation must end with a turn of role 'user'")
        return self.answer(*input.chat_prompt(turns))


def _pixels(shape: checkpoint.Preprocessing, path: str) -> np.ndarray:
    with opened(path) as picture:
        return input.pixels(picture, shape.size, shape.mean, shape.std)
