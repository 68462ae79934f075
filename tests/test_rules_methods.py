"""Published methods against slow re-statements of their formulas in float64, one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from slowly import (
    FEW,
    Scores,
    attention,
    cos,
    cosines,
    dot,
    follows,
    numbers,
    ranked,
    seeds,
    sized,
    softmax,
)

from redrel_vlmeval.rules import decoder, diversity, geometry, text, tower

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
