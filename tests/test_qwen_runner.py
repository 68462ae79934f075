"""The real, unmodified host evaluates Qwen-VL, Qwen-VL-Chat and variants of both: tiny weights under the hub's names.

The checkpoints stand in a hub cache of the test's own, at the pinned commits, so that names, pins, the remote code's
loading and the runner are those of a user; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from checkpoints import needs_host
from qwen_checkpoint import write_checkpoint

from redrel_vlmeval.models.qwen.checkpoint import PINNED
from redrel_vlmeval.models.tiny import benchmark

pytestmark = [needs_host, pytest.mark.timeout(600)]
DATA, BROKEN = "QwenShapes", "QwenBroken"
BLOCKS, IMAGE, NEW = 3, 256, 4
MODELS = {
    "qwen_base": [IMAGE] * 3,
    "qwen_chat": [IMAGE] * 3,
    "qwen_chat_trunc_l1_k64": [IMAGE, 64, 64],
    "qwen_base_trunc_l2_k16": [IMAGE, IMAGE, 16],
}


class Workplace:
    """A hub cache with both models, the data of the host, and a work dir."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.data, self.hub = (folder / name for name in ("", "out", "LMUData", "hub"))
        for name, chat in (("Qwen/Qwen-VL", False), ("Qwen/Qwen-VL-Chat", True)):
            snapshots = self.hub / f"models--{name.replace('/', '--')}" / "snapshots"
            checkpoint = write_checkpoint(snapshots / PINNED[name], blocks=BLOCKS, chat=chat, seed=int(chat))
            settings = json.loads((checkpoint / "generation_config.json").read_text())
            (checkpoint / "generation_config.json").write_text(json.dumps(settings | {"max_new_tokens": NEW}))
        self.data.mkdir()
        table = benchmark.make("RedRelShapes_MINI").head(6)
        table.to_csv(self.data / f"{DATA}.tsv", sep="\t", index=False)
        (self.data / "bad.png").write_text("no picture")
        broken = table.head(2).drop(columns="image").assign(image_path=str(self.data / "bad.png"))
        broken.to_csv(self.data / f"{BROKEN}.tsv", sep="\t", index=False)

    def run(self, *args: str) -> str:
        """What ``python -m vlmeval ARGS`` says; it has to end well."""
        own = {"LMUData": str(self.data), "OMP_NUM_THREADS": "1", "HF_HUB_CACHE": str(self.hub), "HF_HUB_OFFLINE": "1"}
        own |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "REDREL_DEVICE": "cpu"}
        kept = {k: v for k, v in os.environ.items() if k not in ("REDREL_DISABLE", "REDREL_DTYPE", "PRED_FORMAT")}
        done = subprocess.run(
            [sys.executable, "-m", "vlmeval", *args, "--work-dir", str(self.work), "--judge", "exact_matching"],
            env=kept | own,
            cwd=self.data,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def status(self, model: str, data: str = DATA) -> dict:
        return json.loads((self.work / model / "status.json").read_text())["datasets"][data]

    def predictions(self, model: str) -> dict[int, str]:
        table = pd.read_excel(self.work / model / f"{model}_{DATA}.xlsx")
        return dict(zip(table["index"], table["prediction"].fillna("").astype(str), strict=True))

    def records(self, model: str) -> list[dict]:
        lines = (self.work / model / f"{model}_{DATA}_redrel.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if '"index"' in line]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="module")
def said(place) -> str:
    return place.run("--model", *MODELS, "--data", DATA)


def test_bases_and_variants_answer_every_question(place, said):
    for model in MODELS:
        state = place.status(model)
        assert state["status"] == "done" and not {"error_message", "skip_reason"} & set(state), state
        assert len(place.predictions(model)) == 6
    different = {tuple(place.predictions(model).values()) for model in MODELS}
    assert len(different) == len(MODELS)


def test_the_log_says_whose_class_and_code_run(said):
    text = " ".join(said.split())
    for name, weights in (("qwen_base", "Qwen/Qwen-VL"), ("qwen_chat", "Qwen/Qwen-VL-Chat")):
        assert f"{name}: RedrelQwenVL" in text
        assert f"{weights}@{PINNED[weights]}: its own code runs, because this model was asked for" in text


@pytest.mark.parametrize("model", MODELS)
def test_records_are_measured_as_declared(place, said, model):
    found, images = place.records(model), MODELS[model]
    assert sorted(record["index"] for record in found) == sorted(place.predictions(model))
    base, _, setting = model.partition("_trunc_")
    weights = "Qwen/Qwen-VL" if base == "qwen_base" else "Qwen/Qwen-VL-Chat"
    for record in found:
        assert (record["base"], record["setting"], record["weights"]) == (base, setting, weights)
        assert record["revision"] == PINNED[weights] and "greedy" in record["backend"]
        assert (record["image_tokens"], record["images_per_block"]) == (IMAGE, images)
        text = record["prompt_tokens"] - IMAGE
        assert text > 40 and record["tokens"] == [text + n for n in images]
        assert record["kv_tokens"] == [n + record["new_tokens"] - 1 for n in record["tokens"]]
        assert record["kv_bytes_measured"] == record["kv_bytes"] and record["seconds"] > 0
        assert 0 < record["prefill_flops"] <= record["prefill_flops_untouched"]
        assert (record["kernel"], record["dtype"]) == ("sdpa", "float32")
        assert record["new_tokens"] <= (NEW if base == "qwen_chat" else 32)


def test_config_file_with_our_classes_and_a_picture_that_is_none(place, said, tmp_path):
    chat = {"class": "RedrelQwenVLChat", "model_path": "Qwen/Qwen-VL-Chat"}
    cut = {"class": "TruncatedVLM", "base": "qwen_base", "spec": "l2_k16"}
    data = {name: {"class": "CustomMCQDataset", "dataset": name} for name in (DATA, BROKEN)}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model": {"talk": chat, "talk_trunc_l2_k16": cut}, "data": data}))
    place.run("--config", str(config))
    assert place.predictions("talk") == place.predictions("qwen_chat")
    assert place.predictions("talk_trunc_l2_k16") == place.predictions("qwen_base_trunc_l2_k16")
    for model in ("talk", "talk_trunc_l2_k16"):
        said_of_it = place.status(model, BROKEN)["error_message"]
        # question 0 failed alone; with the last one it is clear that none can be asked
        assert "bad.png': cannot be read as an image" in said_of_it and f"(question 1 of {BROKEN})" in said_of_it
        assert not (place.work / model / f"{model}_{BROKEN}.xlsx").exists()
