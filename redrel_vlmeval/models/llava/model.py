"""``LLaVA15``: the host's model class for LLaVA-1.5 on transformers' own code."""

from __future__ import annotations

from copy import copy
from typing import Any

from vlmeval.dataset import DATASET_TYPE

from redrel_vlmeval.bases import BOXED
from redrel_vlmeval.models.hosted import HostedModel
from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.prompts import check_question


class LLaVA15(HostedModel):
    """LLaVA-1.5 with the prompts, pictures and greedy decoding of the host's own ``LLaVA``.

    Args:
        model_path: ``llava-hf/llava-1.5-7b-hf``, ``-13b-hf``, a local folder, ``redrel_tiny`` or ``redrel_smol``.
        kwargs: batch, device, dtype, revision, attn, and keywords of ``generate`` (``num_beams``, ...).

    Raises:
        CheckpointError: the checkpoint cannot be had or used; says how to mend it.
    """

    INTERLEAVE = True

    def __init__(self, model_path: str = "llava-hf/llava-1.5-7b-hf", **kwargs: Any) -> None:
        super().__init__(kwargs.pop("batch", None))
        kwargs.pop("use_vllm", None)
        if model_path in BOXED:
            kwargs.setdefault("max_new_tokens", 32)
        self.core = LlavaCore(model_path, **kwargs)
        self.model = self.core.model
        facts = {"backend": self.core.backend, "weights": self.core.weights, "revision": self.core.revision}
        self.recorder = Recorder(self.model, VariantSpec(), facts)

    def again(self, batch: int) -> LLaVA15:
        """The same loaded model, with ``batch`` questions at once."""
        own = copy(self)
        own.together(batch)
        return own

    def use_custom_prompt(self, dataset: str | None) -> bool:
        return dataset is not None and DATASET_TYPE(dataset) == "MCQ"

    def message_of(self, line: Any, dataset: Any, **_given: Any) -> list[dict[str, str]]:
        """Pictures first, then the text, as the host's class does; a line without options is an open question.

        Raises:
            Unaskable: the question is empty.
        """
        check_question(line, dataset)
        pictures = self.dump_image(line, dataset)
        message = [{"type": "image", "value": path} for path in pictures]
        return [*message, {"type": "text", "value": input.question_text(line)}]

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        with self.recorded([message]):
            return self.core.reply(message)

    def chat_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        with self.recorded([turn["content"] for turn in message]):
            return self.core.chat(message)
