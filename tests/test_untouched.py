"""Looking ahead builds messages of questions that are not asked yet: the one that is asked is answered as without."""

from __future__ import annotations

import random
import uuid

import numpy as np
import pytest
import torch
from batch_box import Calls, Questions, ask, model_of, name_of
from checkpoints import needs_host
from modelbox import QUESTION, message
from PIL import Image
from test_batching_classes import Kind

from redrel_vlmeval.models.plain import batched
from redrel_vlmeval.models.untouched import as_before
from redrel_vlmeval.names import parse
from redrel_vlmeval.sweep import Sweeper
from redrel_vlmeval.sweep.asking import HostSource, Task, answer_all

pytestmark = needs_host
UPCOMING = "redrel_vlmeval.models.batching.upcoming"


def nothing(*_args, **_kwargs):
    return iter(())


class Drawing(Questions):
    """It draws by a generator of its own, and says how many it has drawn."""

    def __init__(self, messages, _folder):
        super().__init__(messages)
        self.draws, self.said = random.Random(18), []

    def build_prompt(self, line):
        self.said.append(self.draws.choice("abcdefgh") + str(len(self.said)))
        return [*super().build_prompt(line), {"type": "text", "value": self.said[-1]}]


class Rewriting(Questions):
    """Every question's picture is written into the same file."""

    def __init__(self, messages, folder):
        super().__init__(messages)
        self.folder = folder

    def place(self):
        return self.folder / "now.bmp"  # as long for every picture

    def build_prompt(self, line):
        shown, *rest = super().build_prompt(line)
        Image.open(shown["value"]).save(path := self.place())
        return [{"type": "image", "value": str(path)}, *rest]


class Renaming(Rewriting):
    """Every time a question is built, its picture is another file."""

    def place(self):
        return self.folder / f"{uuid.uuid4()}.png"


ONE_FILE = "answers one by one: its benchmark writes the pictures of several questions into one file"
AGAIN = "answers one by one: its benchmark builds another message when it builds a question's again"


@pytest.mark.parametrize(
    ("kind", "batch", "sizes", "words"),
    [
        (Drawing, 1, [1] * 6, None), (Drawing, 4, [4, 2], None), (Rewriting, 1, [1] * 6, None),
        (Rewriting, 4, [1] * 6, ONE_FILE), (Renaming, 1, [1] * 6, None), (Renaming, 4, [4] + [1] * 5, AGAIN),
    ],
)  # fmt: skip
def test_a_benchmark_that_remembers_or_writes_is_asked_as_without(
    classes, base, pictures, tmp_path, monkeypatch, caplog, kind, batch, sizes, words
):
    asked, found = [message(pictures, number % 4, QUESTION) for number in range(6)], []
    for folder in ("ahead", "without"):
        with monkeypatch.context() as patch:
            if folder == "without":
                patch.setattr(UPCOMING, nothing)
            (tmp_path / folder).mkdir()
            with Calls(base.model) as calls:
                model = model_of(classes, base, "", batch)
                found.append(ask(model, tmp_path / folder, kind(asked, tmp_path / folder)))
            assert calls.sizes == (sizes if folder == "ahead" else [1] * 6)
    assert found[0] == found[1] and len(set(found[0])) > 2
    assert [text.partition(": ")[2] for text in caplog.messages] == [words] * bool(words)


class Limits(Kind):
    """While it builds a prompt it sets the limit of its answer, deep in a dict, and now and then something new."""

    def __init__(self, base, pictures):
        super().__init__(base)
        self.kwargs, self.pictures = {"limits": {}}, pictures

    def preproc_content(self, content):
        return content

    def use_custom_prompt(self, dataset):
        return True

    def build_prompt(self, line, dataset=None):
        index = int(line["index"])
        self.kwargs["limits"]["max_new_tokens"] = 2 + index % 3
        if index % 2:
            self.long = True
        return message(self.pictures, index % 4, "Which color?")

    def generate_inner(self, message, dataset=None):
        return super().generate(message, dataset) + " long" * hasattr(self, "long")

    generate = generate_inner

    def call(self, inputs):
        return self.model.generate(**inputs, do_sample=False, eos_token_id=None, **self.kwargs["limits"])


@pytest.mark.parametrize(("setting", "batch"), [("", 2), ("l2_k16", 1), ("l2_k16", 2)])
def test_a_class_that_sets_its_limit_while_a_prompt_is_built_keeps_it(
    classes, base, pictures, tmp_path, monkeypatch, setting, batch
):
    questions, found = Questions([None] * 6), []
    questions.force_use_dataset_prompt = False
    for folder in ("ahead", "without"):
        with monkeypatch.context() as patch:
            if folder == "without":
                patch.setattr(UPCOMING, nothing)
            own = Limits(base, pictures)
            model = classes.TruncatedVLM(own, setting, batch=batch) if setting else batched(own, "redrel_tiny", batch)
            found.append(ask(model, tmp_path / folder, questions, name_of(setting)))
    assert found[0] == found[1] and len(set(found[0])) > 3
    assert [text.endswith("long") for text in found[0]] == [False] + [True] * 5


class Lines:
    """A benchmark of the host as a sweep has it; it counts, and writes every question's picture into the same file."""

    kind, name, img_root = "IMAGE MCQ", "X", ""

    def __init__(self, model, asked, folder):
        self.model, self.asked, self.folder = model, asked, folder
        self.dataset, self.count = self, 0

    def message(self, model, position):
        self.count += 1
        shown, *rest = self.asked[position]
        Image.open(shown["value"]).save(self.folder / "now.bmp")
        model.kwargs["limits"]["max_new_tokens"], model.position = 3 + position // 3, position
        return [{"type": "image", "value": str(self.folder / "now.bmp")}, *rest]


def test_a_sweep_of_several_questions_has_each_ones_picture_and_settings(base, pictures, tmp_path):
    class Keeps(Limits):
        def generate(self, message, dataset=None):
            return f"{self.position}: {super().generate(message, dataset)}"

    asked, found = [message(pictures, number % 4, QUESTION) for number in range(6)], []
    for batch in (1, 3):
        source, entries = HostSource("X", None), []
        source.model = Keeps(base, pictures)
        source.benchmark = Lines(source.model, asked, tmp_path)
        specs = [parse(f"redrel_tiny_trunc_{setting}") for setting in ("l2_k16", "l5_k0")]
        tasks = [Task(place, str(place), "", ("", "l2_k16", "l5_k0")) for place in range(6)]
        sweeper, built = Sweeper(source.model, specs), (lambda task, own=source: own.message(task.position))
        with Calls(base.model) as calls:
            answer_all(
                tasks, built, lambda _, own=sweeper: own, "X", entries.append, batch,
                lambda task, own=source: own.ahead(task.position),
            )  # fmt: skip
        found.append([{name: answer["text"] for name, answer in entry.answers.items()} for entry in entries])
        assert source.benchmark.count == (6 if batch == 1 else 18)  # captured and decoded, each time as built last
        assert (3 in calls.sizes) == (batch == 3)
    assert found[0] == found[1] and len({text for texts in found[0] for text in texts.values()}) > 12
    assert all(text.startswith(f"{place}: ") for place, texts in enumerate(found[1]) for text in texts.values())


def test_what_is_held_within_attributes_is_put_back():
    class Holds:
        def __init__(self):
            self.deep, self.some, self.same = {"a": [1, {2}]}, [1], None
            self.draws = [random.Random(1), np.random.default_rng(1), np.random.RandomState(1), torch.Generator()]
            self.same, self.own = self.deep["a"], self

        def drawn(self):
            first, second, third, last = self.draws
            own = first.random(), second.random(), third.rand(), torch.rand(1, generator=last).item()
            return *own, random.random(), np.random.rand(), torch.rand(1).item()

    held = Holds()
    deep, inner = held.deep, held.same
    with as_before(None, held, 5):
        drawn = held.drawn()
    with pytest.raises(ZeroDivisionError), as_before(held):
        assert held.drawn() == drawn
        held.deep["a"][1].add(3)
        held.deep["b"], held.new = held.deep.pop("a"), 1
        held.some = held.some + [2]
        inner.append(4)
        raise ZeroDivisionError
    assert held.drawn() == drawn and not hasattr(held, "new") and held.some == [1]
    assert held.deep is deep and held.deep == {"a": [1, {2}]} and held.same is inner is deep["a"]
