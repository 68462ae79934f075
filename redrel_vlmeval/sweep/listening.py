"""What all settings share of one question: recorded from the host's own untouched prefill, as it happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.rules import AFTER_A_BLOCK
from redrel_vlmeval.sweep.rows import Row
from redrel_vlmeval.sweep.shared import Shared
from redrel_vlmeval.truncation import (
    OF_INPUT,
    OF_TOWER,
    Attention,
    Call,
    Decoder,
    Evidence,
    Prompt,
    Watch,
    gathered,
    mean_row,
    peeked,
    watching,
)

OF_THE_CALL = ("attention_mask", "past_key_values", "past_key_value", "layer_past")  # arguments not worth their memory


class Recorder:
    """Listens to the first forward call of a model; ``shared`` is filled when it is over.

    ``row``: which prompt of a batch is listened to; the only one, unless told.

    Raises:
        TruncationError: from within the forward call, where this prompt or this model cannot be swept.
    """

    def __init__(self, decoder: Decoder, specs: Sequence[VariantSpec], row: Row | None = None) -> None:
        self.decoder, self.specs, self.row = decoder, specs, row or Row()
        self.shared: Shared | None = None
        self.done = False
        self._undo = ExitStack()
        self._entered: torch.Tensor | None = None  # the last token before block 1, unless it is of an image
        self._left: torch.Tensor | None = None  # and after the last block
        self._seen: dict[str, Evidence] = {}  # by row, of the block that has just attended
        self._embeddings: torch.Tensor | None = None  # what entered block 1
        self._others: list[Recorder] = []  # of the same batch, which end with this one
        self._watch: Watch | None = None  # of the vision tower, where a rule asks for it
        self._known: list[tuple[torch.Tensor, torch.Tensor | None]] = []  # masks, as given and kept

    @contextmanager
    def listening(self, beside: Recorder | None = None) -> Iterator[None]:
        """Within the context the next forward call is listened to, ``beside`` another prompt of the same batch."""
        root = self.decoder.root
        needs = {need for spec in self.specs for rule in map(spec.rule_of, spec.stages) for need in rule.needs}
        if beside is not None:
            self._watch = beside._watch  # the tower runs once for all
        elif needs & OF_TOWER:
            self._watch = self._undo.enter_context(watching(self.decoder, needs))
        handles = [root.register_forward_pre_hook(self._enter, with_kwargs=True)]
        if beside is None:
            handles.append(root.register_forward_hook(self._leave))
        else:
            beside._others.append(self)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._undo.close()

    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.done:
            return
        call = self.decoder.read_call(args, kwargs)
        self.shared = shared = Shared(*self._prompt(call))
        if shared.cut:
            self._attach(shared)

    def _prompt(self, call: Call) -> tuple[torch.Tensor, int, dict[str, Prompt]]:
        """Ids, position of the first image token, and every setting's state, all on the CPU."""
        row = self.row
        if call.input_ids is None or call.past or call.input_ids.shape[0] != len(row.counts):
            raise TruncationError("a sweep takes one prompt at a time, given as input_ids, without a cache before it")
        if call.attention_mask is not None and not bool(row.of(call.attention_mask, 0, 1).all()):
            raise TruncationError("a sweep takes one prompt without padding; its attention_mask hides tokens")
        ids = row.of(call.input_ids, 0, 1)
        image = self.decoder.image_mask(ids).cpu()
        prefix = int(image[0].int().argmax()) if bool(image.any()) else ids.shape[1]
        if any(spec.positions == "new" for spec in self.specs):
            prefix = 0  # the text before the picture is moved, too, so its keys are no longer those of the prefill
        blocks = len(self.decoder.blocks)
        whole, per_picture = ids.cpu(), self.decoder.per_picture
        prompts = {spec.setting: Prompt(spec, whole, None, image, blocks, per_picture) for spec in self.specs}
        return ids, prefix, prompts

    def _attach(self, shared: Shared) -> None:
        blocks, cut = self.decoder.blocks, list(shared.cut.values())
        layers = {prompt.stages[0].layer for prompt in cut}
        choosing = [prompt for prompt in cut if prompt.asks(prompt.stages[0])]
        for prompt in (prompt for prompt in cut if prompt not in choosing):
            prompt.decide(prompt.stages[0], Evidence())
        whole = max(layers)  # blocks from here on attend to the rest of the prompt for no setting

        def attend(seen: Attention) -> Any:
            held = shared.length if seen.block < whole else shared.prefix
            own = self.row.attention(seen)
            for kept, given in ((shared.keys, own.key), (shared.values, own.value)):
                if given.shape[2] != shared.length:
                    raise TruncationError(f"block {seen.block + 1}: {given.shape[2]} keys for {shared.length} tokens")
                part = given.detach()[:, :, :held]
                kept[seen.block] = part if held == shared.length else part.clone()
            shared.masks[seen.block] = None if own.causal else self._mask(shared, own.mask)
            self._look(shared, own, [p for p in choosing if p.stages[0].layer == seen.block + 1])
            return seen.own()

        shared.noted = self._undo.enter_context(self.decoder.noting())
        shared.added = self._undo.enter_context(self.decoder.added())
        self._undo.enter_context(self.decoder.attending(range(len(blocks)), attend))
        if not bool(cut[0].image[0, -1]):
            self._undo.callback(blocks[0].register_forward_pre_hook(self._first, with_kwargs=True).remove)
        for number, block in enumerate(blocks):
            note = self._before(shared, number, number in layers, [p for p in choosing if p.stages[0].layer == number])
            self._undo.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        self._undo.callback(blocks[-1].register_forward_hook(self._last).remove)

    def _before(self, shared: Shared, block: int, keep: bool, choosing: Sequence[Prompt]) -> Any:
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = self.row.of(args[0] if args else kwargs["hidden_states"], 0, 1)
            if hidden.shape[1] != shared.length or len(args) > 1:
                raise TruncationError(
                    f"{shared.length} input_ids became {hidden.shape[1]} positions inside the model, or its blocks "
                    "take unnamed arguments; this model cannot be swept"
                )
            if keep:
                shared.hidden[block] = hidden.detach()[:, shared.prefix :]
            rest = self.row.arguments({name: value for name, value in kwargs.items() if name != "hidden_states"})
            shared.arguments[block] = rest | {name: None for name in OF_THE_CALL if name in rest}
            if block == 0:
                self._embeddings = hidden.detach()
                cache = self.decoder.cache_of(kwargs)
                self.decoder.check_cache(cache, shared.length)
                shared.window = self.decoder.window(cache)
            self._choose(block, hidden.detach(), rest, choosing)

        return before

    def _mask(self, shared: Shared, given: torch.Tensor | None) -> torch.Tensor | None:
        """What to keep of a mask [1, 1, S, S], True or 0 where a token attends.

        ```
        Gemma 3    t I I t   t  1 0 0 0     tokens of one picture attend to one another, both ways; the text before
                             I  1 1 1 0     the first picture, whose keys all settings share, to what is before it
                             I  1 1 1 0
                             t  1 1 1 1     the last token to every token, as those of the answer do
        ```
        """
        if given is None or given.ndim != 4:
            return None
        for source, kept in self._known:
            if source is given or (source.device == given.device and torch.equal(source, given)):
                return kept
        attends = given if given.dtype == torch.bool else given == 0
        rows = torch.arange(shared.length, device=given.device)
        plain = bool((attends == (rows <= rows[:, None])).all())
        if bool(attends[..., : shared.prefix, shared.prefix :].any()) or not bool(attends[..., -1, :].all()):
            raise TruncationError(
                f"{type(self.decoder.root).__name__}: text before the picture attends to the picture, or the last "
                "token not to every other; this model cannot be swept"
            )
        self._known.append((given, None if plain else given))
        return self._known[-1][1]

    def _look(self, shared: Shared, seen: Attention, choosing: Sequence[Prompt]) -> None:
        """What the rules of the settings that cut after this block need of its attention; once for each row."""
        for row in dict.fromkeys(prompt.spec.row for prompt in choosing):
            same = [prompt for prompt in choosing if prompt.spec.row == row]
            stage = same[0].stages[0]
            needs = frozenset().union(*(prompt.spec.rule_of(prompt.stages[0]).needs for prompt in same))
            rows = same[0].query_rows(stage, shared.length, None)
            text = same[0].text_rows(stage, None) if "text_attention" in needs else rows
            self._seen[row] = gathered(seen, needs, rows, text)

    def _choose(self, layer: int, hidden: torch.Tensor, kwargs: dict[str, Any], choosing: Sequence[Prompt]) -> None:
        """Each setting's choice where ``hidden`` [1, S, width] leaves block ``layer``."""
        ahead: dict[str, torch.Tensor] = {}  # of the next block, by row
        for prompt in choosing:
            stage, row = prompt.stages[0], prompt.spec.row
            needs = prompt.spec.rule_of(stage).needs
            evidence = self._seen.get(row) or Evidence()
            if needs & AFTER_A_BLOCK and row not in self._seen:
                raise self.decoder.unseen(layer - 1)
            evidence.embeddings = self._embeddings
            evidence.look_behind(self.decoder, needs, hidden, kwargs)
            if needs & OF_TOWER and self._watch is not None:
                self.row.tell(self._watch, evidence, needs, prompt.image_counts)
            if "next_attention" in needs:
                if row not in ahead:
                    seen = peeked(self.decoder, layer, hidden, kwargs)
                    ahead[row] = mean_row(seen, prompt.query_rows(stage, hidden.shape[1], None))
                evidence.next_attention = ahead[row]
            prompt.decide(stage, evidence)
        self._seen.clear()

    def _first(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._entered = self.row.of(hidden.detach(), 0)[:, -1:].clone()

    def _last(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        self._left = self.row.of(hidden.detach(), 0)[:, -1:].clone()

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for other in reversed(self._others):  # whose hooks came later
            other._leave(module, args, output)
        if self.done or self.shared is None:
            return
        self.done = True
        logits = output.logits if hasattr(output, "logits") else output[0]
        self.shared.logits = logits.detach()[self.row.number, -1].float()
        if self.shared.later & OF_INPUT:
            self.shared.embeddings = self._embeddings
        if "tower" in self.shared.later and self._watch is not None:
            evidence, (count,) = Evidence(), next(iter(self.shared.cut.values())).image_counts
            self.row.tell(self._watch, evidence, {"tower"}, [count])
            self.shared.towers = evidence.towers
        self.shared.noted = [self.row.of(positions, -2, -1) for positions in self.shared.noted]
        self.shared.added = self.row.features(self.shared.added)
        self.row.forget()
        self._undo.close()
        self._known.clear()
        if self.shared.cut:
            missing = set(range(len(self.decoder.blocks))) - self.shared.keys.keys()
            if missing:
                raise TruncationError(
                    f"block {min(missing) + 1} did not attend through transformers' attention interface, so its keys "
                    "are not known; this model cannot be swept"
                )

    def check_parts(self) -> None:
        """Whether embedding, rotary tables and head by themselves give what the model gave.

        Raises:
            TruncationError: the model does more than the adapter knows (scaled embeddings, several rotary tables, ...).
        """
        shared, decoder = self.shared, self.decoder
        if shared is None or self._left is None or not shared.cut:
            return
        left = decoder.logits(self._left)[0, -1]
        # one row and many may be added up in another order
        slack = max(1e-2, 4 * torch.finfo(left.dtype).eps * float(shared.logits.abs().max()))
        logits = left.float().to(shared.logits.device)  # of a model on several GPUs these need not lie together
        wrong = [] if torch.allclose(logits, shared.logits, rtol=1e-2, atol=slack) else ["the output layer"]
        entered, known = decoder.embed(shared.ids[:, -1:]), self._entered
        if known is not None and not torch.allclose(entered.to(known.device), known, rtol=1e-2, atol=1e-4):
            wrong.append("the embedding")
        last, place = shared.length - 1, torch.tensor([shared.length - 1], device=shared.ids.device)
        less = [positions[..., :-1] for positions in shared.noted]  # what stands behind these is the last token
        for block, kwargs in shared.arguments.items():
            given = decoder.at(block, kwargs, place)[decoder.rotary]
            made = decoder.beyond(block, kwargs, less, last, 0, 1)[decoder.rotary]
            if not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(given, made, strict=True)):
                wrong.append(f"the rotary tables of block {block + 1}")
                break
        decoder.forget_prompt()
        if wrong:
            raise TruncationError(
                f"{type(decoder.root).__name__}: {', '.join(wrong)} cannot be run apart from the model's forward call; "
                "run the variants one by one"
            )
