"""Transformers' attention interface: whatever attends through it can be looked at, or made to attend otherwise."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.decoders.calls import Attend, Attention
from redrel_vlmeval.truncation.decoders.parallel import group_of

PROBE = "redrel_probe"  # name of our attention function in transformers' registry


@dataclass(frozen=True)
class _Watch:
    """Who takes a module's attention over, with which kernel, and who did so before."""

    attend: Attend
    block: int
    kernel: str
    config: Any  # the module's own
    inner: _Watch | None


_watches: WeakKeyDictionary[nn.Module, _Watch] = WeakKeyDictionary()


def kernel_of(attention: Any) -> str:
    """Name of the kernel that an attention module runs, also while it is looked at."""
    watch = _watches.get(attention)
    own = getattr(attention.config, "redrel_own", attention.config)  # of a deep copy made while it was looked at
    return str(own._attn_implementation) if watch is None else watch.kernel


@contextmanager
def attended(attention: Any, block: int, attend: Attend, kernel: str | None = None) -> Iterator[None]:
    """Within the context one attention module attends by ``attend``; the last one entered is asked first.

    The module is given a copy of its config that names our function in transformers' attention registry; it shows
    ``attend`` the very tensors that the model's kernel, or ``kernel``, would have been given.
    """
    _register_probe()
    config, inner = attention.config, _watches.get(attention)
    own = config if inner is None else inner.config
    _watches[attention] = _Watch(attend, block, kernel or kernel_of(attention), own, inner)
    if inner is None:
        attention.config = copy.copy(config)
        attention.config._attn_implementation_internal = PROBE
        attention.config.redrel_own = config
    try:
        yield
    finally:
        attention.config = config
        if inner is None:
            del _watches[attention]
        else:
            _watches[attention] = inner


def _register_probe() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if PROBE not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS[PROBE] = _probe_attention


def _kernel(module: nn.Module, name: str) -> Any:
    """Transformers' attention function of that name, as this module would call it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return ALL_ATTENTION_FUNCTIONS[name]


def _probe_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    """In place of the model's own kernel: what ``attended`` was given."""
    last = _watches.get(module)
    if last is None:  # a deep copy, made while the original was looked at: it attends as the original does by itself
        module.config = module.config.redrel_own  # type: ignore[union-attr]
        return _kernel(module, module.config._attn_implementation)(  # type: ignore[union-attr]
            module, query, key, value, attention_mask, **kwargs
        )
    if kwargs.get("s_aux") is not None:
        raise TruncationError(
            f"{type(module).__name__}: its attention has a sink beside its keys (GPT-OSS), so a row is not the softmax "
            "over them that visual tokens are ranked by"
        )
    kernel, group = _kernel(module, last.kernel), group_of(module)
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

    def shown(watch: _Watch | None, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> Any:
        if watch is None:
            ours, module.config = module.config, last.config  # flash kernels read the config's name of the kernel
            try:
                return kernel(module, query, key, value, mask, **kwargs)
            finally:
                module.config = ours

        def own(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> Any:
            return shown(watch.inner, query, key, value, mask)

        softcap = kwargs.get("softcap")
        return watch.attend(Attention(watch.block, query, key, value, mask, scaling, softcap, own, group))

    return shown(last, query, key, value, attention_mask)
