"""The host's model table, extended: every ``<base>_trunc_...`` resolves on demand, iteration shows real models only.

Needs no host: a test passes a dict. Neither torch nor a model class is imported before a builder is called.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from redrel_vlmeval import names

TINY = "redrel_tiny"
STAND_INS = {"llava_v1.5_7b": "llava-hf/llava-1.5-7b-hf", "llava_v1.5_13b": "llava-hf/llava-1.5-13b-hf"}
# Ours always: a variant's base must run on the variant's own path, and the host's classes load wrong weights on some
# releases of transformers.
QWEN = {"qwen_base": "Qwen/Qwen-VL", "qwen_chat": "Qwen/Qwen-VL-Chat"}
QWEN_ALIASES = {"qwen-vl-chat": "Qwen/Qwen-VL-Chat"}  # of one of the two hosts only
# decoder blocks of the bases whose weights are known beforehand
BLOCKS = {TINY: 8, "llava_v1.5_7b": 32, "llava_v1.5_13b": 40} | dict.fromkeys([*QWEN, *QWEN_ALIASES], 32)
# image tokens of one picture, of the same bases
IMAGE_TOKENS = {TINY: 64, "llava_v1.5_7b": 576, "llava_v1.5_13b": 576} | dict.fromkeys([*QWEN, *QWEN_ALIASES], 256)
HINT = "names are <base>_trunc_l<L>_k<K>..., the bases are those of `vlmutil mlist all` and redrel_tiny"

logger = logging.getLogger(__name__)


class VariantTable(dict[str, Any]):
    """A dict of model builders in which variants of its models are found but not listed.

    ``table[name]`` gives a ``functools.partial`` like every other entry of the host. A name that carries our suffixes
    and cannot be built raises ``KeyError`` with the reason, from ``[]`` and from ``in`` alike: the host may ask ``in``
    first, and would replace the reason with its own "not found", or say nothing. ``get`` gives its default.
    """

    def __missing__(self, name: str) -> partial[Any]:
        spec = self._variant(name)
        if spec is None:
            near = difflib.get_close_matches(str(name), self, n=3)
            raise KeyError(f"unknown model {name!r}{_suggest(near)} ({HINT})")
        return partial(build_variant, self, base=spec.base, spec=spec.setting)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self._variant(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """The builder, or ``default`` for whatever cannot be built; never raises."""
        try:
            return self[name]
        except KeyError:
            return default

    def _variant(self, name: object) -> names.VariantSpec | None:
        """The spec of a variant that this table can build; None for plain names."""
        if not isinstance(name, str) or not names.looks_like_variant(name):
            return None
        spec = names.parse(name)
        if not super().__contains__(spec.base):
            what = f"the host has no model {spec.base!r}" if spec.base else "the base model's name is missing"
            near = [name.replace(spec.base, base, 1) for base in difflib.get_close_matches(spec.base, self, n=3)]
            raise KeyError(f"{name!r}: {what}{_suggest(near)} ({HINT})")
        return spec


def register(table: Mapping[str, Any]) -> VariantTable:
    """A :class:`VariantTable` of ``table`` plus our bases. ``table`` stays as it is; a registered one is returned."""
    if isinstance(table, VariantTable):
        return table
    return VariantTable({**table, **dict(_bases(table))})


def _bases(table: Mapping[str, Any]) -> Iterator[tuple[str, partial[Any]]]:
    """Our entries: the model in the box, LLaVA-1.5 where the host's own cannot load, and Qwen-VL."""
    if TINY not in table:
        yield TINY, partial(build_llava, model_path=TINY)
    has_llava = _installed("llava")
    for name, weights in STAND_INS.items():
        if name not in table or not has_llava:
            yield name, partial(build_stand_in, name, model_path=weights)
    for name, weights in (QWEN | {name: QWEN_ALIASES[name] for name in QWEN_ALIASES if name in table}).items():
        given = getattr(table.get(name), "keywords", {})  # a user may have pointed the host's entry at a folder
        yield name, partial(build_qwen, name, **({"model_path": weights} | given))


def _installed(package: str) -> bool:
    """True for a real package on the path; a bare folder of that name (no ``__init__.py``) is none."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # in sys.modules without a spec: someone put it there by hand
        return True
    return spec is not None and spec.origin is not None


def _suggest(near: list[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def build_variant(table: VariantTable, *, base: str, spec: str, **kwargs: Any) -> Any:
    """A ``TruncatedVLM`` over the table's own ``base``; ``kwargs`` (``use_vllm``, a config's) go through."""
    from redrel_vlmeval.models.variant import TruncatedVLM

    return TruncatedVLM(base, spec, table=table, **kwargs)


def build_llava(**kwargs: Any) -> Any:
    """A ``LLaVA15`` of ``model_path``: a hub name, a local folder, or the model in the box."""
    from redrel_vlmeval.models.llava import LLaVA15

    return LLaVA15(**kwargs)


def build_stand_in(name: str, **kwargs: Any) -> Any:
    """``LLaVA15`` under the host's name ``name``; logged, because weights and code are not the host's entry's."""
    logger.warning("%s: package 'llava' not found, using transformers' own class with %s", name, kwargs["model_path"])
    return build_llava(**kwargs)


def build_qwen(name: str, **kwargs: Any) -> Any:
    """Our Qwen-VL under the host's name ``name``; logged, because class and decoding are not the host's entry's."""
    from redrel_vlmeval.models.qwen_vl import RedrelQwenVL, RedrelQwenVLChat

    kind = RedrelQwenVL if name == "qwen_base" else RedrelQwenVLChat
    logger.warning("%s: %s in place of the host's class, with %s", name, kind.__name__, kwargs["model_path"])
    return kind(**kwargs)
