"""Qwen-VL's own code at the speed of others: SDPA, logits of the last position only, each picture encoded once."""

from __future__ import annotations

import os
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

SEVERAL = ("assistant_model", "prompt_lookup_num_tokens")  # generation that reads several positions' logits at once


def install(model: Any, attention: str = "sdpa") -> None:
    """Replace what is slow in a loaded model; what it computes stays, to rounding.

    ``attention`` is ``sdpa``, or ``eager`` for the code's own. Everything is set on this model's modules, as bound
    methods, so that a deep copy of the model has its own.
    """
    if attention == "sdpa":
        for block in model.transformer.h:
            block.attn._attn = types.MethodType(_sdpa, block.attn)
        model.transformer.register_forward_pre_hook(_note_weights, with_kwargs=True)
    visual = model.transformer.visual
    visual.encode = types.MethodType(_encode_once, visual)
    visual.redrel_features = {}
    model.lm_head.redrel_last_only = False
    model.lm_head.register_forward_pre_hook(_last_position)
    model.generate = types.MethodType(_generate, model)


def _note_weights(transformer: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Tell every block whether this forward pass is asked for attention weights, which SDPA cannot give."""
    asked = kwargs.get("output_attentions")
    asked = transformer.config.output_attentions if asked is None else asked
    for block in transformer.h:
        if getattr(block.attn, "redrel_weights", False) != bool(asked):
            block.attn.redrel_weights = bool(asked)


def _sdpa(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, registered_causal_mask: Any,
    attention_mask: torch.Tensor | None = None, head_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """The module's own ``_attn``: query [b, h, q, d], keys and values [b, h, k, d] -> ([b, q, h, d], no weights).

    The code's own runs where weights are asked for or changed.
    """
    if head_mask is not None or self.training or getattr(self, "redrel_weights", False):
        own: tuple[torch.Tensor, torch.Tensor] = type(self)._attn(
            self, query, key, value, registered_causal_mask, attention_mask, head_mask
        )
        return own
    if attention_mask is not None and attention_mask.dtype != query.dtype:
        attention_mask = attention_mask.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask).transpose(1, 2), None


_sdpa.kernel = "sdpa"  # type: ignore[attr-defined]


def _last_position(lm_head: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """While generating, the head sees the last position only: [b, s, hidden] -> [b, 1, hidden]."""
    return (args[0][:, -1:],) if lm_head.redrel_last_only else None


def _generate(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's ``generate`` with :func:`_last_position` in force."""
    config = kwargs.get("generation_config") or self.generation_config
    before = self.lm_head.redrel_last_only
    several = any(kwargs.get(name) is not None or getattr(config, name, None) is not None for name in SEVERAL)
    self.lm_head.redrel_last_only = not several
    try:
        return type(self).generate(self, *args, **kwargs)
    finally:
        self.lm_head.redrel_last_only = before


def _encode_once(self: Any, image_paths: Sequence[str]) -> torch.Tensor:
    """The vision tower's ``encode``: paths -> features [n, 256, hidden].

    Beams repeat their pictures, and steps without a cache ask for them again: each is encoded once, and the features
    of the last call are kept for as long as its files are the same.
    """
    encode = type(self).encode
    watched = self._forward_pre_hooks or self.attn_pool.attn._forward_hooks  # pixels changed, resampler looked at
    if torch.is_grad_enabled() or watched:
        return torch.as_tensor(encode(self, image_paths))
    keys = [_file(path) for path in image_paths]
    known = {key: self.redrel_features[key] for key in keys if key in self.redrel_features}
    missing = {key: path for key, path in zip(keys, image_paths, strict=True) if key not in known}
    if missing:
        known.update(zip(missing, encode(self, list(missing.values())), strict=True))
    self.redrel_features = known
    return torch.stack([known[key] for key in keys])


def _file(path: str) -> tuple[str, int, int]:
    """What tells one state of a picture's file from the next."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # the code's own message is to come, or it is no file but an address
        return path, -1, -1
    return path, state.st_mtime_ns, state.st_size
