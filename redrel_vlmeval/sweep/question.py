"""One question of a sweep: what its prefill has shown, and every setting's answer to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models import MEASURED, computed, pictures_of, recorded, told
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.sweep import letters
from redrel_vlmeval.sweep.continuation import Continuation
from redrel_vlmeval.sweep.decoding import Decoded, Request, decoded
from redrel_vlmeval.sweep.listening import Recorder
from redrel_vlmeval.sweep.memory import Sizes
from redrel_vlmeval.sweep.shared import Shared
from redrel_vlmeval.sweep.tails import Tail
from redrel_vlmeval.truncation import Prompt, PromptTrace, check_generation, replaced_generate

if TYPE_CHECKING:
    from redrel_vlmeval.sweep.sweeper import Sweeper

ROOM = 4  # tokens of an answer that memory is first set aside for, at least


@dataclass(frozen=True)
class Answer:
    """One setting's answer: the host's text, and an efficiency record without times."""

    text: str
    record: dict[str, Any]


@dataclass
class Found:
    """What is known of one setting's answer: its new tokens, and the logits of the first, [vocabulary]."""

    tokens: list[int]
    logits: torch.Tensor


class Question:
    """One question under way."""

    def __init__(self, sweeper: Sweeper) -> None:
        self.sweeper, self.decoder = sweeper, sweeper.decoder
        self.shared: Shared | None = None
        self.request: Request
        self.given: dict[str, Any] = {}  # what the call says of how its pictures are cut
        self.found: dict[str, Found] = {}
        self.batches: list[int] = []
        self.wanted: dict[Tail, list[str]] = {}
        self.left: list[Tail] = []  # not answered yet
        self.room = ROOM
        self.dressed: Callable[[list[int]], Any] = lambda tokens: tokens

    @property
    def known(self) -> Shared:
        """What was recorded of its prefill."""
        assert self.shared is not None  # as `note` has seen to
        return self.shared

    def listen(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """``generate`` as it is, with every setting's answer found behind its back."""

        def both(*args: Any, **kwargs: Any) -> Any:
            if self.shared is not None:
                raise self._twice()
            self.expect(Request.of(self.decoder, self.sweeper.heard, args, kwargs))
            recorder = Recorder(self.decoder, self.sweeper.specs)
            with recorder.listening():
                output = generate(*args, **kwargs)
            self.note(output, recorder)
            with torch.inference_mode():
                self.run(generate)
            return output

        return both

    def _twice(self) -> TruncationError:
        return TruncationError(f"{type(self.sweeper.host).__name__} calls model.generate twice for a question")

    def expect(self, request: Request) -> None:
        """The host's call of ``generate``, before it is made.

        Raises:
            TruncationError: it cannot be swept.
        """
        check_generation(self.sweeper.specs[0], self.decoder, request.kwargs)
        request.check_greedy()
        self.request = request

    def note(self, output: Any, recorder: Recorder) -> None:
        """What the call has given, the untouched answer, and what was heard of its prefill."""
        self.shared = shared = recorder.shared
        if shared is None:
            raise TruncationError(f"{type(self.sweeper.torch_model).__name__}: generate ran without a forward call")
        with torch.inference_mode():
            self.sweeper.check_parts(recorder)
        request = self.request
        self.given = told(self.decoder, request.kwargs, shared.ids[0])
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        before = shared.ids[:, : request.repeated(shared.length)]
        self.found[""] = Found(sequences[0, before.shape[1] :].tolist(), shared.logits.cpu())

        def dressed(tokens: list[int]) -> Any:
            """These tokens in the form that the host's class was given the untouched answer in."""
            new = torch.tensor([tokens], dtype=sequences.dtype, device=sequences.device)
            whole = torch.cat([before.to(sequences.device), new], 1)
            return whole if isinstance(output, torch.Tensor) else type(output)(sequences=whole)

        self.dressed = dressed
        self._plan(shared)

    def _plan(self, shared: Shared) -> None:
        """Every distinct way of cutting this prompt, none of which is answered yet."""
        for setting, prompt in shared.prompts.items():
            if prompt.stages:
                self.wanted.setdefault(tail_of(prompt, shared.prefix, setting), []).append(setting)
            else:
                self.found[setting] = self.found[""]
        self.left = sorted(self.wanted, key=lambda tail: (len(tail.index), tail.layer))
        self.room = max(ROOM, 2 * len(self.found[""].tokens))

    @property
    def sizes(self) -> Sizes:
        return self.sweeper.sizes(len(self.known.logits))

    def continuation(self, tails: Sequence[Tail], room: int) -> Continuation:
        """``tails`` of this prompt with ``room`` for their answers."""
        return Continuation(self.decoder, self.known, tails, room, self.sizes.at_once(self.known.length))

    def take(self, tails: Sequence[Tail], decoded: Decoded, first: int = 0) -> list[Tail]:
        """Note the answers of ``tails``, which begin with row ``first``; those that are not complete."""
        self.batches.append(len(tails))
        again = []
        for row, tail in enumerate(tails, first):
            if not decoded.complete[row]:
                again.append(tail)
                continue
            for setting in self.wanted[tail]:
                self.found[setting] = Found(decoded.tokens[row], decoded.first[row])
        return again

    def run(self, generate: Callable[..., Any], held: int | None = None) -> None:
        """What is left, in batches that memory holds, until all answers are complete.

        ``held``: bytes that are recorded of this question, and of others beside it.
        """
        shared, sizes = self.known, self.sizes
        budget = self.sweeper.memory - (shared.bytes if held is None else held)
        while self.left:
            batches = list(sizes.batches(self.left, shared.length, shared.prefix, self.room, budget))
            again: list[Tail] = []
            for batch in [[tail] for tail in self.left] if self.request.one_by_one else batches:
                continuation = self.continuation(batch, self.room)
                again += self.take(batch, decoded(self.request, generate, shared.ids, continuation))
            self.left, self.room = again, self.room * 4

    # -- what comes back ----------------------------------------------------------------------------------------------

    def answers(self, message: Any, dataset: str | None, text: str | None = None) -> dict[str, Answer]:
        """Every setting's text, by the host's own decoding of its tokens, and its record.

        ``text``: of the untouched answer, where the host has decoded that already.
        """
        shared = self.known
        said = {} if text is None else {tuple(self.found[""].tokens): text}
        answers = {}
        count = next(iter(shared.prompts.values())).image_counts[0]
        placed = recorded(self.decoder, self.given, count, pictures_of(message))
        for spec in [None, *self.sweeper.specs]:  # None: the untouched base
            found = self.found[spec.setting if spec else ""]
            key = tuple(found.tokens)
            if key not in said:
                said[key] = self._say(found.tokens, message, dataset)
            record = self._record(shared, spec, found, message)
            answers[record["setting"]] = Answer(said[key], record | (placed if record["kept"] else {}))
        return answers

    def _say(self, tokens: list[int], message: Any, dataset: str | None) -> str:
        sweeper, calls = self.sweeper, 0

        def given(*_args: Any, **_kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise self._twice()
            return self.dressed(tokens)

        with replaced_generate(sweeper.heard, lambda _: given):
            return str(sweeper.host.generate(message=copy.deepcopy(message), dataset=dataset))

    def _record(self, shared: Shared, spec: VariantSpec | None, found: Found, message: Any) -> dict[str, Any]:
        some, blocks = next(iter(shared.prompts.values())), len(self.decoder.blocks)
        whole = PromptTrace([shared.length] * blocks, [some.image_counts[0]] * blocks)
        own = whole
        if spec is not None:
            prompt = shared.prompts[spec.setting]
            own = prompt.traces[0]
            own.kept = prompt.kept_numbers()[0]
            own.kv = [count + len(found.tokens) - 1 for count in own.tokens]
        base = self.sweeper.specs[0].base
        spec = spec or VariantSpec(base)
        head = {"version": 1, "base": base or None, "setting": spec.setting, "source": "sweep"}
        times = dict.fromkeys(MEASURED) | {"new_tokens": len(found.tokens)}
        costs = computed(self.decoder, whole, own, spec, len(found.tokens))
        first = self.found[""].tokens[:1]
        margins = {
            "margin": letters.margin(found.logits, first[0]) if first else None,
            "letter_logits": self.sweeper.letter_logits(found.logits, message),
        }
        return head | times | costs | margins | self.sweeper.facts


def tail_of(prompt: Prompt, prefix: int, setting: str) -> Tail:
    """What has to be computed anew for one setting; settings that keep the same tokens share it.

    They do not where a rule merges, or chooses again later.
    """
    layer = prompt.stages[0].layer
    view = prompt.views[layer]
    own = view.index[0] >= prefix
    turned = None if view.turned is None else tuple(view.turned[0][own].tolist())
    alone = layer in prompt.merges or len(prompt.stages) > 1
    return Tail(layer, tuple(view.index[0][own].tolist()), turned, setting if alone else "")
