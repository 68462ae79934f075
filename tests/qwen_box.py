"""Tiny Qwen-VLs in our classes and in the host's own, pictures for them, and a watch on what they generate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from checkpoints import import_host
from PIL import Image
from qwen_checkpoint import write_checkpoint

from redrel_vlmeval.models.qwen import compat
from redrel_vlmeval.truncation.hooks import replaced_generate

KINDS = ("base", "chat")
NEW = 6  # tokens of an answer


@cache
def kinds() -> Any:
    """Classes by kind: ``ours``, the host's ``stock``, and our ``variant``; importing them imports the host."""
    import_host()
    from vlmeval.vlm.qwen_vl import QwenVL, QwenVLChat

    from redrel_vlmeval.models.qwen.model import RedrelQwenVL, RedrelQwenVLChat
    from redrel_vlmeval.models.variant import TruncatedVLM

    ours = {"base": RedrelQwenVL, "chat": RedrelQwenVLChat}
    return SimpleNamespace(ours=ours, stock={"base": QwenVL, "chat": QwenVLChat}, variant=TruncatedVLM)


def write(root: Path) -> dict[str, Path]:
    """A checkpoint of each kind."""
    return {kind: write_checkpoint(root / f"vl-{kind}", chat=kind == "chat") for kind in KINDS}


def ours(folders: dict[str, Path]) -> dict[str, Any]:
    """Our model of each kind."""
    return {kind: kinds().ours[kind](str(folders[kind]), device="cpu", max_new_tokens=NEW) for kind in KINDS}


def draw(folder: Path) -> list[str]:
    """Paths of three pictures."""
    for number, size in enumerate([(40, 60), (90, 30), (56, 56)]):
        Image.effect_noise(size, 90).convert("RGB").rotate(90 * number).save(folder / f"{number}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def stock(folders: dict[str, Path], monkeypatch: Any) -> Any:
    """Builds the host's own class over the same checkpoint, its code only made loadable, its ``cuda`` left out."""
    import vlmeval.vlm.qwen_vl as module

    def auto(load: Any) -> Any:
        def from_pretrained(path: str, **kwargs: Any) -> Any:
            with compat.importable():
                return load(compat.remote_code(path), path)

        return SimpleNamespace(from_pretrained=from_pretrained)

    def model(code: Any, path: str) -> Any:
        config = code.config.from_pretrained(path, fp32=True)
        loaded = code.model.from_pretrained(path, config=config, torch_dtype=torch.float32)
        compat.restore_tables(loaded)
        return loaded

    to = torch.Tensor.to
    stay = lambda self, *args, **kwargs: self if args == ("cuda",) else to(self, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(module, "AutoTokenizer", auto(lambda code, path: code.tokenizer.from_pretrained(path)))
    monkeypatch.setattr(module, "AutoModelForCausalLM", auto(model))
    monkeypatch.setattr(torch.Tensor, "to", stay)
    return lambda kind, **kwargs: kinds().stock[kind](str(folders[kind]), do_sample=False, **kwargs)


@contextmanager
def watched(*models: Any) -> Iterator[list[list[tuple[list[int], list[int]]]]]:
    """Within the context, for each model the (prompt ids, whole output ids) of every ``generate``."""
    seen: list[list[tuple[list[int], list[int]]]] = []
    with ExitStack() as stack:
        for model in models:
            calls: list[tuple[list[int], list[int]]] = []
            stack.enter_context(replaced_generate(model.model, partial(_watch, calls)))
            seen.append(calls)
        yield seen


def _watch(calls: list[tuple[list[int], list[int]]], generate: Any) -> Any:
    def watch(inputs: Any = None, **kwargs: Any) -> Any:
        ids = kwargs["input_ids"] if inputs is None else inputs
        out = generate(inputs, **kwargs)
        calls.append((ids[0].tolist(), out[0].tolist()))
        return out

    return watch
