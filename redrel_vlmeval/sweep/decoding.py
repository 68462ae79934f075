"""Greedy decoding of many settings at once by the model's own ``generate``, which only ever sees logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Protocol

import torch
from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models import draws, ends, in_force
from redrel_vlmeval.sweep.continuation import OutOfRoom
from redrel_vlmeval.sweep.tails import Tail
from redrel_vlmeval.truncation import Attention, Decoder, replaced

POSITIONAL = ("inputs", "generation_config", "logits_processor", "stopping_criteria")
# what may hold something between calls, or end answers in ways that the tokens do not show
ONE_BY_ONE = ("logits_processor", "stopping_criteria", "stop_strings", "max_time")
PLAIN = {"use_cache": False, "return_dict_in_generate": False}


@dataclass
class Request:
    """One call of ``model.generate`` as the host made it.

    ``own``: that is no method of transformers, but makes embeddings of the prompt and hands them to transformers'.
    """

    model: nn.Module
    kwargs: dict[str, Any]
    own: bool = False

    @classmethod
    def of(cls, decoder: Decoder, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Request:
        own = decoder.entrance is not None and decoder.entrance.outer is decoder.root
        return cls(model, dict(zip(POSITIONAL, args, strict=False)) | kwargs, own)

    def config(self) -> Any:
        """The generation config in force."""
        config = copy.deepcopy(self.kwargs.get("generation_config") or self.model.generation_config)
        config.update(**vars(in_force(self.model, self.kwargs)))
        return config

    def check_greedy(self) -> None:
        """Refuse what is not greedy decoding of one answer.

        Raises:
            TruncationError: names the mode.
        """
        config = self.config()
        mode = config.get_generation_mode().value
        if mode != "greedy_search" and (mode != "sample" or draws(partial(getattr, config))):
            raise TruncationError(
                f"a sweep decodes greedily, but the model is asked for {mode}; run its variants one by one"
            )

    def repeated(self, length: int) -> int:
        """How many tokens of a prompt of ``length`` stand before the answer in what comes back: of embeddings, none."""
        return 0 if self.own or all(self.kwargs.get(name) is None for name in ("inputs", "input_ids")) else length

    @property
    def one_by_one(self) -> bool:
        config = self.config()
        return any(self.kwargs.get(name) is not None or getattr(config, name, None) for name in ONE_BY_ONE)


@dataclass
class Decoded:
    """New tokens of every answer, up to its end; ``complete`` where it came to one. ``first``: [n, vocabulary]."""

    tokens: list[list[int]]
    complete: list[bool]
    first: torch.Tensor


class Continued(Protocol):
    """What :class:`Continuation` offers: logits of every answer's next token."""

    decoder: Decoder
    tails: Sequence[Tail]

    def prefill(self) -> torch.Tensor: ...

    def step(self, ids: torch.Tensor) -> torch.Tensor: ...

    def attend(self, seen: Attention) -> Any: ...


def decoded(request: Request, generate: Callable[..., Any], ids: torch.Tensor, continuation: Continued) -> Decoded:
    """All answers of ``continuation``, decoded by ``generate`` with the host's own keywords.

    ``ids``: of the prompt, [1, s]; or of each answer's, [n, s], where nothing that reads them is at work.
    """
    decoder = continuation.decoder
    kernel = None if decoder.kernel in ("sdpa", "eager") else "sdpa"  # others cannot be given a mask
    try:
        with decoder.attending(range(len(decoder.blocks)), continuation.attend, kernel):
            return _decoded(request, generate, ids, continuation)
    finally:
        decoder.forget_prompt()


def _decoded(request: Request, generate: Callable[..., Any], ids: torch.Tensor, continuation: Continued) -> Decoded:
    count, length = len(continuation.tails), ids.shape[1]
    said: list[torch.Tensor] = []
    first: list[torch.Tensor] = []

    def logits_only(original: Callable[..., Any]) -> Callable[..., Any]:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        @wraps(original)
        def forward(*_args: Any, input_ids: torch.Tensor, **_kwargs: Any) -> Any:
            if not first:
                first.append(continuation.prefill())
                return CausalLMOutputWithPast(logits=first[0])  # type: ignore[arg-type]
            said.append(input_ids[:, -1])
            return CausalLMOutputWithPast(logits=continuation.step(said[-1]))  # type: ignore[arg-type]

        return forward

    names = {"inputs", "input_ids", "attention_mask", "streamer"}
    rest = {name: value for name, value in request.kwargs.items() if name not in names and not _is_input(value)}
    if request.own:
        from transformers import GenerationMixin

        generate = partial(GenerationMixin.generate, request.model)
        known = {*POSITIONAL, *vars(request.config())}
        rest = {name: value for name, value in rest.items() if name in known}
    repeated = request.repeated(length)
    if repeated:
        prompt = {"input_ids": ids.expand(count, -1)}
    else:  # of their length alone, and nobody reads them
        prompt = {"inputs_embeds": torch.zeros(count, length, 1, device=ids.device)}
    with ExitStack() as stack:
        stack.enter_context(replaced(request.model, "forward", logits_only))
        stack.enter_context(replaced(request.model, "prepare_inputs_for_generation", _ids_only))
        try:
            mask = torch.ones(count, length, dtype=torch.long, device=ids.device)
            new = generate(**prompt, attention_mask=mask, **(rest | PLAIN))[:, repeated:].tolist()
            ended = True
        except OutOfRoom:
            new, ended = torch.stack(said, 1).tolist(), False
    stops = ends(request.model, request.kwargs)
    tokens = [_until(row, stops) for row in new]
    done = [ended or row[-1] in stops for row in tokens]
    return Decoded(tokens, done, first[0][:, -1].float().cpu())


def _ids_only(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def prepare(input_ids: torch.Tensor, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}

    return prepare


def _is_input(value: Any) -> bool:
    """True for pixels and whatever else a model, not ``generate``, is given."""
    return isinstance(value, torch.Tensor) or (
        isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], torch.Tensor)
    )


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """A row of a batch cut behind its first end; what follows is padding."""
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]
