"""``REDREL_BATCH`` in long runs: the unmodified runner killed at random moments, and 200 questions eight at a time."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_box import Questions, ask, benchmark, model_of, name_of
from checkpoints import needs_host
from modelbox import QUESTION, message
from test_stock_runner import BASE, EVALUATE, HOST, QUESTIONS, VARIANT, Workplace

pytestmark = [needs_host, pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS, ASK = 12, [*HOST, "--model", BASE, VARIANT, *EVALUATE, "--reuse"]


def answered(place: Workplace, model: str) -> int:
    """Lines of a model's records so far."""
    return sum(file.read_bytes().count(b"\n") for file in (place.work / model).rglob("*_redrel*.jsonl"))


def begun(place: Workplace, **variables: str) -> subprocess.Popen[bytes]:
    """The runner, with its output in a file."""
    command = [sys.executable, *ASK, "--work-dir", str(place.work)]
    with (place.data / "log").open("ab") as log:
        return subprocess.Popen(
            command, env=place.environment(**variables), cwd=place.data, stdout=log, stderr=log, start_new_session=True
        )


def finished(place: Workplace, **variables: str) -> None:
    """The runner to its end, which must be good."""
    assert begun(place, **variables).wait() == 0, (place.data / "log").read_text()[-3000:]
    place.assert_done(BASE, VARIANT)


def killed(place: Workplace, model: str, moment: random.Random) -> bool:
    """Start the runner and kill it at a moment while ``model`` answers; whether it was killed before its end."""
    more = answered(place, model) + moment.randint(2, 20)
    process = begun(place, REDREL_BATCH="8")
    while answered(place, model) < more:
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    time.sleep(0.1 * moment.random())
    process.kill()
    return process.wait() == -signal.SIGKILL


def forget_empty_files(place: Workplace) -> None:
    """What docs/speed.md says of a run that was killed while the host wrote its own file of answers."""
    for file in place.work.rglob("*.pkl"):
        if not file.stat().st_size:
            file.unlink()


def test_killed_at_twelve_moments_it_ends_with_the_answers_and_scores_of_one_by_one(tmp_path: Path) -> None:
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
    alone, place = Workplace(tmp_path / "alone"), Workplace(tmp_path / "killed")
    finished(alone)
    moments = random.Random(18)
    for model in [BASE] * (KILLS // 2) + [VARIANT] * (KILLS // 2):
        assert killed(place, model, moments), (place.data / "log").read_text()[-3000:]
        assert (answered(place, VARIANT) > 0) == (model == VARIANT)
        forget_empty_files(place)
    finished(place, REDREL_BATCH="8")
    for model in (BASE, VARIANT):
        assert place.predictions(model) == alone.predictions(model)
        assert place.accuracy(model) == alone.accuracy(model)
        assert {record["index"] for record in place.records(model)} == set(alone.predictions(model))
        assert {record.get("batch") for record in place.records(model)} >= {8}
        assert len(place.records(model)) > QUESTIONS  # some were asked again


@pytest.fixture(scope="module")
def two_hundred(tmp_path_factory):
    with benchmark("RedRelShapes", 200, tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.mark.parametrize("setting", ["", "l2_k16", "l5_k14"])
def test_two_hundred_questions_of_the_benchmark_have_the_answers_of_one_by_one(
    classes, base, two_hundred, tmp_path, setting
):
    found = {}
    for batch in (1, 8):
        model = model_of(classes, base, setting, batch)
        found[batch] = ask(model, tmp_path / str(batch), two_hundred, name_of(setting))
    assert len(found[1]) == 200 and found[1] == found[8] and len(set(found[1])) > 9


def test_mixed_prompts_have_the_answers_of_one_by_one(classes, base, pictures, tmp_path):
    """Text alone, one to four pictures, and texts of other lengths, in a random order."""
    moment = random.Random(18)
    words = ["Count.", QUESTION, "What is left of it?", QUESTION * 2, "Which color has the big one?"]
    asked = []
    for _ in range(64):
        parts = [*range(4)][: moment.choice([0, 1, 1, 2, 4])] + [moment.choice(words)]
        moment.shuffle(parts)
        asked.append(message(pictures, *parts))
    for setting in ("", "l2_k16", "l0_k8_random"):
        found = {}
        for batch in (1, 8):
            model = model_of(classes, base, setting, batch)
            found[batch] = ask(model, tmp_path / f"{setting}{batch}", Questions(asked), name_of(setting))
        assert found[1] == found[8] and len(set(found[1])) > 9
