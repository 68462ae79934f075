"""``Truncating``: before a model class of lmms-eval, it answers with fewer visual tokens and says what that cost.

generate_until(requests)            the harness's own: prompts, batches, decoding
  task_dict[task][split][doc]       noted: whose prompts are in the batch
  model.generate(batch)             under truncated(model, trunc), timed; a failure here ends the run
-> results                          each carries its question's record into the harness's samples
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from redrel_vlmeval.errors import InvalidValue, TruncationError
from redrel_vlmeval.lmms.door import Door
from redrel_vlmeval.lmms.records import Question, means, record
from redrel_vlmeval.models import Meter, checkpoint_path
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.truncation import Trace, replaced_generate, truncated


class Truncating:
    """Mixed in before a model class of the harness.

    Args:
        trunc: a setting (``l5_k128``); without one the model is untouched and only measured.
        kwargs: the harness's class's own; ``pretrained=redrel_tiny`` is the model in the box.

    Raises:
        RedrelError: no setting, one that asks for another prompt or ranked options, or one that the model cannot
            honour. In the harness's command, which would end without a word of failure, the process ends with 1.
    """

    door: Door
    model: Any  # the harness's class has it

    def __init__(self, trunc: str = "", **kwargs: Any) -> None:
        with failing_loudly():
            self.spec = setting(trunc)
            check_needs(type(self).__name__, self.door)
            self.weights = kwargs.get("pretrained")
            if self.weights:
                kwargs["pretrained"] = checkpoint_path(self.weights)
            super().__init__(**kwargs)
            tokenizer = getattr(getattr(self, "processor", None), "tokenizer", None)
            if tokenizer is not None:
                tokenizer.padding_side = "left"  # several prompts in a batch go on at their ends
            if self.spec.stages:
                with truncated(self.model, self.spec):  # refuses now what it would refuse at the first question
                    pass

    def generate_until(self, requests: list[Any]) -> list[Any]:
        with self._session(requests) as session:
            results = super().generate_until(requests)  # type: ignore[misc]
        return [session.with_record(request, result) for request, result in zip(requests, results, strict=True)]

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        with self._session(requests):
            results: list[Any] = super().generate_until_multi_round(requests)  # type: ignore[misc]
        return results

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """The harness's own for an untouched model.

        Raises:
            TruncationError: the answer stands behind the prompt there, and would rank the prompt's visual tokens.
        """
        if self.spec.stages:
            with failing_loudly():
                raise TruncationError(
                    f"trunc={self.spec}: a task of output type loglikelihood gives prompt and answer in one call, so "
                    "the answer's last token would rank the visual tokens; choose a task of type generate_until"
                )
        return super().loglikelihood(requests)  # type: ignore[misc]

    @contextlib.contextmanager
    def _session(self, requests: list[Any]) -> Iterator[Session]:
        """Within the context the harness's class answers truncated, and is recorded."""
        with failing_loudly(), contextlib.ExitStack() as undo:
            trace = undo.enter_context(truncated(self.model, self.spec)) if self.spec.stages else None
            session = Session(self, trace)
            undo.enter_context(session.noting_documents())
            undo.enter_context(replaced_generate(self.model, session.replace))
            try:
                yield session
            except Stopped as stop:
                raise stop.error from None
            if requests and not session.calls:
                raise TruncationError(f"{type(self).__name__}: answered without model.generate, so nothing was seen")
            log_metrics(0.0, 0, 0.0, means(session.all))  # adds no time and no tokens to the harness's own


def setting(trunc: str) -> VariantSpec:
    """What ``trunc=`` says.

    Raises:
        KeyError: no setting. ValueError: one for a whole name, or for what a task of the harness decides.
    """
    spec = parse(str(trunc)) if trunc else VariantSpec()
    if trunc and spec.base == trunc:
        spec = replace(parse(f"model_trunc_{trunc}"), base="")  # which says what is wrong with it
    if spec.base:
        raise InvalidValue(f"trunc={trunc}: give the setting alone, such as trunc=l5_k128; the model is pretrained=...")
    if spec.ppl or spec.prompt != "stock":
        word = "ppl" if spec.ppl else f"p-{spec.prompt}"
        raise InvalidValue(f"trunc={trunc}: {word!r} is VLMEvalKit's; a task of lmms-eval asks in its own words")
    return spec


def check_needs(name: str, door: Door) -> None:
    """Refuse now what the harness's class would fail at, without a word of it.

    Raises:
        TruncationError: a package is missing.
    """
    if door.needs is not None and importlib.util.find_spec(door.needs[0]) is None:
        package, instead = door.needs
        raise TruncationError(f"{name}: {door.name} of lmms-eval needs the package {package!r}; {instead}")


class Stopped(BaseException):
    """A failure inside ``generate``: no ``Exception``, because classes of the harness answer '' to all of those."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def failing_loudly() -> Iterator[None]:
    """An error within the context ends the harness's own command with 1; it would go on, and end with 0."""
    try:
        yield
    except Exception as error:
        if not _in_command():
            raise
        traceback.print_exc()
        raise SystemExit(f"{type(error).__name__}: {error}") from error


def _in_command() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__spec__")
        if frame.f_code.co_name == "cli_evaluate" and getattr(name, "name", None) == "lmms_eval.__main__":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class Session:
    """One call of the harness: which documents it took, and the records of the batches made of them."""

    def __init__(self, holder: Any, trace: Trace | None) -> None:
        self.holder, self.trace = holder, trace
        self.taken: list[Question] = []
        self.asked: list[Question] = []
        self.calls = 0
        self.all: list[dict[str, Any]] = []
        self.of: dict[Question, list[dict[str, Any]]] = defaultdict(list)

    @contextlib.contextmanager
    def noting_documents(self) -> Iterator[None]:
        """Within the context the harness's table of documents notes which of them were taken."""
        documents = self.holder.task_dict
        self.holder.task_dict = Documents(documents, self.taken)
        try:
            yield
        finally:
            self.holder.task_dict = documents

    def replace(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``generate`` as it was, measured; a failure is no longer an ``Exception``."""

        def generate(*args: Any, **kwargs: Any) -> Any:
            try:
                return self._measured(original, args, kwargs)
            except Exception as error:
                raise Stopped(error) from error

        return generate

    def _measured(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        holder, beam = self.holder, self.holder.spec.beam
        if beam > 1:
            kwargs |= {"num_beams": beam, "do_sample": False}
        # The meter stands around the model's own method: it may have to note what that is given, too.
        with replaced_generate(holder.model, lambda _ours: original), Meter(holder.model) as meter:
            output = holder.model.generate(*args, **kwargs)
        prompts = list(self.trace.prompts) if self.trace is not None else []
        if self.trace is not None:
            self.trace.prompts.clear()
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if self.taken:  # else a further round on the same documents
            self.asked, self.taken[:] = self.taken[-len(ids) :], []
        asked = self.asked
        if len(asked) != len(ids):
            raise TruncationError(f"{len(ids)} prompts in a batch, but {len(asked)} questions were read for it")
        made = record(meter, holder, ids, kwargs, prompts, output)
        for question, one in zip(asked, made, strict=True):
            self.of[question].append(one)
        self.all += made
        return output

    def with_record(self, request: Any, result: Any) -> GenerationResult:
        """A result whose token counts, as the harness logs them, hold the record of its question."""
        text, counts = result, None
        if isinstance(result, GenerationResult):
            text, counts = result.text, result.token_counts
        *_, document, task, split = request.args
        own = self.of.get((task, split, document))
        if not own:  # asked in words only, or taken from the harness's cache
            return result
        one = own.pop(0) if len(own) > 1 else own[0]
        known = counts or TokenCounts(output_tokens=one["new_tokens"])
        return GenerationResult(text, Counts(known.input_tokens, known.output_tokens, known.reasoning_tokens, one))


class Counts(TokenCounts):
    """Token counts of the harness, and under ``redrel`` the record of what they cost."""

    def __init__(self, given: int | None, made: int | None, reasoning: int | None, cost: dict[str, Any]) -> None:
        super().__init__(given, made, reasoning)
        self.cost = cost

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "redrel": self.cost}


class Documents:
    """``task_dict[task][split][document]`` of the harness, which notes every document that is taken."""

    def __init__(self, inner: Any, taken: list[Question], path: tuple[Any, ...] = ()) -> None:
        self.inner, self.taken, self.path = inner, taken, path

    def __getitem__(self, key: Any) -> Any:
        found, path = self.inner[key], (*self.path, key)
        if len(path) < 3:
            return Documents(found, self.taken, path)
        self.taken.append(path)
        return found
