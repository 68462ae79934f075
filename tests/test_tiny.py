"""The model in the box answers, on every supported transformers: its files are spelled as those of ``llava-hf``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fresh_pictures import Drawn, right_answers
from safetensors import safe_open

from redrel_vlmeval.bases import TINY
from redrel_vlmeval.models.boxed import TINY_FOLDER
from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.tiny import scenes
from redrel_vlmeval.truncation import truncated

QUESTIONS = 20


@pytest.fixture(scope="module")
def core() -> LlavaCore:
    return LlavaCore(TINY, device="cpu")


def one_hop(rng: np.random.Generator) -> Drawn:
    """A picture, and a question about it without options."""
    things = scenes.make_scene(rng)
    question = scenes.visual_questions(things)["one-hop"][0]
    return scenes.render(things), f"{question.text}\nAnswer the question directly.", question.answer


def test_it_answers_and_needs_its_picture_in_the_first_blocks_only(core: LlavaCore, tmp_path: Path) -> None:
    assert right_answers(core, tmp_path, one_hop, QUESTIONS) >= 0.9 * QUESTIONS
    with truncated(core.model, "l7_k0"):
        assert right_answers(core, tmp_path, one_hop, QUESTIONS) >= 0.9 * QUESTIONS
    with truncated(core.model, "l0_k0"):
        assert right_answers(core, tmp_path, one_hop, QUESTIONS) <= 0.6 * QUESTIONS


def test_its_weights_carry_the_names_of_the_hub() -> None:
    with safe_open(TINY_FOLDER / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    assert "vision_tower.vision_model.embeddings.position_embedding.weight" in names
    assert {"language_model.lm_head.weight", "language_model.model.norm.weight"} <= names
