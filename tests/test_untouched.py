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
