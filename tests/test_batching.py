"""Several questions in one call, in the host's own loop: the same answers and records, whatever goes wrong."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
import transformers as tf
from batch_box import DATA, Calls, Questions, ask, benchmark, host_model, model_of, name_of
from checkpoints import needs_host
from modelbox import QUESTION, in_host, message, records

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.models.batching import batch_size
from redrel_vlmeval.models.efficiency import MEASURED
from redrel_vlmeval.models.plain import batched

pytestmark = needs_host
OWN = {*MEASURED, "batch", "time"}  # of a record, what a batch may change
LAYOUTS = [(0, QUESTION), ("Which color?",), (1, 2, QUESTION * 2), (3, "What is left of it?"), ("Count.", 2, QUESTION)]


@pytest.fixture
def mixed(pictures):
    """Prompts of different lengths, with several pictures and with none."""
    return [message(pictures, *layout, *more) for more in ([], ["Say it."]) for layout in LAYOUTS]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    with benchmark("RedRelShapes_MINI", 40, tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.mark.parametrize("setting", ["", "l2_k16"])
def test_forty_questions_have_the_answers_and_records_that_they_have_alone(classes, base, shapes, tmp_path, setting):
    found = {}
    for batch in (1, 8):
        with Calls(base.model) as calls:
            answers = ask(model_of(classes, base, setting, batch), tmp_path / str(batch), shapes, name_of(setting))
        found[batch] = answers, records(tmp_path / str(batch))
        assert calls.sizes == ([1] * 40 if batch == 1 else [8] * 5)
    assert found[1][0] == found[8][0] and len(set(found[1][0])) > 3
    for alone, together in zip(found[1][1], found[8][1], strict=True):
        assert {k: v for k, v in alone.items() if k not in OWN} == {k: v for k, v in together.items() if k not in OWN}
        assert together["batch"] == 8 and "batch" not in alone and together["seconds"] > 0
    each = [one["prefill_ms"] / one["prompt_tokens"] for one in found[8][1][:8]]  # of one batch: shared by tokens
    assert each == pytest.approx([each[0]] * 8)


@pytest.mark.parametrize("setting", ["", "l2_k16", "l0_k8_random"])
def test_mixed_prompts_in_a_batch_are_answered_as_alone(classes, base, mixed, tmp_path, setting):
    alone = ask(model_of(classes, base, setting, 1), tmp_path / "1", Questions(mixed), name_of(setting))
    with Calls(base.model) as calls:
        together = ask(model_of(classes, base, setting, 4), tmp_path / "4", Questions(mixed), name_of(setting))
    assert together == alone and calls.sizes == [4, 4, 2]


def test_a_killed_run_goes_on_where_the_host_stopped(classes, base, mixed, pictures, tmp_path):
    extra = [message(pictures, number % 4, "Which " + "big " * number) for number in range(10)]
    whole = ask(model_of(classes, base, "l2_k16", 1), tmp_path / "whole", Questions(mixed + extra), name_of("l2_k16"))
    for moment in (1, 12):
        left, folder = [moment], tmp_path / str(moment)

        class Killed(classes.TruncatedVLM):
            def generate(self, *args, left=left, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return super().generate(*args, **kwargs)

        killed = Killed(base, "l2_k16", batch=8)
        with pytest.raises(KeyboardInterrupt):
            ask(killed, folder, Questions(mixed + extra), name_of("l2_k16"))
        for file in killed.recorder._files.values():  # as the end of its process does
            file.close()
        with Calls(base.model) as calls:
            again = ask(model_of(classes, base, "l2_k16", 8), folder, Questions(mixed + extra), name_of("l2_k16"))
        assert again == whole and sum(calls.sizes) == 20 - moment // 10 * 10


def test_a_host_that_skips_and_reorders_gets_each_question_its_own_answer(classes, base, mixed, tmp_path):
    import pandas as pd

    questions = Questions(mixed)
    alone = [base.ask(one, DATA) for one in mixed]
    model = model_of(classes, base, "", 4)
    frame = {"data": questions.data, "dataset": questions, "res": {}, "lt": 10, "dataset_name": DATA}
    for place in (0, 3, 1, 9, 9, 2, 0):
        loop = {"__name__": "vlmeval.inference"}
        names = ", ".join(["work_dir", "model_name", "idx", "i", *frame])
        exec(f"def infer_data(answer, {names}):\n    return answer()\n", loop)
        said = loop["infer_data"](
            lambda place=place: model.generate(mixed[place], DATA), str(tmp_path), "redrel_tiny", 100 + place, place,
            *frame.values(),
        )  # fmt: skip
        assert said == alone[place], place
    assert isinstance(questions.data, pd.DataFrame) and len(model._batches._kept) <= 16


@pytest.mark.parametrize("place", [3, 5])  # the last of a batch, and one inside
def test_one_question_that_cannot_be_asked_fails_alone(classes, base, mixed, tmp_path, place):
    alone = ask(model_of(classes, base, "", 1), tmp_path / "1", Questions(mixed))
    mixed[place] = [{"type": "image", "value": "/nowhere/x.png"}, *mixed[place]]
    with Calls(base.model) as calls:
        found = ask(model_of(classes, base, "", 4), tmp_path / "4", Questions(mixed))
    assert found.pop(place) == "Failed to obtain answer via API." and found == alone[:place] + alone[place + 1 :]
    assert [one["index"] for one in records(tmp_path / "4") if "error" in one] == [100 + place]
    assert sum(calls.sizes) == 9 and max(calls.sizes) <= 4


def test_an_error_inside_a_batch_is_its_questions_own(classes, base, mixed, tmp_path, caplog):
    bad = base.core.inputs(*classes_prompt(mixed[6]))["input_ids"]

    def fail(ids):
        if any(torch.equal(row[-bad.shape[1] :], bad[0]) for row in ids if len(row) >= bad.shape[1]):
            raise ZeroDivisionError("no luck")

    with Calls(base.model, fail) as calls, pytest.raises(ZeroDivisionError):
        ask(model_of(classes, base, "", 4), tmp_path, Questions(mixed[:5] + mixed[6:7] + mixed[:4]))
    assert calls.sizes == [4, 4, 1, 1]  # the second batch fails, its first question does not, its second does
    assert "4 questions at once failed (ZeroDivisionError: no luck); they are asked one by one" in caplog.text
    assert f"redrel_tiny: it was question 105 of {DATA}: no luck" in caplog.text


def classes_prompt(content):
    from redrel_vlmeval.models.llava.input import single_prompt

    return single_prompt(content)


@pytest.mark.parametrize(("fits", "sizes"), [(4, [8, 4, 4, 2]), (1, [8, 4] + [1] * 10)])
def test_out_of_memory_halves_the_batch_once(classes, base, mixed, tmp_path, caplog, fits, sizes):
    alone = ask(model_of(classes, base, "", 1), tmp_path / "1", Questions(mixed))

    def full(ids):
        if len(ids) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with Calls(base.model, full) as calls:
        assert ask(model_of(classes, base, "", 8), tmp_path / "8", Questions(mixed)) == alone
    assert calls.sizes == sizes
    assert caplog.text.count("out of memory with 8 questions at once; from here on 4") == 1


# -- classes of the host ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_the_hosts_own_classes_answer_four_as_one(classes, family, pictures, tmp_path, monkeypatch):
    own = tf.BatchFeature.to
    monkeypatch.setattr(
        tf.BatchFeature, "to", lambda self, *where, **how: self if "cuda" in where else own(self, *where, **how)
    )
    model = host_model(family, tmp_path / "model")
    layouts = [(0, "red or blue"), (1, 2, "left of the square"), ("color",), (3, "what color is the big square")]
    asked = [message(pictures, *layout, *more) for more in ([], ["big"]) for layout in layouts]
    if family == "llava_onevision":  # text alone is no prompt of its processor's
        asked = [one for one in asked if one[0]["type"] == "image"]
        model.model.generation_config.max_new_tokens = 8
        limit = model.model.generate
        model.model.generate = lambda **inputs: limit(**(inputs | {"max_new_tokens": 8}))
    for setting in ("", "l2_k2"):
        found = []
        for size in (1, 4):
            name = f"m_trunc_{setting}" if setting else "m"
            one = classes.TruncatedVLM(model, setting, batch=size) if setting else batched(copy_of(model), "m", size)
            one.set_dump_image(None)
            found.append(ask(one, tmp_path / f"{setting}{size}", Questions(asked), name))
        assert found[0] == found[1] and len(set(found[0])) > 2
    assert {one["batch"] for one in records(tmp_path / "l2_k24")} <= {4, 2}


def copy_of(model):
    own = type(model).__new__(type(model))
    own.__dict__ |= model.__dict__
    return own


class Odd:
    """Ways of a class to use its torch model that no batch can stand for."""

    INTERLEAVE, is_api = True, False

    def __init__(self, base, way):
        self.base, self.model, self.way, self.count = base, base.model, way, 0

    def set_dump_image(self, _function):
        pass

    def generate(self, message, dataset=None):
        self.count += 1
        core = self.base.core
        inputs = core.inputs(*classes_prompt(message))
        more = {}
        if self.way == "draws":
            more = {"do_sample": True, "top_k": 0, "temperature": 1e-4}
        if self.way == "changes":
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[5 + self.count % 3]])], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if self.way == "forward":
            return str(int(self.model(**inputs).logits[0, -1].argmax()))
        said = self.model.generate(**inputs, **(core.generation | more))
        if self.way == "twice":
            more = {"input_ids": said, "attention_mask": torch.ones_like(said)}
            said = self.model.generate(**(inputs | more), **core.generation)
        return core.tokenizer.decode(said[0], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("draws", "its answers are drawn (do_sample)"),
        ("changes", "its class asks another thing when it is given the same message again"),
        ("twice", "its class calls generate() several times for one answer"),
        ("forward", "its class does not call generate() of its torch model"),
    ],
)
def test_what_no_batch_can_stand_for_is_answered_one_by_one(classes, base, mixed, tmp_path, caplog, way, words):
    caplog.set_level(logging.WARNING, "redrel_vlmeval")
    found = ask(batched(Odd(base, way), "odd", 4), tmp_path / "4", Questions(mixed), "odd")
    if way != "changes":  # what it asks depends on how often it was asked
        assert found == ask(Odd(base, way), tmp_path / "1", Questions(mixed), "odd")
    assert len(found) == 10 and caplog.text.count(f"odd: answers one by one: {words}") == 1


@pytest.fixture
def few(shapes, monkeypatch):
    monkeypatch.setattr(shapes, "data", shapes.data.iloc[:6])
    return shapes


def test_a_compiled_base_answers_as_before_and_one_by_one(classes, base, mixed, tmp_path, caplog, monkeypatch):
    """Its variants are refused by name, see test_engine_calls.py."""
    alone = ask(model_of(classes, base, "", 1), tmp_path / "1", Questions(mixed[:5]))
    norm = base.model.model.language_model.norm
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setitem(norm.__dict__, "forward", torch.compile(norm.forward, backend="eager"))
        with Calls(base.model) as calls:
            together = ask(model_of(classes, base, "", 4), tmp_path / "4", Questions(mixed[:5]))
    assert together == alone and calls.sizes == [1] * 5
    assert caplog.text.count("answers one by one: LlavaForConditionalGeneration: compiled by torch.compile") == 1


@pytest.mark.parametrize("setting", ["l2_k16_beam2", "l2_k16_ppl"])
def test_beams_and_ranked_options_go_one_by_one(classes, base, few, tmp_path, caplog, setting):
    model = model_of(classes, base, setting, 4)
    with Calls(base.model) as calls:
        ask(model, tmp_path, few, name_of(setting))
    assert set(calls.sizes) <= {1} and caplog.text.count("answers one by one: generate(") == 1
    assert len(records(tmp_path)) == 6


def test_a_prompt_by_name_is_the_one_that_was_built_for_its_question(classes, base, few, tmp_path):
    setting, found = "l2_k24_l5_k4_p-cqm", []
    for batch in (1, 4):
        with Calls(base.model) as calls:
            found.append(ask(model_of(classes, base, setting, batch), tmp_path / str(batch), few, name_of(setting)))
    assert found[0] == found[1] and calls.sizes == [4, 2]


def test_outside_of_the_hosts_loop_nothing_is_looked_ahead_for(classes, base, mixed, tmp_path):
    model = model_of(classes, base, "", 8)
    with Calls(base.model) as calls:
        assert model.generate(mixed[0]) == base.generate(mixed[0])
        in_host(lambda: model.generate(mixed[0]), 1, tmp_path)  # a loop without the benchmark's lines
    assert calls.sizes == [1, 1, 1]


def test_the_bench_asks_in_the_hosts_loop_and_misses_bars(monkeypatch, tmp_path, capsys):
    from redrel_vlmeval.bench import batch, command

    monkeypatch.setenv("LMUData", str(tmp_path))
    monkeypatch.setattr(batch, "QUESTIONS", 4)
    monkeypatch.setattr(batch, "BARS", {2: 1e9, 1: 0.0})
    request = command.Request(device="cpu", rounds=1, settings="l2_k16", check=True)
    assert command.measure("batch", request) == 1
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.startswith(("base ", "l2_k16 "))]
    assert [row[:3] for row in rows] == [[arm, new, at] for new in "21" for arm in ("base", "l2_k16") for at in "18"]
    assert said.count("MISSED") == 2 and said.count("those of one by one") == 4


@pytest.mark.parametrize("wrong", ["0", "-1", "eight", "2.5", "²"])
def test_a_batch_is_a_number(monkeypatch, wrong):
    monkeypatch.setenv("REDREL_BATCH", wrong)
    with pytest.raises(InvalidValue, match=f"REDREL_BATCH={wrong}: how many questions"):
        batch_size()
    with pytest.raises(InvalidValue, match="batch=none"):
        batch_size("none")


def test_the_hosts_own_entries_are_batched_where_it_is_asked_for(monkeypatch):
    from redrel_vlmeval.plugin import register

    class Kind:
        is_api = False

        def __init__(self, **kwargs):
            self.given, self.model = kwargs, torch.nn.Linear(2, 2)

    table = {"host_7b": partial(Kind, path="p"), "engine_7b": partial(Kind, use_vllm=True)}
    assert register(table)["host_7b"] is table["host_7b"]
    monkeypatch.setenv("REDREL_BATCH", "8")
    entry = register(table)["host_7b"]
    assert entry.keywords == {"path": "p"} and entry().given == {"path": "p"}
    assert register(table)["engine_7b"]().given == {"use_vllm": False}
