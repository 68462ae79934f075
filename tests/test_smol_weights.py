"""``redrel_smol`` with its real weights, where `redrel smol` has fetched them: it reads pictures that nothing holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from redrel_vlmeval.bases import SMOL
from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.smol import making, pairs
from redrel_vlmeval.truncation import truncated

pytestmark = pytest.mark.skipif(not making.is_there(), reason="its decoder is not here: `redrel smol` fetches it")
QUESTIONS = 24


@pytest.fixture(scope="module")
def core() -> LlavaCore:
    return LlavaCore(SMOL, device="cpu", max_new_tokens=3)


def right_answers(core: LlavaCore, folder: Path) -> int:
    """Of one-hop questions about pictures that neither training nor the benchmark holds."""
    right = 0
    for number in range(QUESTIONS):
        rng = np.random.default_rng([5, number])
        things = pairs.make_scene(rng)
        path = folder / f"{number}.png"
        pairs.render(things).save(path)
        found = pairs.visual_questions(things)["one-hop"]
        question = found[int(rng.integers(len(found)))]
        said = core.reply([{"type": "image", "value": str(path)}, {"type": "text", "value": question.text}])
        right += said == question.answer
    return right


def test_it_answers_by_its_picture(core: LlavaCore, tmp_path: Path) -> None:
    assert right_answers(core, tmp_path) >= 0.85 * QUESTIONS
    with truncated(core.model, "l0_k0"):
        assert right_answers(core, tmp_path) <= 0.5 * QUESTIONS
