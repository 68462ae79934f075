"""``make gpu`` on tiny models: whole, saved part by part, and right."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from modelbox import base_model
from tiny_models import build

from redrel_vlmeval.bench import subjects, table
from redrel_vlmeval.rules import known
from tools import gpu, gpu_checks

RIGHT = """import os
def test_right(): assert os.environ["REDREL_TEST_DEVICE"] == "cpu"
"""
WRONG = """def test_wrong(): assert "the device" == "another"
"""


SLOW = """import os, signal, time
def test_quick(): pass
def test_slow():
    os.kill(os.getppid(), signal.SIGALRM)
    time.sleep(60)
"""
SETTINGS = ("l2_k216", "l0_k144_divprune")  # of 576 image tokens


def tiny(family: str) -> subjects.Subject:
    if family == "llava":
        return subjects.llava_subject(base_model().model, {})
    other = build(family)
    return subjects.Subject(other.model, other.prompt(), subjects.eager_and_masked)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict, Path]:
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "SETTINGS", SETTINGS)
        patch.setattr(gpu, "PUBLISHED", SETTINGS[0])
        own = path.with_name("test_own.py")  # in place of the engine's, which run by themselves
        patch.setattr(gpu_checks, "QUICK", (str(own),))
        own.write_text(RIGHT)
        patch.setattr(table, "BUDGETS", (192,))
        patch.setattr(table, "RULES", ("l2_k{}", "l0_k{}_divprune"))
        gpu.run(tiny, "cpu", gpu.place_of("cpu", torch.float32) | {"size": "tiny"}, list(gpu.PARTS), path)
        own.write_text(RIGHT + WRONG)
        patch.setitem(gpu.PARTS, "sweep", gpu.Part("llava", lambda _: 1 / 0))
        gpu.run(tiny, "cpu", {}, ["tests", "sweep", "right"], path.with_name("other.json"))
    return json.loads(path.read_text()), path


def test_the_tests_of_engine_and_rules_are_there():
    for name in gpu_checks.TESTS:
        assert (gpu_checks.ROOT / name).read_text().count("\ndef test_") > 9
    for name in gpu_checks.QUICK:
        file, _, test = name.partition("::")
        assert file in gpu_checks.TESTS and f"\ndef {test}(" in (gpu_checks.ROOT / file).read_text()


def test_the_file_has_every_arm_at_every_batch(found):
    told, _ = found
    assert not told["failed"] and told["device"].endswith("CPU") and list(told["seconds"]) == list(gpu.PARTS)
    for part, images in (("speed", 64), ("qwen speed", 4)):
        settings = [gpu.scaled(setting, images) for setting in SETTINGS]
        arms = ["untouched", *settings, f"published {settings[0]}"]
        assert [(row["arm"], row["batch"]) for row in told[part]] == [(arm, n) for n in (1, 2) for arm in arms]
        one, two = told[part][:4], told[part][4:]
        assert one[0]["KV MB"] > one[1]["KV MB"] > one[2]["KV MB"] and one[0]["KV MB"] == one[3]["KV MB"]
        assert [row["KV MB"] for row in two] == [pytest.approx(2 * row["KV MB"]) for row in one]
        assert all(row["prefill ms"] > 0 and row["questions/s"] > 0 for row in told[part])
    assert gpu.table(told).count("\n| ") == 18


def test_what_is_right_is_told(found):
    told, _ = found
    assert told["tests"] == {"passed": 1, "skipped": 0, "failed": {}}
    assert set(told["rules"]) == set(known())
    assert {name for name, share in told["rules"].items() if share != 1} == {"cdpruner"}  # whose CLIP is not there
    assert told["rules"]["cdpruner"].startswith("not asked: ")
    for part in ("right", "qwen right"):
        assert told[part]["K = all, over base"] == 0 and max(told[part].values()) < 1e-3
    assert "GPU only" in told["flash"]["left out"]
    assert {row["arm"] for row in told["sweep"]} == {"sweep", "one by one", "published way"}
    assert told["sweep"][0]["answers that agree"] == told["table"]["answers that agree"] == 1
    assert told["table"]["settings"] == 2


def test_a_part_that_fails_is_named_and_stops_no_other(found):
    told = json.loads(found[1].with_name("other.json").read_text())
    assert set(told["failed"]) == {"tests", "sweep"} and "right" in told
    assert told["failed"]["sweep"] == "ZeroDivisionError: division by zero"
    assert "test_wrong" in told["failed"]["tests"] and told["tests"]["passed"] == 1


def test_a_rule_that_chooses_otherwise_is_seen(monkeypatch):
    own, ranked = gpu_checks.kept, known()["attention"]
    monkeypatch.setattr(gpu_checks, "known", lambda everywhere: {"attention": ranked})
    monkeypatch.setattr(
        gpu_checks, "kept", lambda model, setting, inputs: own(model, setting, inputs)
        if len(inputs["input_ids"]) == 1 else [{0, 1, 2, 3}] * 3,
    )  # fmt: skip
    assert gpu_checks.rules("cpu")["attention"] < 1


def test_a_part_whose_time_is_over_keeps_what_it_has(tmp_path, monkeypatch):
    def rows(_subject):
        yield {"arm": "untouched"}
        os.kill(os.getpid(), signal.SIGALRM)  # its time is over
        time.sleep(60)

    slow = tmp_path / "test_slow.py"
    slow.write_text(SLOW)
    monkeypatch.setattr(gpu_checks, "QUICK", (str(slow),))
    monkeypatch.setitem(gpu.PARTS, "sweep", gpu.Part("llava", rows))
    told = gpu.run(tiny, "cpu", {}, ["sweep", "tests"], tmp_path / "gpu.json", limit=200)
    assert told == json.loads((tmp_path / "gpu.json").read_text())
    assert told["sweep"] == [{"arm": "untouched"}] and told["failed"]["sweep"] == "TimeoutError: stopped after 200 s"
    assert told["tests"]["passed"] == 1 and told["tests"]["failed"]["pytest"] == "stopped after 200 s"
    assert "pytest" in told["failed"]["tests"] and max(told["seconds"].values()) < 60
