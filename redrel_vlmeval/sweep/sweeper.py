"""``Sweeper(host_model, specs).answer(message, dataset)``: every setting's answer to a question, from one prefill."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models import ahead_of, facts_of, find_torch_model, pictures_of, unrecorded, versions
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.sweep import letters, together
from redrel_vlmeval.sweep.decoding import Request
from redrel_vlmeval.sweep.listening import Recorder
from redrel_vlmeval.sweep.memory import Sizes, default_budget
from redrel_vlmeval.sweep.plan import not_swept
from redrel_vlmeval.sweep.question import Answer, Question
from redrel_vlmeval.truncation import check_setting, claimed, find_decoder, replaced_generate


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
        self.facts = facts_of(host_model, self.torch_model) | {"versions": versions()}
        self.pictures = ahead_of(host_model)
        self.later: Sequence[Any] = ()  # messages that are asked about next
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
            stack.enter_context(self.pictures.serving())
            with replaced_generate(self.heard, question.listen):
                text = self.host.generate(message=copy.deepcopy(message), dataset=dataset)
            if question.shared is None:
                raise TruncationError(
                    f"{type(self.host).__name__} answered without a call of model.generate; it cannot be swept"
                )
            self.batches = question.batches
            return question.answers(message, dataset, text)

    def answers(
        self, messages: Sequence[Any], dataset: str | None = None, again: Callable[[int], Any] | None = None
    ) -> list[dict[str, Answer] | None]:
        """The same of several questions at once; None of one that must be asked by itself: see :mod:`together`."""
        return together.answers(self, messages, dataset, again or messages.__getitem__)

    def expect(self, messages: Sequence[Any], later: Sequence[Any]) -> None:
        """Have the pictures of these messages made ready meanwhile, then those of ``later`` ones."""
        self.later = later
        self.pictures.expect(path for message in (*messages, *later) for path in pictures_of(message))

    def question(self, kwargs: dict[str, Any]) -> Question:
        """A question whose class calls ``generate`` with ``kwargs``.

        Raises:
            TruncationError: it cannot be swept.
        """
        question = Question(self)
        question.expect(Request(self.heard, kwargs))
        return question

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
