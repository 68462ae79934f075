"""One question that cannot be asked fails alone; what a variant refuses ends the run, whatever its host catches."""

from __future__ import annotations

import math
import pickle
import re
import sys
from types import SimpleNamespace

import pytest
from checkpoints import needs_host
from modelbox import QUESTION, in_host, message, records

from redrel_vlmeval.errors import Refused, TruncationError, Unaskable

pytestmark = needs_host
MARK = "Failed to obtain answer via API."  # the host's own
CUT = "redrel_tiny_trunc_l2_k16"
LINE = {"index": 7, "question": "What color?", "A": "red", "B": "blue"}

# The host's loops, with the names that are read from them.
LOOP = """
FAIL_MSG = "Failed to obtain answer via API."

def infer_data(model, lines, work_dir, model_name, dataset_name):
    res, lt = {}, len(lines)
    for i in range(lt):
        idx = lines[i]["index"]
        res[idx] = ask(model, lines[i], dataset_name)
    return res

def ask(model, line, dataset_name):
    message = model.build_prompt(line, dataset=dataset_name)
    return model.generate(message=message, dataset=dataset_name)

def chat_mt(model, turns, dataset_name):
    said = []
    for turn in turns:
        said.append(turn)
        try:
            answer = model.chat(said, dataset=dataset_name)
        except Exception as error:
            answer = FAIL_MSG + str(error)
        said.append(dict(role="assistant", content=answer))
    return [turn["content"] for turn in said[1::2]]

def infer_data_mt(model, lines, work_dir, model_name, dataset_name):
    res, lt = {}, len(lines)
    for i in range(lt):
        idx = i
        res[idx] = chat_mt(model, lines[i], dataset_name)
    return res
"""


def loop(name, model, lines, folder, called, module="vlmeval.inference"):
    names = {"__name__": module}
    exec(LOOP, names)
    return names[name](model, lines, str(folder), called, "RedRelShapes")


@pytest.fixture(params=["", "l2_k16"])
def either(request, base, classes, pictures):
    """A base and a variant, and the name that the host has for each."""
    model = classes.TruncatedVLM(base, "l2_k16") if request.param else base

    def dump_image(line):
        if "raises" in line:
            raise line["raises"]
        return line.get("paths", pictures[:1])

    model.set_dump_image(dump_image)
    return model, CUT if request.param else "redrel_tiny"


@pytest.fixture
def bad(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    return {
        "empty": LINE | {"question": math.nan},
        "missing": LINE | {"paths": [str(tmp_path / "gone.png")]},
        "unreadable": LINE | {"paths": [str(tmp_path / "bad.png")]},
        "undecodable": LINE | {"raises": OSError("cannot write mode CMYK as PNG")},
        "no picture": LINE | {"raises": TypeError("argument should be a bytes-like object, not float")},
    }


WORDS = {
    "empty": "its question is empty", "missing": "gone.png': no such file", "unreadable": "cannot be read as an",
    "undecodable": "decoded .OSError: cannot write mode CMYK", "no picture": "decoded .TypeError: argument should be",
}  # fmt: skip


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_question_fails_alone(either, bad, kind, place, tmp_path):
    model, name = either
    lines = [LINE | {"index": 1}, LINE | {"index": 2}]
    lines.insert(place, bad[kind])
    (tmp_path / "out").mkdir()
    found = loop("infer_data", model, lines, tmp_path / "out", name)
    assert found.pop(7) == MARK
    assert len(found) == 2 and not any(MARK in answer for answer in found.values())
    failed = [record for record in records(tmp_path / "out") if "error" in record]
    assert [(record["index"], record["model"], record["dataset"]) for record in failed] == [(7, name, "RedRelShapes")]
    assert re.search(WORDS[kind], failed[0]["error"]) and "question 7 of RedRelShapes" in failed[0]["error"]
    assert len(records(tmp_path / "out")) == 3


@pytest.mark.parametrize("kind", WORDS)
def test_where_no_question_can_be_asked_the_run_fails(either, bad, kind, tmp_path):
    model, name = either
    with pytest.raises(Unaskable, match=WORDS[kind].replace("'", ".")):
        loop("infer_data", model, [bad[kind] | {"index": 6}, bad[kind]], tmp_path, name)


@pytest.mark.parametrize("kind", WORDS)
def test_outside_of_the_host_it_is_raised(either, bad, kind):
    model, _ = either
    with pytest.raises(Unaskable, match=WORDS[kind].replace("'", ".")):
        model.generate(model.build_prompt(bad[kind], dataset="RedRelShapes"), dataset="RedRelShapes")


@pytest.mark.parametrize("setting", ["p-cqm", "l2_k16_ppl"])
def test_a_row_without_options_fails_alone_under_a_prompt_by_name_and_ranking(
    base, classes, setting, pictures, tmp_path
):
    variant = classes.TruncatedVLM(base, setting)
    variant.set_dump_image(lambda line: pictures[:1])
    name = f"redrel_tiny_{'trunc_' * setting.startswith('l')}{setting}"
    lines = [LINE | {"index": 1}, {"index": 7, "question": "What?"}, LINE | {"index": 2}]
    found = loop("infer_data", variant, lines, tmp_path, name)
    assert found[7] == MARK and MARK not in found[1] + found[2]
    (failed,) = (record["error"] for record in records(tmp_path) if "error" in record)
    assert failed.startswith("question 7 of RedRelShapes: multiple choice without options")


def test_redrel_run_ends_with_1_where_a_question_failed_alone(base, tmp_path, monkeypatch, capfd, bad):
    """The runner's loop stands in a script of its own here; what it does to the exit code is ``redrel run``'s."""
    from redrel_vlmeval.host import failures, runner

    base.set_dump_image(lambda line: line.get("paths", []))
    (tmp_path / "vlmeval_run.py").write_text("import sys; sys.modules['the_loop'].go()")
    (tmp_path / "out").mkdir()
    lines = [LINE | {"index": 1}]
    go = lambda: loop("infer_data", base, lines, tmp_path / "out", "redrel_tiny")  # noqa: E731
    monkeypatch.setitem(sys.modules, "the_loop", SimpleNamespace(go=go))
    failures.clear()
    runner.run([], str(tmp_path / "vlmeval_run.py"))
    lines.append(bad["missing"])
    with pytest.raises(SystemExit) as ended:
        runner.run([], str(tmp_path / "vlmeval_run.py"))
    assert ended.value.code == 1 and "1 questions could not be asked" in capfd.readouterr().err
    failures.clear()


# conversations


def turns(pictures, *parts):
    return [{"role": "user", "content": message(pictures, *parts)}]


def test_a_conversation_that_cannot_be_asked_fails_alone(either, pictures, bad, tmp_path):
    model, name = either
    lines = [turns(pictures, 0, QUESTION), turns([*bad["missing"]["paths"]], 0, QUESTION)]
    (tmp_path / "out").mkdir()
    found = loop("infer_data_mt", model, lines, tmp_path / "out", name, "vlmeval.inference_mt")
    assert found[1] == [MARK] and MARK not in found[0][0]
    (failed,) = (record for record in records(tmp_path / "out") if "error" in record)
    assert failed["index"] == 1 and "no such file" in failed["error"]


@pytest.fixture
def refusing(base, classes, monkeypatch):
    """A variant that refuses at every question: the model's own generation settings ask for a static cache."""
    monkeypatch.setattr(base.model.generation_config, "cache_implementation", "static")
    return classes.TruncatedVLM(base, "l2_k16")


def test_a_refusal_in_a_conversation_is_no_answer(refusing, pictures, tmp_path):
    with pytest.raises(TruncationError, match="cache_implementation='static'"):
        refusing.chat(turns(pictures, 0, QUESTION))
    with pytest.raises(TruncationError, match="cache_implementation='static'"):  # the next question is refused at once
        refusing.chat(turns(pictures, 0, QUESTION))
    found = loop("infer_data_mt", refusing, [turns(pictures, 0, QUESTION)], tmp_path, CUT, "vlmeval.inference_mt")
    with pytest.raises(TruncationError, match="cache_implementation='static'"):  # as the host writes its answers
        pickle.dumps(found)
    with pytest.raises(TruncationError, match="cache_implementation='static'"):
        refusing.build_prompt(LINE, dataset="RedRelShapes")


def test_a_wrong_name_in_a_conversation_is_no_answer(base, classes, pictures, tmp_path):
    variant = classes.TruncatedVLM(base, "l2_k16")
    lines = [turns(pictures, 0, QUESTION)]
    found = loop("infer_data_mt", variant, lines, tmp_path, "redrel_tiny_trunc_l3_k16", "vlmeval.inference_mt")
    with pytest.raises(ValueError, match="sheets read from this name 'l3_k16'"):
        pickle.dumps(found)


# hosts that catch everything


class Catching:
    """As the host's GLMThinking: an answer in words, whatever happened."""

    def __init__(self, core, tries=1):
        self.model, self.core, self.tries = core.model, core, tries

    def generate_inner(self, message, dataset=None):
        for _ in range(self.tries):
            try:
                return self.core.reply(message)
            except Exception:
                self.core.model.generation_config.cache_implementation = None
        return "Failed to obtain answer."

    def preproc_content(self, inputs):
        return inputs


def test_a_refusal_that_the_base_catches_is_raised_again(base, classes, refusing, asked, tmp_path):
    variant = classes.TruncatedVLM(Catching(base.core), "l2_k16")
    with pytest.raises(TruncationError, match="cache_implementation='static'"):
        in_host(lambda: variant.generate(asked), 1, tmp_path, CUT)
    assert not any(path.read_text().count('"index"') for path in tmp_path.iterdir())
    assert isinstance(variant.generate(asked), str)  # the setting is gone


def test_a_base_that_tries_again_and_succeeds_has_answered(base, classes, refusing, asked):
    assert classes.TruncatedVLM(Catching(base.core, tries=2), "l2_k16").generate(asked) != "Failed to obtain answer."


def test_an_error_of_the_model_that_the_base_catches_is_raised_again(base, classes, asked, monkeypatch):
    variant = classes.TruncatedVLM(Catching(base.core), "l2_k16")

    def broken(*_args, **_kwargs):
        raise IndexError("inside the model")

    monkeypatch.setattr(base.model, "generate", broken)
    with pytest.raises(IndexError, match="inside the model"):
        variant.generate(asked)


def test_skip_err_does_not_catch_a_refusal(refusing, asked, monkeypatch):
    monkeypatch.setenv("SKIP_ERR", "1")
    with pytest.raises(Refused, match="cache_implementation='static'") as caught:
        refusing.generate(asked)
    assert not isinstance(caught.value, RuntimeError)


# videos


VIDEO_LOOP = """
FAIL_MSG = "Failed to obtain answer via API."

def infer_data(model, model_name, work_dir, dataset_name):
    res, sample_indices_subrem = {}, [0, 1]
    for i, idx in enumerate(sample_indices_subrem):
        dataset_name = f"part {i}"
        res[idx] = model.generate(message=MESSAGES[i], dataset=dataset_name)
    return res

def infer_data_job_video(model, model_name, work_dir, dataset_name, result_file):
    return infer_data(model, model_name, work_dir, dataset_name)
"""


def test_records_of_videos_stand_under_the_name_of_the_result(either, pictures, bad, tmp_path):
    model, name = either
    messages = [message(pictures, 0, QUESTION), message(bad["missing"]["paths"], 0, QUESTION)]
    names = {"__name__": "vlmeval.inference_video", "MESSAGES": messages}
    exec(VIDEO_LOOP, names)
    (tmp_path / "out").mkdir()
    result = tmp_path / "out" / f"{name}_Some_8frame.xlsx"
    found = names["infer_data_job_video"](model, name, str(tmp_path / "out"), "Some", str(result))
    assert found[1] == MARK and found[0] != MARK
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{name}_Some_8frame_redrel.jsonl"]
    assert {record["dataset"] for record in records(tmp_path / "out")} == {"Some_8frame"}


def test_what_the_host_sets_for_a_video_reaches_the_base(base, classes):
    seen = {}

    class Filming(Catching):
        nframe, fps, VIDEO_LLM = 8, 1.0, True

        def use_custom_prompt(self, dataset):
            return True

        def build_prompt(self, line, dataset=None, video_llm=False):
            seen.update(line=line, dataset=dataset, video_llm=video_llm)
            return []

    inner = Filming(base.core)
    variant = classes.TruncatedVLM(inner, "l2_k16")
    benchmark = SimpleNamespace(dataset_name="Some")
    variant.nframe, variant.fps, variant.VIDEO_LLM = 16, None, False
    assert (inner.nframe, inner.fps, inner.VIDEO_LLM) == (16, None, False) == (
        variant.nframe, variant.fps, variant.VIDEO_LLM,
    )  # fmt: skip
    variant.build_prompt(LINE, dataset=benchmark, video_llm=True)
    assert seen == {"line": LINE, "dataset": benchmark, "video_llm": True}
    assert not {"nframe", "fps", "VIDEO_LLM"} & vars(variant).keys()
