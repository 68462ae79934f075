"""Ranking rules on plain tensors, against the definitions written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from redrel_vlmeval.truncation import ranking
from redrel_vlmeval.truncation.views import View


def written_out(query: torch.Tensor, key: torch.Tensor, row: int, scaling: float, hidden: list[int]) -> torch.Tensor:
    """One prompt's attention row, head by head."""
    groups = query.shape[0] // key.shape[0]
    heads = []
    for head in range(query.shape[0]):
        scores = torch.stack([query[head, row] @ key[head // groups, k] * scaling for k in range(key.shape[1])])
        scores[row + 1 :] = -torch.inf
        scores[hidden] = -torch.inf
        heads.append(scores.softmax(0))
    return torch.stack(heads).mean(0)


@pytest.mark.parametrize("kind", ["none", "bool", "additive", "padding"])
def test_rows_equal_the_matrix_written_out(kind: str) -> None:
    query, key = torch.randn(2, 6, 9, 4), torch.randn(2, 2, 9, 4)
    hidden = [[], []] if kind == "none" else [[0, 1], [3]]
    visible = torch.ones(2, 9, dtype=torch.bool)
    for row, columns in enumerate(hidden):
        visible[row, columns] = False
    causal = torch.ones(9, 9, dtype=torch.bool).tril()[None, None] & visible[:, None, None]
    additive = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)
    mask = {"none": None, "bool": causal, "additive": additive, "padding": visible.long()}[kind]
    rows = torch.tensor([[8, 5], [7, 8]])
    found = ranking.attention_rows(query, key, rows, 0.5, mask)
    for prompt in range(2):
        for place in range(2):
            wanted = written_out(query[prompt], key[prompt], int(rows[prompt, place]), 0.5, hidden[prompt])
            torch.testing.assert_close(found[prompt, place], wanted)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2))


def test_a_soft_cap_flattens_the_row() -> None:
    query, key = 10 * torch.randn(1, 2, 5, 4), 10 * torch.randn(1, 2, 5, 4)
    rows = torch.tensor([[4]])
    capped = ranking.attention_rows(query, key, rows, 1.0, softcap=1.0)
    wanted = torch.tanh(query[:, :, 4:] @ key.transpose(2, 3)).softmax(-1).mean(1)
    torch.testing.assert_close(capped, wanted)


def test_the_last_query_stands_at_the_last_key() -> None:
    """At a decode step there are more keys than queries."""
    query, key = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 6, 4)
    found = ranking.attention_rows(query, key, torch.tensor([[0]]), 1.0)
    torch.testing.assert_close(found[0, 0], (query @ key.transpose(2, 3)).softmax(-1).mean(1)[0, 0])


def test_ties_go_to_the_lower_index() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0, 1.0]])
    everyone = torch.ones(1, 6, dtype=torch.bool)
    assert ranking.best(scores, everyone, torch.tensor([4])).tolist() == [[True, True, True, False, True, False]]
    assert ranking.best(scores, everyone, torch.tensor([2]), lowest=True).tolist() == [
        [True, False, False, True, False, False]
    ]


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 40), st.integers(0, 999))
def test_every_rule_keeps_exactly_the_count_among_the_candidates(chosen: list[bool], count: int, seed: int) -> None:
    candidates = torch.tensor([chosen])
    count = min(count, sum(chosen))
    counts = torch.tensor([count])
    scores = torch.rand(candidates.shape, generator=torch.Generator().manual_seed(seed))
    for keep in (
        ranking.best(scores, candidates, counts),
        ranking.best(scores, candidates, counts, lowest=True),
        ranking.uniform(candidates, counts),
        ranking.random(candidates, counts, [seed]),
    ):
        assert int(keep.sum()) == count
        assert not bool((keep & ~candidates).any())


def test_uniform_is_evenly_spaced() -> None:
    candidates = torch.zeros(1, 20, dtype=torch.bool)
    candidates[:, 2:18] = True
    kept = ranking.uniform(candidates, torch.tensor([4]))[0].nonzero()[:, 0]
    assert kept.diff().tolist() == [4, 4, 4]
    assert abs((kept.float().mean() - 9.5).item()) <= 1


def test_random_depends_on_the_seed_alone() -> None:
    short = torch.ones(1, 10, dtype=torch.bool)
    padded = torch.zeros(1, 15, dtype=torch.bool)
    padded[:, 5:] = True
    one = ranking.random(short, torch.tensor([4]), [7])
    assert torch.equal(one, ranking.random(padded, torch.tensor([4]), [7])[:, 5:])
    assert not torch.equal(one, ranking.random(short, torch.tensor([4]), [8]))


def test_views_fill_shorter_rows_and_find_their_places() -> None:
    stays = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1]]).bool()
    view = View.of(3, stays, [4, 2])
    assert view.index.shape == (2, 4)
    assert view.index[0].tolist() == [0, 1, 3, 5]
    assert view.valid is not None
    assert view.index[1][view.valid[1]].tolist() == [1, 5]
    later = View.of(4, torch.tensor([[1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0]]).bool(), [3, 1])
    places = later.within(view)
    assert view.index.gather(1, places)[0].tolist() == [0, 3, 5]
    assert view.extended(8).index[0].tolist() == [0, 1, 3, 5, 6, 7]
