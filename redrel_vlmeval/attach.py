"""Makes an imported host know us: hook, patch and ``redrel run`` all end in :func:`attach`; twice is like once."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from redrel_vlmeval.registry import register

MODEL_CLASSES = {
    "TruncatedVLM": "redrel_vlmeval.models.variant",
    "LLaVA15": "redrel_vlmeval.models.llava",
    "RedrelQwenVL": "redrel_vlmeval.models.qwen_vl",
    "RedrelQwenVLChat": "redrel_vlmeval.models.qwen_vl",
}


def attach(config: ModuleType) -> None:
    """Extend a ``vlmeval.config`` that has just run, and the ``vlmeval.vlm`` and ``vlmeval.dataset`` beside it.

    The model table comes first, so that a host whose dataset package looks different still gets the variants.
    """
    config.supported_VLM = register(config.supported_VLM)  # type: ignore[attr-defined]
    host = config.__name__.rpartition(".")[0]
    expose_models(importlib.import_module(f"{host}.vlm"))
    add_dataset(importlib.import_module(f"{host}.dataset"))


def expose_models(vlm: ModuleType) -> None:
    """``--config`` looks a class up as an attribute of ``vlmeval.vlm``; ours are imported when first asked for."""
    other = getattr(vlm, "__getattr__", None)
    if getattr(other, "redrel", False):
        return

    def find(name: str) -> Any:
        if name in MODEL_CLASSES:
            return getattr(importlib.import_module(MODEL_CLASSES[name]), name)
        if other is not None:
            return other(name)
        raise AttributeError(f"module {vlm.__name__!r} has no attribute {name!r}")

    find.redrel = True  # type: ignore[attr-defined]
    vlm.__getattr__ = find  # type: ignore[method-assign]


def add_dataset(dataset: ModuleType) -> None:
    """``--data RedRelShapes``: the runner walks ``DATASET_CLASSES``, ``vlmutil`` lists ``SUPPORTED_DATASETS``."""
    from redrel_vlmeval.demo.benchmark import dataset_class

    if "RedRelShapes" in dataset.SUPPORTED_DATASETS:
        return
    shapes = dataset_class()
    dataset.DATASET_CLASSES.append(shapes)
    dataset.SUPPORTED_DATASETS.extend(shapes.supported_datasets())
    setattr(dataset, shapes.__name__, shapes)
