"""``--row``: where the row of any words of the question looks; measured against attention that transformers gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import needs_host
from explain_box import ask_tiny
from test_explain_command import TINY, box, built, picture, said
from tiny_models import BLOCKS, build

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain import command
from redrel_vlmeval.explain.ask.asking import ask_host
from redrel_vlmeval.explain.job import Job
from redrel_vlmeval.explain.maps.gradcam import Request, explain
from redrel_vlmeval.explain.maps.rows import find
from redrel_vlmeval.explain.store import load

__all__ = ["built"]


def test_a_row_is_that_of_the_attention_matrix() -> None:
    asked = ask_tiny(build("llava", dtype=torch.float64))
    asked.model.set_attn_implementation("eager")
    whole = asked.model(**asked.sequence(), use_cache=False, output_attentions=True).attentions
    place = asked.prompt - 2
    found = explain(asked, Request(("attn",), row=str(place)))
    (maps,) = (one for one in found.maps if one.method == "attn_row")
    assert maps.layers == tuple(range(1, BLOCKS + 1)) and found.row == (place,)
    for layer in range(BLOCKS):
        wanted = whole[layer][0, :, place, asked.spans().image].mean(0).detach().numpy()
        assert np.allclose(maps.values[0, layer], wanted, atol=1e-6)


def test_a_variants_row_looks_at_what_is_kept() -> None:
    asked = ask_tiny(build("llava"), setting="l2_k5")
    found = explain(asked, Request(("attn",), row=str(asked.prompt - 1)))
    known = np.isfinite(found.maps[-1].values[0]).sum(1).tolist()
    assert known == [16, 16] + [5] * (BLOCKS - 2)
    assert np.allclose(found.maps[-1].values, found.maps[0].values[:1], equal_nan=True) or len(asked.answer) > 1


def test_a_position_that_is_none_is_named() -> None:
    asked = ask_tiny(build("llava"))
    image = int(asked.spans().image[0])
    for row, words in ((str(image), "an image token"), ("9" * 400, "outside the prompt"), ("word", "no tokenizer")):
        with pytest.raises(ExplainError, match=words):
            find(asked, row)


@needs_host
def test_words_of_the_question_are_found_and_mapped(built: None, tmp_path: Path) -> None:
    path = picture(tmp_path)
    message = [{"type": "image", "value": str(path)}, {"type": "text", "value": "What color is the square?"}]
    asked = ask_host(box(), message)
    ids = asked.inputs["input_ids"][0].tolist()
    for row in ("square", "Square", "color is"):
        found = asked.words([ids[place] for place in find(asked, row)])
        assert [word.strip() for word in found] == row.lower().split()
    for row in ("cube", " "):
        with pytest.raises(ExplainError, match=f"--row '{row}': not in the text behind the picture, '.*square"):
            find(asked, row)
    request = Request(("attn",), ("decoder",), row="square")
    job = Job(TINY, tmp_path / "out", [path], ["What color is the square?"], request=request)
    assert said(command.cam, job)[0] == 0
    stored = load(tmp_path / "out" / f"{TINY}_a-picture.npz")
    assert stored.manifest["row"]["tokens"].strip() == "square"
    assert stored.maps("decoder", "attn_row").shape == (1, 8, 64)
    assert (tmp_path / "out" / f"{TINY}_a-picture_decoder_attn_row.png").exists()
