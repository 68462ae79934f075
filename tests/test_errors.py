"""Every error of ours has one root, so that the command line and callers can tell them from faults."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import pytest

from redrel_vlmeval.errors import InvalidValue, RedrelError, UnknownName

ROOT = Path(__file__).parent.parent / "redrel_vlmeval"
# raised and caught within one room; `Stopped` has to pass a harness that answers '' to every Exception
INTERNAL = {"OutOfRoom", "_Captured", "_Enough", "Stopped"}


def classes() -> dict[str, set[str]]:
    """Class -> names of its bases, of every class below the package."""
    found: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                found.setdefault(node.name, set()).update(bases)
    return found


def ancestors(name: str, known: dict[str, set[str]]) -> set[str]:
    found = {name}
    for base in known.get(name, ()):
        found |= ancestors(base, known)
    return found


def test_every_exception_descends_from_the_root() -> None:
    known = classes()
    errors = {name for name in known if any(_is_exception(one) for one in ancestors(name, known))} - INTERNAL
    assert len(errors) >= 15
    assert not {name for name in errors if "RedrelError" not in ancestors(name, known)}


def _is_exception(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)


@pytest.mark.parametrize(("kind", "builtin"), [(InvalidValue, ValueError), (UnknownName, KeyError)])
def test_a_text_is_printed_as_it_was_given(kind: type[RedrelError], builtin: type[Exception]) -> None:
    """KeyError alone would print its repr."""
    error = kind("'x': no such thing")
    assert isinstance(error, builtin) and str(error) == "'x': no such thing"
