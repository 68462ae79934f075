"""Decoders of remote code laid out like GPT: ``wte``, ``h[*].attn`` with one fused projection, ``ln_f``, ``visual``.

This is how Qwen-VL's own code is built. Differences that matter here: the cache is a tuple that every call makes anew;
rotary tables are a list of which each block takes the end; their length, and the scale of a query beyond the trained
length (logn), come from the length of a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from redrel_vlmeval.bases import BlockShape
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.decoders.base import Decoder
from redrel_vlmeval.truncation.decoders.caches import Tuples
from redrel_vlmeval.truncation.decoders.calls import Attend, Attention
from redrel_vlmeval.truncation.decoders.entrance import Entrance
from redrel_vlmeval.truncation.views import View, take

PARTS = {"input_norm": "ln_1", "middle_norm": "ln_2"}


@dataclass
class FusedDecoder(Tuples, Decoder):
    """Image tokens stand strictly between the ids ``image_start`` and ``image_start + 1``, whatever ids they carry."""

    image_start: int
    _logn: dict[nn.Module, torch.Tensor] = field(default_factory=dict, kw_only=True)

    axis: ClassVar[int] = 1
    rotary: ClassVar[str] = "rotary_pos_emb"
    layout: ClassVar[str] = "wte, ln_f, visual and h[*].attn.c_attn (the remote code of Qwen-VL and Qwen-VL-Chat)"

    @staticmethod
    def owns_blocks(module: nn.Module) -> bool:
        """Whether ``module`` is the decoder of this layout."""
        blocks = getattr(module, "h", None)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            return False
        if not all(hasattr(module, name) for name in ("wte", "ln_f", "visual", "rotary_emb")):
            return False
        return all(hasattr(getattr(block, "attn", None), name) for block in blocks for name in ("c_attn", "_attn"))

    @classmethod
    def of(cls, model: nn.Module, text: Any, entrance: Entrance | None = None) -> FusedDecoder:
        """The adapter of ``model`` whose blocks ``text`` owns.

        Raises:
            TruncationError: the model's config names no image token.
        """
        visual = getattr(getattr(model, "config", None), "visual", None) or {}
        if "image_start_id" not in visual:
            raise TruncationError(
                f"{type(model).__name__}: its config has no visual['image_start_id']; is it a text model?"
            )
        return cls(model, text, list(text.h), int(visual["image_start_id"]))

    @property
    def kernel(self) -> str:
        return str(getattr(self.blocks[0].attn._attn, "kernel", "eager"))

    @property
    def shape(self) -> BlockShape:
        config = self.root.config
        heads = config.num_attention_heads
        return BlockShape(config.hidden_size, heads, heads, config.kv_channels, config.intermediate_size // 2)

    @property
    def trained(self) -> int | None:
        config = self.root.config
        return int(config.seq_length) if config.use_dynamic_ntk or config.use_logn_attn else None

    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        starts, ends = ids == self.image_start, ids == self.image_start + 1
        inside = (starts.long() - ends.long()).cumsum(1)
        if bool((inside[:, -1] != 0).any()) or bool(((inside < 0) | (inside > 1)).any()):
            raise TruncationError(
                f"prompt with {int(starts.sum())} image starts and {int(ends.sum())} image ends: "
                "they do not enclose images one by one"
            )
        return (inside > 0) & ~starts

    def pictures(self, given: Mapping[str, Any]) -> bool:
        return False  # pixels are read from the paths within the prompt, and only where there is no cache

    def cache_of(self, kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get("layer_past")

    def shorten(self, block: int, kwargs: dict[str, Any], view: View) -> dict[str, Any]:
        rotary = kwargs["rotary_pos_emb"]
        mask = kwargs["attention_mask"]
        attention = self.blocks[block].attn
        if attention.use_logn_attn:
            whole = self._logn.setdefault(attention, attention.logn_tensor)
            attention.logn_tensor = self._once(None, view, lambda: _logn_of(whole.to(mask.device, mask.dtype), view))
        return kwargs | {
            "rotary_pos_emb": self._once(rotary, view, lambda: [take(table, view.rotary, 1) for table in rotary]),
            "attention_mask": self._mask(kwargs, view, view.square_mask),
        }

    def narrow(self, block: int, kwargs: dict[str, Any], view: View, held: int, queries: int) -> dict[str, Any]:
        length = view.length + held - view.index.shape[1] + queries
        wide = self._widened(kwargs, queries, length)
        rotary = wide["rotary_pos_emb"]
        if rotary[0].shape[1] != length:  # tokens left before block 1, whose cache the length was read from
            wide["rotary_pos_emb"] = self._once(rotary, view, lambda: self._rotary(length, rotary[0]))
        return super().narrow(block, wide, view, held, queries)

    def masked(self, kwargs: dict[str, Any], visible: torch.Tensor, queries: int) -> dict[str, Any]:
        return super().masked(self._widened(kwargs, queries, visible.shape[1]), visible, queries)

    def _widened(self, kwargs: dict[str, Any], queries: int, keys: int) -> dict[str, Any]:
        """A step's mask over all ``keys``: where none was given it is made up from a cache that may be short."""
        mask = kwargs["attention_mask"]
        if mask.shape[-1] < keys:
            mask = mask.new_zeros(len(mask), 1, queries, keys)
        return kwargs | {"attention_mask": mask}

    def _rotary(self, length: int, like: torch.Tensor) -> list[torch.Tensor]:
        rotary = self.text.rotary_emb
        tables = rotary(length, ntk_alpha=rotary._ntk_alpha_cached)
        return [table.to(like.device) for table in tables]

    def forget_prompt(self) -> None:
        super().forget_prompt()
        while self._logn:
            attention, whole = self._logn.popitem()
            attention.logn_tensor = whole

    @contextmanager
    def attending(self, blocks: Sequence[int], attend: Attend, kernel: str | None = None) -> Iterator[None]:
        with ExitStack() as undo:
            for block in blocks:
                attention = self.blocks[block].attn
                own = {"_attn": attention.__dict__["_attn"]} if "_attn" in attention.__dict__ else {}
                undo.callback(attention.__dict__.update, own)
                undo.callback(attention.__dict__.pop, "_attn", None)
                attention._attn = _shown(attention._attn, block, attend)
            yield

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.text.wte(ids)  # type: ignore[operator,no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(self.normed(hidden))  # type: ignore[no-any-return]

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.text.ln_f(hidden)  # type: ignore[operator,no-any-return]

    def at(self, block: int, kwargs: Mapping[str, Any], index: torch.Tensor) -> dict[str, Any]:
        return self._alone(block, kwargs, [table.index_select(1, index) for table in kwargs["rotary_pos_emb"]], index)

    def beyond(
        self, block: int, kwargs: Mapping[str, Any], noted: Sequence[torch.Tensor], length: int, ahead: int, count: int
    ) -> dict[str, Any]:
        like = kwargs["rotary_pos_emb"][0]

        def make() -> tuple[list[torch.Tensor], torch.Tensor]:
            tables = self._rotary(length + ahead + 1, like)
            index = torch.full((count,), length + ahead, device=like.device)
            return [table[:, -1:].expand(-1, count, -1, -1) for table in tables], index

        return self._alone(block, kwargs, *self._known((id(like), ahead, count), like, make))

    def _alone(
        self, block: int, kwargs: Mapping[str, Any], rotary: list[torch.Tensor], index: torch.Tensor
    ) -> dict[str, Any]:
        """A block's arguments with these rotary tables; its queries are scaled as those at ``index`` are."""
        attention = self.blocks[block].attn
        if attention.use_logn_attn:
            whole = self._logn.setdefault(attention, attention.logn_tensor)
            attention.logn_tensor = whole.to(rotary[0].device).index_select(1, index)
        return dict(kwargs) | {
            "rotary_pos_emb": rotary, "attention_mask": None, "layer_past": None, "use_cache": False,
        }  # fmt: skip

    def part(self, block: int, name: str) -> nn.Module:
        found = self.blocks[block].attn.c_proj if name == "attention_output" else None
        found = getattr(self.blocks[block], PARTS.get(name, ""), found)
        if not isinstance(found, nn.Module):
            raise TruncationError(f"{type(self.blocks[block]).__name__} of block {block + 1} has no {name!r}")
        return found

    def vision_blocks(self) -> list[nn.Module]:
        return list(self.text.visual.transformer.resblocks)  # type: ignore[union-attr, arg-type]

    def tower(self) -> nn.Module:
        visual: nn.Module = self.text.visual  # type: ignore[assignment]
        return visual

    def projector(self) -> nn.Module:
        resampler: nn.Module = self.text.visual.attn_pool  # type: ignore[union-attr, assignment]
        return resampler

    def eye(self) -> nn.Module | None:
        visual: nn.Module = self.text.visual  # type: ignore[assignment]
        return visual

    def resampling(self) -> nn.Module | None:
        attention: nn.Module = self.projector().attn  # type: ignore[assignment]
        return attention


def _shown(own: Any, block: int, attend: Attend) -> Any:
    """A block's ``_attn`` that shows ``attend`` what it is given."""

    def shown(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        causal, mask, *rest = [*args, None, None][: max(2, len(args))]
        causal, mask = kwargs.pop("registered_causal_mask", causal), kwargs.pop("attention_mask", mask)

        def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> Any:
            if mask is None and shown.kernel == "eager":  # type: ignore[attr-defined]
                mask = query.new_zeros(1, 1, 1, 1)  # the code's own adds it unasked
            return own(query, key, value, causal, mask, *rest, **kwargs)

        return attend(Attention(block, query, key, value, mask, value.shape[-1] ** -0.5, None, kernel, causal=True))

    shown.kernel = getattr(own, "kernel", "eager")  # type: ignore[attr-defined]
    return shown


def _logn_of(whole: torch.Tensor, view: View) -> torch.Tensor:
    """Query scales [1, n, 1, 1] by true position, for blocks that count ``view``'s tokens and those after them."""
    kept = take(whole, view.index, 1)
    return torch.cat([kept, whole[:, view.length :].expand(len(kept), -1, -1, -1)], 1)
