"""``Sweeper(host_model, specs).answer(message, dataset)``: every setting's answer to a question, from one prefill."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models import (
    MEASURED,
    computed,
    find_torch_model,
    pictures_of,
    recorded,
    told,
    unrecorded,
    versions,
)
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.sweep import letters
from redrel_vlmeval.sweep.continuation import Continuation
from redrel_vlmeval.sweep.decoding import Request, decode
from redrel_vlmeval.sweep.memory import Sizes, default_budget
from redrel_vlmeval.sweep.plan import not_swept
from redrel_vlmeval.sweep.shared import Recorder, Shared
from redrel_vlmeval.sweep.tails import Tail
from redrel_vlmeval.truncation import (
    Prompt,
    PromptTrace,
    check_generation,
    check_setting,
    claimed,
    find_decoder,
    replaced_generate,
)

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


class Sweeper:
    """A built model of the host that answers for many settings at once, each as its variant by name would.

    The host's class makes the prompt, the pixels and the text of the answers; its call of ``model.generate`` runs once,
    untouched, and is listened to. The model is as before after every answer, also after an exception.

    Args:
        host_model: a model of the host, built, not itself a variant.
        specs: settings of one base: no prompt, no beams, not official.
        memory: bytes for all that is held beside the weights and the untouched answer's own working memory; where not
            even one setting fits, they go one at a time. Half precision rounds otherwise in batches of another size, so
            the default, a share of what is free now, is a power of two.

    Raises:
        TruncationError: a setting or a model that cannot be swept; says why.
    """

    def __init__(self, host_model: Any, specs: Sequence[VariantSpec], memory: int | None = None) -> None:
        self.host, self.specs = host_model, list(specs)
        self._check_specs()
        self.torch_model = find_torch_model(host_model, "sweep")
        self.decoder = find_decoder(self.torch_model)
        self.heard = self.decoder.heard(self.torch_model)
        if self.decoder.divided:
            raise TruncationError(
                "a sweep takes a model whose heads are all here; load it with device_map, not tp_plan"
            )
        for spec in self.specs:
            check_setting(spec, self.decoder)
        device = next(self.torch_model.parameters()).device
        self.memory = default_budget(device) if memory is None else memory
        own = getattr(host_model, "recorder", None)
        self.facts = own.facts if own is not None else self._facts()
        self.batches: list[int] = []  # settings that ran together, batch by batch, for the latest question
        self._letters: dict[str, list[int]] | None = None
        self._checked = False
        self._sizes: Sizes | None = None

    def _check_specs(self) -> None:
        if isinstance(getattr(self.host, "spec", None), VariantSpec):
            raise TruncationError(f"{self.host.spec}: a sweep starts from the untouched base, not from a variant")
        bases = sorted({spec.base for spec in self.specs})
        if len(bases) != 1:
            raise TruncationError(f"a sweep has settings of one base, got {len(bases)}: {', '.join(bases) or 'none'}")
        seen = set()
        for spec in self.specs:
            if reason := not_swept(spec):
                raise TruncationError(f"{spec.setting or 'the untouched base'}: a sweep {reason}")
            if spec.setting in seen:
                raise TruncationError(f"{spec.setting}: given twice")
            seen.add(spec.setting)

    def _facts(self) -> dict[str, Any]:
        kind, config = type(self.host), getattr(self.torch_model, "config", None)
        weights = getattr(config, "_name_or_path", None) or getattr(self.host, "model_path", None)
        found = {"backend": f"{kind.__module__}.{kind.__name__}", "weights": weights}
        return found | {"revision": getattr(config, "_commit_hash", None), "versions": versions()}

    # -- one question -------------------------------------------------------------------------------------------------

    def answer(self, message: Any, dataset: str | None = None) -> dict[str, Answer]:
        """Setting -> answer, ``""`` for the untouched base.

        Raises:
            TruncationError: this question cannot be swept, or not in this memory. Whatever the host's class raises.
        """
        try:
            return self._answer(message, dataset)
        except torch.OutOfMemoryError as error:
            raise TruncationError(
                f"no memory is left on the GPU beside the {self.memory / 2**30:.3g} GiB that the sweep may use; go on "
                f"with less, such as --memory {max(1, self.memory >> 21)}M: answers given are kept"
            ) from error

    def _answer(self, message: Any, dataset: str | None) -> dict[str, Answer]:
        question = Question(self)
        with ExitStack() as stack:
            stack.enter_context(claimed(self.decoder, "sweep"))
            stack.enter_context(unrecorded(self.host))
            stack.enter_context(self.decoder.entered())
            with replaced_generate(self.heard, question.listen):
                text = self.host.generate(message=copy.deepcopy(message), dataset=dataset)
            if question.shared is None:
                raise TruncationError(
                    f"{type(self.host).__name__} answered without a call of model.generate; it cannot be swept"
                )
            self.batches = question.batches
            return question.answers(question.shared, message, dataset, text)

    def letter_logits(self, logits: torch.Tensor, message: Any) -> dict[str, float]:
        """Option letter -> logit of the token for it."""
        if self._letters is None:
            self._letters = letters.letter_tokens(self.host)
        return letters.letter_logits(logits, letters.option_letters(message), self._letters)

    def sizes(self, vocabulary: int) -> Sizes:
        if self._sizes is None:
            item = next(self.decoder.text.parameters()).element_size()
            eager = self.decoder.kernel == "eager"
            self._sizes = Sizes(self.decoder.shape, len(self.decoder.blocks), item, vocabulary, eager)
        return self._sizes

    def check_parts(self, recorder: Recorder) -> None:
        """Once: whether the model's parts by themselves do what the model does."""
        if not self._checked and recorder.shared is not None and recorder.shared.cut:
            recorder.check_parts()
            self._checked = True


class Question:
    """One question under way."""

    def __init__(self, sweeper: Sweeper) -> None:
        self.sweeper, self.decoder = sweeper, sweeper.decoder
        self.shared: Shared | None = None
        self.given: dict[str, Any] = {}  # what the call says of how its pictures are cut
        self.found: dict[str, Found] = {}
        self.batches: list[int] = []
        self.dressed: Callable[[list[int]], Any] = lambda tokens: tokens

    def listen(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """``generate`` as it is, with every setting's answer found behind its back."""

        def both(*args: Any, **kwargs: Any) -> Any:
            if self.shared is not None:
                raise TruncationError(f"{type(self.sweeper.host).__name__} calls model.generate twice for a question")
            request = Request.of(self.decoder, self.sweeper.heard, args, kwargs)
            check_generation(self.sweeper.specs[0], self.decoder, request.kwargs)
            request.check_greedy()
            recorder = Recorder(self.decoder, self.sweeper.specs)
            with recorder.listening():
                output = generate(*args, **kwargs)
            self.shared = recorder.shared
            if self.shared is None:
                raise TruncationError(f"{type(self.sweeper.torch_model).__name__}: generate ran without a forward call")
            self.given = told(self.decoder, kwargs, self.shared.ids[0])
            self._note_base(output, self.shared, request)
            with torch.inference_mode():
                self.sweeper.check_parts(recorder)
                self._run(request, generate, self.shared)
            return output

        return both

    def _note_base(self, output: Any, shared: Shared, request: Request) -> None:
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        before = shared.ids[:, : request.repeated(shared.length)]
        self.found[""] = Found(sequences[0, before.shape[1] :].tolist(), shared.logits.cpu())

        def dressed(tokens: list[int]) -> Any:
            """These tokens in the form that the host's class was given the untouched answer in."""
            new = torch.tensor([tokens], dtype=sequences.dtype, device=sequences.device)
            whole = torch.cat([before.to(sequences.device), new], 1)
            return whole if isinstance(output, torch.Tensor) else type(output)(sequences=whole)

        self.dressed = dressed

    def _run(self, request: Request, generate: Callable[..., Any], shared: Shared) -> None:
        """Every distinct way of cutting this prompt, in batches that memory holds, until all answers are complete."""
        wanted: dict[Tail, list[str]] = {}
        for setting, prompt in shared.prompts.items():
            if prompt.stages:
                wanted.setdefault(tail_of(prompt, shared.prefix, setting), []).append(setting)
            else:
                self.found[setting] = self.found[""]
        if not wanted:
            return
        sizes = self.sweeper.sizes(len(shared.logits))
        budget = self.sweeper.memory - shared.bytes
        room = max(ROOM, 2 * len(self.found[""].tokens))
        left = sorted(wanted, key=lambda tail: (len(tail.index), tail.layer))
        while left:
            again: list[Tail] = []
            batches = list(sizes.batches(left, shared.length, shared.prefix, room, budget))
            for batch in [[tail] for tail in left] if request.one_by_one else batches:
                continuation = Continuation(self.decoder, shared, batch, room, sizes.at_once(shared.length))
                decoded = self._decode(request, generate, continuation)
                self.batches.append(len(batch))
                for row, tail in enumerate(batch):
                    if not decoded.complete[row]:
                        again.append(tail)
                        continue
                    for setting in wanted[tail]:
                        self.found[setting] = Found(decoded.tokens[row], decoded.first[row])
            left, room = again, room * 4

    def _decode(self, request: Request, generate: Callable[..., Any], continuation: Continuation) -> Any:
        decoder, shared = self.decoder, continuation.shared
        kernel = None if decoder.kernel in ("sdpa", "eager") else "sdpa"  # others cannot be given a mask
        try:
            with decoder.attending(range(len(decoder.blocks)), continuation.attend, kernel):
                return decode(request, generate, shared.ids, continuation)
        finally:
            decoder.forget_prompt()

    # -- what comes back ----------------------------------------------------------------------------------------------

    def answers(self, shared: Shared, message: Any, dataset: str | None, text: str) -> dict[str, Answer]:
        """Every setting's text, by the host's own decoding of its tokens, and its record."""
        said = {tuple(self.found[""].tokens): text}
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
        sweeper = self.sweeper
        with replaced_generate(sweeper.heard, lambda _: lambda *_args, **_kwargs: self.dressed(tokens)):
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
