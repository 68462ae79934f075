"""One score file of the host in, its metrics in points out; which of them is the headline is decided here.

The host's own ``primary_metric`` is not used: MME's is one category, HallusionBench's one of three, some are fractions.
Files are told apart by their columns, so a user's own POPE-like or multiple-choice set needs no entry here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from redrel_vlmeval.errors import InvalidValue, RedrelError
from redrel_vlmeval.host.ratings import Rating, accuracy, all_right, f1, mean, mean_of_split, mme, tenth

# Where a multiple-choice file has several rows, the first of these that occurs is the benchmark's number
# ('none' is the host's word for a set without splits; MMMU_DEV_VAL has 'dev' and 'validation').
SPLITS = ("none", "Overall", "all", "test", "validation", "val", "dev")
# Benchmarks known to ask several questions of one picture, by how their names begin.
_SHARED = ("AI2D", "AMBER", "ChartQA", "DocVQA", "GQA", "HallusionBench", "InfoVQA", "MME", "OCRVQA", "POPE", "TextVQA")

Row = Mapping[Any, Any]
Rows = Sequence[Row]


class NoRule(RedrelError, ValueError):
    """A score file that no rule knows; ``found`` is what it holds of numbers, by name and as they stand."""

    def __init__(self, text: str, found: Mapping[str, float]) -> None:
        super().__init__(text)
        self.found = dict(found)


@dataclass(frozen=True)
class Metric:
    """A value in points, of the questions of ``split`` (None: all there are); ``part``: of some of them only.

    ``most`` is the highest value that it can have, and ``rating`` how the table of verdicts gives it, where known.
    """

    name: str
    value: float
    headline: bool = False
    split: str | None = None
    part: bool = False
    most: float = math.inf
    rating: Rating | None = None


def metrics_of(table: pd.DataFrame | Rows | Mapping[str, Any]) -> list[Metric]:
    """Metrics of a score file, headlines first: of a table, or of the object that a JSON file holds.

    Raises:
        NoRule: no rule knows these columns.
        ValueError: the headline is missing, not a number or an impossible one, or stands twice; or nothing is a number.
    """
    if isinstance(table, Mapping):
        return _possible(_ocrbench(table))
    return _possible(_by_rule(table.to_dict("records") if isinstance(table, pd.DataFrame) else table))


def _possible(metrics: list[Metric]) -> list[Metric]:
    """The same, after a look at each value; a name that stands twice would be two numbers for one thing."""
    known: set[str] = set()
    for metric in metrics:
        if not math.isfinite(metric.value):
            raise InvalidValue(f"{metric.name} is {metric.value:g}, which is no score")
        if metric.most < math.inf and not 0 <= metric.value <= metric.most + 1e-6:
            raise InvalidValue(f"{metric.name} is {metric.value:g} points, expected 0 to {metric.most:g}")
        if metric.name in known:
            raise InvalidValue(f"{metric.name!r} stands twice")
        known.add(metric.name)
    return metrics


def _by_rule(rows: Rows) -> list[Metric]:
    if not rows:
        raise InvalidValue("the score file has no rows")
    if any(row == other for other, row in itertools.pairwise(rows)):
        raise InvalidValue("a row of the score file stands twice")
    columns = rows[0].keys()
    if {"perception", "reasoning"} <= columns:
        return _mme(_only(rows))
    if {"split", "aAcc", "fAcc", "qAcc"} <= columns:
        return _by_split(rows, {"aAcc": ("aAcc", mean), "fAcc": ("fAcc", all_right(4)), "qAcc": ("qAcc", all_right(5))})
    if {"split", "Overall", "acc", "precision", "recall"} <= columns:
        return _by_split(rows, {"Overall": ("F1", f1), "acc": ("acc", accuracy)}, ("precision", "recall"))
    if {"set", "Overall Score"} <= columns:
        return _dialogues(rows)
    if {"Category", "Accuracy"} <= columns:
        return _verifier(rows)
    if "Overall" in columns and "split" in columns:
        return _multiple_choice(rows)
    # One row of per cents; several rows, or more than a hundred, are some benchmark's own measure.
    if "Overall" in columns and len(rows) == 1 and not 100 < (as_number(rows[0]["Overall"]) or 0) < math.inf:
        return _one_row(rows[0])
    raise _no_rule(f"the columns {', '.join(map(str, columns))}", _numbers_of(rows))


def _no_rule(what: str, found: Mapping[str, float]) -> ValueError:
    text = f"no rule for a score file with {what}"
    return NoRule(text, found) if found else ValueError(f"{text}, and no number in it")


def flat(value: Any, name: str = "") -> dict[str, float]:
    """Every number in a nested JSON object by its path, such as ``Text/acc``; switches are no numbers."""
    if isinstance(value, Mapping):
        parts = [flat(inner, f"{name}/{key}" if name else str(key)) for key, inner in value.items()]
        return {key: number for part in parts for key, number in part.items()}
    number = pd.to_numeric(value, errors="coerce") if isinstance(value, (int, float, str)) else None
    if isinstance(value, bool) or number is None or not math.isfinite(number):
        return {}
    return {name: float(number)}


def _numbers_of(rows: Rows) -> dict[str, float]:
    """Numbers of a table by column, with the row's words in front where it has several rows."""
    found: dict[str, float] = {}
    for place, row in enumerate(rows):
        words = [str(value) for value in row.values() if value is not None and not flat(value, "x")]
        front = f"{' '.join(words) or place} " if len(rows) > 1 else ""
        found |= {f"{front}{name}": number for name, number in flat(row).items()}
    return found


def _number(value: Any, what: str) -> float:
    number = as_number(value)
    if number is None:
        raise InvalidValue(f"{what} is {value!r}, not a number")
    return number


def as_number(value: Any) -> float | None:
    """A number, also one that is written as text; None for anything else."""
    if not isinstance(value, (int, float, str)):
        return None
    number = value if type(value) is float else pd.to_numeric(value, errors="coerce")
    return float(number) if pd.notna(number) else None


def _ocrbench(table: Mapping[str, Any]) -> list[Metric]:
    """1000 questions, counted; the headline is ``Final Score`` / 10, in points. The parts stay counts."""
    if "Final Score" not in table:
        raise _no_rule(f"the entries {', '.join(map(str, table))}", flat(table))
    parts = [Metric(name, _number(table[name], name), part=True, most=1000) for name in table if "Final" not in name]
    score = _number(table["Final Score"], "Final Score") / 10
    return [Metric("Final Score / 10", score, True, most=100, rating=tenth), *parts]


def _mme(row: Row) -> list[Metric]:
    """Perception (0..2000) + reasoning (0..800), both kept; not a percentage."""
    most = {"perception": 2000, "reasoning": 800}
    both = [Metric(name, _number(row[name], name), part=True, most=most[name]) for name in most]
    rest = [str(column) for column in row if column not in most]
    parts = both + [Metric(column, _number(row[column], column), part=True, most=200) for column in rest]
    return [Metric("perception + reasoning", sum(metric.value for metric in both), True, most=2800, rating=mme), *parts]


def _dialogues(table: Rows) -> list[Metric]:
    """MMDU: marks of a judge over all turns, in points; row ``all`` counts a turn without one as 0, ``valid`` not."""
    rows = _by_name(table, "set")
    if "all" not in rows:
        raise InvalidValue(f"no row 'all' among the sets {', '.join(rows)}")
    names = [str(column) for column in rows["all"] if column != "set"]
    names.insert(0, names.pop(names.index("Overall Score")))
    found = [Metric(name, _number(rows["all"][name], name), name == names[0], most=100) for name in names]
    valid = as_number(rows.get("valid", {}).get(names[0]))
    return [*found, *([Metric(f"valid {names[0]}", valid, most=100)] if valid is not None else [])]


def _only(rows: Rows) -> Row:
    if len(rows) > 1:
        raise InvalidValue(f"the score file has {len(rows)} rows, the host writes one")
    return rows[0]


def _by_name(rows: Rows, column: str) -> dict[str, Row]:
    """Rows by what their ``column`` says, each once: of two nothing tells which counts."""
    found: dict[str, Row] = {}
    for row in rows:
        if (name := str(row[column])) in found:
            raise InvalidValue(f"the row of {column} {name!r} stands twice")
        found[name] = row
    return found


def _by_split(table: Rows, headline: Mapping[str, tuple[str, Rating]], rest: tuple[str, ...] = ()) -> list[Metric]:
    """Row ``Overall`` is the headline, other rows are its categories; already in points."""
    rows = _by_name(table, "split")
    if "Overall" not in rows:
        raise InvalidValue(f"no row 'Overall' among the splits {', '.join(rows)}")
    overall = rows.pop("Overall")
    found = [
        Metric(name, _number(overall[column], column), True, most=100, rating=rating)
        for column, (name, rating) in headline.items()
    ]
    found += [Metric(column, _number(overall[column], column), most=100) for column in rest]
    for split, row in rows.items():
        named = ((f"{split} {name}", _number(row[c], f"{split} {c}")) for c, (name, _) in headline.items())
        found += [Metric(name, value, part=True, most=100) for name, value in named]
    return found


def _one_row(row: Row) -> list[Metric]:
    """VQA and plain Y/N files: one row, per cent."""
    rest = {str(column): as_number(value) for column, value in row.items() if column != "Overall"}
    parts = [Metric(column, number, part=True) for column, number in rest.items() if number is not None]
    return [Metric("Overall", _number(row["Overall"], "Overall"), True, most=100, rating=mean), *parts]


def _verifier(table: Rows) -> list[Metric]:
    rows = {name: _number(row["Accuracy"], f"Accuracy of {name}") for name, row in _by_name(table, "Category").items()}
    if "Overall" not in rows:
        raise InvalidValue(f"no row 'Overall' among the categories {', '.join(rows)}")
    overall = Metric("Overall", rows.pop("Overall"), True, most=100, rating=mean)
    return [overall, *(Metric(name, value, part=True, most=100) for name, value in rows.items())]


def _multiple_choice(table: Rows) -> list[Metric]:
    """Fractions, one row per split in random order; without a split known by name there is no headline.

    A file whose values exceed 1 is in points already and is taken as it is.
    """
    splits = list(_by_name(table, "split"))
    overall = [as_number(row["Overall"]) for row in table]
    factor = 1.0 if any(value is not None and value > 1 for value in overall) else 100.0
    chosen = next((split for split in SPLITS if split in splits), splits[0] if len(splits) == 1 else None)
    found: list[Metric] = []
    for split, row in sorted(zip(splits, table, strict=True), key=lambda pair: pair[0] != chosen):
        alone = None if len(splits) == 1 else split
        where = "" if split == chosen else f" [{split}]"
        value = _number(row["Overall"], f"Overall of split {split!r}")
        rating = mean_of_split(split)
        found.append(Metric(f"Overall{where}", value * factor, split == chosen, alone, most=100, rating=rating))
        for column, value in row.items():
            if column not in ("split", "Overall") and (number := as_number(value)) is not None:
                found.append(Metric(f"{column}{where}", number * factor, split=alone, part=True, most=100))
    return found


def shares_pictures(benchmark: str) -> bool:
    """Whether the benchmark is known to ask several questions of one picture, which makes them depend on each other."""
    return benchmark.startswith(_SHARED)
