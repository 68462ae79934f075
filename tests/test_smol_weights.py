"""``redrel_smol`` with its real weights, where `redrel smol` has fetched them: it reads pictures that nothing holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fresh_pictures import Drawn, right_answers

from redrel_vlmeval.bases import SMOL
from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.smol import making, pairs
from redrel_vlmeval.truncation import truncated

pytestmark = pytest.mark.skipif(not making.is_there(), reason="its decoder is not here: `redrel smol` fetches it")
QUESTIONS = 24


@pytest.fixture(scope="module")
def core() -> LlavaCore:
    return LlavaCore(SMOL, device="cpu", max_new_tokens=3)


def one_hop(rng: np.random.Generator) -> Drawn:
    """A picture, and a question about it."""
    things = pairs.make_scene(rng)
    found = pairs.visual_questions(things)["one-hop"]
    question = found[int(rng.integers(len(found)))]
    return pairs.render(things), question.text, question.answer


def test_it_answers_by_its_picture(core: LlavaCore, tmp_path: Path) -> None:
    assert right_answers(core, tmp_path, one_hop, QUESTIONS) >= 0.85 * QUESTIONS
    with truncated(core.model, "l0_k0"):
        assert right_answers(core, tmp_path, one_hop, QUESTIONS) <= 0.5 * QUESTIONS
