"""``LLaVA15``: the host's model class for LLaVA-1.5 on transformers' own code."""

from __future__ import annotations

from typing import Any

from vlmeval.dataset import DATASET_TYPE
from vlmeval.vlm.base import BaseModel

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.llava.core import TINY, LlavaCore
from redrel_vlmeval.models.pictures import is_missing
from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.prompts import check_multiple_choice


class LLaVA15(BaseModel):
    """LLaVA-1.5 with the prompts, pictures and greedy decoding of the host's own ``LLaVA``.

    Args:
        model_path: ``llava-hf/llava-1.5-7b-hf``, ``-13b-hf``, a local folder, or ``redrel_tiny``.
        kwargs: device, dtype, revision, attn, and keywords of ``generate`` (``num_beams``, ``max_new_tokens``, ...).

    Raises:
        CheckpointError: the checkpoint cannot be had or used; says how to mend it.
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(self, model_path: str = "llava-hf/llava-1.5-7b-hf", **kwargs: Any) -> None:
        super().__init__()
        kwargs.pop("use_vllm", None)
        if model_path == TINY:
            kwargs.setdefault("max_new_tokens", 32)
        self.core = LlavaCore(model_path, **kwargs)
        self.model = self.core.model
        facts = {"backend": self.core.backend, "weights": self.core.weights, "revision": self.core.revision}
        self.recorder: Recorder | None = Recorder(self.model, VariantSpec(), facts)

    def use_custom_prompt(self, dataset: str | None) -> bool:
        return dataset is not None and DATASET_TYPE(dataset) == "MCQ"

    def build_prompt(self, line: Any, dataset: str | None = None) -> list[dict[str, str]]:
        """Pictures first, then the text, as the host's class does.

        Raises:
            ValueError: the question is empty, or a multiple-choice line has no options.
        """
        check_multiple_choice(line, dataset)
        pictures = self.dump_image(line, dataset)
        message = [{"type": "image", "value": path} for path in pictures]
        return [*message, {"type": "text", "value": input.question_text(line)}]

    def preproc_content(self, inputs: Any) -> Any:
        """The host's own, which asserts without a word where a picture's file is missing.

        Raises:
            ValueError: naming the missing picture.
        """
        for item in inputs if isinstance(inputs, list) else [inputs]:
            if isinstance(item, dict) and item.get("type") == "image" and is_missing(item.get("value")):
                raise InvalidValue(f"picture {item['value']!r}: no such file")
        return super().preproc_content(inputs)

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        if self.recorder is None:  # a variant around this model keeps the records
            return self.core.reply(message)
        with self.recorder.question():
            return self.core.reply(message)

    def chat_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        if self.recorder is None:
            return self.core.chat(message)
        with self.recorder.question():
            return self.core.chat(message)
