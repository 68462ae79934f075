"""Several questions of a sweep at once: the answers and records of one by one, whatever goes wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batch_box import Calls, benchmark
from checkpoints import needs_host
from modelbox import QUESTION, message
from sweepbox import Host, grid, state
from tiny_models import FAMILIES, build

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.names import parse
from redrel_vlmeval.sweep import Sweeper
from redrel_vlmeval.sweep.asking import Task, answer_all

# of one stage and two, of rules that look at attention, states, text and the tower, that merge, that draw
STAGED = ("l1_k6_l3_k2", "l0_k8-divprune_l2_k3", "l1_k6_l2_k3_dart", "l2_k3_random", "l1_k6-visionzip_l3_k2-cls")
pytestmark = needs_host
LAYOUTS = ("ttItttt", "tItIttt", "tttt", "tttIttttt")


SLOW = ("gemma3", "internvl", "llava_next", "llava_onevision", "qwen2_vl")


def specs_of(name: str) -> list[Any]:
    found = [parse(f"base_trunc_{setting}") for setting in STAGED if name.startswith("llava") or "cls" not in setting]
    return grid((0, 2), (0, 3), ("attention", "uniform")) + found


@pytest.mark.parametrize(
    "name", ["llava", "qwen2_5_vl", "qwen3_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_every_family_answers_four_as_one(name: str) -> None:
    if name not in FAMILIES:
        pytest.skip(f"this release of transformers has no {name}")
    tiny = build(name)
    sweeper = Sweeper(Host(tiny.model), specs_of(name))
    asked = [tiny.prompt(layout, seed) for seed, layout in enumerate(LAYOUTS)]
    alone = [sweeper.answer(one) for one in asked]
    before = state(tiny.model)
    with Calls(tiny.model) as calls:
        together = sweeper.answers(asked)
    assert state(tiny.model) == before and calls.sizes == [4, sum(sweeper.batches)]  # and so are all their settings
    for one, other in zip(alone, together, strict=True):
        for setting, answer in one.items():
            assert other is not None and other[setting].text == answer.text, setting
            same = {key: value for key, value in answer.record.items() if key not in ("margin", "letter_logits")}
            assert same == {key: other[setting].record[key] for key in same}
            assert other[setting].record["margin"] == pytest.approx(answer.record["margin"], abs=1e-4)
    assert len({answer.text for one in alone for answer in one.values()}) > 5


LAYOUTS_OF_THE_BOX = [(0, QUESTION), ("Which color?",), (1, 2, QUESTION * 2), (3, "What is left of it?")]
SETTINGS = ("l2_k8", "l5_k0", "l0_k8_random", "l2_k24_l5_k8")


@pytest.mark.parametrize("memory", [None, pytest.param(1, marks=pytest.mark.slow)], ids=["side by side", "apart"])
def test_answers_of_other_lengths_end_as_alone(memory: int | None) -> None:
    tiny, specs = build("llava"), grid((0, 2), (0, 9), ("attention",))
    asked = [tiny.prompt(layout, seed) for seed, layout in enumerate(LAYOUTS)]
    lengths: set[int] = set()
    for end in (10, 70):
        sweeper = Sweeper(Host(tiny.model, eos_token_id=[*range(end, end + 15)], max_new_tokens=12), specs, memory)
        alone = [{name: one.text for name, one in sweeper.answer(prompt).items()} for prompt in asked]
        with Calls(tiny.model) as calls:
            found = sweeper.answers(asked)
        assert [{name: one.text for name, one in (answers or {}).items()} for answers in found] == alone
        assert (max(calls.sizes[1:]) == 1) == (memory == 1)
        lengths |= {len(text.split()) for answers in alone for text in answers.values()}
    assert {1, 12} < lengths  # longer than the room that the untouched answer lets expect


class Twice(Host):
    def generate(self, message: Any, dataset: str | None = None) -> str:
        return super().generate(message) + super().generate(message)


def test_a_class_that_generates_twice_is_refused_as_alone() -> None:
    tiny = build("llava")
    sweeper, asked = Sweeper(Twice(tiny.model), grid((2,), (3,), ("attention",))), [tiny.prompt("ttItttt")] * 2
    for call in (lambda: sweeper.answer(asked[0]), lambda: sweeper.answers(asked)):
        with pytest.raises(TruncationError, match="Twice calls model.generate twice for a question"):
            call()


@pytest.fixture(scope="module")
def mixed(pictures):
    """Prompts of different lengths, with several pictures and with none."""
    return [message(pictures, *layout, *more) for more in ([], ["Say it."]) for layout in LAYOUTS_OF_THE_BOX]


def swept(base, messages, batch, before=lambda count: None):
    """Text of every setting, or the reason, question by question; and prompts in each call for several questions."""
    specs, sizes, entries = [parse(f"redrel_tiny_trunc_{setting}") for setting in SETTINGS], [], []
    sweeper, missing = Sweeper(base, specs), ("", *SETTINGS)
    tasks = [Task(place, str(100 + place), "", missing) for place in range(len(messages))]

    def count(ids):
        different = len(ids.unique(dim=0))  # settings of one question are asked with its ids
        sizes.extend([different] * (different == len(ids) > 1))
        before(ids)

    with Calls(base.model, count):
        answer_all(tasks, lambda task: messages[task.position], lambda _: sweeper, "X", entries.append, batch)
    assert [entry.index for entry in entries] == [task.index for task in tasks]
    said = [entry.error or {name: answer["text"] for name, answer in entry.answers.items()} for entry in entries]
    return said, sizes


@pytest.fixture(scope="module")
def alone(base, mixed):
    said, sizes = swept(base, mixed, 1)
    assert not sizes and len({text for texts in said for text in texts.values()}) > 5
    return said


def test_mixed_prompts_are_answered_as_one_by_one(base, mixed, alone):
    assert swept(base, mixed, 3) == (alone, [3, 3, 2])


@pytest.mark.parametrize(("fits", "sizes"), [(2, [4, 2, 2, 2, 2]), (1, [4, 2])])
def test_out_of_memory_halves_the_questions_once(base, mixed, alone, caplog, fits, sizes):
    def full(ids):
        if len(ids.unique(dim=0)) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert swept(base, mixed, 4, full) == (alone, sizes)
    assert caplog.text.count("out of memory with 4 questions at once; from here on 2") == 1


def test_a_picture_that_is_none_fails_its_question_alone(base, mixed, alone, tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    messages = [*mixed[:2], [{"type": "image", "value": str(tmp_path / "x.png")}, *mixed[2]], *mixed[3:]]
    said, sizes = swept(base, messages, 4)
    assert "x.png" in said[2] and [*said[:2], *said[3:]] == [*alone[:2], *alone[3:]] and sizes == [3, 4]


def test_an_error_inside_is_its_questions_own(base, mixed, alone, caplog):
    from redrel_vlmeval.models.llava.input import single_prompt

    bad = base.core.inputs(*single_prompt(mixed[1]))["input_ids"][0]

    def fail(ids):
        if any(torch.equal(row[-len(bad) :], bad) for row in ids):
            raise ZeroDivisionError("no luck")

    with pytest.raises(ZeroDivisionError):
        swept(base, mixed, 4, fail)
    assert "4 questions at once failed (ZeroDivisionError: no luck); they are asked one by one" in caplog.text
    assert "it was question 101 of X: no luck" in caplog.text


def test_what_no_batch_can_stand_for_is_answered_one_by_one(base, mixed, alone, caplog):
    before = base.core.generation
    base.core.generation = before | {"repetition_penalty": 1.5}
    try:
        one, (together, sizes) = swept(base, mixed[:4], 1)[0], swept(base, mixed[:4], 4)
    finally:
        base.core.generation = before
    assert together == one != alone[:4] and not sizes
    assert caplog.text.count("sweep: answers one by one: generate(repetition_penalty=1.5)") == 1


@pytest.mark.slow
def test_forty_questions_of_the_benchmark_are_answered_as_one_by_one(base, tmp_path):
    with benchmark("RedRelShapes_MINI", 40, tmp_path) as shapes:
        base.set_dump_image(shapes.dump_image)
        messages = [base.build_prompt(line, shapes.dataset_name) for _, line in shapes.data.iterrows()]
        (one, _), (together, sizes) = swept(base, messages, 1), swept(base, messages, 8)
    assert together == one and sizes == [8] * 5 and len({text for texts in one for text in texts.values()}) > 3
