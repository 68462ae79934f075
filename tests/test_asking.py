"""A question goes through the host's own prompt; what cannot be explained is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import modelbox
import numpy as np
import pytest
import torch
from explain_box import ask_tiny
from modelbox import message
from PIL import Image
from tiny_models import TinyModel

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask.asking import Asked, answer_ids, ask_host, ask_model
from redrel_vlmeval.explain.explanation import choose_answer, option_tokens
from redrel_vlmeval.explain.maps.gradcam import Request, explain
from redrel_vlmeval.explain.maps.passes import log_likelihood

QUESTION = modelbox.QUESTION


def test_the_prompt_is_the_hosts_own(base: Any, asked: Any, pictures: list[str]) -> None:
    found = ask_host(base, asked)
    core = base.core
    prompt, paths = modelbox_prompt(asked)
    assert torch.equal(found.inputs["input_ids"], core.inputs(prompt, paths)["input_ids"])
    assert found.reply.startswith(core.tokenizer.decode(found.answer[:1]))
    assert found.pictures == pictures[:1] and found.spec is None
    words = found.words(found.inputs["input_ids"][0].tolist())
    groups = found.spans().group
    sys = [word for word, group in zip(words, groups, strict=False) if group == 1]
    user = [word for word, group in zip(words, groups[: found.prompt], strict=True) if group == 3]
    assert sys[-2:] == ["USER", ":"] and user[-2:] == ["ASSISTANT", ":"]


def modelbox_prompt(asked: Any) -> tuple[str, list[str]]:
    from redrel_vlmeval.models.llava import input

    return input.single_prompt(asked)


def test_a_variant_is_asked_as_it_is_and_explained_as_it_is(classes: Any, base: Any, asked: Any) -> None:
    variant = classes.TruncatedVLM(base, "l2_k8")
    found = ask_host(variant, asked)
    assert str(found.spec) == "l2_k8" and not found.inputs["input_ids"].is_inference()
    drawn = explain(found, Request(("elementwise",))).maps[0]
    assert np.isfinite(drawn.values[0, :2]).all()
    assert np.isfinite(drawn.values[0, 2:]).sum(-1).tolist() == [8] * 6
    assert base.recorder is not None


def test_two_pictures_are_mapped_together(base: Any, pictures: list[str]) -> None:
    found = ask_host(base, message(pictures, 0, 1, QUESTION))
    assert len(found.spans().image) == 2 * modelbox.TOKENS
    assert explain(found, Request(("elementwise",))).maps[0].values.shape[-1] == 2 * modelbox.TOKENS


def test_a_question_without_a_picture_or_with_a_video(base: Any, llava: TinyModel, pictures: list[str]) -> None:
    with pytest.raises(ExplainError, match="no picture: there is nothing to map"):
        ask_host(base, message(pictures, QUESTION))
    with pytest.raises(ExplainError, match="has a video"):
        ask_host(base, [{"type": "video", "value": "film.mp4"}, {"type": "text", "value": QUESTION}])
    with pytest.raises(ExplainError, match="no picture"):
        ask_tiny(llava, layout="ttt")


def test_a_host_that_does_not_generate_one_prompt_from_ids(llava: TinyModel) -> None:
    with pytest.raises(ExplainError, match="never called generate"):
        ask_model(llava.model, lambda: "from an API")
    with pytest.raises(ExplainError, match="2 prompts at once"):
        ask_model(llava.model, lambda: llava.model.generate(**llava.batch(["tIt", "tIt"]), max_new_tokens=1))
    embeds = torch.zeros(1, 4, 32)
    with pytest.raises(ExplainError, match="without input_ids"):
        ask_model(llava.model, lambda: llava.model.generate(inputs_embeds=embeds, max_new_tokens=1))
    film = llava.prompt() | {"pixel_values_videos": torch.zeros(1)}
    llava.model.generate = lambda **_kwargs: None
    with pytest.raises(ExplainError, match="has a video"):
        ask_model(llava.model, lambda: llava.model.generate(**film))


def test_a_picture_too_large_to_open(base: Any, tmp_path: Any, monkeypatch: Any) -> None:
    path = tmp_path / "huge.png"
    Image.new("RGB", (400, 400)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ExplainError, match="larger than is safe to open"):
        ask_host(base, message([str(path)], 0, QUESTION))


class Pieces:
    """A tokenizer that joins a space and the word behind it, as sentencepiece does: `` B`` is not ``B``."""

    words = {"B": 40, " B": 41, "A": 42, " A": 43, ":": 44, "?": 45}
    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = []
        while text:
            word = next((w for w in sorted(self.words, key=len, reverse=True) if text.startswith(w)), text[0])
            ids.append(self.words.get(word, 45))
            text = text[len(word) :]
        return {"input_ids": ids}

    def decode(self, ids: Any) -> str:
        names = {number: word for word, number in self.words.items()}
        return "".join(names.get(int(token), ":") for token in ids)


def test_an_answer_split_differently_in_context_is_taken_as_the_model_would_say_it(llava: TinyModel) -> None:
    asked = replace(ask_tiny(llava), tokenizer=Pieces())
    for liked in (40, 41):
        found = answer_ids(asked, "B", lambda other: float(other.answer == [liked]))  # noqa: B023
        assert found == [liked]
    chosen = choose_answer(asked, "B")
    scores = {token: log_likelihood(asked.with_answer([token])) for token in (40, 41)}
    assert chosen.answer == [max(scores, key=scores.__getitem__)] and not chosen.own
    assert choose_answer(asked, None) is asked
    assert choose_answer(asked, [40, 42]).answer == [40, 42]
    assert option_tokens(choose_answer(asked, "A"), ["A", "B"]) in ([40], [41])


def test_answers_that_cannot_be_read(llava: TinyModel) -> None:
    bare = ask_tiny(llava)
    asked = replace(bare, tokenizer=Pieces())
    with pytest.raises(ExplainError, match="shows no tokenizer: only its own answer"):
        choose_answer(bare, "B")
    with pytest.raises(ExplainError, match="answer 'x': its tokens do not read the same again"):
        choose_answer(asked, "x")
    with pytest.raises(ExplainError, match="is empty"):
        choose_answer(asked, " ")
    with pytest.raises(ExplainError, match=r"answer \[400\]: give at least one token id, each from 0 to 120"):
        choose_answer(asked, [400])
    with pytest.raises(ExplainError, match="none begins with another token"):
        option_tokens(choose_answer(asked, [40]), ["B"]) if log_likelihood(asked.with_answer([40])) > log_likelihood(
            asked.with_answer([41])
        ) else option_tokens(choose_answer(asked, [41]), ["B"])


def test_the_end_of_the_answer_is_left_out(llava: TinyModel) -> None:
    def asked_with_end(end: int | list[int]) -> Asked:
        options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": end}
        return ask_model(llava.model, lambda: llava.model.generate(**llava.prompt("tttIttttt"), **options))

    plain = ask_tiny(llava)
    assert asked_with_end(plain.answer[1]).answer == plain.answer[:1]
    with pytest.raises(ExplainError, match="answered nothing"):
        asked_with_end(plain.answer[0])
