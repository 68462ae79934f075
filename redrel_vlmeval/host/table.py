"""The host's model table, extended: every ``<base>_trunc_...`` resolves on demand, iteration shows real models only.

Needs no host: a test passes a dict. What is built for a variant is handed in.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from redrel_vlmeval import names
from redrel_vlmeval.bases import API, cannot, host_class
from redrel_vlmeval.errors import TruncationError, UnknownName, one_line

HINT = "names are <base>_trunc_l<L>_k<K>..., the bases are those of `vlmutil mlist all`, redrel_tiny and redrel_smol"


class VariantTable(dict[str, Any]):
    """A dict of model builders in which variants of its models are found but not listed.

    ``table[name]`` gives a ``functools.partial`` like every other entry of the host: of ``build(table, base=, spec=)``
    for a variant. A name that carries our suffixes and cannot be built raises ``KeyError`` with the reason, from ``[]``
    and from ``in`` alike: the host may ask ``in`` first, and would replace the reason with its own "not found", or say
    nothing. ``get`` gives its default.
    """

    def __init__(self, models: Mapping[str, Any], build: Callable[..., Any]) -> None:
        super().__init__(models)
        self._build = build

    def __missing__(self, name: str) -> partial[Any]:
        spec = self._variant(name)
        if spec is None:
            near = difflib.get_close_matches(str(name), self, n=3)
            raise UnknownName(f"unknown model {name!r}{_suggest(near)} ({HINT})")
        return partial(self._build, self, base=spec.base, spec=spec.setting)

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
            raise UnknownName(f"{name!r}: {what}{_suggest(near)} ({HINT})")
        return spec


def kind_of(entry: Any) -> Any:
    """The host's class that an entry builds, also where we stand around it; else what it calls."""
    while isinstance(entry, partial):
        entry = entry.args[-1] if entry.args else entry.func
    return entry


def build_base(name: str, base: str, entry: Any, given: Mapping[str, Any]) -> Any:
    """The base of a variant, built.

    Args:
        name: of the variant.
        entry: the base's, of the table.
        given: keywords that it is built with.

    Raises:
        TruncationError: it is known that it cannot be truncated, in the words of ``redrel check`` and before anything
            is downloaded; or the code of its class does not run here, with what is known of where it does.
    """
    kind = kind_of(entry)
    found = API if getattr(kind, "is_api", False) else host_class(getattr(kind, "__name__", ""), base)
    if found.verdict == "refused":
        raise TruncationError(cannot(name, base, found.why))
    try:
        return entry(**given)
    except (ImportError, AttributeError, NameError, TypeError) as error:
        if not found.why:
            raise
        raise TruncationError(
            f"{name!r}: base {base!r} does not run here ({one_line(error)}); known of it: {found.why}"
        ) from error


def _suggest(near: list[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
