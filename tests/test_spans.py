"""Groups and answer rows come from the model's own sequence, for every family, and a row one off is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from explain_box import ask_tiny
from tiny_models import IMAGE, TinyModel

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask.spans import GROUPS, check_greedy, spans
from redrel_vlmeval.explain.maps.passes import run
from redrel_vlmeval.explain.maps.taken import Wanted


def names(found) -> str:
    return "".join(GROUPS[number][0] for number in found.group)


def test_groups_of_a_prompt() -> None:
    image = np.array([0, 0, 0, 1, 1, 0, 1, 0, 0, 0], bool)
    found = spans(image, 8, bos=True)
    assert names(found) == "bssiiuiuoo"
    assert found.image.tolist() == [3, 4, 6]
    assert found.rows.tolist() == found.predict.tolist() == [7, 8]
    emitting = spans(image, 8, bos=False, rows="emit")
    assert names(emitting) == "sssiiuiuoo"
    assert (emitting.rows.tolist(), emitting.predict.tolist()) == ([8, 9], [7, 8])
    assert found.sizes() == {"bos": 1, "sys": 2, "img": 3, "user": 2, "out": 2}


def test_what_has_no_groups_is_refused() -> None:
    image = np.array([0, 1, 0], bool)
    with pytest.raises(ExplainError, match="no picture"):
        spans(np.zeros(3, bool), 2, bos=True)
    with pytest.raises(ExplainError, match="no answer"):
        spans(image, 3, bos=True)
    with pytest.raises(ExplainError, match="choose one of predict, emit"):
        spans(image, 2, bos=True, rows="last")
    with pytest.raises(ExplainError, match="no picture"):
        spans(np.array([0, 0, 1], bool), 2, bos=True)  # an image token that the answer utters


def test_every_family_is_read_and_its_rows_predict_the_answer(family: TinyModel) -> None:
    asked = ask_tiny(family)
    ids = asked.inputs["input_ids"][0]
    found = asked.spans()
    assert asked.greedy and asked.own and len(asked.answer) == 3
    assert found.image.tolist() == (ids == IMAGE).nonzero()[:, 0].tolist()
    first, last = found.image[0], found.image[-1]
    assert names(found)[0] == "b"
    assert set(names(found)[1:first]) == {"s"}
    assert set(names(found)[last + 1 : asked.prompt]) == {"u"}
    assert names(found)[asked.prompt :] == "ooo"
    with run(asked, Wanted(), grad=False) as taken:
        assert taken.logits[0].argmax(-1).tolist() == asked.answer
    asked.answer = [asked.answer[0], (asked.answer[1] + 1) % 90, asked.answer[2]]
    with pytest.raises(ExplainError, match="answer token 2: its row prefers"), run(asked, Wanted(), grad=False):
        pass


def test_rows_that_are_one_off_are_refused() -> None:
    check_greedy(np.array([5, 6]), np.array([0.0, 0.0]), [5, 6], 1e-6)
    check_greedy(np.array([5, 7]), np.array([0.0, 1e-7]), [5, 6], 1e-6)  # a tie that rounding breaks
    with pytest.raises(ExplainError, match="answer token 2: its row prefers token 7, not the token 6"):
        check_greedy(np.array([5, 7]), np.array([0.0, 0.5]), [5, 6], 1e-6)


def test_an_answer_from_a_search_is_not_held_to_the_greedy_rows(llava: TinyModel) -> None:
    asked = ask_tiny(llava, num_beams=3)
    assert not asked.greedy
    with run(asked, Wanted(), grad=False) as taken:
        assert taken.logits.shape[1] == len(asked.answer)


def test_text_after_the_answer_changes_nothing(llava: TinyModel) -> None:
    asked = ask_tiny(llava)
    longer = asked.with_answer([*asked.answer, 11, 12])
    with run(asked, Wanted(), grad=False) as taken:
        logits = taken.logits.clone()
    with run(longer, Wanted(), grad=False) as taken:
        torch.testing.assert_close(taken.logits[:, :3], logits, atol=1e-6, rtol=1e-6)
