"""What our classes in the host's table share: a question that cannot be asked fails alone, a refusal fails the run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

from vlmeval.vlm.base import BaseModel

from redrel_vlmeval.errors import RedrelError, Refused, Unaskable
from redrel_vlmeval.host import asked_by_host, failed_answer, pictures
from redrel_vlmeval.models.batching import Batches, batch_size
from redrel_vlmeval.models.pictures import check_readable, is_local
from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.truncation import Trace


class HostedModel(BaseModel):
    """A model class whose errors mean the same in every loop of the host.

    * :class:`Unaskable`, one question: its answer is the host's own mark of a failed question, so that the others are
      asked and scored, and its record says ``error``. Where no question of a benchmark can be asked, the run fails.
    * Any other of our errors is a refusal: the run fails, also where the host catches exceptions and writes an answer.
    * Anything else goes to the host as it is.
    """

    INSTALL_REQ = False

    def __init__(self, batch: int | None = None) -> None:
        super().__init__()
        self.together(batch)
        self.recorder: Recorder | None = None  # None: a variant around this model keeps the records
        self._caught: RedrelError | None = None  # the first of the answer at hand
        self._refusal: RedrelError | None = None  # stops all that is asked afterwards

    def message_of(self, line: Any, dataset: Any, **given: Any) -> Any:
        """The message of one benchmark line; ``Unaskable`` where it cannot be asked."""
        raise NotImplementedError(f"{type(self).__name__} leaves prompts to the benchmark")

    def dump_image(self, line: Any, dataset: Any) -> Any:
        """Paths of a line's pictures, which the host decodes into files.

        Raises:
            Unaskable: one cannot be decoded.
        """
        with pictures.decoded(line, dataset):
            return super().dump_image(line, dataset)

    def build_prompt(self, line: Any, dataset: Any = None, **given: Any) -> Any:
        """The message of one benchmark line; ``given`` is what the host says about videos.

        Raises:
            Unaskable: the line cannot be asked, and the host is not asking, or can ask nothing else.
        """
        self._begin()
        try:
            return self.message_of(line, dataset, **given)
        except Unaskable as error:
            if failed_answer() is None:
                raise
            return GivenUp(error)

    def generate(self, message: Any, dataset: str | None = None) -> Any:
        """The answer to a message.

        Raises:
            Unaskable: it cannot be asked, and the host is not asking, or can ask nothing else.
            RedrelError: a refusal; :class:`Refused` for a RuntimeError that the host is told to catch.
        """
        self._begin()
        try:
            with self.answering([message]):
                return self._batches.answer(message, dataset)
        except Unaskable as error:
            return self._failed(error)
        except RedrelError as error:
            if isinstance(error, RuntimeError) and os.environ.get("SKIP_ERR") == "1":
                raise Refused(str(error)) from error
            raise

    # -- several questions at once, see batching -----------------------------------------------------------------------

    def together(self, batch: int | None) -> None:
        """From here on ``batch`` questions at once; as ``REDREL_BATCH`` says where None."""
        self._batches = Batches(self, batch_size(batch))

    def decoding(self) -> Any:
        return self.model

    def host(self) -> Any:
        return self

    def ask(self, message: Any, dataset: str | None) -> Any:
        if isinstance(message, GivenUp):
            raise message.error
        return super().generate(message, dataset)

    def cut(self) -> AbstractContextManager[Trace | None]:
        return nullcontext()

    def chat(self, messages: Any, dataset: str | None = None) -> Any:
        """The answer to the last turn of a conversation.

        The host catches what is raised here and writes it down as an answer. So a refusal comes back as an answer that
        no file can hold, and stops all that is asked afterwards.
        """
        self._begin()
        try:
            with self.answering([turn["content"] for turn in messages]):
                answer = super().chat(messages, dataset)
            if self._caught is not None:
                raise self._caught
            return answer
        except Unaskable as error:
            return self._failed(error)
        except RedrelError as error:
            if asked_by_host() is None:
                raise
            self._refusal = error
            return Unwritable(error)

    @contextmanager
    def answering(self, messages: Sequence[Any]) -> Iterator[None]:
        """Around one answer to ``messages``: what is wrong with a picture or a question names it, and is noted.

        Raises:
            Unaskable: a picture is missing or cannot be read, or what was raised inside, with the question's place.
        """
        try:
            with _pictures_named(messages):
                yield
        except Unaskable as error:
            placed = error if error.placed else Unaskable(f"{error}{_place(messages)}", True)
            self._caught = self._caught or placed
            raise placed from error
        except RedrelError as error:
            self._caught = self._caught or error
            raise

    @contextmanager
    def recorded(self, messages: Sequence[Any]) -> Iterator[None]:
        """:meth:`answering` with a record of what the answer cost, unless a variant around this model keeps those."""
        with self.answering(messages):
            if self.recorder is None:
                yield
            else:
                with self.recorder.question():
                    yield

    def _begin(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        self._caught = None

    def _failed(self, error: Unaskable) -> str:
        answer = failed_answer()
        if answer is None or self.recorder is None:
            raise error
        self.recorder.failed(str(error))
        return answer


class GivenUp(list[dict[str, str]]):
    """The message of a question that cannot be asked."""

    def __init__(self, error: Unaskable) -> None:
        super().__init__([{"type": "text", "value": str(error)}])
        self.error = error


class Unwritable(str):
    """An answer that is none: the host catches what models raise in a conversation, but not what its files raise."""

    error: RedrelError

    def __new__(cls, error: RedrelError) -> Unwritable:
        text = super().__new__(cls, error)
        text.error = error
        return text

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise self.error


@contextmanager
def _pictures_named(messages: Sequence[Any]) -> Iterator[None]:
    """Within the context an error that a picture's file explains is that picture's."""
    try:
        yield
    except RedrelError:
        raise
    except Exception:
        for path in _values(messages, "image"):
            if is_local(path):
                check_readable(str(path))
        raise


def _values(messages: Sequence[Any], kind: str) -> list[Any]:
    """Values of the items of one type, of messages that are one item or a list of items."""
    items = [item for message in messages for item in (message if isinstance(message, list) else [message])]
    return [item.get("value") for item in items if isinstance(item, dict) and item.get("type") == kind]


def _place(messages: Sequence[Any]) -> str:
    """Which question it is, for the end of an error."""
    asked = asked_by_host()
    if asked is not None:
        return f" (question {asked.index} of {asked.dataset})"
    text = " ".join(map(str, _values(messages[-1:], "text")))
    return f" (question {text[:80]!r})" if text else ""
