"""``with truncated(model, spec) as trace:`` — hooks in, visual tokens out, hooks gone.

Blocks 1..L see every token; at the end of block L a rule picks K visual tokens; blocks L+1..N hold the other tokens
and those K only.

```
root.forward     -> _enter: whose prompt is this?                     _leave: trace, cache
block 1          -> _first_block: what enters it (for rules that ask)
block L          -> probe: what its attention is given                Evidence
block L+1        -> _before: rules.decide, then hidden [b, n, D] -> [b, n', D], masks and angles likewise
blocks L+2..N    -> _before: masks and angles
block N          -> _restore: full length again
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.names import Stage, VariantSpec, parse
from redrel_vlmeval.rules import AFTER_A_BLOCK
from redrel_vlmeval.truncation import seeing
from redrel_vlmeval.truncation.cutting import Cuts, restored
from redrel_vlmeval.truncation.decoders import Attention, Call, Decoder, find_decoder
from redrel_vlmeval.truncation.hooks import Hook, Turn, claimed, replaced, replaced_generate
from redrel_vlmeval.truncation.prompt import Prompt
from redrel_vlmeval.truncation.refusals import check_generation, check_setting, check_spec
from redrel_vlmeval.truncation.seeing import Evidence
from redrel_vlmeval.truncation.sight import Watch, watching
from redrel_vlmeval.truncation.trace import Trace
from redrel_vlmeval.truncation.views import View


@contextmanager
def truncated(model: nn.Module | Decoder, spec: VariantSpec | str, tokenizer: Any = None) -> Iterator[Trace]:
    """Within the context ``model`` runs truncated; afterwards it is exactly as before, also after an exception.

    Args:
        model: a transformers vision-language model whose decoder :func:`find_decoder` knows, or what it found.
        spec: a :class:`VariantSpec`, a setting (``"l5_k128"``) or a whole variant name; its base is not looked at.
        tokenizer: the model's, for rules that need the question's words.

    Yields:
        The :class:`Trace`, one entry per prompt that went through.

    Raises:
        KeyError: a malformed name.
        TruncationError: the model or a call cannot be truncated as asked; nothing was changed, or all is put back.
    """
    check_spec(spec)
    spec = parse(spec) if isinstance(spec, str) else spec
    decoder = model if isinstance(model, Decoder) else find_decoder(model)
    check_setting(spec, decoder, tokenizer)
    with claimed(decoder, str(spec)), decoder.entered(), ExitStack() as undo:
        engine = _Engine(decoder, spec, tokenizer)
        engine.attach(undo)
        yield engine.trace


class _Engine:
    """The hooks of one ``truncated`` context. State belongs to the prompt at hand and is replaced at every prefill."""

    def __init__(self, decoder: Decoder, spec: VariantSpec, tokenizer: Any = None) -> None:
        self.decoder, self.spec, self.tokenizer = decoder, spec, tokenizer
        self.trace = Trace(str(spec), len(decoder.blocks))
        self.needs = {stage.layer: spec.rule_of(stage).needs for stage in spec.stages if not stage.empty}
        self.prompt: Prompt | None = None
        self.phase: str | None = None  # "prefill", "recompute" or "step" inside a forward call, else None
        self.length = 0  # tokens given to this forward call
        self.generating = False
        self.turn = Turn(str(spec), self._call_is_over)  # of a thread, through a forward call or generate
        self.evidence: dict[int, Evidence] = {}  # layer -> what was seen in this forward call
        self.entered: torch.Tensor | None = None  # block 1's input, where a rule asks for it
        self.watch: Watch | None = None  # of the vision tower, where a rule asks for it
        self.cuts = Cuts()
        self.held: View | None = None  # what the block that runs holds, None for all
        self.undo_length: Callable[[], None] | None = None

    # -- putting hooks in ---------------------------------------------------------------------------------------------

    def attach(self, undo: ExitStack) -> None:
        root, blocks = self.decoder.root, self.decoder.blocks
        undo.callback(self._forget)
        for stage in self.spec.stages:
            if stage.layer > 0 and self.needs.get(stage.layer, set()) & AFTER_A_BLOCK:
                undo.enter_context(self.decoder.attending([stage.layer - 1], self._observing(stage)))
        undo.enter_context(self.decoder.extras(lambda: self.held))
        if any(needs & seeing.OF_TOWER for needs in self.needs.values()):
            self.watch = undo.enter_context(watching(self.decoder, frozenset().union(*self.needs.values())))
        undo.enter_context(replaced(root, "forward", self._forward))
        handles = [
            blocks[0].register_forward_pre_hook(Hook(self._first_block), with_kwargs=True),
            blocks[-1].register_forward_hook(Hook(self._restore)),
        ]
        for number in range(self.spec.stages[0].layer, len(blocks)):
            handles.append(blocks[number].register_forward_pre_hook(Hook(self._before(number)), with_kwargs=True))
        for handle in handles:
            undo.callback(handle.remove)
        if hasattr(root, "generate"):
            undo.enter_context(replaced_generate(root, self._generate))

    def _generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``generate`` as it was, but known to be one prompt from its first forward call to its last."""

        def generate(*args: Any, **kwargs: Any) -> Any:
            check_generation(self.spec, self.decoder, kwargs)
            with self.turn.taken():
                cache = kwargs.get("past_key_values")
                if cache is None or self.prompt is None or not self.decoder.continues(cache, self.prompt.cache, False):
                    self._forget()  # else the next turn on it
                self.generating = True
                try:
                    return original(*args, **kwargs)
                finally:
                    self.generating = False

        return generate

    def _forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The whole model's forward. Replaced, not hooked: wrappers such as PEFT's call it without its hooks."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.turn.taken():
                try:
                    self._enter(args, kwargs)
                    output = original(*args, **kwargs)
                    self._leave(output)
                    return output
                finally:
                    self._end_call()

        return forward

    def _call_is_over(self) -> None:
        if self.watch is not None:
            self.watch.clear()  # not sooner: `generate` runs the tower before the first forward call

    def _forget(self) -> None:
        if self.undo_length is not None:
            self.undo_length()
        self.decoder.forget_prompt()
        self.prompt, self.undo_length = None, None
        self._end_call()

    def _end_call(self) -> None:
        self.phase, self.entered, self.evidence, self.cuts, self.held = None, None, {}, Cuts(), None
        self.decoder.forget_call()

    # -- one forward call of the whole model --------------------------------------------------------------------------

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self.decoder.read_call(args, kwargs)
        if call.input_ids is None:
            raise TruncationError(
                f"{self.spec}: the model was called without input_ids, so its image tokens cannot be found"
            )
        ids = call.input_ids
        self.length = ids.shape[1]
        if call.past:
            self._enter_step(call, ids)
        elif self.generating and self.prompt is not None and self.prompt.cache is None and self.prompt.recomputes(ids):
            self.phase = "recompute"
        else:
            self._forget()
            image = self.decoder.image_mask(ids)
            per_picture = self.decoder.per_picture
            self.prompt = Prompt(self.spec, ids, call.attention_mask, image, self.trace.blocks, per_picture)
            if call.pictures and not any(self.prompt.image_counts):
                raise TruncationError(
                    f"{self.spec}: pixels were given, but none of the prompt's tokens is known to stand for a picture "
                    "or a video, so nothing could be truncated"
                )
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

    def _leave(self, output: Any) -> None:
        prefill, prompt = self.phase == "prefill", self.prompt
        if prompt is None or self.phase is None:
            return
        prompt.cache = self.decoder.cache_after(output, prompt.cache)
        prompt.note_call(self.decoder, prefill)
        if prefill and self.watch is not None:
            self.watch.clear()
        if prefill and prompt.cache is not None:
            prompt.is_prefilled = self.decoder.prefilled(prompt.cache)
            if prompt.views and self.undo_length is None:
                views = ((block, prompt.view_before(block)) for block in range(self.trace.blocks))
                dropped = {block: self.length - view.index.shape[1] for block, view in views if view is not None}
                self.undo_length = self.decoder.report_length(prompt.cache, dropped)

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
            if any(needs & seeing.OF_INPUT for needs in self.needs.values()):
                self.entered = hidden.detach()

    def _observing(self, stage: Stage) -> Callable[[Attention], Any]:
        """In place of the attention of block L: the model's own, after the stage's rule has what it needs of it."""

        def attend(seen: Attention) -> Any:
            prompt = self.prompt
            if prompt is not None and stage in prompt.stages and self._deciding() and prompt.asks(stage):
                self.evidence[stage.layer] = self.trace.timed(self._seen, prompt, stage, seen)
            return seen.own()

        return attend

    def _deciding(self) -> bool:
        """Tokens are chosen at prefill; the published code's masks are made again at every step."""
        return self.phase == "prefill" or self.spec.official

    def _seen(self, prompt: Prompt, stage: Stage, seen: Attention) -> Evidence:
        view = prompt.view_before(stage.layer - 1) if not self.spec.official else None
        if self.phase == "step":
            rows = torch.full((len(prompt.ids), 1), seen.query.shape[2] - 1)
        else:
            rows = prompt.query_rows(stage, self.length, view)
        needs = self.needs[stage.layer]
        text = prompt.text_rows(stage, view) if "text_attention" in needs else rows
        found = seeing.gathered(seen, needs, rows, text)
        if found.attention is not None and view is None:
            found.attention = found.attention[:, : prompt.ids.shape[1]]
        return found

    def _before(self, block: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
        def before(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            prompt = self.prompt
            stage = prompt.stage_before(block) if prompt is not None else None
            if prompt is None or stage is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            if block == stage.layer and self._deciding():
                self.trace.timed(self._decide, prompt, stage, hidden, kwargs)
            if self.spec.official:
                return args, self._hide(prompt, stage, block, kwargs)
            view = prompt.views[stage.layer]
            if self.phase == "step":
                held = self.decoder.held_length(prompt.cache, block)
                return args, self.decoder.narrow(block, kwargs, view, held, self.length)
            view = self.cuts.grown(view, self.length)
            if block == stage.layer:
                hidden = self.cuts.drop(prompt, stage, hidden, self.length)
            self.held = view
            short = self.decoder.shorten(block, kwargs, view)
            return self.decoder.given(hidden, args, short, view)

        return before

    def _decide(self, prompt: Prompt, stage: Stage, hidden: torch.Tensor, kwargs: dict[str, Any]) -> None:
        """Let the stage's rule choose, now that ``hidden`` [b, n', D] leaves block L."""
        if self.phase == "step" and stage.layer in prompt.keeps and stage.layer not in self.evidence:
            return  # a choice that looks at nothing is made once
        needs = self.needs.get(stage.layer, frozenset())
        evidence = self.evidence.pop(stage.layer, None)
        if evidence is None:
            if prompt.asks(stage) and needs & AFTER_A_BLOCK:
                raise self.decoder.unseen(stage.layer - 1)
            evidence = Evidence()
        evidence.embeddings, evidence.questions = self.entered, prompt.questions(self.tokenizer, needs)
        if prompt.asks(stage):
            view = prompt.view_before(stage.layer - 1)
            given = kwargs if view is None else self.decoder.shorten(stage.layer, kwargs, view)
            evidence.look_behind(self.decoder, needs, hidden.detach(), given)
            if needs & seeing.OF_TOWER and self.watch is not None:
                self.watch.tell(evidence, needs, prompt.image_counts)
            if "next_attention" in needs:
                seen = seeing.peeked(self.decoder, stage.layer, hidden.detach(), given)
                evidence.next_attention = seeing.mean_row(seen, prompt.query_rows(stage, self.length, view))
        prompt.decide(stage, evidence)

    def _hide(self, prompt: Prompt, stage: Stage, block: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Official mode: the block's arguments with the image keys outside the latest choice masked."""
        visible = (~prompt.image | prompt.keeps[stage.layer]).to(prompt.ids.device)
        keys = self.length + (self.decoder.held_length(prompt.cache, block) if self.phase == "step" else 0)
        visible = torch.nn.functional.pad(visible, (0, keys - visible.shape[1]), value=True)
        return self.decoder.masked(kwargs, visible, self.length)

    def _restore(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return restored(output, self.cuts)
