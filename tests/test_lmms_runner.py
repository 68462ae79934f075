"""The real, unmodified lmms-eval in processes of its own on RedRelShapes, beside VLMEvalKit's runner on the same."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from checkpoints import needs_host
from typer.testing import CliRunner

from redrel_vlmeval import cli, results
from redrel_vlmeval.models.tiny import benchmark

needs_lmms = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed: redrel-vlmeval[lmms]"
)
pytestmark = [needs_lmms, pytest.mark.timeout(900)]
DATA, TASK = "RedRelShapes_FOURTH", "redrel_shapes_mini"
SETTINGS = ["", "l2_k16", "l2_k16_random", "l0_k0"]
TWICE = SETTINGS[:2]  # asked eight at a time, as the page of docs says, and one by one
BASE = "redrel_llava_hf.redrel-tiny-dtype.float32"
# One process, since each start costs seconds, and as where VLMEvalKit is not installed: importing it fails. The
# harness's own command, but its index of a thousand tasks, the same for all runs, is made once.
PROCESS = """
import functools, sys
sys.modules["vlmeval"] = None
import lmms_eval.__main__ as harness
from pyarrow import parquet
from redrel_vlmeval import cli

cli.app(["shapes", "outputs/tasks"], standalone_mode=False)
task = "outputs/tasks/redrel_shapes_mini/test.parquet"
every = parquet.read_table(task)
parquet.write_table(every.take(list(range(0, len(every), 4))), task)
harness.TaskManager = functools.cache(harness.TaskManager)
harness.cli_evaluate()
cli.app(["sheet", "outputs/alone", "-o", "alone.csv"], standalone_mode=False)
"""


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


def page() -> list[dict[str, object]]:
    """The runs of ``runs.yaml`` as docs have it: base and variant."""
    text = (Path(__file__).parent.parent / "docs/lmms-eval.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n# runs.yaml\n(.*?)```", text, re.S)
    return list(yaml.safe_load(block))


def questions() -> pd.DataFrame:
    """Every fourth: all kinds are among them."""
    return benchmark.make("RedRelShapes_MINI").iloc[::4]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lmms-eval leaves where there is no VLMEvalKit, asked a question or a batch of eight at once."""
    folder = tmp_path_factory.mktemp("hosts")
    base, variant = page()
    more = [base | {"model_args": f"{base['model_args']},trunc={setting}"} for setting in SETTINGS[2:]]
    alone = [one | {"batch_size": 1, "output_path": "outputs/alone"} for one in (base, variant)]
    (folder / "runs.yaml").write_text(yaml.safe_dump([base, variant, *more, *alone]))
    done = run(folder, "-c", PROCESS, "--config", "runs.yaml")
    assert done.returncode == 0 and "Error" not in done.stdout, done.stdout[-3000:]
    return folder


@pytest.fixture(scope="module")
def both(place: Path) -> results.Results:
    """VLMEvalKit's runner wrote beside the batches of lmms-eval, of a table of the same questions."""
    benchmark.written(questions(), DATA, place)
    models = ["redrel_tiny", *(f"redrel_tiny_trunc_{setting}" for setting in SETTINGS[1:])]
    words = ["--model", *models, "--data", DATA, "--judge", "exact_matching", "--work-dir", "outputs/lmms"]
    done = run(place, "-m", "vlmeval", *words)
    assert done.returncode == 0, done.stdout[-3000:]
    return results.read(place / "outputs/lmms")


def told(found: results.Results, model: str, data: str) -> pd.DataFrame:
    return found.answers(model, data).set_index("index")[["prediction", "hit", "answer"]]


def lmms_name(setting: str) -> str:
    return f"{BASE}_trunc_{setting}" if setting else BASE


def test_its_folder_is_read_where_there_is_no_other_host(place: Path) -> None:
    text = (place / "alone.csv").read_text()
    assert BASE in text and "l2_k16" in text


@pytest.mark.parametrize("setting", TWICE)
def test_a_batch_and_a_question_alone_are_answered_alike(place: Path, setting: str) -> None:
    read = (results.read(place / "outputs" / out) for out in ("lmms", "alone"))
    batch, alone = (told(found, lmms_name(setting), TASK) for found in read)
    pd.testing.assert_frame_equal(batch, alone)
    assert len(batch) == len(questions())


@needs_host
@pytest.mark.parametrize("setting", SETTINGS)
def test_scores_are_those_of_vlmevalkit_question_by_question(both: results.Results, setting: str) -> None:
    kit = told(both, f"redrel_tiny_trunc_{setting}" if setting else "redrel_tiny", DATA)
    ours = told(both, lmms_name(setting), TASK)
    ours.index = questions()["index"].astype(str)  # lmms-eval numbers documents from 0
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
        done = CliRunner().invoke(cli.app, [words[0], str(both.folder), words[1], str(tmp_path / words[2])])
        assert done.exit_code == 0, done.output
    assert BASE in (tmp_path / "r.html").read_text()
    assert (tmp_path / "figures" / BASE / TASK / "fig6.png").is_file()


@pytest.mark.parametrize("out, batch", [("alone", 1), ("lmms", 8)])
def test_efficiency_stands_in_the_samples_and_in_the_summary_of_a_run(place: Path, out: str, batch: int) -> None:
    found = results.read(place / "outputs" / out)
    rows = found.efficiency[found.efficiency["benchmark"] == TASK].set_index("setting")
    assert rows["kept"][TWICE].to_dict() == {"": 64, "l2_k16": 16}
    assert (rows["n"] == len(questions())).all() and str(batch) in str(rows["batch"]["l2_k16"])
    if batch == 1:
        assert (rows["kv_bytes_measured"] == rows["kv_bytes"]).all()
    scores = found.scores[found.scores["benchmark"] == TASK]
    headline = scores[(scores["setting"] == "l2_k16") & scores["headline"]]
    path = place / "outputs" / out / headline["path"].iloc[0]
    written = json.loads(path.read_text())
    assert written["throughput"]["avg_redrel_kept"] == 16
    assert written["throughput"]["avg_redrel_flops_ratio"] == pytest.approx(rows.loc["l2_k16", "flops_ratio"])
    samples = path.with_name(path.name.replace("_results.json", f"_samples_{TASK}.jsonl")).read_text()
    own = [json.loads(line)["token_counts"][0]["redrel"] for line in samples.splitlines()]
    assert [record["images_per_block"][-1] for record in own] == [16] * len(questions())
    assert max(record["batch"] for record in own) == batch and {record["setting"] for record in own} == {"l2_k16"}
    assert set(scores.loc[scores["setting"] == "", "metric"]) == {
        "exact_match", "one-hop", "two-hop", "three-hop", "text",
    }  # fmt: skip


def test_a_refusal_ends_the_command_of_the_page_as_failed(place: Path) -> None:
    text = (Path(__file__).parent.parent / "docs/lmms-eval.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m lmms_eval .*redrel_tiny.*$", text, re.M)
    words = shlex.split(command.replace("l2_k16", "l40_k2").replace("outputs/lmms", "refused"))
    done = run(place, *words[1:])
    assert done.returncode == 1 and "TruncationError" in done.stdout, done.stdout[-2000:]
    assert not (place / "refused").exists()


def test_a_broken_plugin_of_the_harness_does_not_shut_us_out(tmp_path: Path) -> None:
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
    assert "nosuch_module" in done.stdout


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
