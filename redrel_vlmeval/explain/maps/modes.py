"""States in which a model can be explained, each put back on leaving: differentiable, checkpointed, short of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from redrel_vlmeval.errors import ExplainError


@contextmanager
def differentiable(model: nn.Module, grad: bool = True) -> Iterator[None]:
    """Within the context autograd is on (or off) whatever the host did, weights frozen, no tensor left over from
    inference mode on a module; afterwards everything is as before."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = [module for module in model.modules() if module.training]
    with torch.inference_mode(False), torch.set_grad_enabled(grad), thawed(model):
        for parameter in trained:
            parameter.requires_grad_(False)
        model.eval()
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            for module in modes:
                module.training = True


@contextmanager
def thawed(model: nn.Module) -> Iterator[None]:
    """Within the context tables that were made in inference mode (rotary, by remote code) are copies: autograd
    refuses to save the originals."""
    changed: list[tuple[dict[str, Any], str, Any]] = []
    for module in model.modules():
        for holder in (module.__dict__, module._buffers):
            for name, value in list(holder.items()):
                copied = _thaw(value)
                if copied is not value:
                    changed.append((holder, name, value))
                    holder[name] = copied
    try:
        yield
    finally:
        for holder, name, value in changed:
            holder[name] = value


def _thaw(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) and v.is_inference() for v in value):
        return type(value)([_thaw(v) for v in value])
    return value


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context a block keeps nothing for the backward but its input."""
    own = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


@contextmanager
def memory_named(what: str) -> Any:
    """Within the context a lack of memory is an :class:`ExplainError` that says what could be less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
        if not full:
            raise
        raise ExplainError(
            f"{what} does not fit into memory: use checkpointing, fewer layers, fewer noisy copies a pass (batch), "
            "or a smaller picture"
        ) from error
