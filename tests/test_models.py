"""``LLaVA15`` in the host: what it answers, what prompts it builds, and which lines and pictures it refuses."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from checkpoints import needs_host
from modelbox import BLOCKS, QUESTION, TOKENS, message
from PIL import Image

from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.tiny import scenes

pytestmark = needs_host


# what LLaVA15 answers


def test_a_message_is_answered_as_the_core_answers_it(base, asked):
    answer = base.generate(asked, dataset="RedRelShapes")
    assert isinstance(answer, str) and answer
    assert answer == base.core.reply(asked) == base.core.answer(*input.single_prompt(asked))


def test_the_picture_reaches_the_model(base, pictures):
    seen = [base.core.inputs(*input.single_prompt(message(pictures, n, QUESTION))) for n in (0, 1)]
    with torch.inference_mode():
        first, second = (base.model(**inputs).logits[0, -1] for inputs in seen)
    assert not torch.allclose(first, second)


def test_pictures_and_text_are_interleaved_as_given(base, pictures):
    mixed = message(pictures, "First", 0, "then", 1, QUESTION)
    ids = base.core.inputs(*input.single_prompt(mixed))["input_ids"][0]
    image = ids == base.model.config.image_token_id
    runs = torch.diff(image.int()).nonzero().flatten().tolist()
    assert [end - start for start, end in zip(runs[::2], runs[1::2], strict=True)] == [TOKENS, TOKENS]
    assert runs[2] - runs[1] == len(base.core.encode(" then "))
    assert isinstance(base.generate(mixed), str)
    turned = base.core.inputs(*input.single_prompt(message(pictures, "First", 1, "then", 0, QUESTION)))
    assert torch.equal(turned["input_ids"][0], ids) and base.INTERLEAVE is True


def test_a_message_may_be_words_or_paths_alone(base, pictures):
    assert base.generate("What color is grass?") == base.core.reply(message([], "What color is grass?"))
    assert base.generate([pictures[0], QUESTION]) == base.core.reply(message(pictures, 0, QUESTION))


def test_a_conversation_is_answered_to_its_last_turn(base, pictures):
    turns = [
        {"role": "user", "content": message(pictures, 0, "What color is the square?")},
        {"role": "assistant", "content": message(pictures, "red")},
        {"role": "user", "content": message(pictures, "What shape is the red one?")},
    ]
    prompt, paths = input.chat_prompt(turns)
    assert base.chat_inner(turns) == base.core.answer(prompt, paths) == base.chat(turns)
    assert prompt.endswith("ASSISTANT: red</s>USER: What shape is the red one? ASSISTANT: ") and len(paths) == 1
    with pytest.raises(ValueError, match="must end with a turn of role 'user'"):
        base.chat_inner(turns[:2])
    with pytest.raises(ValueError, match="must end with a turn of role 'user'"):
        base.chat_inner([])


# build_prompt

LINE = {"index": 7, "question": "What color?", "hint": math.nan, "A": "red", "B": "blue", "C": math.nan}


def test_prompt_of_a_line_is_its_pictures_then_its_text(base):
    base.set_dump_image(lambda line: [f"{line['index']}.png", "b.png"])
    built = base.build_prompt(LINE, dataset="RedRelShapes")
    assert [part["value"] for part in built[:2]] == ["7.png", "b.png"]
    assert built[2] == {"type": "text", "value": input.question_text(LINE)}


@pytest.mark.parametrize("question", ["", "  \n", None, math.nan])
def test_an_empty_question_is_refused(base, question):
    with pytest.raises(ValueError, match=r"question 7 of Some: its question is empty"):
        base.build_prompt(LINE | {"question": question}, dataset="Some")


@pytest.mark.parametrize("options", [{}, {"A": math.nan, "B": None}])
def test_a_line_without_options_is_an_open_question(base, options):
    base.set_dump_image(lambda line: ["a.png"])
    built = base.build_prompt({"index": 7, "question": "What?", **options}, dataset="Some")
    assert built[1]["value"] == "What?\nAnswer the question directly."


def test_custom_prompts_are_for_multiple_choice(base):
    assert base.use_custom_prompt("MMBench") and base.use_custom_prompt("ScienceQA_TEST")
    assert not base.use_custom_prompt("POPE") and not base.use_custom_prompt(None)


# pictures that are none


@pytest.fixture(params=["LLaVA15", "TruncatedVLM"])
def either(request, base, classes):
    return base if request.param == "LLaVA15" else classes.TruncatedVLM(base, "l2_k16")


@pytest.mark.parametrize("data", [b"", b"no picture", None, "cut"])
def test_a_corrupt_picture_is_named(either, pictures, tmp_path, data):
    path = tmp_path / "bad.png"
    whole = Path(pictures[0]).read_bytes()
    path.write_bytes({None: whole[:-200], "cut": whole[:60]}.get(data, data))
    with pytest.raises(ValueError, match=r"bad\.png': cannot be read as an image"):
        either.generate(message([str(path)], 0, QUESTION))


def test_a_missing_picture_is_named(either, tmp_path):
    gone = message([str(tmp_path / "gone.png")], 0, QUESTION)
    for ask in (either.generate, either.generate_inner):
        with pytest.raises(ValueError, match=r"gone\.png': no such file"):
            ask(gone)


def test_an_answer_after_a_failed_one_is_the_same_as_before(either, asked, tmp_path):
    before = either.generate(asked)
    with pytest.raises(ValueError):
        either.generate(message([str(tmp_path / "gone.png")], 0, QUESTION))
    assert either.generate(asked) == before


# how they are built


def test_the_model_in_the_box_says_where_and_how_it_runs(classes, caplog):
    with caplog.at_level(logging.INFO, logger="redrel_vlmeval"):
        model = classes.LLaVA15("redrel_tiny", device="cpu", use_vllm=True)
    assert "redrel_tiny" in caplog.text and "cpu" in caplog.text and "sdpa" in caplog.text
    assert model.core.generation["max_new_tokens"] == 32
    config = model.model.config
    assert config.text_config.num_hidden_layers == BLOCKS and model.core.per_image == TOKENS


def test_the_core_needs_no_host():
    """For those who truncate a model of their own: same class, same answers, no vlmeval."""
    import subprocess
    import sys

    code = "import sys; from redrel_vlmeval.models.llava.core import LlavaCore\n"
    code += "core = LlavaCore('redrel_tiny', device='cpu'); print(repr(core.reply([dict(type='text', value='Hi')])))\n"
    code += "print('vlmeval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    answer, host = done.stdout.splitlines()
    assert host == "False"
    assert answer == repr(LlavaCore("redrel_tiny", device="cpu").reply([{"type": "text", "value": "Hi"}]))


def test_a_grey_picture_and_a_big_one_are_fitted(base, tmp_path):
    Image.new("L", (500, 3), 90).save(tmp_path / "a.png")
    pixels = base.core.pixels(str(tmp_path / "a.png"))
    assert pixels.shape == (3, scenes.SIZE, scenes.SIZE)
    assert isinstance(base.generate(message([str(tmp_path / "a.png")], 0, QUESTION)), str)
