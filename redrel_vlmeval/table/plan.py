"""What a table is made of: methods and budgets become settings, of which those without a score are missing."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from redrel_vlmeval import bases, methods
from redrel_vlmeval.console import words
from redrel_vlmeval.errors import RedrelError, UnknownName
from redrel_vlmeval.names import parse
from redrel_vlmeval.results import Asked, Line, Results
from redrel_vlmeval.rules import known

FILE = Path(__file__).with_name("presets.csv")
SEEDS = range(5)  # draws of a control that draws, as one row
# Families whose published code counts the positions of the tokens that stay anew.
RENUMBERED = ("LLaVA-1.5", "LLaVA-NeXT", "8 blocks")


class TableError(RedrelError, ValueError):
    """Arguments of a table that mean nothing; names the option, the value and valid ones."""


@dataclass(frozen=True)
class Preset:
    """The table of one base as papers print it. ``tokens``: visual tokens that its price assumes, None if not known."""

    preset: str
    base: str
    family: str
    tokens: int | None
    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    data: tuple[str, ...]


@lru_cache(maxsize=1)
def presets() -> dict[str, Preset]:
    """Those of ``presets.csv``, by name."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["preset"]: Preset(
            row["preset"], row["base"], row["family"], int(row["tokens"]) if row["tokens"] else None,
            *(tuple(row[name].split()) for name in ("methods", "budgets", "data")),
        )
        for row in rows
    }  # fmt: skip


def find(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UnknownName: there is none; names those that there are.
    """
    if name not in presets():
        raise UnknownName(f"--preset {name}: choose one of {', '.join(presets())}")
    return presets()[name]


@dataclass(frozen=True)
class Wanted:
    """What was asked for, and what of it there is no setting for (``left_out``, in words)."""

    asked: Asked
    tokens: int | None
    left_out: tuple[str, ...] = ()


def read(preset: str | None, base: str | None, names: str | None, budgets: str | None, data: str | None) -> Wanted:
    """The table that the command line asks for; what is given replaces that of the preset.

    Raises:
        TableError: something is missing, repeated or unknown. UnknownName: no such preset.
    """
    like = find(preset) if preset else None
    if like is not None and base and base != like.base:
        raise TableError(f"--base {base}: --preset {like.preset} is of {like.base}; give one of the two")
    base = base or (like.base if like else "")
    if not base:
        raise TableError(f"give --base, or --preset {'|'.join(presets())}")
    like = like or next((one for one in presets().values() if one.base == base), None)
    given = {
        option: _once(option, words(text) if text is not None else default if preset else ())
        for option, text, default in (
            ("--methods", names, like.methods if like else ()),
            ("--budgets", budgets, like.budgets if like else ()),
            ("--data", data, like.data if like else ()),
        )
    }
    if empty := [option for option, values in given.items() if not values]:
        raise TableError(f"{empty[0]}: give at least one, or a --preset")
    family, left_out, lines = _family(base, like), [], []
    for budget in given["--budgets"]:
        for name in given["--methods"]:
            line = _line(name, budget, family)
            if isinstance(line, Line):
                lines.append(line)
            else:
                left_out.append(line)
    if not lines:
        raise TableError(f"nothing to run: {'; '.join(dict.fromkeys(left_out))}")
    asked = Asked(base, given["--data"], tuple(lines))
    return Wanted(asked, like.tokens if like else None, tuple(dict.fromkeys(left_out)))


def _once(option: str, values: Sequence[str]) -> tuple[str, ...]:
    if repeated := sorted({value for value in values if values.count(value) > 1}):
        raise TableError(f"{option}: {', '.join(repeated)} given more than once")
    return tuple(values)


def _family(base: str, like: Preset | None) -> str:
    """Which column of ``methods.csv`` a base's settings stand in."""
    if like is not None:
        return like.family
    row = bases.row(base)
    title = row.title if row is not None else ""
    found = next((name for name in ("LLaVA-1.5", "LLaVA-NeXT") if title.startswith(name)), None)
    if found is None:
        able = ", ".join(dict.fromkeys(one.base for one in presets().values()))
        raise TableError(
            f"--base {base}: no settings of methods are known for it, only for {able} and other LLaVA-1.5 and "
            "LLaVA-NeXT; run what you want by redrel sweep --settings"
        )
    return found


def _line(name: str, budget: str, family: str) -> Line | str:
    """A row of the table, or why there is none.

    Raises:
        TableError: no such method or control.
    """
    rule = known().get(name)
    if rule is not None and rule.control and rule.before_block_1:
        return Line(name, budget, tuple(_control(name, budget, family)))
    try:
        method = methods.find(name)
    except UnknownName as error:
        controls = ", ".join(rule.name for rule in known().values() if rule.control and rule.before_block_1)
        raise TableError(f"--methods {name}: {error}; or a control: {controls}") from error
    pairs = method.settings.get(family, {})
    if budget in pairs:
        return Line(method.title, budget, (pairs[budget],))
    if pairs:
        return f"{method.title}: no setting for a budget of {budget} on {family}, only for {', '.join(pairs)}"
    return f"{method.title}: not offered on {family}{f': {method.differs}' if method.differs else ''}"


def _control(name: str, budget: str, family: str) -> Iterator[str]:
    """Settings of a control before block 1 with the tokens of a budget: several where it draws."""
    try:
        amount = f"r{float(budget[:-1]):.0f}" if budget.endswith("%") else f"k{int(budget)}"
        positions = "_pos-new" if family in RENUMBERED else ""
        for seed in SEEDS if known()[name].draws else (0,):
            setting = f"l0_{amount}_{name}{positions}{f'_seed{seed}' * bool(seed)}"
            yield parse(setting).setting
    except (ValueError, KeyError) as error:
        raise TableError(f"--budgets {budget}: give tokens (192) or a share of them (33.3%)") from error


def missing(asked: Asked, found: Results | None) -> dict[str, tuple[str, ...]]:
    """Benchmark -> settings without a score there ('' is the base), of results as they are now."""
    there: set[tuple[str, str]] = set()
    if found is not None:
        rows = found.scores[found.scores["headline"] & (found.scores["status"] == "ok")]
        there = set(zip(rows["model"], rows["benchmark"], strict=True))
    wanted = ["", *asked.settings]
    return {
        data: tuple(setting for setting in wanted if (asked.model(setting), data) not in there) for data in asked.data
    }
