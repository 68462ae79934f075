"""The real, unmodified lmms-eval in processes of its own on RedRelShapes, beside VLMEvalKit's runner on the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from checkpoints import needs_host

from redrel_vlmeval import results
from redrel_vlmeval.models.tiny import benchmark

needs_lmms = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed: redrel-vlmeval[lmms]"
)
pytestmark = [needs_lmms, pytest.mark.timeout(900)]
DATA, TASK = "RedRelShapes_MINI", "redrel_shapes_mini"
SETTINGS = ["", "l2_k16", "l2_k16_random", "l0_k0"]
BATCHES = {8: "batch", 1: "alone"}
TWICE = SETTINGS[:2]  # asked one by one, too
ALONE = "import sys; sys.modules['vlmeval'] = None; "  # as where VLMEvalKit is not installed: importing it fails
# The harness's own command, but its index of a thousand tasks, the same for all runs, is made once.
COMMAND = ALONE + (
    "import functools, lmms_eval.__main__ as harness; "
    "harness.TaskManager = functools.cache(harness.TaskManager); harness.cli_evaluate()"
)
BASE = "redrel_llava_hf.redrel-tiny-dtype.float32"


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python WORDS`` in a folder where nothing can be downloaded."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    own |= {"LMUData": str(folder), "REDREL_DEVICE": "cpu", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    kept = {name: value for name, value in os.environ.items() if name not in ("REDREL_DISABLE", "REDREL_DTYPE")}
    return subprocess.run(
        [sys.executable, *words],
        env=kept | own | variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
    )


def arguments(setting: str) -> str:
    words = ["pretrained=redrel_tiny", "device=cpu", "device_map=cpu", "dtype=float32"]
    return ",".join([*words, f"trunc={setting}"] if setting else words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lmms-eval leaves where there is no VLMEvalKit, asked a question or a batch of eight at once."""
    folder = tmp_path_factory.mktemp("hosts")
    made = run(folder, "-c", ALONE + "from redrel_vlmeval import cli; cli.main()", "shapes", "tasks")
    assert made.returncode == 0, made.stdout
    common = {"model": "redrel_llava_hf", "tasks": TASK, "include_path": "tasks", "log_samples": True}
    runs = [
        common | {"model_args": arguments(setting), "batch_size": size, "output_path": out}
        for size, out in BATCHES.items()
        for setting in (SETTINGS if size > 1 else TWICE)
    ]
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs))
    done = run(folder, "-c", COMMAND, "--config", "runs.yaml")
    assert done.returncode == 0 and "Error" not in done.stdout, done.stdout[-3000:]
    return folder


@pytest.fixture(scope="module")
def both(place: Path) -> results.Results:
    """VLMEvalKit's runner wrote beside the batches of lmms-eval."""
    models = ["redrel_tiny", *(f"redrel_tiny_trunc_{setting}" for setting in SETTINGS[1:])]
    words = ["--model", *models, "--data", DATA, "--judge", "exact_matching", "--work-dir", "batch"]
    done = run(place, "-m", "vlmeval", *words)
    assert done.returncode == 0, done.stdout[-3000:]
    return results.read(place / "batch")


def told(found: results.Results, model: str, data: str) -> pd.DataFrame:
    return found.answers(model, data).set_index("index")[["prediction", "hit", "answer"]]


def lmms_name(setting: str) -> str:
    return f"{BASE}_trunc_{setting}" if setting else BASE


def test_its_folder_is_read_where_there_is_no_other_host(place: Path, tmp_path: Path) -> None:
    command = ALONE + "from redrel_vlmeval import cli; cli.main()"
    done = run(tmp_path, "-c", command, "sheet", str(place / "alone"), "-o", "s.csv")
    assert done.returncode == 0 and "worse than the base" in (tmp_path / "s.csv").read_text(), done.stdout


@pytest.mark.parametrize("setting", TWICE)
def test_a_batch_and_a_question_alone_are_answered_alike(place: Path, setting: str) -> None:
    batch, alone = (told(results.read(place / out), lmms_name(setting), TASK) for out in ("batch", "alone"))
    pd.testing.assert_frame_equal(batch, alone)
    assert len(batch) == len(benchmark.make(DATA))


@needs_host
@pytest.mark.parametrize("setting", SETTINGS)
def test_scores_are_those_of_vlmevalkit_question_by_question(both: results.Results, setting: str) -> None:
    kit = told(both, f"redrel_tiny_trunc_{setting}" if setting else "redrel_tiny", DATA)
    ours = told(both, lmms_name(setting), TASK)
    ours.index = benchmark.make(DATA)["index"].astype(str)  # lmms-eval numbers documents from 0
    assert ours.to_dict() == kit.loc[ours.index].to_dict()


@needs_host
def test_one_sheet_holds_both_hosts_and_pairs_neither_with_the_other(both: results.Results, tmp_path: Path) -> None:
    scores = both.scores[both.scores["headline"]]
    assert set(scores["benchmark"]) == {DATA, TASK} and set(scores["status"]) == {"ok"} and len(scores) == 8
    assert set(scores.loc[scores["benchmark"] == TASK, "base"]) == {BASE}
    assert scores["delta"].notna().sum() == 6  # each host's variants beside its own base
    points = {data: rows.set_index("setting")["value"].to_dict() for data, rows in scores.groupby("benchmark")}
    assert points[DATA] == pytest.approx(points[TASK])
    hosts = both.provenance.groupby("benchmark")["host"].unique().map(list).to_dict()
    assert hosts == {DATA: ["ms"], TASK: ["lmms-eval"]} or hosts == {DATA: ["upstream"], TASK: ["lmms-eval"]}
    for words in (["sheet", "-o", "s.xlsx"], ["report", "-o", "r.html"], ["figures", "-o", "figures"]):
        done = run(tmp_path, "-m", "redrel_vlmeval", words[0], str(both.folder), *words[1:])
        assert done.returncode == 0, done.stdout
    assert BASE in (tmp_path / "r.html").read_text()


def test_efficiency_stands_in_the_samples_and_in_the_summary_of_a_run(place: Path) -> None:
    found = results.read(place / "alone")
    rows = found.efficiency.set_index("setting")
    assert rows["kept"].to_dict() == {"": 64, "l2_k16": 16}
    assert (rows["n"] == len(benchmark.make(DATA))).all() and (rows["kv_bytes_measured"] == rows["kv_bytes"]).all()
    scores = found.scores[(found.scores["setting"] == "l2_k16") & found.scores["headline"]]
    written = yaml.safe_load((place / "alone" / scores["path"].iloc[0]).read_text())
    assert written["throughput"]["avg_redrel_kept"] == 16
    assert written["throughput"]["avg_redrel_flops_ratio"] == pytest.approx(rows.loc["l2_k16", "flops_ratio"])
    assert set(found.scores.loc[found.scores["setting"] == "", "metric"]) == {
        "exact_match", "one-hop", "two-hop", "three-hop", "text",
    }  # fmt: skip


def test_a_refusal_ends_the_harness_as_failed(place: Path) -> None:
    words = ["--model", "redrel_llava_hf", "--model_args", arguments("l40_k2"), "--tasks", TASK]
    done = run(place, "-m", "lmms_eval", *words, "--include_path", "tasks", "--output_path", "refused")
    assert done.returncode == 1 and "TruncationError" in done.stdout, done.stdout[-2000:]
    assert not (place / "refused").exists()


@pytest.mark.parametrize("broken", [True, False])
def test_a_broken_plugin_of_the_harness_does_not_shut_us_out(tmp_path: Path, broken: bool) -> None:
    if broken:
        plugin = tmp_path / "broken-1.dist-info"
        plugin.mkdir()
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
        (plugin / "entry_points.txt").write_text("[lmms_eval.models]\nbroken = nosuch_module:manifests\n")
    code = "import sys; from lmms_eval.models import list_available_models, get_model_manifest as found; "
    code += "assert 'redrel_vlmeval.lmms.models' not in sys.modules and 'transformers' not in sys.modules; "
    code += "print(found('redrel_llava_hf').chat_class_path, found('llava_hf').chat_class_path)"
    done = run(tmp_path, "-c", code, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert done.returncode == 0, done.stdout
    assert "redrel_vlmeval.lmms.models.redrel_llava_hf lmms_eval.models.chat.llava_hf.LlavaHf" in done.stdout
    assert ("nosuch_module" in done.stdout) == broken


def test_where_ours_is_broken_the_harness_has_all_others(tmp_path: Path) -> None:
    plugin = tmp_path / "zebra-1.dist-info"  # read after ours
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: zebra\nVersion: 1\n")
    (plugin / "entry_points.txt").write_text("[lmms_eval.models]\nzebra = zebra:manifests\n")
    (tmp_path / "zebra.py").write_text(
        "from lmms_eval.models.registry_v2 import ModelManifest\n"
        "def manifests():\n    return [ModelManifest(model_id='zebra', chat_class_path='zebra.Zebra')]\n"
    )
    code = "import redrel_vlmeval.lmms.door as door; door.DOORS['redrel_odd'] = None; "
    code += "from lmms_eval.models import list_available_models as known; print(sorted(known()))"
    done = run(tmp_path, "-c", code, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert done.returncode == 0, done.stdout
    assert "'zebra'" in done.stdout and "'llava_hf'" in done.stdout and "'redrel_llava_hf'" not in done.stdout
    assert "redrel-vlmeval: not registered with lmms-eval (AttributeError" in done.stdout
