"""``make gpu`` on a tiny model: whole, saved part by part, and right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from modelbox import base_model

from redrel_vlmeval.bench import subjects
from tools import gpu


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict, Path]:
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "SETTINGS", ("l2_k16", "l0_k8_divprune"))
        patch.setattr(gpu, "PUBLISHED", "l2_k16")
        patch.setattr(gpu, "ROUNDS", 1)
        subject = subjects.llava_subject(base_model().model, {})
        gpu.run(subject, "tiny", ["right", "speed"], path)
        patch.setitem(gpu.PARTS, "sweep", lambda _: 1 / 0)
        gpu.run(subject, "tiny", ["sweep", "right"], path.with_name("other.json"))
    return json.loads(path.read_text()), path


def test_the_file_has_every_arm_at_every_batch(found):
    told, _ = found
    assert not told["failed"] and told["device"].endswith("CPU") and set(told["seconds"]) == {"right", "speed"}
    arms = ["untouched", "l2_k16", "l0_k8_divprune", "published l2_k16"]
    assert [(row["arm"], row["batch"]) for row in told["speed"]] == [(arm, n) for n in (1, 8) for arm in arms]
    one, eight = told["speed"][:4], told["speed"][4:]
    assert one[0]["KV MB"] > one[1]["KV MB"] > one[2]["KV MB"] and one[0]["KV MB"] == one[3]["KV MB"]
    assert [row["KV MB"] for row in eight] == [pytest.approx(8 * row["KV MB"]) for row in one]
    assert eight[0]["questions/s"] > one[0]["questions/s"] and all(row["prefill ms"] > 0 for row in told["speed"])
    assert told["right"]["K = all, over base"] == 0 and max(told["right"].values()) < 1e-3
    assert gpu.table(told).count("\n| ") == 9


def test_a_part_that_fails_is_named_and_stops_no_other(found):
    told = json.loads(found[1].with_name("other.json").read_text())
    assert told["failed"] == {"sweep": "ZeroDivisionError: division by zero"} and "right" in told
