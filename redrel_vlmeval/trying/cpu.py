"""A host's classes ask for a GPU, half precision and kernels of it; here they get a CPU, float32 and sdpa."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

HALVES = (torch.float16, torch.bfloat16)
DTYPES = ("dtype", "torch_dtype")


@contextmanager
def on_cpu() -> Iterator[None]:
    """Within the context nothing is moved off the CPU, nor to half precision, and models load in float32."""
    from transformers import PreTrainedModel

    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def loaded(cls: Any, *args: Any, **kwargs: Any) -> Any:
        for name in ("device_map", "low_cpu_mem_usage", *DTYPES):
            kwargs.pop(name, None)
        config = kwargs.get("config")
        if "flash" in f"{kwargs.get('attn_implementation')} {getattr(config, '_attn_implementation', None)}":
            kwargs["attn_implementation"] = "sdpa"
        return load(cls, *args, torch_dtype=torch.float32, **kwargs)

    with ExitStack() as undo:
        undo.enter_context(patch.object(PreTrainedModel, "from_pretrained", classmethod(loaded)))
        for kind in (torch.Tensor, nn.Module):
            undo.enter_context(patch.object(kind, "to", _staying(kind.to)))
            for name in ("cuda", "half", "bfloat16"):
                undo.enter_context(patch.object(kind, name, lambda self, *_args, **_kwargs: self))
        undo.enter_context(patch.object(torch.cuda, "set_device", lambda _device: None))
        undo.enter_context(patch.object(torch.cuda, "current_device", lambda: 0))
        for name, module in list(sys.modules.items()):
            if name.startswith("vlmeval.vlm") and hasattr(module, "get_gpu_memory"):  # which asks a GPU's driver
                undo.enter_context(patch.object(module, "get_gpu_memory", lambda: [80000]))
        yield


def _staying(to: Callable[..., Any]) -> Callable[..., Any]:
    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(arg for arg in args if not _leaves(arg))
        kwargs = {name: value for name, value in kwargs.items() if not _leaves(value)}
        return to(self, *args, **kwargs) if args or kwargs.keys() - {"non_blocking", "copy"} else self

    return stay


def _leaves(where: Any) -> bool:
    """Whether ``to(where)`` would leave the CPU or float32."""
    if isinstance(where, (str, torch.device)):
        return torch.device(where).type != "cpu"
    return where in HALVES if isinstance(where, torch.dtype) else type(where) is int
