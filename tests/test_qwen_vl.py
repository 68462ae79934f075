"""Our Qwen-VL classes give what the host's give, greedily, and say what they are."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import qwen_box
import torch
from checkpoints import needs_host
from modelbox import in_host, message, records
from qwen_box import NEW, kinds, watched
from qwen_checkpoint import ENDOFTEXT, IMAGE_START

pytestmark = [needs_host, pytest.mark.filterwarnings("ignore:Following kwargs received")]
IM_START, IM_END = ENDOFTEXT + 1, ENDOFTEXT + 2


@pytest.fixture
def stock(qwen_folders, monkeypatch) -> Any:
    return qwen_box.stock(qwen_folders, monkeypatch)


MESSAGES = {
    "one picture": (0, "What is it?"),
    "several pictures": ("First", 0, "second", 1, "third", 0, "Which?"),
    "text only": ("What is 1 + 1?",),
    "odd text": (0, "Caf\u00e9 \u56fe <|im_end|> <ref>a</ref> <|endoftext|> \U0001f600\n\n  x"),
    "picture last": ("Look:", 2),
}
DATASETS = [None, "ScienceQA_TEST", "POPE", "COCO_VAL", "OCRVQA_TEST", "ChartQA_TEST", "TextVQA_VAL", "LLaVABench"]


# the same as the host's


@pytest.mark.parametrize("kind", ["base", "chat"])
@pytest.mark.parametrize("name", MESSAGES)
def test_prompts_and_tokens_are_those_of_the_hosts_class(qwen_models, stock, qwen_pictures, kind, name):
    theirs = stock(kind, max_new_tokens=NEW)
    asked = message(qwen_pictures, *MESSAGES[name])
    with watched(qwen_models[kind], theirs) as seen:
        answers = [model.generate(asked) for model in (qwen_models[kind], theirs)]
    assert seen[0] == seen[1] and len(seen[0]) == 1
    prompt, whole = seen[0][0]
    assert prompt.count(IMAGE_START) == sum(isinstance(part, int) for part in MESSAGES[name])
    if kind == "base":
        assert answers[0] == answers[1]
        return
    # at the limit of length, and nowhere else, the host's chat leaves the last token out of its answer
    new = whole[len(prompt) :]
    expected = qwen_models["chat"].core.tokenizer.decode(new).strip() if len(new) == NEW else answers[1]
    assert answers[0] == expected


@pytest.mark.parametrize("dataset", DATASETS)
def test_lengths_and_prompts_by_benchmark_are_those_of_the_hosts_class(
    qwen_models, stock, qwen_pictures, monkeypatch, dataset
):
    theirs = stock("base")
    seen = []
    for model in (qwen_models["base"], theirs):
        given: dict[str, Any] = {}

        def note(inputs: Any = None, given: Any = given, **kwargs: Any) -> Any:
            ids = kwargs.pop("input_ids", inputs)
            given |= kwargs | {"ids": ids.tolist()}
            return torch.cat([ids, torch.tensor([[70]])], dim=1)

        monkeypatch.setattr(model.model, "generate", note, raising=False)
        assert model.generate(message(qwen_pictures, 0, "What?"), dataset=dataset)
        seen.append(given)
    host = ("max_new_tokens", "min_new_tokens", "do_sample", "num_beams", "use_cache", "pad_token_id", "eos_token_id")
    default = NEW if seen[1]["max_new_tokens"] == 512 else seen[1]["max_new_tokens"]
    seen[1]["max_new_tokens"] = default
    assert {key: seen[0][key] for key in ("ids", *host)} == {key: seen[1][key] for key in ("ids", *host)}
    assert torch.equal(seen[0]["attention_mask"], seen[1]["attention_mask"])


@pytest.mark.parametrize("kind", ["base", "chat"])
@pytest.mark.parametrize("setting", ["p-qcm", "l1_k64_p-cqm-p2_beam3"])
def test_a_prompt_by_name_reaches_the_tokens_and_has_room(qwen_models, qwen_pictures, monkeypatch, kind, setting):
    variant = kinds().variant(qwen_models[kind], setting)
    variant.set_dump_image(lambda line: qwen_pictures[:2])
    line = {"index": 1, "question": "Which floats?", "hint": "Look.", "A": "a log", "B": "a stone"}
    asked = variant.build_prompt(line, dataset="ScienceQA_TEST")
    seen: dict[str, Any] = {}

    def note(inputs: Any, **kwargs: Any) -> Any:
        seen.update(kwargs, text=qwen_models[kind].core.tokenizer.decode(inputs[0].tolist()))
        return torch.cat([inputs, torch.tensor([[70]])], dim=1)

    monkeypatch.setattr(variant.torch_model, "generate", note, raising=False)
    variant.generate(asked, dataset="ScienceQA_TEST")
    before, text = seen["text"].split("</img>")[1:]
    assert before == ("<img>" if kind == "base" else "\nPicture 2: <img>") + qwen_pictures[1]
    assert text.split("<|im_end|>")[0].strip() == asked[-1]["value"]
    room = 512 if "p2" in setting else 32 if kind == "base" else NEW
    assert (seen["max_new_tokens"], seen["num_beams"]) == (room, variant.spec.beam)


def test_a_conversation_is_that_of_the_hosts_class(qwen_models, stock, qwen_pictures):
    theirs = stock("chat", max_new_tokens=NEW)
    turns = [
        {"role": "user", "content": message(qwen_pictures, 0, 1, "Which is older?")},
        {"role": "assistant", "content": message(qwen_pictures, "The <ref>second</ref>.")},
        {"role": "user", "content": message(qwen_pictures, "And this?", 2)},
        {"role": "assistant", "content": message(qwen_pictures, "New.")},
        {"role": "user", "content": message(qwen_pictures, "Why?")},
    ]
    with watched(qwen_models["chat"], theirs) as seen:
        answer = qwen_models["chat"].chat([dict(turn) for turn in turns])
        theirs.chat([dict(turn) for turn in turns])
    assert seen[0] == seen[1] and seen[0][0][0].count(IMAGE_START) == 3
    assert answer == qwen_models["chat"].core.tokenizer.decode(seen[0][0][1][len(seen[0][0][0]) :]).strip()


def varied_answer(model: Any, pictures: list[str]) -> tuple[Any, list[int], list[int], int]:
    """A question, its prompt, its answer, and the place of a token that is new there.

    Questions are tried in turn because the path of the picture is part of the prompt: under some folders a model of
    random weights repeats one token.
    """
    for text in ("Go on", "What is it?", "Who?", "Where is it?", "Describe.", "Count them.", "Why so?", "And then?"):
        asked = message(pictures, 0, text)
        with watched(model) as seen:
            model.generate(asked)
        prompt, whole = seen[0][0]
        new = whole[len(prompt) :]
        for place in range(1, len(new)):
            if new[place] not in new[:place]:
                return asked, prompt, new, place
    raise LookupError("every answer repeats one token")


@pytest.mark.parametrize("stop", [IM_END, IM_START, ENDOFTEXT])
@pytest.mark.parametrize("kind", ["base", "chat"])
def test_answers_stop_where_the_hosts_do(qwen_models, stock, qwen_pictures, kind, stop):
    """A later token trades its row of the head with a stop: the answer ends there, in both."""
    both = (qwen_models[kind], stock(kind, max_new_tokens=NEW))
    asked, prompt, new, place = varied_answer(qwen_models[kind], qwen_pictures)
    rows = torch.tensor([new[place], stop])
    try:
        swap_head_rows(both, rows)
        with watched(*both) as seen:
            answers = [model.generate(asked) for model in both]
    finally:
        swap_head_rows(both, rows)
    assert seen[0] == seen[1] and seen[0][0][1][len(prompt) :][: place + 1] == [*new[:place], stop]
    assert answers[0] == answers[1]
    if kind == "chat" or stop == ENDOFTEXT:
        kept = qwen_models[kind].core.tokenizer.decode(new[:place], skip_special_tokens=kind == "base")
        assert answers[0] == kept.strip()


@torch.no_grad()
def swap_head_rows(models: Any, rows: torch.Tensor) -> None:
    for model in models:
        weight = model.model.lm_head.weight
        weight[rows] = weight[rows.flip(0)]


# greedy, and what is said of it


def test_answers_are_greedy_unless_sampling_is_asked_for(qwen_folders, qwen_pictures):
    asked = message(qwen_pictures, 0, "What?")
    greedy = kinds().ours["chat"](str(qwen_folders["chat"]), device="cpu", max_new_tokens=NEW)
    assert len({greedy.generate(asked) for _ in range(4)}) == 1
    assert "greedy" in greedy.recorder.facts["backend"] and greedy.model.generation_config.do_sample is False
    sampling = kinds().ours["chat"](
        str(qwen_folders["chat"]), device="cpu", max_new_tokens=NEW, do_sample=True, temperature=9.0
    )
    assert len({sampling.generate(asked) for _ in range(8)}) > 1
    assert "sampled" in sampling.recorder.facts["backend"]
    settings = sampling.core.generation
    assert (settings["top_p"], settings["top_k"], settings["temperature"]) == (0.3, 0, 9.0)


def test_a_greedy_answer_gives_no_warning_about_sampling(qwen_models, qwen_pictures, recwarn, caplog):
    with caplog.at_level(logging.WARNING):
        for kind in qwen_models:
            qwen_models[kind].generate(message(qwen_pictures, 0, "What?"))
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "top_p" not in said and "deprecated" not in said


def test_facts_name_weights_and_revision(qwen_models, qwen_folders):
    facts = qwen_models["base"].recorder.facts
    assert facts["weights"] == str(qwen_folders["base"]) and facts["revision"].startswith("sha256:")
    assert "QWenLMHeadModel" in facts["backend"]


def test_a_record_is_written_for_the_hosts_question(qwen_models, qwen_pictures, tmp_path):
    in_host(lambda: qwen_models["base"].generate(message(qwen_pictures, 0, "What?")), 7, tmp_path, "qwen_base")
    (record,) = records(tmp_path)
    assert (record["index"], record["model"], record["weights"]) == (7, "qwen_base", qwen_models["base"].core.weights)


def test_the_benchmark_builds_the_prompts_as_with_the_hosts_class(qwen_models):
    for kind in qwen_models:
        assert qwen_models[kind].use_custom_prompt("MMBench") is False and qwen_models[kind].INTERLEAVE is True
        assert kinds().stock[kind].INTERLEAVE is True and qwen_models[kind].INSTALL_REQ is False
        assert kinds().stock[kind].use_custom_prompt is kinds().ours[kind].use_custom_prompt
    assert hasattr(qwen_models["chat"], "chat_inner") and not hasattr(qwen_models["base"], "chat_inner")
