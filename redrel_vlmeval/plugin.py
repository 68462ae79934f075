"""What an imported VLMEvalKit is given; hook, patch and ``redrel run`` all end in :func:`attach`; twice is like once.

Neither torch nor a model class is imported before a builder is called.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from functools import cache, partial
from types import ModuleType
from typing import Any

from redrel_vlmeval.bases import BASES, BOXED, ENGINES, host_class
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.host import VariantTable, mending

MODEL_CLASSES = ("TruncatedVLM", "LLaVA15", "LLaVANext", "RedrelQwenVL", "RedrelQwenVLChat")  # for --config

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
    """Our entries: bases on a class of ours, and the host's that ask for an engine without blocks or need mending."""
    for name, entry in table.items():
        kind = getattr(entry, "func", None)
        if kind is None or getattr(kind, "is_api", False):
            continue
        cut = not _without_blocks(name, entry)
        asked = engines(getattr(entry, "keywords", {})) if cut else []
        together, broken = cut and bool(os.environ.get("REDREL_BATCH")), _is_broken(kind)
        if not (asked or together or broken):
            continue
        kind = partial(build_mended, name, kind) if broken else kind
        kind = partial(build_plain, name, kind) if asked else kind
        kind = partial(build_batched, name, kind) if together else kind
        yield name, partial(kind, **(entry.keywords | dict.fromkeys(asked, False)))
    for name, base in BASES.items():
        there = name in table
        if not base.ours or (there and name in BOXED) or (base.alias and not there):
            continue
        # a user may have pointed the host's entry at a folder; weights of another format are not ours to load
        given = {} if base.reformatted else getattr(table.get(name), "keywords", {})
        yield name, partial(build_ours, name, **({"model_path": base.weights} | given))


def _without_blocks(name: str, entry: Any) -> bool:
    """Whether the entry's class cannot be truncated anyway: then its engine is left as it is."""
    return host_class(getattr(entry.func, "__name__", ""), name).verdict == "refused"


@cache  # many names share a class
def _is_broken(kind: Any) -> bool:
    return isinstance(kind, type) and bool(mending.unimported(kind) or mending.asks_for_8bit(kind))


def engines(keywords: Mapping[str, Any]) -> list[str]:
    """Keywords of an entry that hand its model to vLLM or LMDeploy, whose blocks nothing can be dropped from."""
    return [flag for flag in ENGINES if keywords.get(flag)]


def build_plain(name: str, kind: Any, **kwargs: Any) -> Any:
    """The host's own class on transformers: base and variants share a backend, which the log names."""
    if asked := engines(kwargs):  # the runner's own --use-vllm, or a config's: the user's word for a base
        logger.warning("%s: %s as asked for; its variants run on transformers", name, ", ".join(asked))
    else:
        logger.warning("%s: on transformers, as its variants, in place of the host's engine", name)
    return kind(**kwargs)


def build_mended(name: str, kind: Any, **kwargs: Any) -> Any:
    """The host's own class, with what keeps it from running mended; the log says what.

    Raises:
        InvalidValue: 8 bits are asked for by a keyword that transformers takes no longer.
    """
    if names := mending.supply(kind):
        logger.warning("%s: %s uses %s without an import; supplied", name, kind.__module__, ", ".join(names))
    if not mending.asks_for_8bit(kind):
        return kind(**kwargs)
    with mending.without_8bit(name, kwargs.get(mending.EIGHT)):
        return kind(**kwargs)


def build_batched(name: str, kind: Any, **kwargs: Any) -> Any:
    """The host's own class, with several questions in one call."""
    from redrel_vlmeval.models import batch_size, batched

    return batched(kind(**kwargs), name, batch_size())


def build_variant(table: VariantTable, *, base: str, spec: str, **kwargs: Any) -> Any:
    """A ``TruncatedVLM`` over the table's own ``base``; ``kwargs`` (a config's) go through.

    Raises:
        TruncationError: vLLM or LMDeploy is asked for.
    """
    if asked := engines(kwargs):
        raise TruncationError(f"{base}_trunc_{spec}: {asked[0]}: tokens are dropped in transformers; run it without")
    from redrel_vlmeval.models import TruncatedVLM

    return TruncatedVLM(base, spec, table=table, **kwargs)


def build_ours(name: str, **kwargs: Any) -> Any:
    """Our class under the host's name ``name``; logged, because class and weights are not the host's entry's."""
    base, weights = BASES[name], kwargs["model_path"]
    kind = getattr(importlib.import_module("redrel_vlmeval.models"), base.ours)
    if name not in BOXED:
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
    """Our benchmarks for ``--data``: the runner walks ``DATASET_CLASSES``, ``vlmutil`` lists ``SUPPORTED_DATASETS``."""
    from redrel_vlmeval.models import smol, tiny

    if "RedRelShapes" in dataset.SUPPORTED_DATASETS:
        return
    for kind in (*tiny.dataset_classes(), smol.dataset_class()):
        dataset.DATASET_CLASSES.append(kind)
        dataset.SUPPORTED_DATASETS.extend(kind.supported_datasets())
        setattr(dataset, kind.__name__, kind)
