"""Pictures made ready while the model works, in the host's loop and in a sweep: the answers and records of without."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from batch_box import DATA, Calls, Questions, ask, benchmark, model_of, name_of
from checkpoints import needs_host
from modelbox import QUESTION, message, records
from PIL import Image

from redrel_vlmeval.models import ahead
from redrel_vlmeval.models.ahead import Ahead
from redrel_vlmeval.models.efficiency import MEASURED
from redrel_vlmeval.models.plain import batched

pytestmark = needs_host
NOTHING = Ahead(lambda path: None, threads=0)
OWN = {*MEASURED, "batch", "time"}  # of a record, what differs from run to run


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    with benchmark("RedRelShapes_MINI", 6, tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.fixture(scope="module")
def reads(classes, base):
    """A model on a class that is not ours: it opens its pictures itself."""
    from vlmeval.vlm.base import BaseModel

    from redrel_vlmeval.models.llava import input

    class Reads(BaseModel):
        INTERLEAVE = True

        def __init__(self):
            super().__init__()
            self.model, self.tokenizer, self.turns = base.model, base.core.tokenizer, 0

        def use_custom_prompt(self, dataset):
            self.turns += 1
            return False

        def generate_inner(self, message, dataset=None):
            prompt, paths = input.single_prompt(message)
            shape = base.core.preprocessing
            own, base.core.pixels = base.core.pixels, lambda path: input.pixels(
                Image.open(path), shape.size, shape.mean, shape.std
            )  # fmt: skip
            try:
                return base.core.answer(prompt, paths)
            finally:
                base.core.pixels = own

    return Reads()


def model_for(classes, base, reads, setting, batch):
    if setting.startswith("reads "):
        return classes.TruncatedVLM(reads, setting.split()[1], batch=batch)
    return model_of(classes, base, setting, batch)


class Counted:
    """The pictures that a model was given by threads, and not."""

    def __init__(self, monkeypatch):
        self.ready = []
        own = Ahead.take

        def take(pictures, path):
            made = own(pictures, path)
            self.ready.append(made is not None)
            return made

        monkeypatch.setattr(Ahead, "take", take)


def without(monkeypatch, base):
    """Nothing is made ahead from here on."""
    monkeypatch.setattr(base.core, "ahead", NOTHING)
    monkeypatch.setattr("redrel_vlmeval.models.batching.ahead_of", lambda model: NOTHING)


@pytest.mark.parametrize(
    ("setting", "batch"), [("l2_k16_p-cqm", 1), ("l2_k16_p-cqm", 4), ("reads l2_k16", 1), ("reads l2_k16", 4)]
)
def test_answers_and_records_are_those_without(classes, base, reads, shapes, tmp_path, monkeypatch, setting, batch):
    found, name = [], name_of(setting.removeprefix("reads "))
    for folder in ("ahead", "without"):
        with monkeypatch.context() as patch:
            if folder == "without":
                without(patch, base)
            counted = Counted(patch)
            before = random.getstate()
            with Calls(base.model) as calls:
                answers = ask(model_for(classes, base, reads, setting, batch), tmp_path / folder, shapes, name)
            kept = [{k: v for k, v in one.items() if k not in OWN} for one in records(tmp_path / folder)]
            assert calls.sizes == ([1] * 6 if batch == 1 else [4, 2]) and random.getstate() == before
            found.append((answers, kept))
            assert any(counted.ready) == (folder == "ahead")
    assert found[0] == found[1] and len(set(found[0][0])) > 2


@pytest.mark.parametrize("setting", ["", "reads l2_k16"])
def test_the_next_picture_is_made_while_the_model_generates(
    classes, base, reads, pictures, tmp_path, monkeypatch, setting
):
    asked = [message(pictures, number, "Which color?") for number in range(3)]
    generating, made = [threading.Event() for _ in asked], [threading.Event() for _ in asked]
    threads, place = set(), iter(range(3))

    def slowly(own):
        def make(path):
            number = pictures.index(path)
            assert number == 0 or generating[number - 1].wait(60)
            found = own(path)
            threads.add(threading.get_ident())
            made[number].set()
            return found

        return make

    def generate(_ids):
        number = next(place)
        generating[number].set()
        assert number == 2 or made[number + 1].wait(60)  # the next picture is made, though no answer is there yet

    monkeypatch.setattr(ahead, "_decoded", slowly(ahead._decoded))
    monkeypatch.setattr(base.core.ahead, "_make", slowly(base.core.ahead._make))
    with Calls(base.model, generate):
        model = model_for(classes, base, reads, setting, 1)
        answers = ask(model, tmp_path / "1", Questions(asked), name_of(setting.removeprefix("reads ")))
    assert len(answers) == 3 and threads and threading.get_ident() not in threads


@pytest.mark.parametrize(("setting", "batch"), [("", 1), ("reads l2_k16", 1), ("reads l2_k16", 4)])
def test_a_picture_that_is_none_fails_at_its_own_question_in_the_same_words(
    classes, base, reads, pictures, tmp_path, monkeypatch, setting, batch
):
    (tmp_path / "x.png").write_text("no picture")
    asked = [message(pictures, number % 4, "Which color?") for number in range(5)]
    asked[3] = message([str(tmp_path / "x.png")], 0, "Which color?")
    found = []
    for folder in ("ahead", "without"):
        with monkeypatch.context() as patch:
            if folder == "without":
                without(patch, base)
            model = model_for(classes, base, reads, setting, batch)
            answers = ask(model, tmp_path / folder, Questions(asked), name_of(setting.removeprefix("reads ")))
            found.append((answers, [one.get("error") for one in records(tmp_path / folder)]))
    assert found[0] == found[1]
    (error,) = filter(None, found[0][1])
    assert "x.png" in error and f"question 103 of {DATA}" in error


def test_a_killed_run_goes_on_and_answered_questions_are_not_looked_at(classes, base, pictures, tmp_path, monkeypatch):
    asked = [message(pictures, number % 4, "Which " + "big " * number) for number in range(12)]
    whole = ask(model_of(classes, base, "", 1), tmp_path / "whole", Questions(asked))
    killed = model_of(classes, base, "", 1)
    left = [11]

    def stop(_ids):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    questions = Questions(asked)
    with Calls(base.model, stop), pytest.raises(KeyboardInterrupt):
        ask(killed, tmp_path / "again", questions)
    while killed.recorder._files:  # as the end of its process does
        killed.recorder._files.popitem()[1].close()
    again = Questions(asked)
    assert ask(model_of(classes, base, "", 1), tmp_path / "again", again) == whole
    assert again.built == [110, 111, 111]  # 111 is looked ahead for, and asked; ten answers were in the host's file


def test_prompts_that_a_benchmark_draws_are_the_draws_without(classes, base, pictures, tmp_path, monkeypatch):
    class Drawn(Questions):
        def build_prompt(self, line):
            said = super().build_prompt(line)
            return [*said[:-1], {"type": "text", "value": random.choice("abcdefgh") + str(np.random.randint(9))}]

    found = []
    for folder in ("ahead", "without"):
        with monkeypatch.context() as patch:
            if folder == "without":
                without(patch, base)
            random.seed(18), np.random.seed(18)
            texts = []
            patch.setattr(base.core, "reply", lambda content, texts=texts: texts.append(content[-1]["value"]) or "x")
            ask(model_of(classes, base, "", 1), tmp_path / folder, Drawn([message(pictures, 0, "?")] * 6))
            found.append(texts)
    assert found[0] == found[1] and len(set(found[0])) > 3


@pytest.mark.parametrize(("setting", "penalty"), [("", 1.0), ("", 1.5), ("reads l2_k16", 1.0)])
def test_a_class_that_keeps_its_question_is_asked_that_one(
    classes, base, reads, pictures, tmp_path, monkeypatch, setting, penalty
):
    """Of the host, several at once and, as a batch has no repetition penalty, one by one; and under a variant."""

    class Keeps(type(reads)):
        def use_custom_prompt(self, dataset):
            return True

        def build_prompt(self, line, dataset=None):
            self.line = line["index"]
            return message(pictures, 0, "Which color?")

        def generate_inner(self, message, dataset=None):
            return f"{self.line}: {super().generate_inner(message, dataset)}"

    monkeypatch.setattr(base.core, "generation", base.core.generation | {"repetition_penalty": penalty})
    questions = Questions([None] * 6)
    monkeypatch.setattr(questions, "force_use_dataset_prompt", False)
    model = model_for(classes, base, Keeps(), setting, 1) if setting else batched(Keeps(), "redrel_tiny", 4)
    answers = ask(model, tmp_path, questions, name_of(setting.removeprefix("reads ")))
    assert [answer.split(":")[0] for answer in answers] == [str(index) for index in range(100, 106)]


@pytest.mark.parametrize(("kind", "batch"), [("ours", 1), ("reads", 2)])
def test_a_sweep_answers_as_without(base, reads, pictures, monkeypatch, kind, batch):
    from test_sweep_together import swept

    asked = [message(pictures, *parts, QUESTION) for parts in ([0], [2, 0, 2], [0])]
    model, found = base if kind == "ours" else reads, []
    for way in ("ahead", "without"):
        with monkeypatch.context() as patch:
            if way == "without":
                without(patch, base)
                patch.setattr("redrel_vlmeval.sweep.sweeper.ahead_of", lambda model: NOTHING)
            counted = Counted(patch)
            found.append(swept(model, asked, batch))
            assert any(counted.ready) == (way == "ahead")
    assert found[0] == found[1]


def test_the_bench_compares_answers_and_prints_the_gain(monkeypatch, capsys):
    from redrel_vlmeval.bench import command, pictures
    from redrel_vlmeval.bench.batch import Arm

    for name, value in {"QUESTIONS": 2, "SIZE": (320, 200), "NEW_TOKENS": 2, "BAR": 1e9, "CORES": 0}.items():
        monkeypatch.setattr(pictures, name, value)
    assert command.measure("pictures", command.Request(device="cpu", rounds=1, check=True)) == 1
    said = capsys.readouterr().out
    assert "2 photographs of 320 x 200" in said and "as they are asked" in said and said.count("MISSED") == 1
    (same,) = (line.split()[-4:] for line in said.splitlines() if "those without" in line)
    assert same == ["1.000", ">=", "1", "holds"]
    arms = [Arm("", 1, 2, [seconds], {0: "A"}) for seconds in (1.0, 2.0)]
    assert [one.missed for one in pictures.checks(*arms, free=2)] == [False, True]
    monkeypatch.setattr(pictures, "CORES", 1.5)
    assert not any(one.missed for one in pictures.checks(*arms, free=1)) and pictures.cores(0.01) > 0
