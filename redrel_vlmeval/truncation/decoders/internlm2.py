"""Decoders of remote code laid out like InternLM2: ``tok_embeddings``, ``layers[*].attention`` with one ``wqkv``.

InternVL2 and 2.5 have them. Differences that matter here: the cache is a tuple that every call makes anew; rotary
tables are made in each block, as long as its keys, and looked up by position; attention is one method, with no seam
between projections and kernel.

```
hidden [b, n, D] --wqkv--> [b, n, g, h / g + 2, d]     of each of g key heads: its queries, then its key and its value
                            query [b, h, n, d], key and value [b, g, n, d], the first two rotated
```
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.decoders.caches import Tuples
from redrel_vlmeval.truncation.decoders.calls import Attend, Attention, Call
from redrel_vlmeval.truncation.decoders.llama_like import NativeDecoder
from redrel_vlmeval.truncation.hooks import Hook, replaced
from redrel_vlmeval.truncation.views import View, causal, take

FLASH = "_flash_attention_forward"


@dataclass
class InternLM2Decoder(Tuples, NativeDecoder):
    """Visual tokens are found among the embeddings that it is given."""

    _turned: dict[int, Any] = field(default_factory=dict, kw_only=True)  # block -> hook on its rotary tables
    _counts: bool = field(default=False, kw_only=True)  # whether the call at hand leaves positions to the model

    axis: ClassVar[int] = 2
    rotary: ClassVar[str] = "position_ids"
    parts: ClassVar[dict[str, str]] = {
        "attention": "attention", "input_norm": "attention_norm", "middle_norm": "ffn_norm", "attention_output": "wo",
    }  # fmt: skip
    layout: ClassVar[str] = "tok_embeddings, norm and layers[*].attention.wqkv (the remote code of InternLM2)"

    @staticmethod
    def owns_blocks(module: nn.Module) -> bool:
        """Whether ``module`` is the decoder of this layout."""
        layers = getattr(module, "layers", None)
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            return False
        if not (hasattr(module, "tok_embeddings") and hasattr(module, "norm")):
            return False
        names = ("wqkv", "wo", "rotary_emb", "num_key_value_groups", "head_dim")
        return all(hasattr(getattr(block, "attention", None), name) for block in layers for name in names)

    @property
    def kernel(self) -> str:
        return _kernel_of(self.part(0, "attention"))

    def extras(self, view: Callable[[], View | None]) -> AbstractContextManager[None]:
        return nullcontext()

    def added(self) -> AbstractContextManager[list[torch.Tensor]]:
        return nullcontext([])

    @contextmanager
    def noting(self) -> Iterator[list[torch.Tensor]]:
        yield []  # every block is given its positions

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.text.tok_embeddings(ids)  # type: ignore[operator,no-any-return]

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        call = super().read_call(args, kwargs)
        self._counts = call.positions is None
        return call

    # -- shorter blocks -----------------------------------------------------------------------------------------------

    def report_length(self, cache: Any, dropped: Mapping[int, int]) -> Callable[[], None]:
        """The mask of later steps is as wide as if no token had left before block 1, off whose keys it is read."""
        undo, more = ExitStack(), dropped.get(0, 0)

        def made(own: Callable[..., Any]) -> Callable[..., Any]:
            def mask(padding: Any, shape: Any, embeddings: Any, past: int) -> Any:
                if padding is not None and padding.shape[1] < past + more + shape[1]:
                    padding = nn.functional.pad(padding, (more, 0), value=1)
                return own(padding, shape, embeddings, past + more)

            return mask

        if more:
            undo.enter_context(replaced(self.text, "_prepare_decoder_attention_mask", made))
        return undo.close

    def shorten(self, block: int, kwargs: dict[str, Any], view: View) -> dict[str, Any]:
        self._turn(block, view.length)
        positions = kwargs["position_ids"]
        return kwargs | {
            "position_ids": self._once(positions, view, lambda: take(positions, view.rotary, -1)),
            "attention_mask": self._mask(kwargs, view, lambda mask: view.square_mask(mask, self.flash)),
        }

    def narrow(self, block: int, kwargs: dict[str, Any], view: View, held: int, queries: int) -> dict[str, Any]:
        length = view.length + held - view.index.shape[1] + queries
        self._turn(block, length)
        if self._counts:  # by the keys of block 1, which may have left some out
            positions = kwargs["position_ids"]
            own = torch.arange(length - queries, length, device=positions.device)
            kwargs = kwargs | {"position_ids": own.expand_as(positions)}
        return super().narrow(block, kwargs, view, held, queries)

    def _turn(self, block: int, length: int) -> None:
        """Until the call is over, the rotary tables of ``block`` are those of ``length`` keys; it may hold fewer."""
        if block in self._turned:
            self._turned.pop(block).remove()

        def turn(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args[:1], {"seq_len": length}

        rotary: nn.Module = self.part(block, "attention").rotary_emb  # type: ignore[assignment]
        self._turned[block] = rotary.register_forward_pre_hook(Hook(turn), with_kwargs=True)

    def forget_call(self) -> None:
        super().forget_call()
        while self._turned:
            self._turned.popitem()[1].remove()

    # -- a block by itself --------------------------------------------------------------------------------------------

    def at(self, block: int, kwargs: Mapping[str, Any], index: torch.Tensor) -> dict[str, Any]:
        positions = kwargs["position_ids"]
        return self._apart(
            block, kwargs, positions[:1].index_select(-1, index.to(positions.device)), positions.shape[-1]
        )

    def beyond(
        self, block: int, kwargs: Mapping[str, Any], noted: Sequence[torch.Tensor], length: int, ahead: int, count: int
    ) -> dict[str, Any]:
        after = kwargs["position_ids"][:1, length - 1 : length] + 1 + ahead
        return self._apart(block, kwargs, after.expand(-1, count), length + ahead + 1)

    def _apart(self, block: int, kwargs: Mapping[str, Any], positions: torch.Tensor, length: int) -> dict[str, Any]:
        """A block's arguments for tokens at ``positions`` [1, n], where the whole has ``length``."""
        rotary: Any = self.part(block, "attention").rotary_emb
        scaling = getattr(self.text.config, "rope_scaling", None) or {}
        if scaling.get("type", scaling.get("rope_type")) == "dynamic" and length > rotary.max_position_embeddings:
            raise TruncationError(
                f"{type(self.text).__name__}: beyond {rotary.max_position_embeddings} tokens its rotary tables change "
                "as an answer grows (dynamic scaling), so it cannot be continued from the middle; run its variants one "
                "by one"
            )
        self._turn(block, length)
        return self.uncached(kwargs) | {"attention_mask": None, "position_ids": positions}

    # -- attention ----------------------------------------------------------------------------------------------------

    @contextmanager
    def attending(self, blocks: Sequence[int], attend: Attend, kernel: str | None = None) -> Iterator[None]:
        with ExitStack() as undo:
            for block in blocks:
                undo.enter_context(_attended(self.part(block, "attention"), block, attend, kernel))
            yield


# Attention module -> who takes it over, with which kernel; the last one is asked first.
_watches: WeakKeyDictionary[nn.Module, list[tuple[Attend, str | None]]] = WeakKeyDictionary()
_compared: WeakSet[type] = WeakSet()  # classes whose own forward was seen to give what ours gives


@contextmanager
def _attended(attention: Any, block: int, attend: Attend, kernel: str | None) -> Iterator[None]:
    watches = _watches.setdefault(attention, [])
    first = not watches
    watches.append((attend, kernel))
    try:
        with (
            replaced(attention, "forward", lambda own: partial(_forward, attention, block, own))
            if first
            else nullcontext()
        ):
            yield
    finally:
        watches.pop()


def _forward(
    attention: Any, block: int, own: Callable[..., Any], hidden_states: torch.Tensor, attention_mask: Any = None,
    position_ids: Any = None, past_key_value: Any = None, output_attentions: bool = False, use_cache: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """In place of an attention module's forward: the same, step by step, with those who watch between its steps."""
    query, key, value = _projected(attention, hidden_states)
    before = 0 if past_key_value is None else past_key_value[0].shape[2]
    cos, sin = attention.rotary_emb(value, seq_len=before + key.shape[2])
    query, key = (_rotated(tensor, cos, sin, position_ids) for tensor in (query, key))
    if past_key_value is not None:
        key, value = (torch.cat([old, new], 2) for old, new in zip(past_key_value, (key, value), strict=True))
    watches = _watches[attention]
    named = next((name for _, name in reversed(watches) if name is not None), None)
    kernel = _kernel(attention, named)

    def shown(depth: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> Any:
        if not depth:
            return kernel(query, key, value, mask)
        scaling = attention.head_dim**-0.5
        own = partial(shown, depth - 1)
        return watches[depth - 1][0](Attention(block, query, key, value, mask, scaling, None, own))

    if named is None and (kwargs or type(attention) not in _compared):
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_value": past_key_value}
        with torch.no_grad(), patch.object(attention.wo, "_forward_pre_hooks", {}):
            ours = attention.wo(kernel(query, key, value, attention_mask)[0].flatten(2))
            _compare(attention, ours, own(hidden_states, **given, **kwargs)[0])
    made, weights = shown(len(watches), query, key, value, attention_mask)
    present = (key, value) if use_cache else None
    return attention.wo(made.flatten(2)), weights if output_attentions else None, present


def _compare(attention: nn.Module, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Raise TruncationError where a module of this layout computes something else than is known of it."""
    slack, apart = 16 * torch.finfo(ours.dtype).eps * float(theirs.abs().max()), float((ours - theirs).abs().max())
    if apart > slack:  # not of numbers that overflow, which are refused where a rule sees them
        raise TruncationError(
            f"{type(attention).__name__}: laid out like InternLM2's, but its output is not what that would be, so its "
            "attention cannot be looked at"
        )
    if apart <= slack:
        _compared.add(type(attention))


def _projected(attention: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [b, n, D] -> query [b, h, n, d], key and value [b, g, n, d]."""
    each = attention.num_key_value_groups
    fused = attention.wqkv(hidden).unflatten(-1, (-1, each + 2, attention.head_dim))
    query, key, value = fused[..., :each, :].flatten(2, 3), fused[..., -2, :], fused[..., -1, :]
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _rotated(tensor: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``tensor`` [b, h, n, d] turned by the tables [s, d] at ``positions`` [1 or b, n]."""
    one, other = tensor.chunk(2, -1)
    half = torch.cat((-other, one), -1)
    return (tensor * cos[positions].unsqueeze(1)) + (half * sin[positions].unsqueeze(1))


def _kernel_of(attention: Any) -> str:
    return "flash_attention_2" if hasattr(attention, FLASH) else "eager"


def _kernel(attention: Any, name: str | None) -> Callable[..., Any]:
    """``kernel(query, key, value, mask)`` -> ([b, q, h, d], weights or None); by default the module's own."""
    name = name or _kernel_of(attention)
    return partial({"eager": _eager, "sdpa": _sdpa, "flash_attention_2": _flash}[name], attention)


def _eager(attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> Any:
    key, value = (_repeated(attention, tensor) for tensor in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(attention.head_dim)
    scores = scores + _additive(mask, query, key)
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def _sdpa(attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> Any:
    key, value = (_repeated(attention, tensor) for tensor in (key, value))
    mask = _additive(mask, query, key)
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2), None


def _flash(attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> Any:
    lying = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return getattr(attention, FLASH)(*lying, mask, query.shape[2]), None


def _repeated(attention: Any, tensor: torch.Tensor) -> torch.Tensor:
    """[b, g, n, d] -> [b, h, n, d], each for its queries."""
    return tensor.repeat_interleave(attention.num_key_value_groups, 1)


def _additive(mask: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A mask that is added to scores: of None (causal), of bool, or as it is."""
    if mask is None:
        mask = causal(query.shape[2], key.shape[2], query.device)
    if mask.dtype != torch.bool:
        return mask  # type: ignore[no-any-return]
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
