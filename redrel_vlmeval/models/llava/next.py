"""``LLaVANext``: the host's model class for LLaVA-NeXT and LLaVA-interleave, right on every transformers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from vlmeval.dataset import DATASET_TYPE

from redrel_vlmeval.errors import Unaskable
from redrel_vlmeval.models.checkpoint import (
    CheckpointError,
    choose_placement,
    load_model,
    load_part,
    open_config,
    weight_files,
)
from redrel_vlmeval.models.hosted import HostedModel
from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.pictures import opened
from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.prompts import check_question

logger = logging.getLogger("redrel_vlmeval")
KNOWN = "llava-hf/llava-v1.6-vicuna-7b-hf, llava-hf/llava-v1.6-mistral-7b-hf"
ARCHITECTURES = {"llava_next": "LlavaNextForConditionalGeneration", "llava": "LlavaForConditionalGeneration"}


class LLaVANext(HostedModel):
    """LLaVA-NeXT with the prompts, pictures and greedy decoding of the host's own ``LLaVA_Next``.

    The host's class hands prompt and pictures to the processor by their places, which transformers exchanged in 4.50.

    Args:
        model_path: a hub name of ``llava-hf``, or a local folder in its format.
        revision: commit or tag on the hub.
        device, dtype: see :func:`choose_placement`.
        attn: attention kernel, as transformers names it.
        generation: keywords of ``generate``; ``batch``: questions that are answered at once.

    Raises:
        CheckpointError: the checkpoint cannot be had or used; says how to mend it.
    """

    INTERLEAVE = True

    def __init__(
        self, model_path: str = "llava-hf/llava-v1.6-vicuna-7b-hf", revision: str | None = None,
        device: str | None = None, dtype: str | None = None, attn: str = "sdpa", **generation: Any,
    ) -> None:  # fmt: skip
        super().__init__(generation.pop("batch", None))
        generation.pop("use_vllm", None)
        config = open_config(model_path, revision, KNOWN)
        kind = config.get("model_type")
        if kind not in ARCHITECTURES:
            raise CheckpointError(f"{model_path}: architecture {kind!r}, expected LLaVA-NeXT, such as {KNOWN}")
        size, commit = weight_files(model_path, revision, KNOWN)
        placement = choose_placement(device, dtype, size)
        self.model = load_model(model_path, revision, placement, attn, ARCHITECTURES[str(kind)])
        self.processor = load_part("AutoProcessor", model_path, revision)
        self.generation = {"do_sample": False, "num_beams": 1, "max_new_tokens": 2048} | generation
        self.device, self.dtype = placement.device, placement.dtype
        backend = f"transformers {type(self.model).__name__}"
        logger.info("%s: %s, %s on %s, %s attention", model_path, backend, self.dtype, self.device, attn)
        facts = {"backend": backend, "weights": model_path, "revision": commit}
        self.recorder = Recorder(self.model, VariantSpec(), facts)

    def use_custom_prompt(self, dataset: str | None) -> bool:
        return dataset is not None and DATASET_TYPE(dataset) == "MCQ"

    def message_of(self, line: Any, dataset: Any, **_given: Any) -> list[dict[str, str]]:
        """Pictures first, then the text, as the host's class does.

        Raises:
            Unaskable: the question is empty.
        """
        check_question(line, dataset)
        message = [{"type": "image", "value": path} for path in self.dump_image(line, dataset)]
        return [*message, {"type": "text", "value": input.question_text(line)}]

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        with self.recorded([message]):
            return self.reply(message)

    def inputs(self, content: Sequence[dict[str, str]]) -> Any:
        """One question -> what the model is given: input_ids [1, s], pixel_values, image_sizes.

        Raises:
            Unaskable: a picture cannot be read, or the text holds the mark that the processor puts for a picture.
        """
        mark = getattr(self.processor, "image_token", input.IMAGE)
        items: list[dict[str, str]] = []
        pictures: list[Image.Image] = []
        for item in content:
            if item["type"] == "image":
                with opened(item["value"]) as picture:
                    pictures.append(picture.convert("RGB"))
                items.append({"type": "image"})
            elif mark in item["value"]:
                raise Unaskable(f"its text holds {mark!r}, which the processor takes for a picture")
            else:
                items.append({"type": "text", "text": item["value"]})
        turn = [{"role": "user", "content": items}]
        prompt = self.processor.apply_chat_template(turn, add_generation_prompt=True)
        return self.processor(text=prompt, images=pictures or None, return_tensors="pt").to(self.device, self.dtype)

    @torch.inference_mode()
    def reply(self, content: Sequence[dict[str, str]]) -> str:
        """Answer to one question: items of type ``text`` and ``image``, interleaved as given."""
        inputs = self.inputs(content)
        output = self.model.generate(**inputs, **self.generation)
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(new, skip_special_tokens=True)).strip()
