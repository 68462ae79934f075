"""What a variant keeps of its base: 100 x score / base, on each benchmark and on average, with intervals.

A benchmark's questions are drawn again, whole pictures at a time and the same ones for the base and all its variants
(a paired bootstrap); the mean is over benchmarks, each drawn by itself::

    draw            picture  a a b b b c ...     weights [draws, pictures], shared by all models of a benchmark
    score           sum(over * weights) / sum(under * weights)          mean, F1, MME's perception: see host.ratings
    kept            100 * score of the variant / score of the base      [draws] for each benchmark
    mean            of kept over benchmarks                             [draws]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redrel_vlmeval.host import ratios, verdicts
from redrel_vlmeval.results import flips, paired_tests
from redrel_vlmeval.results.reading import Results

DRAWS = 1999
CHUNK = 100  # draws whose weights are held at a time
PREFERRED = ("F1", "perception")  # metrics that papers print, whichever the host calls headline


@dataclass(frozen=True, eq=False)
class Kept:
    """What ``model`` keeps on one benchmark, in per cent of the base's score; or ``why`` that is not known.

    ``draws`` [draws] are the same questions drawn again, empty with fewer than ten pictures (then ``low`` and ``high``
    are nan). ``score`` is in points.
    """

    model: str
    benchmark: str
    metric: str = ""
    score: float = np.nan
    value: float = np.nan
    draws: np.ndarray | None = None
    why: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.draws)


def interval(draws: np.ndarray | None) -> tuple[float, float]:
    """The middle 95 %, nan where there are none."""
    if draws is None or not len(draws):
        return np.nan, np.nan
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def mean(of: Sequence[Kept]) -> tuple[float, np.ndarray | None]:
    """Mean over benchmarks or draws of a rule, and its draws; nan where one of them is not known."""
    if not of or any(np.isnan(one.value) for one in of):
        return np.nan, None
    drawn = [one.draws for one in of if one.draws is not None]
    return float(np.mean([one.value for one in of])), np.mean(drawn, 0) if len(drawn) == len(of) else None


def kept(results: Results, base: str, benchmark: str, models: Sequence[str]) -> dict[str, Kept]:
    """What each model keeps of ``base`` on a benchmark; the base itself keeps 100."""
    rows = results.scores[results.scores["benchmark"] == benchmark]
    metric = _metric(rows[rows["model"] == base])
    known: dict[str, _Parts] = {}
    found: dict[str, Kept] = {}
    for model in dict.fromkeys([base, *models]):
        own = rows[rows["model"] == model]
        why = _unfit(own, model == base)
        parts = None if why else _parts(results, model, benchmark, metric)
        score = own.loc[own["metric"] == metric, "value"].astype(float)
        if not why and not len(score):
            why = f"has no {metric}"
        if parts is not None and base in known and not parts.same_questions(known[base]):
            why = "has answered other questions than its base"
        elif parts is not None:
            known[model] = parts
        value = float(score.iloc[0]) if len(score) and not why else np.nan
        found[model] = Kept(model, benchmark, metric, value, why=why)
    if found[base].why or not found[base].score > 0:
        why = found[base].why or "the base's score is 0"
        return {m: Kept(m, benchmark, metric, one.score, why=f"base: {why}") for m, one in found.items()}
    drawn = _drawn(known) if base in known else {}
    return {
        model: Kept(model, benchmark, metric, one.score, 100 * one.score / found[base].score,
                    100 * drawn[model] / drawn[base] if model in drawn else None, one.why)
        for model, one in found.items()
    }  # fmt: skip


def _metric(rows: Any) -> str:
    """The metric that papers print of a benchmark: F1, perception, or the host's headline."""
    there = list(rows["metric"])
    first = rows.loc[rows["headline"], "metric"]
    return next((name for name in PREFERRED if name in there), str(first.iloc[0]) if len(first) else "")


def _unfit(own: Any, is_base: bool) -> str:
    if own.empty:
        return "not run"
    first = own[own["headline"]].iloc[0]
    if first["status"] != "ok":
        return f"{first['status']}: {first['reason']}"
    if not is_base and own["delta"].isna().all():
        return str(first["note"] or "cannot be compared with its base")
    return ""


@dataclass(frozen=True, eq=False)
class _Parts:
    """A score as ratios of sums over pictures: ``over`` and ``under`` [parts, pictures]; ``index``: its questions."""

    over: np.ndarray
    under: np.ndarray
    index: tuple[str, ...]

    def same_questions(self, other: _Parts) -> bool:
        return self.index == other.index and self.under.shape[1] == other.under.shape[1]

    @property
    def score(self) -> float:
        return 100 * float((self.over.sum(1) / self.under.sum(1)).sum())


def _parts(results: Results, model: str, benchmark: str, metric: str) -> _Parts | None:
    """A model's score on a benchmark, question by question; None where its parts do not add up to it."""
    judged = results.judged.get((model, benchmark))
    rows = results.scores[(results.scores["model"] == model) & (results.scores["benchmark"] == benchmark)]
    value = rows.loc[rows["metric"] == metric, "value"]
    if judged is None or judged.empty or judged["hit"].isna().any() or not len(value):
        return None
    hits = judged["hit"].to_numpy(dtype=float)
    table: Mapping[str, Any] = {}
    if metric in PREFERRED:
        cell = next((one for one in results.cells if (one.label, one.benchmark) == (model, benchmark)), None)
        table = (verdicts.table_of(cell) if cell is not None else None) or {}
        if [str(one) for one in table.get("index", ())] != list(judged["index"]):
            return None
    parts = ratios(dict(table), hits, metric)
    if parts is None:
        return None
    order = np.argsort(judged["index"].to_numpy(dtype=str), kind="stable")
    named = [
        (True, p) if p is not None else (False, i) for p, i in zip(judged["picture"], judged["index"], strict=True)
    ]
    place = {one: number for number, one in enumerate(dict.fromkeys(named[at] for at in order))}
    where = np.array([place[one] for one in named])
    sums = [[np.bincount(where, side, len(place)) for side in part] for part in parts]
    found = _Parts(
        np.array([over for over, _ in sums]), np.array([under for _, under in sums]),
        tuple(judged["index"].to_numpy(dtype=str)[order]),
    )  # fmt: skip
    return found if abs(found.score - float(value.iloc[0])) < 0.011 else None


def _drawn(known: Mapping[str, _Parts]) -> dict[str, np.ndarray]:
    """Scores of every model on the same draws of pictures, in points; none of fewer than ten pictures."""
    units = next(iter(known.values())).over.shape[1]
    if units < paired_tests.FEWEST:
        return {}
    sides = [np.stack([getattr(one, side) for one in known.values()]) for side in ("over", "under")]
    generator, found = np.random.default_rng(paired_tests.SEED), []
    for start in range(0, DRAWS, CHUNK):
        size = min(CHUNK, DRAWS - start)
        weights = generator.multinomial(units, np.full(units, 1 / units), size=size).astype(float)
        over, under = (side @ weights.T for side in sides)  # [models, parts, draws]
        shares = np.divide(over, under, out=np.zeros_like(over), where=under > 0)
        found.append(100 * shares.sum(1))
    scores = np.concatenate(found, 1)
    return {model: scores[number] for number, model in enumerate(known)}


def agreement(results: Results, base: str, model: str, benchmark: str) -> float:
    """Share of questions with the base's answer, in per cent: the same option where there are options, else text."""
    if model == base:
        return 100.0
    judged = results.judged.get((model, benchmark))
    if judged is None or judged.empty or flips.comparable_base(results, model, benchmark) is None:
        return np.nan
    moved = flips.flips(results, model, benchmark)
    return 100 * (1 - len(moved) / len(judged))
