"""Published methods against slow re-statements of their formulas in float64, one token at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from redrel_vlmeval.rules import decoder, diversity, geometry, text, tower

Rows = list[list[float]]
FEW = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


@st.composite
def sized(draw: Any, most: int = 40, least: int = 2) -> tuple[int, int, torch.Generator]:
    """n tokens, a budget of 1 to n of them, and a source of numbers."""
    n = draw(st.integers(least, most))
    return n, draw(st.integers(1, n)), torch.Generator().manual_seed(draw(seeds))


def numbers(source: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=source)


def attention(source: torch.Generator, n: int) -> torch.Tensor:
    return (1.5 * numbers(source, n)).softmax(0)


def dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def cos(one: list[float], other: list[float]) -> float:
    return dot(one, other) / math.sqrt(dot(one, one) * dot(other, other))


def cosines(rows: torch.Tensor) -> Rows:
    listed = rows.tolist()
    return [[cos(one, other) for other in listed] for one in listed]


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(one - top) for one in row]
    return [one / math.fsum(powers) for one in powers]


def ranked(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda j: (-scores[j], j))


def follows(order: list[int], scores: Any, start: int = 0) -> None:
    """Every choice of ``order`` is as good as the best that was left, by ``scores(chosen before, token)``."""
    assert len(set(order)) == len(order)
    for step in range(start, len(order)):
        before = order[:step]
        found = {j: scores(before, j) for j in scores.tokens if j not in before}
        assert found[order[step]] >= max(found.values()) - 1e-5, (step, order)


class Scores:
    def __init__(self, tokens: int, of: Any) -> None:
        self.tokens, self.of = range(tokens), of

    def __call__(self, before: list[int], j: int) -> float:
        return float(self.of(before, j))


# -- diversity --------------------------------------------------------------------------------------------------------


@FEW
@given(sized())
def test_divprune(drawn: tuple[int, int, torch.Generator]) -> None:
    n, budget, source = drawn
    x = numbers(source, n, 5)
    likeness = cosines(x)
    order = diversity.divprune_order(x, budget).tolist()
    assert len(order) == budget

    def score(before: list[int], j: int) -> float:
        if not before:
            return sorted(1 - likeness[i][j] for i in range(n))[1]
        return min(1 - likeness[i][j] for i in before)

    follows(order, Scores(n, score))


@FEW
@given(sized())
def test_farthest_points(drawn: tuple[int, int, torch.Generator]) -> None:
    n, budget, source = drawn
    x = numbers(source, n, 5)
    rows, mean = x.tolist(), x.double().mean(0).tolist()

    def score(before: list[int], j: int) -> float:
        return min(math.dist(rows[i], rows[j]) for i in before) if before else math.dist(rows[j], mean)

    follows(diversity.farthest_points(x, budget).tolist(), Scores(n, score))


@FEW
@given(sized(20))
def test_graph_flow(drawn: tuple[int, int, torch.Generator]) -> None:
    n, _, source = drawn
    x = numbers(source, n, 2)
    likeness = cosines(x)
    links = [[j for j in range(n) if i == j or likeness[i][j] > 0.7] for i in range(n)]
    flow = [dict(zip(links[i], softmax([likeness[i][j] / 0.03 for j in links[i]]), strict=True)) for i in range(n)]
    scores = [math.sqrt(dot(row, row)) for row in x.tolist()]
    for _step in range(5):
        scores = [math.fsum(scores[i] * flow[i].get(j, 0.0) for i in range(n)) for j in range(n)]
    expected = [scores[i] / len(links[i]) for i in range(n)]
    assert diversity.graph_flow(x).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)


# -- tower ------------------------------------------------------------------------------------------------------------


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


# -- text -------------------------------------------------------------------------------------------------------------


@FEW
@given(sized(25), st.integers(2, 30), st.integers(1, 3))
def test_cdpruner_also_beyond_the_rank(drawn: tuple[int, int, torch.Generator], width: int, segments: int) -> None:
    n, budget, source = drawn
    x, e, t = numbers(source, n, width), numbers(source, n, 5), numbers(source, segments, 5)
    rho = [-math.fsum(cos(one, words) for words in t.tolist()) / segments for one in e.tolist()]
    r = [(one - min(rho) + 1e-6) / (max(rho) - min(rho)) for one in rho]
    found = text.rescaled(text.relevance(e, t))
    assert found.tolist() == pytest.approx(r, abs=1e-5)
    likeness = cosines(x)
    order = text.determinantal(x, found, budget).tolist()
    assert len(order) == budget

    def left(before: list[int], j: int) -> float:
        """det L[before + j] / det L[before]: the Schur complement, by solving."""
        own = r[j] ** 2
        if not before:
            return own
        inner = torch.tensor([[r[i] * likeness[i][k] * r[k] for k in before] for i in before], dtype=torch.float64)
        beside = torch.tensor([r[j] * likeness[j][k] * r[k] for k in before], dtype=torch.float64)
        return own - float(beside @ torch.linalg.pinv(inner, rtol=1e-9) @ beside)

    follows(order, Scores(n, left))


def test_cdpruner_goes_on_beyond_the_rank() -> None:
    """Two directions, twenty tokens: after two choices nothing is left but rounding."""
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).repeat(10, 1)
    r = torch.linspace(0.1, 1, 20)
    order = text.determinantal(x, r, 19).tolist()
    assert order[:2] == [19, 18] and len(set(order)) == 19


@FEW
@given(sized(20), st.integers(1, 4))
def test_mmtok(drawn: tuple[int, int, torch.Generator], words: int) -> None:
    n, budget, source = drawn
    x, v, z = numbers(source, n, 6), numbers(source, n, 4), 0.1 * numbers(source, words, 6)
    unit = [[one / math.sqrt(dot(row, row)) for one in row] for row in x.tolist()]
    cover = [[p / words for p in softmax([dot(word, row) / 0.01 for row in unit])] for word in z.tolist()]
    cover += [[0.5 * p / n for p in softmax([one / 0.2 for one in row])] for row in cosines(v)]

    def score(before: list[int], j: int) -> float:
        return math.fsum(max(row[k] for k in [*before, j]) for row in cover)

    follows(text.coverage(x, v, z, budget).tolist(), Scores(n, score))


# -- decoder ----------------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(2, 30), st.integers(1, 8), st.integers(1, 4), seeds)
def test_sparsevlm_plus(n: int, m: int, heads: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    pictured, words = numbers(source, n, 4), numbers(source, m, 4)
    shares = [softmax([dot(row, word) for word in words.tolist()]) for row in pictured.tolist()]
    weight = [math.fsum(row[t] for row in shares) / n for t in range(m)]
    by = [t for t in range(m) if weight[t] > math.fsum(weight) / m]
    found = decoder.raters(pictured, words)
    assert m == 1 or found.nonzero()[:, 0].tolist() == by
    by = found.nonzero()[:, 0].tolist()
    attended = numbers(source, 4, m, n).softmax(-1)
    bias = numbers(source, m, n).abs() + 0.5
    plain = (attended / bias).double().tolist()
    strength = {h: math.fsum(plain[h][t][i] for t in by for i in range(n)) for h in range(4)}
    asked = ranked(strength)[:heads]
    expected = [math.fsum(plain[h][t][i] for h in asked for t in by) / len(asked) / len(by) for i in range(n)]
    assert decoder.rated(attended, found, bias, heads).tolist() == pytest.approx(expected, rel=1e-4)


def test_distance_bias_falls_with_distance_alone() -> None:
    angle = torch.arange(50)[:, None] / 100 ** (torch.arange(4) / 4)
    ones = torch.cat([angle.cos() - angle.sin(), angle.cos() + angle.sin()], -1)  # rotary, both halves
    bias = decoder.distance_bias(ones[40:], ones[:40])
    assert torch.allclose(bias[1:, 1:], bias[:-1, :-1], atol=1e-5)
    assert bias[0, 39] == pytest.approx(2 * float(angle[1].cos().sum()) / 8**0.5, rel=1e-5)


@FEW
@given(sized(30), st.integers(0, 6), st.integers(1, 4), st.integers(1, 4), st.integers(0, 40))
def test_dart(drawn: tuple[int, int, torch.Generator], m: int, own: int, other: int, first: int) -> None:
    n, budget, source = drawn
    keys, states = numbers(source, 2, n + m, 3), numbers(source, n + m, 5)
    norms = decoder.key_norms(keys)
    strength = [math.fsum(abs(one) for head in keys[:, j].tolist() for one in head) for j in range(n + m)]
    assert norms.tolist() == pytest.approx(strength, rel=1e-5)
    picture = ranked({j: strength[j] for j in range(n)})[: min(own, budget)]
    words = ranked({j: strength[j] for j in range(n, n + m)})[:other]
    likeness = cosines(states)
    chosen, pivots = list(picture), len(picture) + len(words)
    for number, place in enumerate(set([first + j for j in picture + words])):  # noqa: C403
        wanted = (budget - len(picture)) // pivots + (number < (budget - len(picture)) % pivots)
        free = sorted((j for j in range(n) if j not in chosen), key=lambda j: (likeness[place - first][j], j))
        chosen += free[:wanted]
    places = torch.arange(first, first + n + m)
    found = decoder.unlike_pivots(
        (norms[:n], norms[n:]), (states[:n], states[n:]), (places[:n], places[n:]), budget, (own, other)
    )
    assert sorted(found) == sorted(chosen) and len(set(found)) == budget


@FEW
@given(st.integers(1, 20), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]), seeds)
def test_flowcut(n: int, heads: tuple[int, int], seed: int) -> None:
    source, (h, g) = torch.Generator().manual_seed(seed), heads
    last, keys, values = numbers(source, h, 4), numbers(source, g, n, 4), numbers(source, g, n, 4)
    rel = [softmax([dot(last[k].tolist(), key) / 2 for key in keys[k * g // h].tolist()]) for k in range(h)]
    mean = [math.fsum(row[i] for row in rel) / h for i in range(n)]
    assert decoder.flowing(last, keys).tolist() == pytest.approx(mean, abs=1e-6)
    sem, v = attention(source, n).tolist(), values.double().mean(0).tolist()
    size = [math.fsum(map(abs, row)) for row in v]
    parts = zip(mean, sem, size, strict=True)
    expected = [(one / math.fsum(mean) + other / math.fsum(sem)) * long for one, other, long in parts]
    assert decoder.flow_scores(torch.tensor(mean), torch.tensor(sem), values.mean(0)).tolist() == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )


# -- shared arithmetic ------------------------------------------------------------------------------------------------


@FEW
@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 9)), min_size=1, max_size=8), st.integers(0, 80))
def test_shares_spend_all_and_overfill_none(parts: list[tuple[float, int]], budget: int) -> None:
    weights, sizes = [one[0] for one in parts], [one[1] for one in parts]
    budget = min(budget, sum(sizes))
    found = geometry.shares(budget, weights, sizes)
    assert sum(found) == budget and all(0 <= share <= size for share, size in zip(found, sizes, strict=True))


def test_ties_go_to_the_lowest() -> None:
    same = torch.ones(9, 3)
    even = torch.full((9,), 1 / 9)
    assert sorted(text.determinantal(same, torch.ones(9), 1).tolist()) == [0]
    assert tower.covering(same, even, 1).tolist() == [0]
    assert text.coverage(same, same, same[:2], 3).tolist() == [0, 1, 2]
    assert tower.diverse(same, even, 4, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_what_a_half_model_gives_is_computed_in_float32(kind: torch.dtype) -> None:
    source = torch.Generator().manual_seed(3)
    x, a = numbers(source, 24, 6).to(kind), attention(source, 24)
    wide = x.float()
    assert torch.equal(diversity.divprune_order(x, 9), diversity.divprune_order(wide, 9))
    assert torch.equal(text.determinantal(x, a, 9), text.determinantal(wide, a, 9))
    assert torch.equal(tower.diverse(x, a, 9, 4), tower.diverse(wide, a, 9, 4))
    assert torch.equal(tower.holistic(x, a, 9, 4), tower.holistic(wide, a, 9, 4))
    assert torch.equal(text.coverage(x, x, x[:3], 9), text.coverage(wide, wide, wide[:3], 9))
    assert torch.equal(diversity.graph_flow(x), diversity.graph_flow(wide))
    assert torch.equal(tower.merging(x, a.to(kind), 9)[0], tower.merging(wide, a.to(kind).float(), 9)[0])
