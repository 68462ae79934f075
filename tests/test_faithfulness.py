"""Facts that a wrong map fails: each test here would pass a map that is right and fail one that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from explain_box import ask_box, ask_tiny
from tiny_models import TinyModel, build

from redrel_vlmeval.bases import TINY
from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.maps.gradcam import Request, explain
from redrel_vlmeval.explain.trust import faithfulness
from redrel_vlmeval.explain.trust.faithfulness import (
    Deleted,
    card,
    compare,
    delete_test,
    deletion,
    point,
    randomisation,
)
from redrel_vlmeval.explain.trust.testing import examine
from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.tiny import scenes


@pytest.fixture(scope="module")
def core() -> LlavaCore:
    return LlavaCore(TINY, device="cpu", max_new_tokens=4)


THINGS = [scenes.Thing(10, "square", "red"), scenes.Thing(40, "cross", "blue"), scenes.Thing(53, "bar", "green")]
LINE = {"question": "What color is the square?", "A": "blue", "B": "red", "C": "green", "D": "white"}


def test_the_pointing_game() -> None:
    values = np.array([0.0, 3.0, 1.0, np.nan])
    assert point(values, {1}, {2}) == "asked"
    assert point(values, {2}, {1}) == "other"
    assert point(values, {2}, {0}) == "background"
    assert point(np.array([0.0, 0.0]), {0}) == "none"
    assert point(np.full(3, np.nan), {0}) == "none"
    assert point(np.array([1.0, 1.0, 0.0]), {0, 1}) == "asked"
    assert point(np.array([1.0, 1.0, 0.0]), {0}) == "background"  # a flat map has not found it
    assert faithfulness.ranks(np.array([1, np.nan, 3, 1])).tolist() == [2, 0, 3, 1]


def test_deleting_the_asked_cell_first_is_the_oracle(core: LlavaCore, tmp_path: Path) -> None:
    asked = ask_box(core, tmp_path / "p.png", THINGS, LINE)
    assert asked.reply == "B"
    rest = [cell for cell in range(64) if cell != 10]
    soon, late = deletion(asked, [10, *rest]), deletion(asked, [*rest, 10])
    assert soon.shares[0] == 0 and soon.shares[-1] == 1 and len(soon.scores) == faithfulness.STEPS + 1
    assert soon.scores[0] == late.scores[0] > 0.9
    assert soon.scores[1] < 0.5 < late.scores[-2]
    assert soon.auc < late.auc - 0.3
    coming = deletion(asked, [10, *rest], insertion=True)
    assert coming.scores[0] == pytest.approx(soon.scores[-1], abs=1e-5)
    assert coming.auc > soon.auc + 0.3


def test_a_right_map_beats_chance_and_a_wrong_one_does_not(core: LlavaCore, tmp_path: Path) -> None:
    asked = ask_box(core, tmp_path / "p.png", THINGS, LINE)
    right, wrong = np.zeros(64), np.zeros(64)
    right[10], wrong[[40, 53]] = 1, 1
    wrong[10] = -1
    found = delete_test(asked, right, [10])
    assert found.gain > 0.15 and found.oracle == pytest.approx(found.own, abs=0.05)
    assert delete_test(asked, wrong).gain < 0 and delete_test(asked, wrong).oracle is None
    assert delete_test(asked, right, insertion=True).gain < -0.15
    assert delete_test(asked, right, seed=1).random != found.random


def test_what_cannot_be_deleted_is_refused(llava: TinyModel) -> None:
    asked = ask_tiny(llava, "tIttt", new=1)
    with pytest.raises(ExplainError, match="an order of 2 cells for a grid of 16"):
        deletion(asked, [0, 1])
    with pytest.raises(ExplainError, match="2 pictures: cells are deleted from one"):
        deletion(ask_tiny(llava, "tItIt", new=1), [0])
    tiled = ask_tiny(build("llava_next"), "tIttt", new=1)
    with pytest.raises(ExplainError, match="where each picture is one square"):
        deletion(tiled, list(range(16)))


def test_maps_compared() -> None:
    one = np.array([1.0, 2.0, 3.0, np.nan])
    assert compare(one, one) == {"rank": pytest.approx(1), "same_peak": True}
    assert compare(one, -one) == {"rank": pytest.approx(-1), "same_peak": False}
    assert compare(one, np.ones(4))["rank"] is None


def test_shuffled_weights_change_the_map_and_come_back(core: LlavaCore, tmp_path: Path) -> None:
    asked = ask_box(core, tmp_path / "p.png", THINGS, LINE)
    before = {name: p.clone() for name, p in core.model.named_parameters()}

    def draw(question) -> np.ndarray:
        return explain(question, Request(("elementwise",), layers=(3,))).maps[0].values[0, 0]

    plain = draw(asked)
    few, all_of_them = randomisation(asked, draw, [1, 8])
    assert (few["blocks"], all_of_them["blocks"]) == (1, 8)
    assert all_of_them["rank"] is None or all_of_them["rank"] < 0.9
    assert all(torch.equal(p, before[name]) for name, p in core.model.named_parameters())
    np.testing.assert_array_equal(draw(asked), plain)
    with pytest.raises(ZeroDivisionError), faithfulness.shuffled(asked, 8):
        assert not all(torch.equal(p, before[name]) for name, p in core.model.named_parameters())
        raise ZeroDivisionError
    assert all(torch.equal(p, before[name]) for name, p in core.model.named_parameters())
    with pytest.raises(ExplainError, match="9 blocks to randomise: the decoder has 8"):
        randomisation(asked, draw, [9])


def test_a_map_is_examined_by_what_its_question_allows(core: LlavaCore, tmp_path: Path) -> None:
    asked = ask_box(core, tmp_path / "p.png", THINGS, LINE)
    other = ask_box(core, tmp_path / "p.png", THINGS, LINE | {"question": "What color is the cross?"})
    request = Request(smooth=8, tower=True)
    found = examine(
        asked, request, "elementwise", 4, asked_cells={10}, other_cells={40, 53}, swapped=other, blocks=[8], orders=2
    )
    assert (found["method"], found["layer"]) == ("elementwise", 4)
    assert found["points_at"] in ("asked", "other", "background")
    assert found["deletion"]["oracle"] < found["deletion"]["random"]
    assert found["insertion"]["oracle"] > found["insertion"]["random"]
    assert found["question_swap"]["rank"] < 1 and found["randomisation"][0]["blocks"] == 8
    tiled = ask_tiny(build("llava_next"), "tIttt", new=1)
    assert set(examine(tiled, Request(), "attn", 2)) == {"where", "method", "layer"}


def test_a_card_holds_what_was_tested_only() -> None:
    values = np.array([0.0, 1.0])
    assert card("decoder", "attn", 2, values) == {"where": "decoder", "method": "attn", "layer": 2}
    full = card(
        "decoder", "attn", 2, values, asked_cells={1}, deleted=Deleted(0.2, 0.6, None), swap={"rank": 0.1},
        randomised=[{"blocks": 1}],
    )  # fmt: skip
    assert full["points_at"] == "asked"
    assert full["deletion"] == {"auc": 0.2, "random": 0.6, "oracle": None}
    assert full["question_swap"] == {"rank": 0.1} and full["randomisation"] == [{"blocks": 1}]
