"""``RedrelQwenVL`` and ``RedrelQwenVLChat``: the host's model classes for Qwen-VL, right on every transformers."""

from __future__ import annotations

from typing import Any

from vlmeval.dataset import DATASET_TYPE

from redrel_vlmeval.models.hosted import HostedModel
from redrel_vlmeval.models.qwen.core import QwenCore
from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.names import VariantSpec


class RedrelQwenVL(HostedModel):
    """Qwen-VL with the prompts, limits and greedy decoding of the host's own ``QwenVL``.

    Args:
        model_path: ``Qwen/Qwen-VL``, or a local folder in its format.
        kwargs: batch, device, dtype, revision, attn, and keywords of ``generate``.

    Raises:
        CheckpointError: the checkpoint cannot be had or used; says how to mend it.
    """

    INTERLEAVE = True
    chatty = False

    def __init__(self, model_path: str = "Qwen/Qwen-VL", **kwargs: Any) -> None:
        super().__init__(kwargs.pop("batch", None))
        kwargs.pop("use_vllm", None)
        self.model_path = model_path
        self.core = QwenCore(model_path, self.chatty, **kwargs)
        self.model = self.core.model
        facts = {"backend": self.core.backend, "weights": self.core.weights, "revision": self.core.revision}
        self.recorder = Recorder(self.model, VariantSpec(), facts)

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        with self.recorded([message]):
            return self.core.reply(message, None if dataset is None else DATASET_TYPE(dataset), dataset)


class RedrelQwenVLChat(RedrelQwenVL):
    """Qwen-VL-Chat with the prompts and stops of the host's own ``QwenVLChat``, but greedy: see :class:`QwenCore`.

    Args:
        model_path: ``Qwen/Qwen-VL-Chat``, or a local folder in its format.
        kwargs: batch, device, dtype, revision, attn, and keywords of ``generate``.

    Raises:
        CheckpointError: the checkpoint cannot be had or used; says how to mend it.
    """

    chatty = True

    def __init__(self, model_path: str = "Qwen/Qwen-VL-Chat", **kwargs: Any) -> None:
        super().__init__(model_path, **kwargs)

    def chat_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        with self.recorded([turn["content"] for turn in message]):
            return self.core.chat(message)
