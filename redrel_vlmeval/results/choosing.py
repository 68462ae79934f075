"""One setting out of many, without the winner's curse: the best within a budget, and the cheapest not worse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
import pandas as pd
from scipy.stats import norm

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.names import parse
from redrel_vlmeval.results import paired_tests
from redrel_vlmeval.results.blind import sees_nothing
from redrel_vlmeval.results.grid import Scores
from redrel_vlmeval.results.noninferiority import LEVEL, MARGIN

SEED = 20240617


@dataclass(frozen=True)
class Budget:
    """A limit: image tokens averaged over blocks, or percent of the untouched prefill's FLOPs."""

    limit: float
    flops: bool = False

    @classmethod
    def read(cls, text: str) -> Budget:
        """``128`` -> tokens, ``60%`` -> FLOPs.

        Raises:
            ValueError: anything else.
        """
        word = text.strip().removesuffix("%")
        if not re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", word):  # float() takes digits of every script, and "inf"
            raise InvalidValue(f"--budget {text}: give image tokens (128) or percent of the prefill's FLOPs (60%)")
        return cls(float(word), text.strip().endswith("%"))

    def __str__(self) -> str:
        return f"{self.limit:g} % of the prefill FLOPs" if self.flops else f"{self.limit:g} average image tokens"


@dataclass(frozen=True)
class Best:
    """The setting chosen on one half of the questions, and what it scores on the other, beside the base."""

    model: str
    cost: float
    chosen_on: float
    score: float
    baseline: float
    comparison: paired_tests.Comparison
    candidates: int


def best(scores: Scores, budget: Budget | None = None) -> Best | None:
    """The most accurate setting within the budget, chosen on half of the pictures and reported on the other half.

    The best of many on the same questions looks better than it is (the winner's curse); on the other half it cannot.
    Equal scores go to the cheaper setting. None: nothing is that cheap, or there are fewer than two pictures.
    """
    cost = 100 * scores.cells["flops"] if budget and budget.flops else scores.cells["tokens"]
    within = scores.cells.index if budget is None else scores.cells.index[cost <= budget.limit + 1e-9]
    units = list(dict.fromkeys(scores.pictures))
    if within.empty or len(units) < 2:
        return None
    mixed = np.random.default_rng(SEED).permutation(len(units))
    half = {units[number] for number in mixed[: len(units) // 2]}
    first = np.array([picture in half for picture in scores.pictures])
    there = 100 * scores.after[:, first].mean(axis=1)
    paid = cost.fillna(inf)
    winner = min(within, key=lambda row: (-round(there[row], 9), paid[row], row))
    pictures = [picture for picture, chosen in zip(scores.pictures, first, strict=True) if not chosen]
    after, before = scores.after[winner, ~first], scores.before[~first]
    return Best(
        str(scores.cells.loc[winner, "model"]), float(cost[winner]), float(there[winner]), 100 * float(after.mean()),
        100 * float(before.mean()), paired_tests.compare(before, after, pictures), len(within),
    )  # fmt: skip


@dataclass(frozen=True)
class Cheapest:
    """The cheapest of ``candidates`` settings shown to be not worse than the base by ``margin`` points; None: none is.

    ``units`` questions were asked, or as many pictures shown where questions share them. ``needed``: about how many it
    takes, at the rate of flips of the setting that came closest; None where all lose the margin or more.
    """

    model: str | None
    margin: float
    candidates: int
    units: int
    what: str
    needed: int | None

    def __str__(self) -> str:
        if self.model:
            return f"The cheapest variant shown to lose less than {self.margin:g} points: {self.model}."
        if not self.candidates:
            return "No variant but controls has both a cost and a verdict for each question."
        asked = f"{self.units} {self.what}"
        if self.needed is None:
            return f"Every variant that could be the cheapest lost {self.margin:g} points or more on these {asked}."
        none = f"No variant can be shown to lose less than {self.margin:g} points with {asked}"
        return f"{none}; it takes about {self.needed}."


def cheapest(scores: Scores, margin: float = MARGIN) -> Cheapest:
    """The cheapest setting, by prefill FLOPs, shown to lose less than ``margin`` points; controls are no candidates.

    It loses the margin or more in at most 5 % of all cases, however many settings there are: in a chain of settings
    that share their rule and K (or L, where that makes fewer chains) a setting is tested only after every dearer one
    has passed, each chain at the level of 5 % over the number of chains that are not yet passed to their end (Holm's
    method, with a chain in place of a test).
    """
    z = scores.paired().z(margin / 100)
    usable = scores.cells[scores.cells["flops"].notna() & ~scores.cells["model"].map(is_control)]
    chains = [list(rows) for rows in _chains(usable)]
    left, shown = [chain for chain in chains if chain], []
    bar = float("nan")
    while left:
        bar = float(norm.isf(LEVEL / len(left)))
        passed = [chain for chain in left if z[chain[0]] > bar]
        if not passed:
            break
        shown += [chain.pop(0) for chain in passed]
        left = [chain for chain in left if chain]
    found = min(shown, key=lambda row: (usable.loc[row, "flops"], -z[row]), default=None)
    top = max((float(z[chain[0]]) for chain in left), default=0.0)
    needed = ceil(scores.units * (bar / top) ** 2) if found is None and top > 0 else None
    what = "questions" if scores.units == len(scores.before) else "pictures"
    model = None if found is None else str(usable.loc[found, "model"])
    return Cheapest(model, margin, len(usable), scores.units, what, needed)


def _chains(cells: pd.DataFrame) -> Sequence[pd.Index]:
    """Rows of the settings by rule and K or L, dearest first; those without (schedules) are a chain as well."""
    ordered = cells.sort_values("flops", ascending=False, kind="stable")
    ways = [list(ordered.groupby(["rule", name], sort=False, dropna=False).groups.values()) for name in ("K", "L")]
    return min(ways, key=len)


def is_control(model: str) -> bool:
    """Whether a variant only shows what others are worth: by a control's rule, or without any image token at all."""
    return sees_nothing(model) or by_control(model)


def by_control(model: str) -> bool:
    """Whether a rule of the variant is registered as a control."""
    try:
        return any(rule.control for rule in parse(model.partition(" [")[0]).chosen_by)
    except KeyError:  # a base, or a rule that is not registered here
        return False
