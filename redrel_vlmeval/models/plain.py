"""Models on the host's own classes that answer several questions at once, see :mod:`.batching`."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models.batching import Batches
from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.models.wrapping import find_torch_model

logger = logging.getLogger("redrel_vlmeval")


class Plain:
    """A model on the host's own class, as :class:`Batches` asks it; no records are kept of it."""

    recorder: Recorder | None = None

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.torch_model = find_torch_model(model, name)
        self.generate = model.generate

    def decoding(self) -> Any:
        return self.torch_model

    def host(self) -> Any:
        return self.model

    def ask(self, message: Any, dataset: str | None) -> Any:
        return self.generate(message, dataset)

    def cut(self) -> AbstractContextManager[None]:
        return nullcontext()


def batched(model: Any, name: str, size: int) -> Any:
    """A model of the host's own class that answers ``size`` questions at once; itself where it has no torch model.

    Its ``generate`` is changed, of this object alone; what a variant calls is ``generate_inner``.
    """
    try:
        plain = Plain(model, name)
    except TruncationError as error:
        logger.warning("%s: answers one by one: %s", name, error)
        return model
    batches = Batches(plain, size)
    model.generate = lambda message, dataset=None: batches.answer(message, dataset)
    return model
