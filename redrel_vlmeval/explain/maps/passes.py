"""Prompt and answer run once, teacher-forced: one forward call, one backward, and what every layer held on the way.

Weights are frozen, the model keeps its own attention kernel, and afterwards it is exactly as before. One sequence
serves all layers: a node of each is caught by a hook, and one ``torch.autograd.grad`` gives all their gradients, which
are those of a pass per layer to the last bit.

One sequence of s positions (t of them the answer), b copies of it, N blocks; under ``l2_k5`` blocks 3..N hold s' < s::

    <s> sys... [img x n] user...  a1 a2 .. at        input of a block      [b, s or s', c]   a node
                              ^   ^  ^               rows that predict     a1 a2 .. at:      t rows, one before each
                              |   |  |               attention of these    [b, h, t, s or s']
                              +---+--+-- predict     logits of these       [b, t, vocabulary]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked, check_greedy
from redrel_vlmeval.explain.maps.formulas import by_group, objective
from redrel_vlmeval.explain.maps.modes import checkpointed, differentiable, memory_named
from redrel_vlmeval.explain.maps.taken import Edit, Node, Taken, Wanted
from redrel_vlmeval.truncation import Attention, Decoder, PromptTrace, head_rows, replaced_generate, truncated


@contextmanager
def run(
    asked: Asked, wanted: Wanted, *, copies: int = 1, edit: Edit | None = None, grad: bool = True,
    checkpointing: bool = False, settled: bool = False,
) -> Iterator[Taken]:  # fmt: skip
    """One forward call over prompt and answer; its backward belongs into the context, after which nothing is left.

    Args:
        copies: how many times the sequence stands in the batch. edit: changes the pixels of all copies.
        checkpointing: recompute a block's inside at the backward; results are the same.
        settled: a truncation chooses by the pixels as they are, and all copies run with that choice; else each copy is
            edited first and chooses for itself.

    Raises:
        ExplainError: it does not fit into memory, or the rows do not predict the greedy answer.
        TruncationError: the truncation cannot be had on this model.
    """
    asked.check_within(
        [kind for kind, _ in wanted.nodes] + ["tower"] * wanted.tower + ["a changed picture"] * bool(edit)
    )
    with ExitStack() as undo:
        undo.enter_context(memory_named(f"prompt and answer ({asked.prompt + len(asked.answer)} tokens x {copies})"))
        undo.enter_context(differentiable(asked.model, grad))
        watch = _Watch(asked, wanted, copies, edit, settled)
        watch.attach(undo)
        if checkpointing:
            undo.enter_context(checkpointed([*asked.decoder.blocks, *_vision_blocks(asked.decoder, wanted)]))
        taken = watch.forward(undo)
        try:
            yield taken
        finally:
            taken.forget()


class _Watch:
    """Hooks of one pass. They look on only while ``armed``: not at the prefill that decides what is dropped."""

    def __init__(self, asked: Asked, wanted: Wanted, copies: int, edit: Edit | None, settled: bool) -> None:
        self.asked, self.wanted, self.copies = asked, wanted, copies
        self.edit, self.settled = edit, settled
        self.decoder = asked.decoder
        self.spans = asked.spans("emit" if wanted.emit else "predict")
        self.length = asked.prompt + len(asked.answer)
        # copy -> block -> positions held, long [s']; None: all s. Copies may differ: each chooses for itself
        self.held: list[list[torch.Tensor | None]] = [[None] * len(self.decoder.blocks)] * copies
        self.nodes: dict[Node, torch.Tensor] = {}
        self.rows: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.shares: dict[int, torch.Tensor] = {}
        self.resampled: torch.Tensor | None = None
        self.tower: dict[int, torch.Tensor] = {}
        self.kept: dict[int, list[int]] = {}
        self.armed = False
        inside = {kind for kind, _ in wanted.nodes} & {"vision", "projector"}
        self.anew = bool(edit is not None or wanted.tower or inside)  # also what is done before the decoder is called

    def attach(self, undo: ExitStack) -> None:
        handles = []
        for node in self.wanted.nodes:
            module, before = self._module(node)
            hook = partial(self._before if before else self._after, node)
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            handles.append(register(hook))  # type: ignore[operator]
        handles.append(self.decoder.head.register_forward_pre_hook(self._answer_rows))
        undo.enter_context(self.decoder.attending([0], self._one_way))
        resampling = self.decoder.resampling()
        if resampling is not None:
            handles.append(resampling.register_forward_hook(self._resampling))
        eye = self.decoder.eye()
        if self.edit is not None and eye is not None:
            handles.append(eye.register_forward_pre_hook(lambda _m, args: (self._edited(args[0]), *args[1:])))
        for handle in handles:
            undo.callback(handle.remove)
        for block in self.wanted.rows:
            undo.enter_context(self.decoder.probe(block, partial(self._attends, block)))
        if self.wanted.tower:
            for block in range(len(self.decoder.vision_blocks())):
                undo.enter_context(self.decoder.vision_probe(block, partial(self._sees, block)))
        self.at_eye = eye is not None

    def forward(self, undo: ExitStack) -> Taken:
        asked, model = self.asked, self.asked.called
        prompt, whole = (self._batch(tensors) for tensors in (asked.inputs, asked.sequence()))

        def once(**_given: Any) -> Any:
            if asked.spec is not None:  # decides by the prompt's last row; the answer is no part of the prompt
                with torch.no_grad():
                    model(**self._given(prompt), use_cache=False)
                self._note_held(trace.prompts[-self.copies :])
            self.armed = True
            try:
                return model(**self._given(whole), use_cache=False)
            finally:
                self.armed = False

        if asked.spec is None:
            out = once()
        else:
            if asked.spec.official and len(asked.answer) > 1:
                raise ExplainError(
                    f"{asked.spec}: official mode ranks anew for every token, so no one sequence holds an answer of "
                    f"{len(asked.answer)} tokens; explain one token, or the variant without official"
                )
            # Inside generate, because there the engine knows the second call, longer by the answer, for a continuation
            # of the first: it keeps what the prompt alone decided. By itself the longer call would be a new prompt.
            undo.enter_context(replaced_generate(model, lambda _original: once))
            trace = undo.enter_context(truncated(asked.decoder, asked.spec, asked.tokenizer))
            out = model.generate(**prompt)  # type: ignore[operator]
        logits = out.logits if hasattr(out, "logits") else out[0]
        taken = Taken(
            self.held, logits, torch.from_numpy(self.spans.image), torch.from_numpy(self.spans.predict), self.length,
            self.nodes, self.rows, self.values, self.shares, self.resampled, self.tower, self.kept,
        )  # fmt: skip
        self._check_rows(logits)
        return taken

    def _batch(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Every tensor ``copies`` times along its first axis."""
        return {name: torch.cat([tensor] * self.copies) for name, tensor in inputs.items()}

    def _given(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The forward call's arguments, pixels edited, unless they are made inside the model and edited there."""
        if not self.at_eye and "pixel_values" in batch:
            batch = batch | {"pixel_values": self._edited(batch["pixel_values"])}
        return self.asked.given(batch, self.anew)

    def _edited(self, pixels: torch.Tensor) -> torch.Tensor:
        """The pixels of all copies, edited; as they are at a prefill that chooses for the clean picture."""
        return pixels if self.edit is None or (self.settled and not self.armed) else self.edit(pixels)

    def _note_held(self, prompts: Sequence[PromptTrace]) -> None:
        """Which positions each block holds, from the image tokens that the trace says were kept."""
        image = torch.from_numpy(self.spans.image)
        self.held, self.kept = [], dict(prompts[0].kept)
        for prompt in prompts:
            blocks: list[torch.Tensor | None] = []
            for block in range(len(self.decoder.blocks)):
                kept = [numbers for layer, numbers in sorted(prompt.kept.items()) if layer <= block]
                if not kept or prompt.mode != "dropped":
                    blocks.append(None)
                    continue
                stays = torch.ones(self.length, dtype=torch.bool)
                stays[image] = False
                stays[image[kept[-1]]] = True  # of the last stage before the block, because stages only ever drop
                blocks.append(stays.nonzero()[:, 0])
            self.held.append(blocks)

    def _module(self, node: Node) -> tuple[nn.Module, bool]:
        """Where a node is, and whether it is what goes in."""
        kind, block = node
        if kind == "vision":
            return self.decoder.vision_blocks()[block], False
        if kind == "projector":
            return self.decoder.projector(), False
        return self.decoder.part(block, kind), kind == "attention_output"

    def _after(self, node: Node, _module: nn.Module, _args: Any, output: Any) -> None:
        self._keep(node, output[0] if isinstance(output, tuple) else output)

    def _before(self, node: Node, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self._keep(node, args[0])

    def _keep(self, node: Node, tensor: torch.Tensor) -> None:
        if torch.is_grad_enabled() and tensor.is_floating_point() and not tensor.requires_grad:
            tensor.requires_grad_()  # weights are frozen: the graph begins here, on a recomputation as well
        if self.armed and node not in self.nodes:  # checkpointing runs hooks again
            self.nodes[node] = tensor

    def _one_way(self, seen: Attention) -> Any:
        """Block 1 as it is, once it is sure that nobody attends to an answer's token before it is said."""
        mask = seen.hidden
        if self.armed and isinstance(mask, torch.Tensor) and mask.ndim == 4:
            told = self.length - self.asked.prompt  # the answer's tokens: the last columns
            attends = mask[..., -told:] if mask.dtype == torch.bool else mask[..., -told:] == 0
            if not torch.equal(attends.tril(told - mask.shape[2]), attends):
                raise ExplainError(
                    f"{type(self.asked.model).__name__}: its prompt attends to the answer where both are given at "
                    "once, so its answers cannot be explained with this release of transformers"
                )
        return seen.own()

    def _answer_rows(self, _head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The head sees the rows that predict the answer only: the vocabulary is wide."""
        if not self.armed:
            return (args[0][:, -1:], *args[1:])  # of the prefill that decides what is dropped, nothing is read
        return (args[0][:, torch.from_numpy(self.spans.predict).to(args[0].device)], *args[1:])

    def _resampling(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.armed and isinstance(output, tuple) and isinstance(output[1], torch.Tensor):
            self.resampled = output[1].detach().float()

    def _attends(
        self, block: int, query: torch.Tensor, key: torch.Tensor, mask: Any, scaling: float, softcap: float | None,
        value: torch.Tensor,
    ) -> None:  # fmt: skip
        if not self.armed or block in self.rows:
            return
        with torch.no_grad():
            weights = head_rows(query, key, self.places(block).to(query.device), scaling, mask, softcap)
            if self.wanted.groups is not None:
                # sums now, because the rows of all heads at 32 blocks would be kept for nothing but their sums
                held, group = self.held[0][block], self.wanted.groups
                self.shares[block] = by_group(weights[0], group if held is None else group[held])
                weights = weights.mean(1, keepdim=True)
            self.rows[block] = weights
        if self.wanted.values:
            self.values[block] = value.detach()

    def _sees(
        self, block: int, query: torch.Tensor, key: torch.Tensor, mask: Any, scaling: float, softcap: float | None,
        _value: torch.Tensor,
    ) -> None:  # fmt: skip
        if self.armed and block not in self.tower:
            every = torch.arange(query.shape[2], device=query.device).expand(len(query), -1)
            with torch.no_grad():
                self.tower[block] = head_rows(query, key, every, scaling, mask, softcap, causal=False).mean(1)

    def places(self, block: int) -> torch.Tensor:
        """The answer rows among the positions that a block holds, long [b, t]."""
        rows = torch.tensor(self.wanted.positions) if self.wanted.positions else torch.from_numpy(self.spans.rows)
        held = (copy[block] for copy in self.held)
        # a row of text is never dropped, so among the sorted positions held its place is where it would be put
        return torch.stack([rows if index is None else torch.searchsorted(index, rows) for index in held])

    def _check_rows(self, logits: torch.Tensor) -> None:
        asked = self.asked
        if not (asked.own and asked.greedy) or self.edit is not None or self.copies > 1:
            return
        row = logits[0].detach().float()
        gap = row.amax(-1) - row.gather(-1, torch.tensor(asked.answer, device=row.device)[:, None])[:, 0]
        # a cached step and this one call round differently
        slack = 8 * torch.finfo(logits.dtype).eps * float(row.abs().amax())
        check_greedy(row.argmax(-1).cpu().numpy(), gap.cpu().numpy(), asked.answer, slack)


def _vision_blocks(decoder: Decoder, wanted: Wanted) -> list[nn.Module]:
    return decoder.vision_blocks() if any(kind == "vision" for kind, _ in wanted.nodes) else []


def log_likelihood(asked: Asked) -> float:
    """Log-probability of an answer behind its prompt."""
    with run(asked, Wanted(), grad=False) as taken:
        return float(objective(taken.logits, asked.answer, "logprob").sum())
