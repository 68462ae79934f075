"""The only file that knows model internals: where blocks, image tokens, attention, rotary tables, masks and caches are.

A decoder is recognised by its module tree, not by its class or a release number; what is not recognised is refused by
name. The engine speaks to :class:`NativeDecoder` and never to a model.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from redrel_vlmeval.truncation.errors import TruncationError
from redrel_vlmeval.truncation.views import View, causal, hide, take

PROBE = "redrel_probe"  # name of our attention function in transformers' registry
Observer = Callable[..., None]
_observers: WeakKeyDictionary[nn.Module, tuple[str, Observer]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Call:
    """What one forward call of the outermost model was given.

    ``past`` is the cached length (0 at prefill), ``pictures`` whether pixels came along.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    cache: Any
    past: int
    pictures: bool


@dataclass(frozen=True)
class BlockShape:
    """Sizes of one decoder block: model width, query and key heads, head width, hidden width of the gated FFN."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int


@dataclass
class NativeDecoder:
    """A transformers-native decoder laid out like LLaMA: ``embed_tokens``, ``layers`` with ``self_attn``, ``norm``.

    ``root`` is the model as called, ``text`` the module that owns the blocks.
    """

    root: nn.Module
    text: nn.Module
    blocks: list[nn.Module]
    image_token: int
    _memo: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)

    @property
    def kernel(self) -> str:
        """Name of the attention function in use: ``sdpa``, ``eager``, ``flash_attention_2``, ..."""
        attention = self.blocks[0].self_attn
        if attention in _observers:
            return _observers[attention][0]
        return str(attention.config._attn_implementation)

    @property
    def shape(self) -> BlockShape:
        """Sizes of a block, from the text config (all blocks are alike)."""
        config = self.text.config
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return BlockShape(config.hidden_size, heads, kv_heads, head_dim, config.intermediate_size)

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The parts of a forward call that truncation needs, wherever they stand among its arguments."""
        given = inspect.signature(self.root.forward).bind_partial(*args, **kwargs).arguments
        given = {**given.get("kwargs", {}), **given}
        cache = given.get("past_key_values")
        pictures = any(name.startswith("pixel_values") and value is not None for name, value in given.items())
        return Call(given.get("input_ids"), given.get("attention_mask"), cache, logical_length(cache), pictures)

    def forget_call(self) -> None:
        """Let go of the tensors that were shared between the blocks of one forward call."""
        self._memo.clear()

    def cache_of(self, kwargs: Mapping[str, Any]) -> Any:
        """The KV cache in a block's arguments, or None."""
        cache = kwargs.get("past_key_values")
        return kwargs.get("past_key_value") if cache is None else cache

    def shorten(self, kwargs: dict[str, Any], view: View) -> dict[str, Any]:
        """A block's prefill arguments (rotary tables, masks, positions) cut to ``view``; made once a forward."""
        short = dict(kwargs)
        if kwargs.get("position_embeddings") is not None:
            rotary = kwargs["position_embeddings"]
            short["position_embeddings"] = self._once(
                rotary, view, lambda: tuple(take(t, view.index, -2) for t in rotary)
            )
        short["attention_mask"] = self._mask(kwargs, view, lambda mask: view.square_mask(mask))
        if kwargs.get("position_ids") is not None:
            # rotary tables say it all; positions with gaps would look like packed sequences to flash kernels
            gathered = None if "position_embeddings" in kwargs else take(kwargs["position_ids"], view.index, -1)
            short["position_ids"] = gathered
        if kwargs.get("cache_position") is not None:
            short["cache_position"] = kwargs["cache_position"][view.index[0]]
        return short

    def narrow(self, kwargs: dict[str, Any], view: View, block: int, queries: int) -> dict[str, Any]:
        """A block's arguments at a later step: the mask's columns are those that the block's cache holds."""
        keys = held_length(self.cache_of(kwargs), block) + queries
        return kwargs | {"attention_mask": self._mask(kwargs, view, lambda mask: view.column_mask(mask, queries, keys))}

    def masked(self, kwargs: dict[str, Any], visible: torch.Tensor, queries: int) -> dict[str, Any]:
        """A block's arguments with the keys that ``visible`` (bool [b, k]) excludes hidden; nothing is dropped."""
        mask = kwargs.get("attention_mask")
        keys = visible.shape[1]
        if mask is None:
            mask = causal(queries, keys, visible.device)
        allowed = visible[:, None, None].to(mask.device)
        if queries == keys:  # a hidden token's own row must attend to something, or its softmax is NaN
            allowed = allowed | torch.eye(keys, dtype=torch.bool, device=mask.device)
        return kwargs | {"attention_mask": hide(mask, allowed)}

    def _mask(self, kwargs: Mapping[str, Any], view: View, make: Callable[[Any], Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None and not isinstance(mask, torch.Tensor):
            raise TruncationError(
                f"attention mask of type {type(mask).__name__}: use attn_implementation sdpa, eager or flash"
            )
        return self._once(mask, view, lambda: make(mask))

    def _once(self, source: Any, view: View, make: Callable[[], Any]) -> Any:
        """Blocks share their arguments: each is shortened once per view, its source kept alive as ids are reused."""
        key = (id(source), id(view))
        if key not in self._memo:
            self._memo[key] = (make(), (source, view))
        return self._memo[key][0]

    @contextmanager
    def probe(self, block: int, observer: Observer) -> Iterator[None]:
        """Within the context ``observer(query, key, mask, scaling, softcap)`` sees block ``block`` (0-based) attend.

        The block's attention is given a copy of its config that names our function in transformers' attention
        registry; it calls the model's own kernel and shows the observer the very tensors that the kernel was given.
        """
        attention = self.blocks[block].self_attn
        _register_probe()
        config = attention.config
        changed = copy.copy(config)
        changed._attn_implementation_internal = PROBE
        _observers[attention] = (str(config._attn_implementation), observer)
        attention.config = changed
        try:
            yield
        finally:
            attention.config = config
            del _observers[attention]


def _register_probe() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if PROBE not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS[PROBE] = _probe_attention


def _probe_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    """The model's own kernel, after the observer has seen its inputs."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name, observer = _observers[module]
    scaling = kwargs.get("scaling")
    observer(query, key, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling, kwargs.get("softcap"))
    if name == "eager":
        kernel = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    else:
        kernel = ALL_ATTENTION_FUNCTIONS[name]
    return kernel(module, query, key, value, attention_mask, **kwargs)


@contextmanager
def replaced_generate(model: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within the context ``model.generate`` is ``make(what it was)``; afterwards exactly what it was. Contexts nest."""
    own = {"generate": model.__dict__["generate"]} if "generate" in model.__dict__ else {}
    model.generate = make(model.generate)
    try:
        yield
    finally:
        del model.generate
        model.__dict__.update(own)


def find_decoder(model: nn.Module) -> NativeDecoder:
    """The adapter for a model, found by its module tree and config.

    Raises:
        TruncationError: no decoder, or more than one, is laid out as expected; or its config names no image token.
    """
    if not isinstance(model, nn.Module):
        raise TruncationError(f"truncated() takes a torch model, got {type(model).__name__}")
    found = [m for m in model.modules() if _is_text_decoder(m)]
    if len(found) != 1:
        raise TruncationError(
            f"{type(model).__name__}: unknown decoder ({len(found)} modules with embed_tokens, norm and "
            f"layers[*].self_attn, expected one). Supported: transformers-native decoders laid out like LLaMA "
            f"(LLaVA, LLaVA-NeXT, LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, InternVL-hf and the like)"
        )
    config = getattr(model, "config", None)
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    if token is None:
        raise TruncationError(
            f"{type(model).__name__}: its config has neither image_token_id nor image_token_index; is it a text model?"
        )
    text = found[0]
    blocks = list(text.layers)[: getattr(text.config, "num_hidden_layers", None)]
    return NativeDecoder(model, text, blocks, int(token))


def _is_text_decoder(module: nn.Module) -> bool:
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    if not (hasattr(module, "embed_tokens") and hasattr(module, "norm")):
        return False
    return all(hasattr(block, "self_attn") and hasattr(block.self_attn, "config") for block in layers)


def logical_length(cache: Any) -> int:
    """Tokens that a cache stands for (what the model counts positions from); 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())


def held_length(cache: Any, block: int) -> int:
    """Keys that a block (0-based) really holds in a cache; 0 without one."""
    keys = _keys(cache, block)
    return 0 if keys is None else int(keys.shape[-2])


def _keys(cache: Any, block: int) -> torch.Tensor | None:
    if cache is None:
        return None
    if hasattr(cache, "layers"):
        keys = getattr(cache.layers[block], "keys", None) if block < len(cache.layers) else None
    else:
        keys = cache.key_cache[block] if block < len(cache.key_cache) else None
    return keys if isinstance(keys, torch.Tensor) and keys.numel() else None


def check_cache(cache: Any, longest: int) -> None:
    """Raise TruncationError for caches whose blocks cannot differ in length: static, compiled, windowed, quantised."""
    from transformers import DynamicCache

    if cache is None:
        return
    if not isinstance(cache, DynamicCache):
        raise TruncationError(
            f"KV cache of type {type(cache).__name__}: blocks must be free to differ in length, use DynamicCache"
        )
    for layer in getattr(cache, "layers", []):
        window = getattr(layer, "sliding_window", None)
        if getattr(layer, "is_sliding", False) and window is not None and longest > window:
            raise TruncationError(f"prompt of {longest} tokens exceeds the sliding window of {window} of its KV cache")


def report_length(cache: Any, dropped: int) -> Callable[[], None]:
    """Make a cache count ``dropped`` more tokens in block 1, from which models take the position of generated tokens.

    Needed when tokens leave before block 1 (``l0``). Returns the function that undoes it.
    """
    holder = cache.layers[0] if hasattr(cache, "layers") else cache
    counted = type(holder).get_seq_length

    def with_dropped(*args: Any, **kwargs: Any) -> int:
        length = counted(holder, *args, **kwargs)
        return length + dropped if length else 0

    holder.get_seq_length = with_dropped
    return lambda: holder.__dict__.pop("get_seq_length", None)
