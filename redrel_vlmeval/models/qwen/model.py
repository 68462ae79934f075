"""``RedrelQwenVL`` and ``RedrelQwenVLChat``: the host's model classes for Qwen-VL, right on every transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmeval.dataset import DATASET_TYPE
from vlmeval.vlm.base import BaseModel

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.host import asked_by_host
from redrel_vlmeval.models.pictures import is_missing
from redrel_vlmeval.models.qwen.core import QwenCore
from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.names import VariantSpec


class RedrelQwenVL(BaseModel):
    """Qwen-VL with the prompts, limits and greedy decoding of the host's own ``QwenVL``.

    Args:
        model_path: ``Qwen/Qwen-VL``, or a local folder in its format.
        kwargs: device, dtype, revision, attn, and keywords of ``generate``.

    Raises:
        CheckpointError: the checkpoint cannot be had or used; says how to mend it.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    chatty = False

    def __init__(self, model_path: str = "Qwen/Qwen-VL", **kwargs: Any) -> None:
        super().__init__()
        kwargs.pop("use_vllm", None)
        self.model_path = model_path
        self.core = QwenCore(model_path, self.chatty, **kwargs)
        self.model = self.core.model
        facts = {"backend": self.core.backend, "weights": self.core.weights, "revision": self.core.revision}
        self.recorder: Recorder | None = Recorder(self.model, VariantSpec(), facts)

    def preproc_content(self, inputs: Any) -> Any:
        """The host's own, which asserts without a word where a picture's file is missing.

        Raises:
            ValueError: naming the missing picture and the question.
        """
        for item in inputs if isinstance(inputs, list) else [inputs]:
            if isinstance(item, dict) and item.get("type") == "image" and is_missing(item.get("value")):
                raise InvalidValue(f"picture {item['value']!r}: no such file{_question(inputs)}")
        return super().preproc_content(inputs)

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        with self._answering(message):
            return self.core.reply(message, None if dataset is None else DATASET_TYPE(dataset), dataset)

    @contextmanager
    def _answering(self, message: Any) -> Iterator[None]:
        """Around one answer: recorded, unless a variant around this model keeps the records."""
        try:
            if self.recorder is None:
                yield
            else:
                with self.recorder.question():
                    yield
        except ValueError as error:
            raise InvalidValue(f"{error}{_question(message)}") from error


class RedrelQwenVLChat(RedrelQwenVL):
    """Qwen-VL-Chat with the prompts and stops of the host's own ``QwenVLChat``, but greedy: see :class:`QwenCore`.

    Args:
        model_path: ``Qwen/Qwen-VL-Chat``, or a local folder in its format.
        kwargs: device, dtype, revision, attn, and keywords of ``generate``.

    Raises:
        CheckpointError: the checkpoint cannot be had or used; says how to mend it.
    """

    chatty = True

    def __init__(self, model_path: str = "Qwen/Qwen-VL-Chat", **kwargs: Any) -> None:
        super().__init__(model_path, **kwargs)

    def chat_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        with self._answering(message[-1]["content"] if message else []):
            return self.core.chat(message)


def _question(message: Any) -> str:
    """Which question a message is, for the end of an error."""
    asked = asked_by_host()
    if asked is not None:
        return f" (question {asked.index} of {asked.dataset})"
    items = message if isinstance(message, list) else [message]
    text = " ".join(str(item.get("value")) for item in items if isinstance(item, dict) and item.get("type") == "text")
    return f" (question {text[:80]!r})" if text else ""
