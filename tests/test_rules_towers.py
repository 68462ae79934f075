"""Methods that read the vision tower against slow re-statements of their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from slowly import FEW, Scores, attention, cosines, follows, numbers, ranked, seeds, sized

from redrel_vlmeval.rules import tower


@FEW
@given(sized(45), st.sampled_from([0.0, 0.5, 0.75, 1.0]))
def test_vispruner_also_where_the_rest_is_odd(drawn: tuple[int, int, torch.Generator], ratio: float) -> None:
    n, budget, source = drawn
    v, a = numbers(source, n, 6), attention(source, n)
    likeness, important = cosines(v), int(budget * ratio)
    order = ranked(dict(enumerate(a.tolist())))
    rest = order[important:]
    while len(rest) > budget - important and budget > important:
        drop = min(8, len(rest) - (budget - important), len(rest) // 2)
        one, other = rest[0::2], rest[1::2]
        nearest = {i: max(likeness[i][j] for j in other) for i in one}
        left = sorted(one, key=lambda i: -nearest[i])[drop:]
        rest = left + other
    expected = order[:important] + (rest if budget > important else [])
    found = tower.diverse(v, a, budget, important).tolist()
    assert sorted(found) == sorted(expected) and len(found) == budget


@FEW
@given(sized(), st.integers(0, 12))
def test_visionzip(drawn: tuple[int, int, torch.Generator], contextual: int) -> None:
    n, budget, source = drawn
    contextual = min(contextual, budget)
    keys, a, v = numbers(source, n, 4), attention(source, n), numbers(source, n, 3)
    likeness = cosines(keys)
    dominant = sorted(ranked(dict(enumerate(a.tolist())))[: budget - contextual])
    rest = [j for j in range(n) if j not in dominant]
    step = max(1, len(rest) // contextual) if contextual else 1
    targets = [rest[k * step] for k in range(contextual)]
    members: dict[int, list[int]] = {target: [] for target in targets}
    for j in rest:
        if targets and j not in targets:
            members[max(targets, key=lambda target: (likeness[j][target], -target))].append(j)
    features = v.tolist()
    merged = [features[j] for j in dominant]
    for target in targets:
        inside = [features[j] for j in members[target]]
        mean = [math.fsum(column) / len(inside) for column in zip(*inside, strict=True)] if inside else [0.0] * 3
        merged.append([one + more for one, more in zip(features[target], mean, strict=True)])
    top, found, weights = tower.contextual(keys, a, budget - contextual, contextual)
    assert top.tolist() == dominant and found.tolist() == targets
    assert (weights @ v).tolist() == [pytest.approx(row, abs=1e-5) for row in merged]


def held_shares(budget: int, weights: list[float], sizes: list[int]) -> list[int]:
    """HoloV's shares: floors, one each of what is left, then what is beyond a size one each to those with room."""
    order = sorted(range(len(sizes)), key=lambda part: (-weights[part], part))
    given_out = [math.floor(weight / math.fsum(weights) * budget + 1e-9) for weight in weights]
    for part in order[: budget - sum(given_out)]:
        given_out[part] += 1
    beyond = 0
    for part, size in enumerate(sizes):
        beyond += max(0, given_out[part] - size)
        given_out[part] = min(given_out[part], size)
    while beyond:
        for part in order:
            if beyond and given_out[part] < sizes[part]:
                given_out[part] += 1
                beyond -= 1
    return given_out


@FEW
@given(sized(50), st.integers(1, 16))
def test_holov_keeps_exactly_its_budget(drawn: tuple[int, int, torch.Generator], runs: int) -> None:
    n, budget, source = drawn
    x, a = numbers(source, n, 6), attention(source, n)
    runs = min(runs, n)
    sizes = [n // runs + (part < n % runs) for part in range(runs)]
    starts = [sum(sizes[:part]) for part in range(runs)]
    weights = []
    for start, size in zip(starts, sizes, strict=True):
        likeness, own = cosines(x[start : start + size]), (1000 * a[start : start + size].double()).tolist()
        spread = []
        for i in range(size):
            others = [likeness[i][j] for j in range(size) if j != i] or [0.0]
            mean = math.fsum(others) / len(others)
            spread.append(math.fsum((one - mean) ** 2 for one in others) / len(others))
        scale = math.fsum(own) / size / (math.fsum(spread) / size + 1e-6)
        weights.append(math.fsum(one + 0.09 * var * scale for one, var in zip(own, spread, strict=True)) / size)
    expected: list[int] = []
    for start, size, share in zip(starts, sizes, held_shares(budget, weights, sizes), strict=True):
        expected += [start + j for j in ranked(dict(enumerate(a[start : start + size].tolist())))[:share]]
    found = tower.holistic(x, a, budget, runs).tolist()
    assert sorted(found) == sorted(expected) and len(set(found)) == budget


@FEW
@given(sized(25))
def test_scope(drawn: tuple[int, int, torch.Generator]) -> None:
    n, budget, source = drawn
    v, a = numbers(source, n, 4), attention(source, n)
    likeness, salience = cosines(v), a.tolist()

    def covered(i: int, chosen: list[int]) -> float:
        return max([0.0, *(likeness[i][j] for j in chosen)])

    def score(before: list[int], j: int) -> float:
        return math.fsum(covered(i, [*before, j]) - covered(i, before) for i in range(n)) * salience[j]

    follows(tower.covering(v, a, budget).tolist(), Scores(n, score))


@FEW
@given(st.integers(2, 6), st.integers(2, 7), st.floats(0, 1), seeds)
def test_hiprune(rows: int, columns: int, alpha: float, seed: int) -> None:
    source, n = torch.Generator().manual_seed(seed), rows * columns
    budget = 1 + seed % n
    middle, late = attention(source, n), attention(source, n)
    anchors = ranked(dict(enumerate(middle.tolist())))[: round(alpha * budget / 5)]
    near = {
        j for j in range(n) for i in anchors if abs(i // columns - j // columns) + abs(i % columns - j % columns) == 1
    }
    by_late = ranked(dict(enumerate(late.tolist())))
    buffers = [j for j in by_late if j in near and j not in anchors]
    rest = [j for j in by_late if j not in near and j not in anchors]
    expected = [*anchors, *buffers, *rest][:budget]
    found = tower.hierarchical(middle, late, (rows, columns), budget, alpha).tolist()
    assert sorted(found) == sorted(expected)


@FEW
@given(sized(60))
def test_prumerge(drawn: tuple[int, int, torch.Generator]) -> None:
    n, budget, source = drawn
    a, keys = (3 * numbers(source, n)).softmax(0), numbers(source, n, 4)
    likeness, listed = cosines(keys), a.tolist()
    ordered = sorted(listed)

    def quantile(share: float) -> float:
        place = share * (n - 1)
        low = int(place)
        return ordered[low] + (place - low) * (ordered[min(low + 1, n - 1)] - ordered[low])

    limit = quantile(0.75) + 1.5 * (quantile(0.75) - quantile(0.25))
    whole = max(budget - 1, 1)
    kept = ranked(dict(enumerate(listed)))[: min(sum(one > limit for one in listed), whole)]
    free = [j for j in range(n) if j not in kept]
    wanted = whole - len(kept)
    kept = kept + [free[k * len(free) // wanted] for k in range(wanted)]
    indices, weights = tower.merging(keys, a, budget)
    assert indices.tolist()[: len(kept)] == kept and len(set(indices.tolist())) == budget == len(indices)
    for row, i in enumerate(kept):
        near = sorted((j for j in range(n) if j != i), key=lambda j: (-likeness[i][j], j))[:32]
        expected = [1.0 if j == i else listed[j] if j in near else 0.0 for j in range(n)]
        assert weights[row].tolist() == pytest.approx(expected, abs=1e-6)
    if budget > 1:
        assert weights[-1].tolist() == pytest.approx([0.0 if j in kept else listed[j] for j in range(n)], abs=1e-6)
        assert indices[-1] == max(set(range(n)) - set(kept))
