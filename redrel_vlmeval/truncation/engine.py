"""``with truncated(model, spec) as trace:`` — hooks in, image tokens out, hooks gone.

Blocks 1..L see every token; at the end of block L the image tokens are ranked by the row of the last prompt token in
that block, averaged over heads (eq. 7-10); blocks L+1..N hold the non-image tokens and the K best image tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.names import Stage, VariantSpec, parse
from redrel_vlmeval.truncation import ranking
from redrel_vlmeval.truncation.decoders import Call, Decoder, find_decoder, replaced_generate
from redrel_vlmeval.truncation.prompt import Prompt
from redrel_vlmeval.truncation.refusals import check_generation, check_setting
from redrel_vlmeval.truncation.trace import Trace
from redrel_vlmeval.truncation.views import View, take

_active: WeakSet[nn.Module] = WeakSet()


@contextmanager
def truncated(model: nn.Module, spec: VariantSpec | str) -> Iterator[Trace]:
    """Within the context ``model`` runs truncated; afterwards it is exactly as before, also after an exception.

    Args:
        model: a transformers vision-language model whose decoder :func:`find_decoder` knows.
        spec: a :class:`VariantSpec`, a setting (``"l5_k128"``) or a whole variant name; its base is not looked at.

    Yields:
        The :class:`Trace`, one entry per prompt that went through.

    Raises:
        KeyError: a malformed name.
        TruncationError: the model or a call cannot be truncated as asked; nothing was changed, or all is put back.
    """
    spec = parse(spec) if isinstance(spec, str) else spec
    decoder = find_decoder(model)
    check_setting(spec, decoder)
    with claimed(decoder, str(spec)), ExitStack() as undo:
        engine = _Engine(decoder, spec)
        engine.attach(undo)
        yield engine.trace


@contextmanager
def claimed(decoder: Decoder, what: str) -> Iterator[None]:
    """Within the context the model is changed for ``what`` alone.

    Raises:
        TruncationError: it is changed already.
    """
    if decoder.text in _active:
        raise TruncationError(f"{what}: this model is truncated already; leave the other truncated() first")
    _active.add(decoder.text)
    try:
        yield
    finally:
        _active.discard(decoder.text)


class _Engine:
    """The hooks of one ``truncated`` context. State belongs to the prompt at hand and is replaced at every prefill."""

    def __init__(self, decoder: Decoder, spec: VariantSpec) -> None:
        self.decoder, self.spec = decoder, spec
        self.trace = Trace(str(spec), len(decoder.blocks))
        self.by_attention = spec.rule in ("attention", "lowest")
        self.prompt: Prompt | None = None
        self.phase: str | None = None  # "prefill", "recompute" or "step" inside a forward call, else None
        self.length = 0  # tokens given to this forward call
        self.generating = False
        self.saved: list[tuple[View, torch.Tensor]] = []  # (positions, hidden states) where tokens left
        self.grown: dict[int, View] = {}  # views of this forward call, by layer
        self.undo_length: Callable[[], None] | None = None

    # -- putting hooks in ---------------------------------------------------------------------------------------------

    def attach(self, undo: ExitStack) -> None:
        root, blocks = self.decoder.root, self.decoder.blocks
        undo.callback(self._forget)
        if self.by_attention:
            for stage in self.spec.stages:
                if stage.layer > 0:
                    undo.enter_context(self.decoder.probe(stage.layer - 1, self._observer(stage)))
        handles = [
            root.register_forward_pre_hook(self._enter, with_kwargs=True),
            root.register_forward_hook(self._leave),
            blocks[0].register_forward_pre_hook(self._first_block, with_kwargs=True),
            blocks[-1].register_forward_hook(self._restore),
        ]
        for number in range(self.spec.stages[0].layer, len(blocks)):
            handles.append(blocks[number].register_forward_pre_hook(self._before(number), with_kwargs=True))
        for handle in handles:
            undo.callback(handle.remove)
        if hasattr(root, "generate"):
            undo.enter_context(replaced_generate(root, self._generate))

    def _generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``generate`` as it was, but known to be one prompt from its first forward call to its last."""

        def generate(*args: Any, **kwargs: Any) -> Any:
            check_generation(self.spec, self.decoder, kwargs)
            cache = kwargs.get("past_key_values")
            if cache is None or self.prompt is None or not self.decoder.continues(cache, self.prompt.cache, False):
                self._forget()  # else the next turn on it
            self.generating = True
            try:
                return original(*args, **kwargs)
            finally:
                self.generating = False

        return generate

    def _forget(self) -> None:
        if self.undo_length is not None:
            self.undo_length()
        self.decoder.forget_prompt()
        self.prompt, self.phase, self.undo_length, self.saved = None, None, None, []

    # -- one forward call of the whole model --------------------------------------------------------------------------

    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self.decoder.read_call(args, kwargs)
        if call.input_ids is None:
            raise TruncationError(
                f"{self.spec}: the model was called without input_ids, so its image tokens cannot be found"
            )
        ids = call.input_ids
        self.length, self.saved, self.grown = ids.shape[1], [], {}
        if call.past:
            self._enter_step(call, ids)
        elif self.generating and self.prompt is not None and self.prompt.cache is None and self.prompt.recomputes(ids):
            self.phase = "recompute"
        else:
            self._forget()
            image = self.decoder.image_mask(ids)
            self.prompt = Prompt(self.spec, ids, call.attention_mask, image, self.trace.blocks)
            self.phase = "prefill"
            self.trace.prompts += self.prompt.traces

    def _enter_step(self, call: Call, ids: torch.Tensor) -> None:
        known = self.prompt is not None and (
            self.decoder.continues(call.cache, self.prompt.cache, self.generating)
            or self.prompt.is_prefilled(call.cache)  # went back to try other tokens behind the same prompt
        )
        if self.prompt is None or not known:
            raise TruncationError(
                f"{self.spec}: continues a KV cache of {call.past} tokens that was not filled inside this "
                "truncated(): its image tokens were not ranked. Give the whole prompt in one call"
            )
        # a model may well utter an image token; more than one token, or pixels, is a prompt
        if (self.length > 1 or call.pictures) and bool(self.decoder.image_mask(ids).any()):
            raise TruncationError(
                f"{self.spec}: a chunked or continued prefill brings image tokens after the first call; "
                "give the whole prompt in one call"
            )
        if self.prompt.stages:
            self.decoder.check_cache(call.cache, call.past + self.length)
        self.prompt.cache = call.cache
        self.phase = "step"

    def _leave(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        phase, prompt = self.phase, self.prompt
        self.phase, self.saved = None, []
        self.decoder.forget_call()
        if prompt is None or phase is None:
            return
        if phase == "prefill":
            for trace, kept in zip(prompt.traces, prompt.kept_numbers(), strict=True):
                trace.kept = kept
        prompt.cache = self.decoder.cache_after(output, prompt.cache)
        if prompt.cache is None:
            return
        if phase == "prefill":
            prompt.is_prefilled = self.decoder.prefilled(prompt.cache)
        if phase == "prefill" and 0 in prompt.views and self.undo_length is None:
            self.undo_length = self.decoder.report_length(prompt.cache, self.length - prompt.views[0].index.shape[1])
        for row, trace in enumerate(prompt.traces):
            padding = [prompt.ids.shape[1] - prompt.real_counts[row]] * self.trace.blocks
            for block in range(self.trace.blocks):
                view = prompt.view_before(block)
                if view is not None:
                    padding[block] = view.index.shape[1] - trace.tokens[block]
            held = (self.decoder.held_length(prompt.cache, block) for block in range(self.trace.blocks))
            trace.kv = [count - more for count, more in zip(held, padding, strict=True)]

    # -- one decoder block --------------------------------------------------------------------------------------------

    def _first_block(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.phase is None or self.prompt is None:
            raise TruncationError(
                f"{self.spec}: the decoder was called below the model given to truncated(); call the model itself"
            )
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] != self.length:
            raise TruncationError(
                f"{self.spec}: {self.length} input_ids became {hidden.shape[1]} positions inside the model; "
                "use a processor that expands every picture to its image tokens"
            )
        if self.phase == "prefill":
            self.prompt.cache = self.decoder.cache_of(kwargs)
            if self.prompt.stages:
                self.decoder.check_cache(self.prompt.cache, self.length)

    def _observer(self, stage: Stage) -> Callable[..., None]:
        def observe(
            query: torch.Tensor, key: torch.Tensor, mask: Any, scaling: float, softcap: float | None, _value: Any
        ) -> None:
            prompt = self.prompt
            if prompt is None or stage not in prompt.stages or not (self.phase == "prefill" or self.spec.official):
                return
            view = prompt.view_before(stage.layer - 1) if not self.spec.official else None
            with torch.no_grad():
                rows = self._rows(prompt, stage, view, query.shape[2]).to(query.device)
                attention = ranking.attention_rows(query, key, rows, scaling, mask, softcap)
                scores = ranking.row_mean(attention, rows)
                prompt.decide(stage, self._at_full_positions(prompt, view, scores.to(prompt.ids.device)))

        return observe

    def _rows(self, prompt: Prompt, stage: Stage, view: View | None, queries: int) -> torch.Tensor:
        if self.phase == "step":
            return torch.full((len(prompt.ids), 1), queries - 1, device=prompt.ids.device)
        return prompt.query_rows(stage, self.length, view)

    @staticmethod
    def _at_full_positions(prompt: Prompt, view: View | None, scores: torch.Tensor) -> torch.Tensor:
        """Scores of the keys a block holds -> float [b, s] over the prompt's positions."""
        if view is None:
            return scores[:, : prompt.ids.shape[1]]
        return torch.zeros(prompt.ids.shape, device=scores.device).scatter(1, view.index, scores)

    def _before(self, block: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
        def before(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            prompt = self.prompt
            stage = prompt.stage_before(block) if prompt is not None else None
            if prompt is None or stage is None:
                return None
            self._ensure_decided(prompt, stage, block)
            if self.spec.official:
                return args, self._hide(prompt, stage, block, kwargs)
            view = prompt.views[stage.layer]
            if self.phase == "step":
                held = self.decoder.held_length(prompt.cache, block)
                return args, self.decoder.narrow(block, kwargs, view, held, self.length)
            view = self._grown(view)
            hidden = args[0] if args else kwargs["hidden_states"]
            if block == stage.layer:
                hidden = self._drop(prompt, view, stage, hidden)
            short = self.decoder.shorten(block, kwargs, view)
            return ((hidden, *args[1:]), short) if args else ((), short | {"hidden_states": hidden})

        return before

    def _grown(self, view: View) -> View:
        """The view of this forward call: longer than the prompt's where a step without cache recomputes all."""
        return self.grown.setdefault(view.layer, view.extended(self.length))

    def _ensure_decided(self, prompt: Prompt, stage: Stage, block: int) -> None:
        if stage.layer in prompt.keeps:
            return
        if self.by_attention and stage.layer > 0:
            raise TruncationError(
                f"{self.spec}: block {stage.layer} did not attend through transformers' attention interface, "
                "so its image tokens were not ranked"
            )
        prompt.decide(stage, None)

    def _drop(self, prompt: Prompt, view: View, stage: Stage, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [b, n, d] -> those of ``view``; the rest are put aside for the exit of the last block."""
        outer = prompt.view_before(stage.layer - 1) if stage.layer else None
        outer = None if outer is None else self._grown(outer)
        place = view.within(outer)
        self.saved.append((View(stage.layer, hidden.shape[1], place, view.valid), hidden))
        return take(hidden, place, 1)

    def _hide(self, prompt: Prompt, stage: Stage, block: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Official mode: the block's arguments with the image keys outside the latest choice masked."""
        visible = ~prompt.image | prompt.keeps[stage.layer]
        keys = self.length + (self.decoder.held_length(prompt.cache, block) if self.phase == "step" else 0)
        visible = torch.nn.functional.pad(visible, (0, keys - visible.shape[1]), value=True)
        return self.decoder.masked(kwargs, visible, self.length)

    def _restore(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """Exit of the last block: full length again, dropped positions carrying the hidden state they left with."""
        if not self.saved:
            return None
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        for view, left in reversed(self.saved):
            before = left.to(hidden.device)  # blocks may stand on several devices
            if view.valid is not None:
                hidden = torch.where(view.valid[..., None].to(hidden.device), hidden, take(before, view.index, 1))
            where = view.index[..., None].expand(len(hidden), -1, hidden.shape[-1])
            hidden = before.scatter(1, where.to(hidden.device), hidden)
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])
