"""Golden vectors: files of inputs and of what the methods' authors' own code chose, and the run over one.

A file is ``{rule: [case, ...]}``. Inputs are not written out, they follow formulas:

    "X": [n, d, a, b]    X[i, j] = cos((i+1)(j+2) a) + .5 sin(i j b + .2);   a = .37, b = .11 where they are left out
    "attention": "A(n)"  A[i] = e_i / sum(e), e_i = exp(1.3 sin(1.7 i + .3))

both computed in float64 and rounded to float32. What is expected is ``kept`` (indices in any order), ``order`` (as
chosen) or numbers (the first of them, to 1e-5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redrel_vlmeval.errors import InvalidValue

if TYPE_CHECKING:
    from torch import Tensor

Outcomes = dict[str, Any]  # name of an expectation -> what our functions give
_CLOSE = 1e-5


def by_formula(n: int, d: int, a: float = 0.37, b: float = 0.11) -> Tensor:
    """F of the module's docstring: float32 [n, d]."""
    import torch

    i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(d, dtype=torch.float64)
    return (((i + 1) * (j + 2) * a).cos() + 0.5 * (i * j * b + 0.2).sin()).float()


def attention_by_formula(n: int) -> Tensor:
    """A of the module's docstring: float32 [n]."""
    import torch

    return (1.3 * (1.7 * torch.arange(n, dtype=torch.float64) + 0.3).sin()).softmax(0).float()


@dataclass
class Case:
    """One vector of a file. ``where`` it stands, for messages; ``read``: the keys that were looked at."""

    where: str
    given: dict[str, Any]
    read: set[str] = field(default_factory=set)

    def _get(self, key: str) -> Any:
        self.read.add(key)
        if key not in self.given:
            raise InvalidValue(f"{self.where}: {key!r} is missing")
        return self.given[key]

    def array(self, key: str) -> Tensor:
        """F of the four numbers at ``key``."""
        value = self._get(key)
        if not isinstance(value, list) or not 2 <= len(value) <= 4 or not all(_count(one) for one in value[:2]):
            raise InvalidValue(f"{self.where}: {key}={value!r}, expected [n, d], [n, d, a] or [n, d, a, b]")
        if not all(isinstance(one, (int, float)) for one in value[2:]):
            raise InvalidValue(f"{self.where}: {key}={value!r}, a and b are numbers")
        return by_formula(*value)

    def attention(self, key: str, n: int) -> Tensor:
        """A of ``n`` tokens, which the text ``A(n)`` stands for."""
        if self._get(key) != "A(n)":
            raise InvalidValue(f"{self.where}: {key}={self.given[key]!r}, expected 'A(n)'")
        return attention_by_formula(n)

    def count(self, key: str, most: int | None = None) -> int:
        """A whole number of at least 1, and at most ``most``."""
        value = self._get(key)
        if not _count(value) or (most is not None and value > most):
            limit = "of at least 1" if most is None else f"from 1 to {most}"
            raise InvalidValue(f"{self.where}: {key}={value!r}, expected a whole number {limit}")
        return int(value)

    def share(self, key: str) -> float:
        """A number from 0 to 1."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InvalidValue(f"{self.where}: {key}={value!r}, expected a number from 0 to 1")
        return float(value)

    def pair(self, key: str) -> tuple[int, int]:
        """Two counts."""
        value = self._get(key)
        if not isinstance(value, list) or len(value) != 2 or not all(_count(one) for one in value):
            raise InvalidValue(f"{self.where}: {key}={value!r}, expected two whole numbers")
        return value[0], value[1]


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# -- one function per method: a case -> what ours gives ----------------------------------------------------------------


def _divprune(case: Case) -> Outcomes:
    from redrel_vlmeval.rules.diversity import divprune_order

    x = case.array("X")
    return _chosen(divprune_order(x, case.count("T", len(x))))


def _cdpruner(case: Case) -> Outcomes:
    from redrel_vlmeval.rules.text import determinantal, relevance, rescaled

    x = case.array("X")
    r = rescaled(relevance(case.array("E"), case.array("text")))
    return _chosen(determinantal(x, r, case.count("T", len(x)))) | {"r": r.tolist()}


def _vispruner(case: Case) -> Outcomes:
    from redrel_vlmeval.rules.tower import diverse

    v = case.array("V")
    count = case.count("T", len(v))
    return _chosen(diverse(v, case.attention("attention", len(v)), count, int(count * case.share("r"))))


def _dart(case: Case) -> Outcomes:
    import torch

    from redrel_vlmeval.rules.decoder import key_norms, unlike_pivots

    system, image, text = case.count("system"), case.count("image"), case.count("text")
    pivots, heads = case.pair("pivots"), case.count("heads")
    keys, states = case.array("keys"), case.array("states")
    if not len(keys) == len(states) == system + image + text or keys.shape[1] % heads:
        raise InvalidValue(f"{case.where}: keys, states, heads and system + image + text do not fit one another")
    norms = key_norms(keys.unflatten(1, (heads, -1)).transpose(0, 1))
    places = torch.arange(len(keys))
    ours, behind = slice(system, system + image), slice(system + image, None)
    count = pivots[0] + case.count("B") // sum(pivots) * sum(pivots)
    return _chosen(
        unlike_pivots(
            (norms[ours], norms[behind]), (states[ours], states[behind]), (places[ours], places[behind]), count, pivots
        )
    )


def _holov(case: Case) -> Outcomes:
    from redrel_vlmeval.rules.tower import holistic

    x = case.array("X")
    return _chosen(holistic(x, case.attention("attention", len(x)), case.count("T", len(x)), case.count("P", len(x))))


def _visionzip(case: Case) -> Outcomes:
    """Rows count the class token, targets the patches that are not dominant, both from 0."""
    from redrel_vlmeval.rules.tower import contextual

    states, keys = case.array("states"), case.array("keys")
    if len(keys) != len(states):
        raise InvalidValue(f"{case.where}: {len(keys)} keys of {len(states)} states")
    n = len(states) - 1
    dominant = case.count("dominant", n)
    top, targets, weights = contextual(
        keys[1:], case.attention("attention", n), dominant, case.count("contextual", n - dominant)
    )
    rest = [j for j in range(n) if j not in set(top.tolist())]
    return {
        "rows": [0, *(top + 1).tolist()],
        "targets": [rest.index(j) for j in targets.tolist()],
        "contextual_first": (weights[dominant:] @ states[1:]).tolist(),
    }


def _mmtok(case: Case) -> Outcomes:
    from redrel_vlmeval.rules.text import coverage

    x = case.array("X")
    return _chosen(coverage(x, case.array("V"), case.array("Z"), case.count("T", len(x))))


def _flow(case: Case) -> Outcomes:
    from redrel_vlmeval.rules.decoder import flow_scores
    from redrel_vlmeval.rules.ordering import highest

    v = case.array("v")
    sem = case.array("sem")[0].softmax(0)
    f = flow_scores(case.attention("rel", len(v)), sem, v)
    return _chosen(highest(f, case.count("T", len(v)))) | {"f": f.tolist()}


RUNNERS: dict[str, Callable[[Case], Outcomes]] = {
    "divprune": _divprune, "cdpruner": _cdpruner, "vispruner": _vispruner, "dart": _dart, "holov": _holov,
    "visionzip": _visionzip, "mmtok": _mmtok, "flow": _flow,
}  # fmt: skip


def _chosen(order: Any) -> Outcomes:
    order = [int(one) for one in order]
    return {"order": order, "kept": sorted(order)}


# -- a file -----------------------------------------------------------------------------------------------------------


def run(path: Path) -> Iterator[tuple[str, str]]:
    """Every case of a file in turn: where it stands, and what differs ("" where nothing does).

    Raises:
        InvalidValue: the file is no JSON of that form, or names a rule or a key that is not known.
    """
    for rule, number, given in _cases(path):
        case = Case(f"{path}: {rule} {number}", given)
        try:
            outcomes = RUNNERS[rule](case)
        except (RuntimeError, IndexError) as error:  # sizes of the inputs that do not fit one another
            raise InvalidValue(f"{case.where}: {error}") from error
        expected = {key: value for key, value in given.items() if key in outcomes}
        if unknown := sorted(given.keys() - case.read - outcomes.keys()):
            raise InvalidValue(f"{case.where}: nothing is known of {', '.join(unknown)}")
        if not expected:
            raise InvalidValue(f"{case.where}: nothing is expected; give one of {', '.join(outcomes)}")
        differing = (_difference(key, value, outcomes[key]) for key, value in expected.items())
        yield f"{rule} {number}", "; ".join(filter(None, differing))


def _cases(path: Path) -> list[tuple[str, int, dict[str, Any]]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidValue(f"{path}: no JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(cases, list) and cases for cases in found.values()):
        raise InvalidValue(f"{path}: expected {{rule: [case, ...]}}")
    if unknown := [rule for rule in found if rule not in RUNNERS]:
        raise InvalidValue(f"{path}: unknown rule {unknown[0]!r}: vectors are known of {', '.join(RUNNERS)}")
    numbered = [(rule, number, case) for rule, cases in found.items() for number, case in enumerate(cases, 1)]
    if not numbered:
        raise InvalidValue(f"{path}: no case in it")
    if wrong := [f"{rule} {number}" for rule, number, case in numbered if not isinstance(case, dict)]:
        raise InvalidValue(f"{path}: {wrong[0]} is no object")
    return numbered


def _difference(key: str, expected: Any, found: Any) -> str:
    """What to say where an expectation is not met."""
    wanted = sorted(expected) if key == "kept" and _flat(expected) else expected
    return "" if _same(wanted, found) else f"{key}: expected {expected}, found {_cut(expected, found)}"


def _flat(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, int) for one in value)


def _same(expected: Any, found: Any) -> bool:
    """Whole numbers are equal, and all of them there; of others the first are close."""
    if isinstance(expected, list) and isinstance(found, list):
        whole = _flat(found)
        return (len(expected) == len(found) if whole else 0 < len(expected) <= len(found)) and all(
            _same(one, other) for one, other in zip(expected, found, strict=False)
        )
    if isinstance(expected, bool) or not isinstance(expected, (int, float)) or isinstance(found, list):
        return False
    return expected == found if isinstance(found, int) else abs(expected - found) <= _CLOSE


def _cut(expected: Any, found: Any) -> Any:
    """As much of what was found as was expected."""
    if not isinstance(found, list) or _flat(found) or not isinstance(expected, list):
        return found if not isinstance(found, float) else round(found, 6)
    return [_cut(one, other) for one, other in zip(expected, found, strict=False)]
