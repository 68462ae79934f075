"""What a class of the host can do around its ``generate``: its answers in a batch, and in a sweep, are those alone."""

from __future__ import annotations

import copy
import logging
import threading
import time

import pytest
import torch
import transformers as tf
from batch_box import Calls, Questions, ask, model_of
from checkpoints import needs_host
from modelbox import QUESTION, message, records
from tiny_models import IMAGE, NEWEST, TEXT, VISION

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models.calls import Alone, captured, together
from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.plain import batched
from redrel_vlmeval.names import parse
from redrel_vlmeval.sweep import Sweeper

pytestmark = needs_host
TEXTS = ["Count.", QUESTION, "What is left of it?", "Which color?"]


class Kind:
    """A class over the model in the box that keeps the ends of its answers in their text."""

    INTERLEAVE, is_api = True, False

    def __init__(self, base):
        self.core, self.model, self.tokenizer = base.core, base.model, base.core.tokenizer

    def set_dump_image(self, function):
        self.dump_image_func = function

    def generate(self, message, dataset=None):
        inputs = self.core.inputs(*input.single_prompt(message))
        said = self.call(inputs)
        return self.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :])

    def call(self, inputs):
        return self.model.generate(**inputs, do_sample=False, max_new_tokens=8)


class Bare(Kind):
    def generate(self, message, dataset=None):
        try:
            return super().generate(message, dataset)
        except:  # noqa: E722 (as some classes have it)
            return "failed"


class Reraised(Kind):
    def generate(self, message, dataset=None):
        try:
            return super().generate(message, dataset)
        except BaseException as error:
            raise ValueError("failed") from error


class InThread(Kind):
    def call(self, inputs):
        found = []
        thread = threading.Thread(target=lambda: found.append(super(InThread, self).call(inputs)))
        thread.start()
        thread.join()
        return found[0]


class Autocast(Kind):
    def call(self, inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model.generate(**inputs, do_sample=False, min_new_tokens=30, max_new_tokens=30)


class OwnLimit(Kind):
    def call(self, inputs):
        self.model.generation_config.max_new_tokens = 2 + inputs["input_ids"].shape[1] % 4
        return self.model.generate(**inputs, do_sample=False, min_new_tokens=1, eos_token_id=None)


class Endless(Kind):
    def call(self, inputs):
        return self.model.generate(**inputs, do_sample=False, max_new_tokens=8, eos_token_id=None)


class Padded(Kind):
    def call(self, inputs):
        ids, pad = inputs["input_ids"], self.model.generation_config.pad_token_id
        ids = torch.cat([ids[:, :40], torch.full((1, 7), pad), ids[:, 40:]], 1)
        given = {"input_ids": ids} | ({"pixel_values": inputs["pixel_values"]} if "pixel_values" in inputs else {})
        said = self.model.generate(**given, do_sample=False, max_new_tokens=8)
        return torch.cat([said[:, :40], said[:, 47:]], 1)


class Remembers(Kind):
    """It says what was asked last before the question."""

    def __init__(self, base):
        super().__init__(base)
        self.history = []

    def generate(self, message, dataset=None):
        self.history.append(message[-1]["value"])
        return super().generate([*message[:-1], {"type": "text", "value": "\n".join(self.history[-2:])}], dataset)


class Given(Kind):
    def call(self, inputs):
        return self.model.generate(**inputs, generation_config=tf.GenerationConfig(max_new_tokens=8))


@pytest.fixture
def config(base, monkeypatch):
    """The model's own generation config, to be changed."""
    monkeypatch.setattr(base.model, "generation_config", copy.deepcopy(base.model.generation_config))
    return base.model.generation_config


@pytest.mark.parametrize(
    ("kind", "own", "words"),
    [
        (Bare, {}, "its class catches what ends its code at its generate()"),
        (Reraised, {}, "its class catches what ends its code at its generate()"),
        (InThread, {}, "its class does not call generate() of its torch model in the thread that asks"),
        (Autocast, {}, "it generates under autocast"),
        (OwnLimit, {}, "its class changes its generation config from question to question"),
        (Given, {"do_sample": True}, "its answers are drawn (do_sample): in a batch they would be other draws"),
        (Given, {"repetition_penalty": 1.5}, "generate(repetition_penalty=1.5)"),
        (Remembers, {}, "its class asks another thing when it is given the same message again"),
        (Padded, {}, "its prompt holds padding that no attention_mask tells of"),
        (Given, {}, None),
        (Endless, {}, None),
    ],
)
def test_answers_of_a_batch_are_those_alone(classes, base, config, pictures, tmp_path, caplog, kind, own, words):
    caplog.set_level(logging.WARNING, "redrel_vlmeval")
    vars(config).update(own)
    asked, found = [message(pictures, place, text) for place, text in enumerate(TEXTS)], []
    for folder in ("alone", "batch"):
        torch.manual_seed(18)
        model = kind(base) if folder == "alone" else batched(kind(base), "odd", 4)
        with Calls(base.model) as calls:
            found.append(ask(model, tmp_path / folder, Questions(asked), "odd"))
    assert found[0] == found[1] and len(set(found[0])) > 2 and "failed" not in found[0]
    sizes = {Remembers: [4, 1, 1, 1], InThread: [1] * 5}  # of a thread the first answer is found out by
    assert calls.sizes == ([4] if words is None else sizes.get(kind, [1] * 4))
    said = [line.partition(": answers one by one: ")[2] for line in caplog.messages]
    assert list(filter(None, said)) == [words] * bool(words)


def test_a_sweep_reads_the_same_settings(base, config, pictures):
    from redrel_vlmeval.models.variant import TruncatedVLM

    asked = message(pictures, 0, QUESTION)
    config.do_sample = True
    with pytest.raises(TruncationError, match="a sweep decodes greedily, but the model is asked for sample"):
        Sweeper(Given(base), [parse("redrel_tiny_trunc_l2_k8")]).answer(asked)
    found = Sweeper(Endless(base), [parse("redrel_tiny_trunc_l2_k8")]).answer(asked)
    with TruncatedVLM(base, "l2_k8").cut():
        assert found["l2_k8"].text == Endless(base).generate(asked) != found[""].text


def test_the_seconds_of_a_question_are_those_of_its_class_as_well(classes, base, pictures, tmp_path, monkeypatch):
    own, asked = base.core.inputs, [message(pictures, place, QUESTION) for place in range(4)]
    monkeypatch.setattr(base.core, "inputs", lambda *parts: time.sleep(0.05) or own(*parts))
    for batch, times in ((1, 1), (4, 2)):  # in a batch a prompt is prepared, and prepared again over its answer
        began = time.perf_counter()
        ask(model_of(classes, base, "", batch), tmp_path / str(batch), Questions(asked))
        found = [one["seconds"] for one in records(tmp_path / str(batch))]
        assert min(found) > 0.05 * times and sum(found) < time.perf_counter() - began


ROPES = {
    "dynamic": {"factor": 4.0},
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 40},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 40},
}


@pytest.mark.skipif(not NEWEST, reason="releases before 5 spell it otherwise")
@pytest.mark.parametrize("kind", ROPES)
def test_rotary_angles_that_depend_on_the_longest_prompt_are_each_prompts_own(kind):
    rope = {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | ROPES[kind]}
    text = TEXT | rope | {"max_position_embeddings": 40, "hidden_act": "silu"}
    vision = tf.CLIPVisionConfig(**VISION)
    config = tf.LlavaConfig(
        vision_config=vision, text_config=tf.LlamaConfig(**text), image_token_id=IMAGE, image_seq_length=16
    )
    torch.manual_seed(3)
    model = tf.LlavaForConditionalGeneration(config).eval()
    settings = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 3}
    ids = [torch.randint(4, 90, (1, length), generator=torch.Generator().manual_seed(length)) for length in (9, 20, 60)]
    alone = [model.generate(one, **settings)[0, -6:].tolist() for one in ids]
    calls = [captured(model, lambda one=one: model.generate(one, **settings)) for one in ids]
    for some in (calls[:2], calls):
        try:
            args, kwargs = together(model, some)
        except Alone as reason:
            assert kind != "yarn" and len(some) == 3
            assert str(reason) == "beyond 40 tokens its rotary angles are those of the longest prompt of a call"
        else:
            assert model.generate(*args, **kwargs)[:, -6:].tolist() == alone[: len(some)]
            assert kind == "yarn" or len(some) == 2
