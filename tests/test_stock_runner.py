"""The real, unmodified host in processes of its own: two models on the benchmark in the box, with and without trouble.

Every run costs seconds of the host's imports, so runs are shared between tests and nothing runs twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from checkpoints import needs_host

from redrel_vlmeval.models.tiny import benchmark

pytestmark = [needs_host, pytest.mark.timeout(600)]
BASE, VARIANT, DATA = "redrel_tiny", "redrel_tiny_trunc_l2_k16", "RedRelShapes_MINI"
EVALUATE = ["--data", DATA, "--judge", "exact_matching"]
HOST = ["-m", "vlmeval"]
QUESTIONS = len(benchmark.make(DATA))


class Workplace:
    """A work dir and an empty ``LMUData`` below one folder."""

    def __init__(self, folder: Path) -> None:
        self.work, self.data = folder / "out", folder / "LMUData"
        self.data.mkdir()

    def environment(self, **variables: str) -> dict[str, str]:
        own = {"LMUData": str(self.data), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        own |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "REDREL_DEVICE": "cpu"}
        kept = {k: v for k, v in os.environ.items() if k not in ("REDREL_DISABLE", "REDREL_DTYPE", "PRED_FORMAT")}
        return kept | own | variables

    def run(self, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """``python ARGS --work-dir ...`` to its end."""
        return subprocess.run(
            [sys.executable, *args, "--work-dir", str(self.work)],
            env=self.environment(**variables),
            cwd=self.data,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    def sheet(self, output: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "redrel_vlmeval", "sheet", str(self.work), "-o", str(self.work / output)]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=120)

    def status(self, model: str, data: str = DATA) -> dict:
        return json.loads((self.work / model / "status.json").read_text())["datasets"][data]

    def predictions(self, model: str) -> dict[int, str]:
        table = pd.read_excel(self.work / model / f"{model}_{DATA}.xlsx")
        return dict(zip(table["index"], table["prediction"].fillna("").astype(str), strict=True))

    def accuracy(self, model: str) -> dict[str, float]:
        (file,) = (self.work / model).glob("*_acc.csv")
        return pd.read_csv(file).iloc[0].drop("split").astype(float).to_dict()

    def records(self, model: str, suffix: str = "") -> list[dict]:
        file = self.work / model / f"{model}_{DATA}_redrel{suffix}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines() if '"index"' in line]

    def assert_done(self, *models: str) -> None:
        for model in models:
            state = self.status(model)
            assert state["status"] == "done" and not {"error_message", "skip_reason"} & set(state), state
            assert len(self.predictions(model)) == QUESTIONS
            assert set(self.accuracy(model)) == {"Overall", "one-hop", "two-hop", "three-hop", "text"}


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> tuple[Workplace, subprocess.CompletedProcess[str]]:
    """The issue's own command."""
    place = Workplace(tmp_path_factory.mktemp("stock"))
    return place, place.run(*HOST, "--model", BASE, VARIANT, *EVALUATE)


def test_base_and_variant_have_results(stock):
    place, done = stock
    assert done.returncode == 0, done.stdout[-3000:]
    place.assert_done(BASE, VARIANT)
    assert (place.data / f"{DATA}.tsv").is_file()
    right = benchmark.make(DATA).set_index("index")["answer"]
    for model in (BASE, VARIANT):
        judged = pd.read_excel(place.work / model / f"{model}_{DATA}_exact_matching_result.xlsx").set_index("index")
        assert set(judged.index) == set(place.predictions(model)) == set(right.index)
        letters = judged[judged["prediction"].isin([*"ABCD"])]
        assert (letters["hit"] == (letters["prediction"] == right[letters.index])).all()
        assert place.accuracy(model)["Overall"] == pytest.approx(judged["hit"].mean())


def test_one_record_per_question_with_measured_equal_to_declared(stock):
    place, _ = stock
    for model, setting, images in ((BASE, "", [64] * 8), (VARIANT, "l2_k16", [64] * 2 + [16] * 6)):
        found = place.records(model)
        assert sorted(r["index"] for r in found) == sorted(benchmark.make(DATA)["index"])
        for record in found:
            assert (record["model"], record["base"], record["setting"]) == (model, BASE, setting)
            assert (record["image_tokens"], record["images_per_block"]) == (64, images)
            text = record["prompt_tokens"] - 64
            assert record["tokens"] == [text + n for n in images]
            assert record["kv_tokens"] == [n + record["new_tokens"] - 1 for n in record["tokens"]]
            assert record["average_image_tokens"] == sum(images) / 8
            kept = record["kept"].get("2", [])
            assert len(set(kept)) == (16 if setting else 0) and kept == sorted(kept)
            assert record["prefill_flops"] <= record["prefill_flops_untouched"] and record["prefill_ms"] > 0
    kept = {tuple(record["kept"]["2"]) for record in place.records(VARIANT)}
    assert len(kept) > QUESTIONS // 2  # ranked by question and picture, not one choice for all


def test_the_predictions_are_not_touched_by_the_records(stock):
    place, _ = stock
    table = pd.read_excel(place.work / VARIANT / f"{VARIANT}_{DATA}.xlsx")
    assert set(table.columns) == {*benchmark.make(DATA).columns, "prediction"} - {"image"}


def test_the_sheet_shows_both(stock):
    place, _ = stock
    done = place.sheet("s.xlsx")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith(BASE)}
    assert set(rows) == {BASE, VARIANT}
    assert f"{100 * place.accuracy(VARIANT)['Overall']:.1f}" in rows[VARIANT]
    assert " 28.0 " in rows[VARIANT] and "attention" in rows[VARIANT] and (place.work / "s.xlsx").stat().st_size > 1000


@pytest.mark.slow
def test_prompts_by_name_are_asked_scored_and_paired_with_their_own_base(stock, tmp_path):
    place = Workplace(tmp_path)
    plain, cut, beams = f"{BASE}_p-cqm", f"{VARIANT}_p-cqm", f"{VARIANT}_p-cqm_beam3"
    done = place.run(*HOST, "--model", plain, cut, beams, *EVALUATE)
    assert done.returncode == 0, done.stdout[-3000:]
    place.assert_done(plain, cut, beams)
    stock_prompts = {record["index"]: record["prompt_tokens"] for record in stock[0].records(BASE)}
    for model, setting in ((plain, "p-cqm"), (cut, "l2_k16_p-cqm"), (beams, "l2_k16_p-cqm_beam3")):
        found = place.records(model)
        assert {(record["base"], record["setting"]) for record in found} == {(BASE, setting)}
        assert all(record["prompt_tokens"] != stock_prompts[record["index"]] for record in found)
    assert {record["mode"] for record in place.records(beams)} == {"dropped"}
    assert place.sheet("s.csv").returncode == 0
    rows = pd.read_csv(place.work / "s.csv").set_index("model")
    drop = 100 * (place.accuracy(cut)["Overall"] - place.accuracy(plain)["Overall"])
    assert rows.loc[cut, "base"] == plain and rows.loc[cut, f"{DATA} delta"] == pytest.approx(drop)
    assert pd.isna(rows.loc[[plain, beams], f"{DATA} delta"]).all()
    assert rows.loc[beams, "note"] == f"no delta: base '{plain}_beam3' is not in this folder"


@pytest.mark.slow
def test_config_file_with_our_classes_gives_the_same_predictions(stock, tmp_path):
    place = Workplace(tmp_path)
    config = {
        "model": {
            "box_trunc_l2_k16": {"class": "TruncatedVLM", "base": BASE, "spec": "l2_k16"},
            "box": {"class": "LLaVA15", "model_path": BASE},
        },
        "data": {DATA: {"class": "RedRelShapes", "dataset": DATA}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = place.run(*HOST, "--config", str(tmp_path / "config.json"), "--judge", "exact_matching")
    assert done.returncode == 0, done.stdout[-3000:]
    place.assert_done("box_trunc_l2_k16", "box")
    assert place.predictions("box") == stock[0].predictions(BASE)
    assert place.predictions("box_trunc_l2_k16") == stock[0].predictions(VARIANT)
    assert {(r["base"], r["setting"]) for r in place.records("box_trunc_l2_k16")} == {(BASE, "l2_k16")}
    assert {(r["base"], r["setting"]) for r in place.records("box")} == {("box", "")}


def test_switched_off_the_host_knows_nothing_of_us(tmp_path):
    place = Workplace(tmp_path)
    benchmark.write(DATA, place.data)  # else the host would complain about the data first
    done = place.run(*HOST, "--model", BASE, *EVALUATE, REDREL_DISABLE="1")
    assert repr(BASE) in json.dumps(place.status(BASE)) and "KeyError" in done.stdout
    assert not list(place.work.rglob("*.xlsx")) and not list(place.work.rglob("*.jsonl"))


@pytest.mark.slow
def test_switched_off_redrel_run_still_works(stock, tmp_path):
    place = Workplace(tmp_path)
    args = ["-m", "redrel_vlmeval", "run", "--model", VARIANT, *EVALUATE, "--limit", "12"]
    done = place.run(*args, REDREL_DISABLE="1")
    assert done.returncode == 0, done.stdout[-3000:]
    found, whole = place.predictions(VARIANT), stock[0].predictions(VARIANT)
    assert len(found) == 12 and found == {index: whole[index] for index in found}
    assert len(place.records(VARIANT)) == 12


def test_wrong_names_are_explained_and_fail_their_cells(tmp_path):
    place = Workplace(tmp_path)
    deep, wrong = "redrel_tiny_trunc_l9_k1", "redrel_tiny_trunc_l2_k16_bst"
    done = place.run(*HOST, "--model", deep, wrong, *EVALUATE)
    said = " ".join(done.stdout.split())
    assert f"'{wrong}' is no variant: unknown rule 'bst': choose one of attention" in said
    assert f"did you mean '{VARIANT}'?" in said
    assert deep in said and "TruncationError" in said
    sheet = place.sheet("s.md")
    assert sheet.returncode == 1
    failed = [line for line in sheet.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    assert any(deep in line and "8" in line for line in failed) and any("_bst" in line for line in failed)
    assert not list(place.work.rglob("*.jsonl"))


def test_a_killed_run_resumes_to_the_same_sheet(stock, tmp_path):
    place = Workplace(tmp_path)
    command = [*HOST, "--model", BASE, VARIANT, *EVALUATE]
    file = place.work / VARIANT / f"{VARIANT}_{DATA}_redrel.jsonl"
    with open(tmp_path / "log", "w") as log:
        runner = subprocess.Popen(
            [sys.executable, *command, "--work-dir", str(place.work)],
            env=place.environment(),
            cwd=place.data,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 200
        while not file.exists() or file.read_bytes().count(b"\n") < 25:
            assert runner.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.005)
    finally:
        runner.send_signal(signal.SIGKILL)
        assert runner.wait(60) == -signal.SIGKILL
    before = file.read_bytes().count(b"\n")
    assert 25 <= before < QUESTIONS and not (place.work / VARIANT / f"{VARIANT}_{DATA}.xlsx").exists()

    done = place.run(*command, "--reuse")
    assert done.returncode == 0, done.stdout[-3000:]
    place.assert_done(BASE, VARIANT)
    for model in (BASE, VARIANT):
        assert place.predictions(model) == stock[0].predictions(model)
        assert place.accuracy(model) == stock[0].accuracy(model)
    lines = file.read_bytes().splitlines()
    assert QUESTIONS <= len(lines) < QUESTIONS + before  # what was saved before was not asked again
    assert len(place.records(BASE)) == QUESTIONS
    sheets = []
    for other in (place, stock[0]):
        assert other.sheet("s.csv").returncode == 0
        sheets.append(pd.read_csv(other.work / "s.csv"))
    pd.testing.assert_frame_equal(*sheets)


# torchrun asks for nccl, which needs GPUs; on CPUs the same workers talk through gloo
GLOO = """
import runpy, torch.distributed as dist
real = dist.init_process_group
dist.init_process_group = lambda backend=None, **kwargs: real("gloo", **kwargs)
runpy.run_module("vlmeval", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_two_torchrun_workers_share_the_questions(stock, tmp_path):
    place = Workplace(tmp_path)
    benchmark.write(DATA, place.data)
    (tmp_path / "gloo.py").write_text(GLOO)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "gloo.py")]
    done = place.run(*torchrun, "--model", VARIANT, *EVALUATE)
    assert done.returncode == 0, done.stdout[-3000:]
    place.assert_done(VARIANT)
    assert place.predictions(VARIANT) == stock[0].predictions(VARIANT)
    ranks = [{r["index"] for r in place.records(VARIANT, f"_rank{rank}")} for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == QUESTIONS // 2 and not ranks[0] & ranks[1]
    sheet = place.sheet("s.csv")
    assert sheet.returncode == 0 and pd.read_csv(place.work / "s.csv").loc[0, "average tokens"] == 28.0
