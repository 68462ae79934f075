"""What an imported VLMEvalKit is given; hook, patch and ``redrel run`` all end in :func:`attach`; twice is like once.

Neither torch nor a model class is imported before a builder is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from redrel_vlmeval.bases import BASES, TINY
from redrel_vlmeval.host import VariantTable

MODEL_CLASSES = ("TruncatedVLM", "LLaVA15", "RedrelQwenVL", "RedrelQwenVLChat")  # for --config

logger = logging.getLogger(__name__)


def attach(config: ModuleType) -> None:
    """Extend a ``vlmeval.config`` that has just run, and the ``vlmeval.vlm`` and ``vlmeval.dataset`` beside it.

    The model table comes first, so that a host whose dataset package looks different still gets the variants.
    """
    config.supported_VLM = register(config.supported_VLM)  # type: ignore[attr-defined]
    host = config.__name__.rpartition(".")[0]
    expose_models(importlib.import_module(f"{host}.vlm"))
    add_dataset(importlib.import_module(f"{host}.dataset"))


# -- the model table --------------------------------------------------------------------------------------------------


def register(table: Mapping[str, Any]) -> VariantTable:
    """A :class:`VariantTable` of ``table`` plus our bases. ``table`` stays as it is; a registered one is returned."""
    if isinstance(table, VariantTable):
        return table
    return VariantTable({**table, **dict(_bases(table))}, build_variant)


def _bases(table: Mapping[str, Any]) -> Iterator[tuple[str, partial[Any]]]:
    """Our entries: the model in the box, LLaVA-1.5 where the host's own cannot load, and Qwen-VL."""
    for name, base in BASES.items():
        there = name in table
        if not base.ours or (there and (name == TINY or (base.unless and _installed(base.unless)))):
            continue
        if base.alias and not there:
            continue
        # a user may have pointed the host's entry at a folder; a stand-in's weights are of another format
        given = {} if base.unless else getattr(table.get(name), "keywords", {})
        yield name, partial(build_ours, name, **({"model_path": base.weights} | given))


def _installed(package: str) -> bool:
    """True for a real package on the path; a bare folder of that name (no ``__init__.py``) is none."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # in sys.modules without a spec: someone put it there by hand
        return True
    return spec is not None and spec.origin is not None


def build_variant(table: VariantTable, *, base: str, spec: str, **kwargs: Any) -> Any:
    """A ``TruncatedVLM`` over the table's own ``base``; ``kwargs`` (``use_vllm``, a config's) go through."""
    from redrel_vlmeval.models import TruncatedVLM

    return TruncatedVLM(base, spec, table=table, **kwargs)


def build_ours(name: str, **kwargs: Any) -> Any:
    """Our class under the host's name ``name``; logged, because class and weights are not the host's entry's."""
    base, weights = BASES[name], kwargs["model_path"]
    kind = getattr(importlib.import_module("redrel_vlmeval.models"), base.ours)
    if base.unless:
        logger.warning("%s: package %r not found, using transformers' own class with %s", name, base.unless, weights)
    elif name != TINY:
        logger.warning("%s: %s in place of the host's class, with %s", name, base.ours, weights)
    return kind(**kwargs)


# -- model classes and the benchmark ----------------------------------------------------------------------------------


def expose_models(vlm: ModuleType) -> None:
    """``--config`` looks a class up as an attribute of ``vlmeval.vlm``; ours are imported when first asked for."""
    other = getattr(vlm, "__getattr__", None)
    if getattr(other, "redrel", False):
        return

    def find(name: str) -> Any:
        if name in MODEL_CLASSES:
            return getattr(importlib.import_module("redrel_vlmeval.models"), name)
        if other is not None:
            return other(name)
        raise AttributeError(f"module {vlm.__name__!r} has no attribute {name!r}")

    find.redrel = True  # type: ignore[attr-defined]
    vlm.__getattr__ = find  # type: ignore[method-assign]


def add_dataset(dataset: ModuleType) -> None:
    """``--data RedRelShapes``: the runner walks ``DATASET_CLASSES``, ``vlmutil`` lists ``SUPPORTED_DATASETS``."""
    from redrel_vlmeval.models import tiny

    if "RedRelShapes" in dataset.SUPPORTED_DATASETS:
        return
    shapes = tiny.dataset_class()
    dataset.DATASET_CLASSES.append(shapes)
    dataset.SUPPORTED_DATASETS.extend(shapes.supported_datasets())
    setattr(dataset, shapes.__name__, shapes)
