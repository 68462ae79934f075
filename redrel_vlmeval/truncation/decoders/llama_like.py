"""Transformers' own decoders laid out like LLaMA: where their attention, rotary tables, masks and caches are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from redrel_vlmeval.bases import BlockShape
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.decoders import deepstack
from redrel_vlmeval.truncation.decoders.base import Decoder
from redrel_vlmeval.truncation.decoders.caches import longer, tensor, wider
from redrel_vlmeval.truncation.decoders.calls import Attend, Observer, observing
from redrel_vlmeval.truncation.decoders.entrance import VISUAL, Entrance
from redrel_vlmeval.truncation.decoders.interface import attended, kernel_of
from redrel_vlmeval.truncation.decoders.tokens import IMAGE_KEYS, visual_tokens
from redrel_vlmeval.truncation.views import View, is_per_token, take

SHORTENED = ("hidden_states", "position_embeddings", "attention_mask", "position_ids", "cache_position")
TOWERS = ("vision_tower", "visual", "vision_model")
TOWER_BLOCKS = ("layers", "blocks", "layer")
# model_type -> the key of its config that says how many tokens every picture has
PER_PICTURE = {"gemma3": "mm_tokens_per_image", "internvl": "image_seq_length", "paligemma": "num_image_tokens"}
PROJECTORS = ("multi_modal_projector", "merger", "connector", "mlp1")


@dataclass
class NativeDecoder(Decoder):
    """``embed_tokens``, ``layers`` with ``self_attn``, ``norm``; visual tokens have one of the ids ``tokens``."""

    tokens: tuple[int, ...]

    rotary: ClassVar[str] = "position_embeddings"
    parts: ClassVar[dict[str, str]] = {  # of a block and, the last, of its attention
        "attention": "self_attn", "input_norm": "input_layernorm", "middle_norm": "post_attention_layernorm",
        "attention_output": "o_proj",
    }  # fmt: skip
    layout: ClassVar[str] = (
        "embed_tokens, norm and layers[*].self_attn (transformers-native decoders laid out like LLaMA: LLaVA, "
        "LLaVA-NeXT, LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, InternVL-hf and the like)"
    )

    @staticmethod
    def owns_blocks(module: nn.Module) -> bool:
        """Whether ``module`` is the decoder of this layout."""
        layers = getattr(module, "layers", None)
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            return False
        if not (hasattr(module, "embed_tokens") and hasattr(module, "norm")):
            return False
        return all(hasattr(block, "self_attn") and hasattr(block.self_attn, "config") for block in layers)

    @classmethod
    def of(cls, model: nn.Module, text: Any, entrance: Entrance | None = None) -> NativeDecoder:
        """The adapter of ``model`` whose blocks ``text`` owns.

        Raises:
            TruncationError: the model's config names no image token, and ``model`` is not given embeddings either.
        """
        blocks = list(text.layers)[: getattr(text.config, "num_hidden_layers", None)]
        if entrance is None:
            return cls(model, text, blocks, visual_tokens(model))
        named = visual_tokens(model) if any(getattr(model.config, key, None) is not None for key in IMAGE_KEYS) else ()
        return cls(model, text, blocks, (VISUAL, *named), entrance=entrance)

    @property
    def kernel(self) -> str:
        return kernel_of(self.blocks[0].self_attn)

    @property
    def shape(self) -> BlockShape:
        config = self.text.config
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return BlockShape(config.hidden_size, heads, kv_heads, head_dim, *_hidden_widths(config))

    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.isin(ids, torch.tensor(self.tokens, device=ids.device))

    @property
    def per_picture(self) -> int | None:
        if self.entrance is not None:
            return getattr(self.entrance.outer, "num_image_token", None)  # InternVL: of every tile
        config: Any = self.root.config
        vision = getattr(config, "vision_config", None)
        if config.model_type == "llava" and vision is not None:
            return int(vision.image_size // vision.patch_size) ** 2
        return getattr(config, PER_PICTURE.get(config.model_type, ""), None)

    @property
    def axes(self) -> int:
        config: Any = self.text.config
        scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        return 3 if "mrope_section" in scaling else 1

    def pictures(self, given: Mapping[str, Any]) -> bool:
        return any(name.startswith("pixel_values") and value is not None for name, value in given.items())

    def past(self, cache: Any) -> int:
        return 0 if cache is None else int(cache.get_seq_length())

    def cache_of(self, kwargs: Mapping[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        return kwargs.get("past_key_value") if cache is None else cache

    def held_bytes(self, cache: Any) -> int:
        pairs = [(tensor(cache, "key", block), tensor(cache, "value", block)) for block in range(len(self.blocks))]
        return sum(tensor.nbytes for pair in pairs for tensor in pair if tensor is not None)

    def held_length(self, cache: Any, block: int) -> int:
        keys = tensor(cache, "key", block)
        return 0 if keys is None else int(keys.shape[-2])

    def check_cache(self, cache: Any, longest: int) -> None:
        """Raise TruncationError for static, compiled, windowed and quantised caches."""
        from transformers import DynamicCache

        if cache is None:
            return
        if not isinstance(cache, DynamicCache):
            raise TruncationError(
                f"KV cache of type {type(cache).__name__}: blocks must be free to differ in length, use DynamicCache"
            )
        window = self.window(cache)
        if window is not None and longest > window:
            raise TruncationError(f"prompt of {longest} tokens exceeds the sliding window of {window} of its KV cache")

    def window(self, cache: Any) -> int | None:
        layers = [layer for layer in getattr(cache, "layers", []) if getattr(layer, "is_sliding", False)]
        windows = (getattr(layer, "sliding_window", None) for layer in layers)
        return min((window for window in windows if window is not None), default=None)

    def report_length(self, cache: Any, dropped: Mapping[int, int]) -> Callable[[], None]:
        """The cache's layers count the tokens that left, too."""
        if not hasattr(cache, "layers"):  # of an older release: one length for all, block 1's
            holders = [(cache, dropped[0])] if 0 in dropped else []
        else:
            holders = [(cache.layers[block], more) for block, more in dropped.items()]
        for holder, more in holders:
            holder.get_seq_length = longer(type(holder).get_seq_length, holder, more)
            if hasattr(holder, "cumulative_length"):  # a sliding layer counts by itself
                holder.get_mask_sizes = wider(type(holder).get_mask_sizes, holder, more)

        def undo() -> None:
            for holder, _ in holders:
                holder.__dict__.pop("get_seq_length", None)
                holder.__dict__.pop("get_mask_sizes", None)

        return undo

    def extras(self, view: Callable[[], View | None]) -> AbstractContextManager[None]:
        """DeepStack (Qwen3-VL): visual features added behind the first blocks, for the tokens that are still there."""
        return deepstack.fitted(self.text, view)

    def added(self) -> AbstractContextManager[list[torch.Tensor]]:
        return deepstack.noted(self.text)

    def shorten(self, block: int, kwargs: dict[str, Any], view: View) -> dict[str, Any]:
        short = dict(kwargs)
        if kwargs.get("position_embeddings") is not None:
            rotary = kwargs["position_embeddings"]
            short["position_embeddings"] = self._once(rotary, view, lambda: _turned(rotary, view))
        short["attention_mask"] = self._mask(kwargs, view, lambda mask: view.square_mask(mask, self.flash))
        if kwargs.get("position_ids") is not None:
            # rotary tables say it all; positions with gaps would look like packed sequences to flash kernels
            gathered = None if "position_embeddings" in kwargs else take(kwargs["position_ids"], view.rotary, -1)
            short["position_ids"] = gathered
        if kwargs.get("cache_position") is not None:
            short["cache_position"] = kwargs["cache_position"][view.index[0]]
        for name, value in kwargs.items():  # what a block is given for each token besides: per-layer embeddings
            if name not in SHORTENED and is_per_token(value, view):
                short[name] = self._once(value, view, partial(take, value, view.index, 1))
        return short

    @contextmanager
    def attending(self, blocks: Sequence[int], attend: Attend, kernel: str | None = None) -> Iterator[None]:
        with ExitStack() as undo:
            for block in blocks:
                undo.enter_context(attended(self.blocks[block].self_attn, block, attend, kernel))
            yield

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.text.embed_tokens(ids)  # type: ignore[operator,no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(self.normed(hidden))  # type: ignore[no-any-return]

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.text.norm(hidden)  # type: ignore[operator,no-any-return]

    @contextmanager
    def noting(self) -> Iterator[list[torch.Tensor]]:
        noted: list[torch.Tensor] = []

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            noted.append(args[1] if len(args) > 1 else kwargs["position_ids"])

        handle = self._rotary_module().register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield noted
        finally:
            handle.remove()

    def _rotary_module(self) -> nn.Module:
        rotary = getattr(self.text, "rotary_emb", None)
        if not isinstance(rotary, nn.Module):
            raise TruncationError(f"{type(self.text).__name__}: has no rotary_emb, so its answers cannot be continued")
        if hasattr(self.text, "rotary_emb_local"):
            raise TruncationError(
                f"{type(self.text).__name__} of this transformers hands two rotary tables to each block, so its "
                "answers cannot be continued from the middle; run its variants one by one, or use transformers 5"
            )
        return rotary

    def _tables(self, block: int, like: torch.Tensor, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Rotary tables of ``block`` at ``positions``; each kind of block, full or sliding, may have its own."""
        rotary, config = self._rotary_module(), self.text.config
        own = "layer_type" in inspect.signature(rotary.forward).parameters
        kind = {"layer_type": config.layer_types[block]} if own and config.layer_types is not None else {}
        return rotary(like, position_ids=positions, **kind)  # type: ignore[no-any-return]

    def at(self, block: int, kwargs: Mapping[str, Any], index: torch.Tensor) -> dict[str, Any]:
        rotary = kwargs["position_embeddings"]
        return self._alone(kwargs, tuple(table.index_select(-2, index.to(table.device)) for table in rotary))

    def beyond(
        self, block: int, kwargs: Mapping[str, Any], noted: Sequence[torch.Tensor], length: int, ahead: int, count: int
    ) -> dict[str, Any]:
        like = kwargs["position_embeddings"][0]

        def make() -> tuple[torch.Tensor, ...]:
            # pictures may count for fewer positions than tokens; what follows comes behind the largest
            after = (noted[0].amax() + 1 + ahead).expand(*noted[0].shape[:-1], 1).to(like.device)
            tables = self._tables(block, like, after)
            return tuple(table.expand(*table.shape[:-2], count, table.shape[-1]) for table in tables)

        return self._alone(kwargs, self._known((id(like), ahead, count), like, make))

    @staticmethod
    def _alone(kwargs: Mapping[str, Any], rotary: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        """A block's arguments with these rotary tables, and nothing that belongs to the call they came from."""
        emptied = ("attention_mask", "position_ids", "cache_position", "past_key_values", "past_key_value")
        found = dict(kwargs) | {name: None for name in emptied if name in kwargs}
        return found | {"use_cache": False, "position_embeddings": rotary}

    @contextmanager
    def vision_probe(self, block: int, observer: Observer) -> Iterator[None]:
        module = self.vision_blocks()[block]
        attention = getattr(module, "self_attn", None)
        if attention is None or not hasattr(attention, "config"):
            raise TruncationError(
                f"{type(module).__name__}: its attention does not go through transformers' attention interface"
            )
        with attended(attention, block, observing(observer)):
            yield

    def part(self, block: int, name: str) -> nn.Module:
        owner = self.part(block, "attention") if name == "attention_output" else self.blocks[block]
        found = getattr(owner, self.parts[name], None)
        if not isinstance(found, nn.Module):
            raise TruncationError(f"{type(owner).__name__} of block {block + 1} has no {self.parts[name]!r}")
        return found

    def vision_blocks(self) -> list[nn.Module]:
        tower = self.tower()
        lists = [
            list(module)
            for name, module in tower.named_modules()
            if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in TOWER_BLOCKS
        ]
        if not lists:
            raise TruncationError(f"{type(tower).__name__}: no list of blocks ({', '.join(TOWER_BLOCKS)}) in it")
        return max(lists, key=len)

    def tower(self) -> nn.Module:
        return self._named(TOWERS)

    def projector(self) -> nn.Module:
        return self._named(PROJECTORS)

    def _named(self, names: tuple[str, ...]) -> nn.Module:
        """The outermost module of the model whose own name is one of ``names``, of which the first counts."""
        model = self.root if self.entrance is None else self.entrance.outer
        paths = {path.rpartition(".")[2]: module for path, module in reversed(list(model.named_modules()))}
        found = next((paths[name] for name in names if name in paths), None)
        if found is None:
            raise TruncationError(f"{type(model).__name__}: no module named {', '.join(names)}")
        return found


def _hidden_widths(config: Any) -> tuple[int, int]:
    """Of a block's FFN: of what one token goes through, and of all experts, 0 where there are none.

    A decoder whose first blocks have no experts (DeepSeek) is told as if they had.
    """
    counts = (getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
    every, sent = next((count for count in counts if count), None), getattr(config, "num_experts_per_tok", None)
    if not every or not sent:
        return config.intermediate_size, 0
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    shared = (getattr(config, "n_shared_experts", None) or 0) * width  # all tokens are sent to these
    shared += getattr(config, "shared_expert_intermediate_size", None) or 0
    return sent * width + shared, every * width + shared


def _turned(rotary: Any, view: View) -> Any:
    """Rotary tables (cos, sin), each [.., b, s, d], or one complex table [b, s, d] as Llama 4 has it."""
    if isinstance(rotary, torch.Tensor):
        return take(rotary, view.rotary, 1)
    return tuple(take(table, view.rotary, -2) for table in rotary)
