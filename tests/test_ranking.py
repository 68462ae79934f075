"""Ranking rules on plain tensors, against the definitions written out."""

from __future__ import annotations

import pytest
import torch

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


def test_views_fill_shorter_rows_and_find_their_places() -> None:
    stays = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1]]).bool()
    view = View.of(3, stays, None)
    assert view.index.shape == (2, 4)
    assert view.index[0].tolist() == [0, 1, 3, 5]
    assert view.valid is not None
    assert view.index[1][view.valid[1]].tolist() == [1, 5]
    later = View.of(4, torch.tensor([[1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0]]).bool(), view)
    places = later.within(view)
    assert view.index.gather(1, places)[0].tolist() == [0, 3, 5]
    assert view.extended(8).index[0].tolist() == [0, 1, 3, 5, 6, 7]
    row = set(view.index[1].tolist())  # a filler of a later stage was there until then, or it could not go back
    assert later.valid is not None and set(later.index[1].tolist()) <= row and len(set(later.index[1].tolist())) == 3


def test_what_stays_is_counted_anew_from_its_end() -> None:
    stays = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1]]).bool()
    view = View.of(3, stays, None, renumbered=True)
    assert view.turned is not None and view.turned[0].tolist() == [2, 3, 4, 5]
    assert view.valid is not None and view.turned[1][view.valid[1]].tolist() == [4, 5]
    assert view.extended(8).rotary[0].tolist() == [2, 3, 4, 5, 6, 7]
