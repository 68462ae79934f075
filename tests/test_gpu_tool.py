"""``make gpu``: whole on the CPU, as it is typed; and what a part that fails or takes too long leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
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


def tiny(family: str) -> subjects.Subject:
    if family == "llava":
        return subjects.llava_subject(base_model().model, {})
    other = build(family)
    return subjects.Subject(other.model, other.prompt(), subjects.eager_and_masked)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, "-m", "tools.gpu", "--size", "small", "--limit", "1500", "--output", str(path)]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=gpu_checks.ROOT, env=hidden, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return json.loads(path.read_text()) | {"said": done.stdout}


def test_the_tests_of_engine_and_rules_are_there():
    for name in gpu_checks.TESTS:
        assert (gpu_checks.ROOT / name).read_text().count("\ndef test_") > 9
    for name in gpu_checks.QUICK:
        file, _, test = name.partition("::")
        assert file in gpu_checks.TESTS and f"\ndef {test}(" in (gpu_checks.ROOT / file).read_text()


@pytest.mark.timeout(1800)
def test_the_file_has_every_arm_at_every_batch(found):
    assert not found["failed"] and found["device"].endswith("CPU") and list(found["seconds"]) == list(gpu.PARTS)
    assert found["image tokens"] == 64 and f"{found['device']}, torch.float32" in found["said"]
    for part in ("speed", "qwen speed"):
        settings = [gpu.scaled(setting, 64) for setting in gpu.SETTINGS]
        arms = ["untouched", *settings, f"published {gpu.scaled(gpu.PUBLISHED, 64)}"]
        assert [(row["arm"], row["batch"]) for row in found[part]] == [(arm, n) for n in (1, 2) for arm in arms]
        one, two = found[part][: len(arms)], found[part][len(arms) :]
        held = {row["arm"]: row["KV MB"] for row in one}
        assert held["l0_k7_divprune"] < held["l2_k16"] < held["l12_k0"] < held["untouched"] == held["published l5_k14"]
        assert [row["KV MB"] for row in two] == [pytest.approx(2 * row["KV MB"]) for row in one]
        assert all(row["prefill ms"] > 0 and row["questions/s"] > 0 for row in found[part])
        assert all(f"| {arm} " in found["said"] for arm in arms)


@pytest.mark.timeout(1800)
def test_what_is_right_is_told(found):
    assert found["tests"]["passed"] >= len(gpu_checks.QUICK) and not found["tests"]["failed"]
    assert set(found["rules"]) == set(known())
    assert {name for name, share in found["rules"].items() if share != 1} == {"cdpruner"}  # whose CLIP is not there
    assert found["rules"]["cdpruner"].startswith("not asked: ")
    for part in ("right", "qwen right"):
        assert found[part]["K = all, over base"] == 0 and max(found[part].values()) < 1e-3
    assert "GPU only" in found["flash"]["left out"]
    assert {row["arm"] for row in found["sweep"]} == {"sweep", "one by one", "published way"}
    assert found["sweep"][0]["answers that agree"] == found["table"]["answers that agree"] == 1
    assert found["table"]["settings"] == len(table.RULES)


def test_a_part_that_fails_is_named_and_stops_no_other(tmp_path, monkeypatch):
    own = tmp_path / "test_own.py"  # in place of the engine's
    own.write_text(RIGHT + WRONG)
    monkeypatch.setattr(gpu_checks, "QUICK", (str(own),))
    monkeypatch.setitem(gpu.PARTS, "sweep", gpu.Part("llava", lambda _: 1 / 0))
    told = gpu.run(tiny, "cpu", {}, ["tests", "sweep", "flash"], tmp_path / "gpu.json")
    assert told == json.loads((tmp_path / "gpu.json").read_text())
    assert set(told["failed"]) == {"tests", "sweep"} and "flash" in told
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
