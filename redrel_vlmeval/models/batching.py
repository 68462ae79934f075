"""Several questions in one call, although the host asks one at a time: ``REDREL_BATCH=8``.

```
host asks 1   1 2 .. 8: the class's own code, up to its generate(), whose arguments are kept        captured
              one generate() for all of them, padded on the left                                  joined
              1: the class's own code again, to its end; its generate() gives the answer at once    dealt
host asks 2   2: the class's own code, to its end
```

Nothing is assumed about a class but that the same message makes the same call of ``generate``; that is compared when an
answer is dealt, and where it does not hold, the model answers one by one from there on, and says so once.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import torch

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.host import asked_by_host, upcoming
from redrel_vlmeval.models.ahead import Ahead, ahead_of, unchanged
from redrel_vlmeval.models.at_once import AtOnce
from redrel_vlmeval.models.calls import (
    Alone,
    Call,
    answer_length,
    captured,
    ends,
    generated,
    together,
)
from redrel_vlmeval.models.efficiency import Meter, Share, shares
from redrel_vlmeval.models.pictures import pictures_of
from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.models.untouched import as_before
from redrel_vlmeval.truncation import Trace, replaced_generate

logger = logging.getLogger("redrel_vlmeval")
BATCH = "REDREL_BATCH"


def batch_size(given: Any = None) -> int:
    """Questions that are answered at once: ``given``, else what ``REDREL_BATCH`` says, else 1.

    Raises:
        InvalidValue: it is no number from 1.
    """
    where, value = ("batch", given) if given is not None else (BATCH, os.environ.get(BATCH) or "1")
    text = str(value)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InvalidValue(f"{where}={text}: how many questions are answered at once, a number from 1")
    return int(text)


class Asked(Protocol):
    """A model of the host whose questions are answered together."""

    recorder: Recorder | None

    def decoding(self) -> Any:
        """The torch model whose ``generate`` its class calls."""

    def host(self) -> Any:
        """The model as the host holds it: it builds the messages."""

    def ask(self, message: Any, dataset: str | None) -> Any:
        """The answer to one message, by the class's own code."""

    def cut(self) -> AbstractContextManager[Trace | None]:
        """Around the call for all questions: as around that for one."""


@dataclass(frozen=True)
class Dealt:
    """The answer to one call: its ``digest``, prompt and answer [1, s + t], and what it cost."""

    digest: list[Any]
    ids: torch.Tensor
    share: Share


class Batches:
    """Answers of a model's questions, ``size`` at a time, kept until the host asks for them."""

    def __init__(self, asked: Asked, size: int) -> None:
        self.asked, self._at_once = asked, AtOnce(size, self._say)
        self._kept: dict[str, Dealt] = {}
        self._alone: set[str] = set()  # questions of a batch that failed
        self._foreseen: dict[Any, str] = {}  # benchmark and index of a question that was looked ahead for -> its key
        self._blind = False  # nothing is looked ahead for
        self._said: set[str] = set()

    def answer(self, message: Any, dataset: str | None) -> Any:
        """The answer to a message; inside the host's loop with the following ones."""
        asked = asked_by_host()
        if asked is None:
            return self.asked.ask(message, dataset)
        key = _key(message, dataset) if self._at_once.size > 1 else ""
        if self._foreseen.pop((dataset, asked.index), key) != key and self._at_once.size > 1:
            self._at_once.one_by_one("its benchmark builds another message when it builds a question's again")
        if self._at_once.size == 1:
            with self._looking_ahead(message) as builds:
                self._expect([message], builds)
            return self._ask(message, dataset)
        if key not in self._kept and key not in self._alone:
            self._fill(key, message, dataset)
        dealt = self._kept.pop(key, None)
        if dealt is None:
            return self._by_itself(key, message, dataset)
        return self._deal(dealt, message, dataset)

    def _ask(self, message: Any, dataset: str | None) -> Any:
        with self._pictures.serving():
            return self.asked.ask(message, dataset)

    # -- what is asked next -------------------------------------------------------------------------------------------

    @cached_property
    def _pictures(self) -> Ahead:
        return ahead_of(self.asked.host())

    @contextmanager
    def _looking_ahead(self, message: Any) -> Iterator[Iterator[tuple[Any, Callable[[], Any]]]]:
        """Index and builder of the messages of the questions that come next; building them leaves nothing behind.

        The question at hand, ``message``, stays the one that was built for it: also where a class, its variant's base
        or the benchmark keeps it, and where the benchmark writes the pictures of several questions into one file.
        """
        host, owners = self.asked.host(), self._owners()
        as_shown = unchanged(pictures_of(message))
        with as_before(*owners), _silent(self.asked.recorder):
            yield iter(()) if self._blind else upcoming(host)
        if self._blind or as_shown():
            return
        self._blind = True
        if self._at_once.size > 1:
            self._at_once.one_by_one("its benchmark writes the pictures of several questions into one file")
        with as_before(*owners):
            for _, build in islice(upcoming(host, after=0), 1):  # the question at hand writes its own again
                build()

    def _owners(self) -> tuple[Any, ...]:
        """What keeps something of a question: the class, its variant's base, the benchmark."""
        host, asked = self.asked.host(), asked_by_host()
        return host, getattr(host, "inner", None), None if asked is None else asked.benchmark

    def _expect(self, messages: Sequence[Any], builds: Iterator[tuple[Any, Callable[[], Any]]]) -> None:
        """Have the pictures of these messages made ready, and of as many as are answered at once after them."""
        following = []
        for _, build in islice(builds, self._at_once.size):
            try:
                following.append(build())
            except Exception as error:
                logger.debug("left to its own turn: %s", error)
        self._pictures.expect(path for message in (*messages, *following) for path in pictures_of(message))

    # -- what is answered together ------------------------------------------------------------------------------------

    def _fill(self, key: str, message: Any, dataset: str | None) -> None:
        """Answer this question and those that come next, and keep what comes of it."""
        try:
            with as_before(*self._owners()), _silent(self.asked.recorder):
                first = self._captured(message, dataset)
        except Alone as reason:
            self._at_once.one_by_one(str(reason))
            return
        calls = {key: first}
        for old in list(self._kept)[: -4 * self._at_once.wanted]:  # of questions that the host has passed over
            del self._kept[old]
        messages = [message]
        self._foreseen = {}
        with self._looking_ahead(message) as builds:
            for other, call in self._ahead(builds, dataset, self._at_once.size - 1):
                messages.append(other)
                if call.joins(first):
                    calls[_key(other, dataset)] = call
            self._expect(messages, builds)  # of these once more: their class reads them again when they are dealt
        self._answer_together(calls)

    def _captured(self, message: Any, dataset: str | None) -> Call:
        """See :func:`captured`."""
        return captured(self.asked.decoding(), lambda: self._ask(copy.deepcopy(message), dataset))

    def _ahead(
        self, builds: Iterator[tuple[Any, Callable[[], Any]]], dataset: str | None, count: int
    ) -> Iterator[tuple[Any, Call]]:
        """Message and call of up to ``count`` questions that come next; what fails is left to its own turn."""
        while count > 0 and (following := next(builds, None)) is not None:
            index, build = following
            call = None
            try:
                message = build()
                self._foreseen[dataset, index] = key = _key(message, dataset)
                if key in self._kept or key in self._alone:
                    continue
                call = self._captured(message, dataset)
            except Exception as error:  # also Alone
                logger.debug("left to its own turn: %s", error)
            count -= 1
            if call is not None:
                yield message, call

    def _answer_together(self, calls: dict[str, Call]) -> None:
        """Keep the answers to ``calls``; where that cannot be, they are asked one by one, or in smaller batches."""
        found = self._at_once.answers(list(calls.items()), lambda some: self._generated(dict(some)))
        self._kept |= found or {}
        self._alone |= dict(self._at_once.failed).keys()

    @torch.no_grad()
    def _generated(self, calls: dict[str, Call]) -> dict[str, Dealt]:
        model = self.asked.decoding()
        given = list(calls.values())
        args, kwargs = together(model, given)
        with self.asked.cut() as trace, Meter(model) as meter:
            ids, output = generated(model, args, kwargs)
        width, settings = ids.shape[1], given[0].settings
        stops = ends(model, settings)
        lengths = [answer_length(row[width:].tolist(), stops) for row in output]
        prompts = trace.prompts if trace else []
        costs = shares(meter, ids, kwargs["attention_mask"], lengths, prompts, [call.tensors for call in given])
        found = {}
        for row, (key, call) in enumerate(calls.items()):
            whole = torch.cat([call.tensors["input_ids"], output[row : row + 1, width : width + lengths[row]]], 1)
            found[key] = Dealt(call.digest(), whole, costs[row].longer(call.seconds))
        return found

    # -- handing out --------------------------------------------------------------------------------------------------

    def _deal(self, dealt: Dealt, message: Any, dataset: str | None) -> Any:
        """The class's own code over an answer that is there already."""
        model, calls = self.asked.decoding(), 0

        def deal(original: Callable[..., Any]) -> Callable[..., Any]:
            def generate(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > 1:
                    self._at_once.one_by_one("its class calls generate() several times for one answer")
                elif self._same(model, dealt, args, kwargs):
                    if self.asked.recorder is not None:
                        self.asked.recorder.share = dealt.share
                    return dealt.ids
                return original(*args, **kwargs)

            return generate

        with replaced_generate(model, deal):
            return self._ask(message, dataset)

    def _same(self, model: Any, dealt: Dealt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        try:
            if Call.of(model, args, kwargs).digest() == dealt.digest:
                return True
        except Alone:
            pass
        self._at_once.one_by_one("its class asks another thing when it is given the same message again")
        return False

    def _by_itself(self, key: str, message: Any, dataset: str | None) -> Any:
        try:
            return self._ask(message, dataset)
        except Exception as error:
            asked = asked_by_host()
            if key in self._alone and asked is not None:
                logger.error("%s: it was question %s of %s: %s", asked.model, asked.index, asked.dataset, error)
            raise
        finally:
            self._alone.discard(key)

    def _say(self, words: str) -> None:
        asked = asked_by_host()
        if asked is not None and words not in self._said:
            self._said.add(words)
            logger.warning("%s: %s", asked.model, words)


@contextmanager
def _silent(recorder: Recorder | None) -> Iterator[None]:
    """Within the context no record is written: the question at hand is not the one that is asked."""
    if recorder is None:
        yield
        return
    recorder.silent = True
    try:
        yield
    finally:
        recorder.silent = False


def _key(message: Any, dataset: str | None) -> str:
    return json.dumps([dataset, message], sort_keys=True, default=str)
