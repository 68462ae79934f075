"""Published recipes: ``methods.csv`` has one row each, with its setting for every budget and kind of model."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from redrel_vlmeval.errors import UnknownName

FILE = Path(__file__).with_name("methods.csv")
# Columns of settings -> the models they are for; averages over blocks depend on how many blocks there are.
FAMILIES = {
    "LLaVA-1.5": "LLaVA-1.5-7B, 576 tokens",
    "LLaVA-NeXT": "LLaVA-NeXT-7B, up to 2880 tokens",
    "28 blocks": "Qwen2.5-VL-7B and InternVL3-8B, in percent of the tokens",
    "36 blocks": "Qwen3-VL-8B, in percent of the tokens",
    "8 blocks": "redrel_tiny, the model in the box, 64 tokens; budgets are ours",
}


@dataclass(frozen=True)
class Method:
    """A published recipe.

    Attributes:
        title, paper: as tables print them. licence: of the authors' code, "" where it was not looked up; none of that
            code is here. exact: what is as published. differs: what is not.
        settings: family -> budget as papers write it -> setting of a variant name; empty where it is not offered.
    """

    title: str
    paper: str
    licence: str
    exact: str
    differs: str
    settings: dict[str, dict[str, str]]


@lru_cache(maxsize=1)
def known() -> dict[str, Method]:
    """All methods by title, in the order of the file."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        settings = {name: dict(pair.split("=") for pair in row.pop(name).split()) for name in FAMILIES}
        found[row["title"]] = Method(**row, settings={name: pairs for name, pairs in settings.items() if pairs})
    return found


def find(title: str) -> Method:
    """The method of that title, whatever its case.

    Raises:
        UnknownName: there is none; names those that there are.
    """
    for name, method in known().items():
        if name.lower() == title.lower():
            return method
    raise UnknownName(f"unknown method {title!r}: choose one of {', '.join(known())}")


def title_of(setting: str) -> str:
    """The method that a setting such as ``l2_a192`` is the published one of, "" where it is nobody's."""
    return next((m.title for m in known().values() for pairs in m.settings.values() if setting in pairs.values()), "")


def text(method: Method) -> str:
    """A method as paragraphs for a terminal."""
    lines = [f"{method.title} ({method.paper}){f'; code under {method.licence}' if method.licence else ''}"]
    for family, pairs in method.settings.items():
        said = ", ".join(f"{budget}: {setting}" for budget, setting in pairs.items())
        lines.append(f"  {FAMILIES[family]}: {said}")
    lines += [f"  exact: {method.exact}"] * bool(method.exact)
    lines += [f"  not: {method.differs}"] * bool(method.differs)
    return "\n".join(lines) + "\n"
