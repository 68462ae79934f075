"""The hub's own Qwen-VL code loads and runs right on today's transformers; nothing else in the process changes.

What stands in its way, release by release: an import that nothing uses and that no longer works, a download at import,
weights made anew after loading, tables left without values, a kind of cache it does not know, and methods that
transformers has dropped since.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

STREAM = "transformers_stream_generator"  # needed by chat_stream only, which nothing here calls
FONT = "SimSun.ttf"  # the tokenizer draws boxes with it


@dataclass(frozen=True)
class RemoteCode:
    """The three classes of a checkpoint's own code."""

    config: Any
    model: Any
    tokenizer: Any


def remote_code(folder: str) -> RemoteCode:
    """Run the code in ``folder`` and return its classes, the model's mended; call within :func:`importable`.

    Raises:
        OSError: a file is missing.
        ImportError: a package it imports is.
        AttributeError, SyntaxError: it is not the code of Qwen-VL.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    names = ("configuration_qwen.QWenConfig", "modeling_qwen.QWenLMHeadModel", "tokenization_qwen.QWenTokenizer")
    config, model, tokenizer = (get_class_from_dynamic_module(name, folder) for name in names)
    mend(model)
    return RemoteCode(config, model, tokenizer)


@contextmanager
def importable() -> Iterator[None]:
    """Within the context the remote code's files can be imported, without a download."""
    with _stream_generator(), _font():
        yield


@contextmanager
def _stream_generator() -> Iterator[None]:
    """An empty module where the real one is missing, or fails on this transformers; the real one stays."""
    try:
        importlib.import_module(STREAM)
    except Exception:  # its old code fails in whatever way the installed transformers makes it fail
        sys.modules[STREAM] = stub = types.ModuleType(STREAM)
        try:
            yield
        finally:
            if sys.modules.get(STREAM) is stub:
                del sys.modules[STREAM]
    else:
        yield


@contextmanager
def _font() -> Iterator[None]:
    """The look-up of the font ends in matplotlib's own where it would end in a download into the working folder."""
    import matplotlib
    import transformers.utils

    look_up = transformers.utils.try_to_load_from_cache
    own = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")

    def with_font(repo: str, filename: str, *args: Any, **kwargs: Any) -> Any:
        found = look_up(repo, filename, *args, **kwargs)
        if filename == FONT and not isinstance(found, str) and not Path(FONT).exists():
            return own
        return found

    transformers.utils.try_to_load_from_cache = with_font
    try:
        yield
    finally:
        transformers.utils.try_to_load_from_cache = look_up


def mend(model: Any) -> None:
    """Change the model's class before it loads, so that it loads the weights it was given and can generate.

    Only classes of the model's own module are touched, each once; every change keeps what works on older releases.
    """
    from transformers import GenerationMixin

    body = sys.modules[model.__module__].QWenModel  # type: ignore[attr-defined]
    if "redrel_mended" in vars(body):
        return
    body.redrel_mended = True
    for owner in model.__mro__:
        if owner.__module__ == model.__module__ and "_init_weights" in vars(owner):
            # newer releases call it after loading, and it fills every c_proj.weight with noise
            owner._init_weights = lambda self, module: None
    if not issubclass(model, GenerationMixin):
        model.__bases__ = (*model.__bases__, GenerationMixin)
    model._supports_default_dynamic_cache = classmethod(lambda cls: False)  # its caches are tuples
    model.generate = _one_config(model.generate)
    model.prepare_inputs_for_generation = _whole_mask(model.prepare_inputs_for_generation)
    body.forward = _mask_of_cache(body.forward)
    if not hasattr(body, "get_head_mask"):
        body.get_head_mask = _get_head_mask


def _one_config(generate: Callable[..., Any]) -> Callable[..., Any]:
    """``generate`` with its keywords written into the config: the code gives both, newer releases want one."""

    @wraps(generate)
    def with_config(self: Any, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any:
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        return generate(self, inputs, generation_config=config, **config.update(**kwargs))

    return with_config


def _whole_mask(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """``prepare_inputs_for_generation`` given the mask of ones that newer releases leave out; ids are all so far."""

    @wraps(prepare)
    def with_mask(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones_like(input_ids)
        return prepare(self, input_ids, *args, **kwargs)

    return with_mask


def _mask_of_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The model's ``forward`` with a mask of ones where a cache comes without one: its attention adds it unasked."""

    @wraps(forward)
    def with_mask(self: Any, input_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None and kwargs.get("attention_mask") is None and input_ids is not None:
            held = past_key_values[0][0].shape[1]
            kwargs["attention_mask"] = input_ids.new_ones(input_ids.shape[0], held + input_ids.shape[1])
        return forward(self, input_ids, past_key_values, **kwargs)

    return with_mask


def _get_head_mask(self: Any, head_mask: Any, num_hidden_layers: int, *args: Any, **kwargs: Any) -> Any:
    """What transformers' own did: a mask [heads] or [blocks, heads] -> one that broadcasts over [b, heads, q, k]."""
    if head_mask is None:
        return [None] * num_hidden_layers
    if head_mask.dim() == 1:
        head_mask = head_mask[None].expand(num_hidden_layers, -1)
    return head_mask[:, None, :, None, None].to(self.dtype)


def restore_tables(model: nn.Module) -> None:
    """Give values to the rotary frequencies and the log-n table, which are no weights, where loading left them without.

    Raises:
        RuntimeError: another tensor has no values.
    """
    rotary: Any = model.transformer.rotary_emb
    if rotary.inv_freq.is_meta:
        rotary.inv_freq = 1.0 / rotary.base ** (torch.arange(0, rotary.dim, 2).float() / rotary.dim)
    table: torch.Tensor | None = None
    for block in model.transformer.h:  # type: ignore[union-attr]
        if block.attn.logn_tensor.is_meta:
            length = block.attn.seq_length
            if table is None:
                logs = [math.log(i, length) if i > length else 1 for i in range(1, 32768)]
                table = torch.tensor(logs)[None, :, None, None]
            block.attn.logn_tensor = table
    for name, module in model.named_modules():
        for key, value in {**vars(module), **module._parameters, **module._buffers}.items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                raise RuntimeError(f"{name}.{key} was left without values")
