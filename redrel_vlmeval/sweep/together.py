"""Several questions of a sweep at once: one call of ``generate`` for their untouched answers, padded on the left.

```
question 1   its class's own code, up to its generate()      captured
question 2   the same                                        captured
             one generate() for both, listened to row by row       Shared of 1, Shared of 2
             every setting of 1 and of 2, their tokens side by side
question 1   its class's own code again, over each answer
```
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from redrel_vlmeval.models import Alone, Call, answer_length, captured, ends, generated, together, unrecorded
from redrel_vlmeval.sweep.decoding import decoded
from redrel_vlmeval.sweep.listening import Recorder
from redrel_vlmeval.sweep.rows import Row
from redrel_vlmeval.sweep.several import Several
from redrel_vlmeval.truncation import claimed

if TYPE_CHECKING:
    from redrel_vlmeval.sweep.question import Answer, Question
    from redrel_vlmeval.sweep.sweeper import Sweeper

logger = logging.getLogger("redrel_vlmeval")


def answers(
    sweeper: Sweeper, messages: Sequence[Any], dataset: str | None, again: Callable[[int], Any]
) -> list[dict[str, Answer] | None]:
    """Of every message what :meth:`Sweeper.answer` gives; None of one that must be asked by itself.

    ``again(place)``: the message at that place, built once more, whenever its class's code runs: what a class or a
    benchmark keeps while it builds one, and the pictures that it writes, are then that question's.

    Raises:
        Alone: this model answers its questions one by one; says why. Whatever the model raises.
    """
    decoder = sweeper.decoder
    found: list[dict[str, Answer] | None] = [None] * len(messages)
    if not decoder.given_tables:
        raise Alone(f"{type(decoder.root).__name__}: its blocks are given a batch in a form that is not known")
    with ExitStack() as stack:
        stack.enter_context(claimed(decoder, "sweep"))
        stack.enter_context(unrecorded(sweeper.host))
        stack.enter_context(sweeper.pictures.serving())
        said: dict[int, Any] = {}
        calls = _captured(sweeper, len(messages), dataset, again, said)
        first = next(iter(calls.values()), None)
        calls = {place: call for place, call in calls.items() if first is not None and call.joins(first)}
        if len(calls) < 2:
            return found
        sweeper.expect(messages, sweeper.later)  # once more: the class reads them again over each answer
        questions = _heard(sweeper, list(calls.values()))
        for place, question in zip(calls, questions, strict=True):
            again(place)
            found[place] = question.answers(said[place], dataset)
    sweeper.batches = [count for question in questions for count in question.batches]
    return found


def _captured(
    sweeper: Sweeper, count: int, dataset: str | None, again: Callable[[int], Any], said: dict[int, Any]
) -> dict[int, Call]:
    """Place of a message -> its call of ``generate``, and into ``said`` the message; what fails is left alone.

    Raises:
        Alone: none can be answered with others.
    """
    found: dict[int, Call] = {}
    reason: Alone | None = None
    for place in range(count):
        try:
            said[place] = again(place)
            ask = partial(sweeper.host.generate, message=copy.deepcopy(said[place]), dataset=dataset)
            found[place] = captured(sweeper.heard, ask)
        except Alone as error:
            reason = error
        except Exception as error:
            logger.debug("left to be asked by itself: %s", error)
    if reason is not None and not found:
        raise reason
    return found


def _heard(sweeper: Sweeper, calls: Sequence[Call]) -> list[Question]:
    """One question for each call, listened to in one ``generate``, with every setting's answer."""
    model, decoder = sweeper.heard, sweeper.decoder
    questions = [sweeper.question(call.tensors | call.settings) for call in calls]
    args, kwargs = together(model, calls)
    ids = args[0] if args else kwargs["input_ids"]
    width, counts = ids.shape[1], decoder.image_mask(ids).sum(1).tolist()
    starts = [width - call.tensors["input_ids"].shape[1] for call in calls]
    recorders = [Recorder(decoder, sweeper.specs, Row(row, start, counts)) for row, start in enumerate(starts)]
    with torch.no_grad(), ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder.listening(None if recorder is recorders[0] else recorders[0]))
        ids, output = generated(model, args, kwargs)
    stops = ends(model, calls[0].settings)
    for question, recorder, start, row in zip(questions, recorders, starts, output, strict=True):
        whole = row[None, start : width + answer_length(row[width:].tolist(), stops)]
        question.note(whole, recorder)
    held = sum(recorder.shared.bytes for recorder in recorders if recorder.shared is not None)
    with torch.inference_mode():
        _answer(sweeper, [question for question in questions if question.left], held)
        for question in questions:
            question.run(model.generate, held)
    return questions


def _answer(sweeper: Sweeper, questions: Sequence[Question], held: int) -> None:
    """All settings of all ``questions`` together, where memory holds them; what is not complete is left to each."""
    room = max((question.room for question in questions), default=0)
    known = [(question.left, question.known.length, question.known.prefix) for question in questions]
    need = sum(question.sizes.together(*one, room) for question, one in zip(questions, known, strict=True))
    if len(questions) < 2 or need > sweeper.memory - held:
        return
    several = Several(sweeper.decoder, [question.continuation(question.left, room) for question in questions])
    width = max(length for _, length, _ in known)
    rows = [question.known.ids.expand(len(question.left), -1) for question in questions]
    ids = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    found, first = decoded(questions[0].request, sweeper.heard.generate, ids, several), 0
    for question in questions:
        count = len(question.left)
        question.left, question.room = question.take(question.left, found, first), room * 4
        first += count
