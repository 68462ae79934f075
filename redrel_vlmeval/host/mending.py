"""What keeps some of the host's classes from running: names that their module does not import, a keyword long gone.

Both are the host's to mend. Until it does, base and variants are built with the names supplied and the keyword dropped.
"""

from __future__ import annotations

import dis
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import CodeType
from typing import Any
from unittest.mock import patch

from redrel_vlmeval.errors import InvalidValue

# Names that modules of the host use without importing them, and what they mean in the others.
NAMES = {"Image": "PIL.Image", "os": "os", "pd": "pandas", "string": "string"}
EIGHT = "load_in_8bit"


def unimported(kind: type) -> list[str]:
    """Which of ``NAMES`` the methods of a class read as globals, and its module does not have."""
    known = vars(sys.modules.get(kind.__module__, object))
    absent = {name for name in NAMES if name not in known}
    some = (code for code in _codes(kind) if absent.intersection(code.co_names))
    read = {one.argval for code in some for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    return sorted(absent & read)


def asks_for_8bit(kind: type) -> bool:
    """Whether a class hands ``load_in_8bit`` on, which transformers takes no longer since release 5."""
    return _release() >= 5 and any(
        isinstance(const, tuple) and EIGHT in const for code in _codes(kind) for const in code.co_consts
    )


def supply(kind: type) -> list[str]:
    """Give the module of a class the names that it does not import; which those were."""
    names = unimported(kind)
    for name in names:
        setattr(sys.modules[kind.__module__], name, importlib.import_module(NAMES[name]))
    return names


@contextmanager
def without_8bit(name: str, asked: object) -> Iterator[None]:
    """Within the context models load as if ``load_in_8bit=False`` were not said.

    Args:
        name: of the model.
        asked: what it is asked to be built with.

    Raises:
        InvalidValue: anything but False is asked for, or said by the class.
    """
    _false(name, asked)
    from transformers import PreTrainedModel

    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def loaded(cls: Any, *args: Any, **kwargs: Any) -> Any:
        _false(name, kwargs.pop(EIGHT, False))
        return load(cls, *args, **kwargs)

    with patch.object(PreTrainedModel, "from_pretrained", classmethod(loaded)):
        yield


def _false(name: str, said: object) -> None:
    """Refuse what would change the weights."""
    if said:
        raise InvalidValue(
            f"{name}: {EIGHT}={said!r}: transformers {version('transformers')} takes no such keyword; leave it out"
        )


@cache
def _release() -> int:
    """Of transformers; 0 without it."""
    try:
        return int(version("transformers").partition(".")[0])
    except PackageNotFoundError:
        return 0


def _codes(kind: type) -> Iterator[CodeType]:
    """Code of a class's own functions, those inside them and those of its bases in the same module."""
    owners = (owner for owner in kind.__mro__ if owner.__module__ == kind.__module__)
    found = [getattr(one, "__code__", None) for owner in owners for one in vars(owner).values()]
    while found:
        code = found.pop()
        if isinstance(code, CodeType):
            yield code
            found += code.co_consts
