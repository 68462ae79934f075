"""``redrel table``: what is planned, that only what is missing runs, what fails is named, and how it is written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import host_files
import pandas as pd
import pytest
from checkpoints import import_host, needs_host
from openpyxl import load_workbook

from redrel_vlmeval import bases
from redrel_vlmeval.errors import TruncationError, UnknownName
from redrel_vlmeval.models.tiny import benchmark
from redrel_vlmeval.names import parse
from redrel_vlmeval.sweep import Sweeper, plan as sweeping, run as sweep
from redrel_vlmeval.table import plan
from redrel_vlmeval.table.run import Request, run

DATA = "TableShapes"


@pytest.mark.parametrize("name", plan.presets())
def test_every_preset_is_of_settings_that_a_sweep_takes(name: str) -> None:
    wanted, preset = plan.read(name, None, None, None, None), plan.find(name)
    impossible = {"llava-next": ("FastV: no setting for a budget of 160 on LLaVA-NeXT, only for 640, 320",)}
    assert wanted.left_out == impossible.get(name, ()) and wanted.asked.data == preset.data
    assert len(wanted.asked.lines) == len(preset.methods) * len(preset.budgets) - len(wanted.left_out)
    found = sweeping.read_plan(preset.base, preset.data[0], settings=",".join(wanted.asked.settings))
    assert [spec.setting for spec in found.specs] == wanted.asked.settings
    row = bases.row(preset.base)
    assert row is None or row.tokens in (None, preset.tokens)


def test_a_control_that_draws_is_one_row_of_five_draws() -> None:
    (line,) = plan.read(None, "llava_v1.5_7b", "random", "64", "POPE").asked.lines
    assert line.settings[0] == "l0_k64_random_pos-new" and len(set(line.settings)) == 5
    assert [parse(setting).seed for setting in line.settings] == [0, 1, 2, 3, 4]
    (line,) = plan.read("qwen2.5-vl", None, "random", "11.1%", "POPE").asked.lines
    assert line.settings[1] == "l0_r11_random_seed1"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("nosuch", None, None, None, None), "--preset nosuch: choose one of llava15"),
        (("tiny", "llava_v1.5_7b", None, None, None), "--base llava_v1.5_7b: --preset tiny is of redrel_tiny"),
        ((None, None, None, None, None), "give --base, or --preset"),
        ((None, "redrel_tiny", "fastv", None, "X"), "--budgets: give at least one"),
        (("tiny", None, "fastv,nosuch", None, None), "--methods nosuch: unknown method .*or a control: random"),
        (("tiny", None, "fastv,fastv", None, None), "--methods: fastv given more than once"),
        (("tiny", None, "random", "some", None), "--budgets some: give tokens"),
        (("tiny", None, "fastv", "33", None), "nothing to run: FastV: no setting for a budget of 33"),
        ((None, "qwen_chat", "fastv", "64", "X"), "--base qwen_chat: no settings of methods are known for it"),
    ],
)
def test_what_means_nothing_is_refused_by_name(given: Any, words: str) -> None:
    with pytest.raises((plan.TableError, UnknownName), match=words):
        plan.read(*given)


def test_a_method_without_a_setting_is_left_out_and_named() -> None:
    wanted = plan.read("qwen2.5-vl", None, "cdpruner,fastv", "11.1%", "POPE")
    assert [line.method for line in wanted.asked.lines] == ["FastV"]
    assert "CDPruner: not offered on 28 blocks: needs CLIP's text tower" in wanted.left_out[0]


def test_a_dry_run_prints_cells_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    work = tmp_path / "new"
    assert run(Request("llava15", work_dir=work, dry_run=True)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "POPE: 0 of 46 cells are there" in said and not work.exists()
    (tmp_path / "LMUData").mkdir()  # a folder with other things in it, but no run
    assert run(Request(base="llava_next_vicuna_13b", methods="fastv", budgets="640", data="POPE", dry_run=True,
                       work_dir=tmp_path)) == 0  # fmt: skip
    assert "no price: a picture's tokens depend on the picture's size" in " ".join(capsys.readouterr().out.split())


WEIGHTS = {  # GiB in float16 of the decoder's blocks: 2 bytes x blocks x (4 w^2 or less, with grouped keys, + 3 w ffn)
    "llava15": 12.1, "llava-next": 12.1, "qwen2.5-vl": 12.2, "qwen3-vl": 12.9, "internvl3": 12.2, "tiny": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", plan.presets())
def test_every_preset_has_a_price(name: str, tmp_path: Path, capsys: Any) -> None:
    assert run(Request(name, work_dir=tmp_path / "new", dry_run=True)) == 0
    said = " ".join(capsys.readouterr().out.split())
    preset, row = plan.find(name), bases.row(plan.find(name).base)
    assert row is not None and preset.tokens, "a preset's base has its sizes, and a picture as large as papers have it"
    assert f"a prompt of 36 + {preset.tokens} image + 64 tokens, {row.blocks} blocks" in said
    assert ("as papers print them" in said) == (row.tokens is None), "what is assumed is said"
    priced = re.findall(r"FLOPs a question in one pass, ([\d.]+) of one by one; ([\d.e+-]+) hours", said)
    assert len(priced) == len(preset.data) and all(0 < float(share) < 1 < 1e9 * float(hours) for share, hours in priced)
    assert f"{WEIGHTS[name]} GiB for the decoder's weights" in said and "for a prompt's keys and values" in said


@pytest.fixture(scope="module")
def lmu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    table = benchmark.make("RedRelShapes").iloc[[*range(6), *range(240, 246)]]
    with host_files.lmu_data(tmp_path_factory.mktemp("LMUData"), DATA, table) as folder:
        yield folder


def swept(monkeypatch: pytest.MonkeyPatch, refuse: str = "") -> list[str]:
    """What each sweep is asked for; one that holds the setting ``refuse`` fails as a rule would make it."""
    asked: list[str] = []
    real, answers = sweep.run, Sweeper.answers

    def noted(request: Any, show: Any) -> int:
        asked.append(request.settings)
        if refuse and refuse in request.settings.split(","):
            raise TruncationError(f"redrel_tiny_trunc_{refuse}: rule 'visionzip': no tower here")
        return real(request, show)

    def together(self: Sweeper, messages: Any, **given: Any) -> Any:
        asked.append(f"{len(messages)} at once")
        return answers(self, messages, **given)

    monkeypatch.setattr(Sweeper, "answers", together)
    monkeypatch.setattr(sweep, "run", noted)
    return asked


@needs_host
@pytest.mark.timeout(300)
def test_only_what_is_missing_runs_and_what_fails_is_named(
    lmu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import_host()
    some = {"base": "redrel_tiny", "budgets": "24", "data": DATA, "work_dir": tmp_path}
    asked = swept(monkeypatch)
    assert run(Request(methods="fastv,random", batch=5, **some)) == 0
    assert [asked.pop() for _ in range(3)] == ["2 at once", "5 at once", "5 at once"]
    assert asked == ["l2_a24,l0_k24_random_pos-new," + ",".join(f"l0_k24_random_pos-new_seed{n}" for n in range(1, 5))]
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.xlsx") if path.name != "table.xlsx"}
    monkeypatch.undo()

    asked = swept(monkeypatch, refuse="l0_k24_visionzip_pos-new")
    capsys.readouterr()
    assert run(Request(methods="fastv,visionzip,downsample,random", **some)) == 1
    said = capsys.readouterr().out
    assert asked == ["l0_k24_visionzip_pos-new,l0_k24_downsample_pos-new", "l0_k24_downsample_pos-new"]
    assert "failed: redrel_tiny_trunc_l0_k24_visionzip_pos-new on TableShapes" in " ".join(said.split())
    assert all(path.stat().st_mtime_ns == at for path, at in first.items()), "what was there is left as it is"
    frame = pd.read_csv(tmp_path / "table.csv")
    assert list(frame["method"]) == ["redrel_tiny", "FastV", "VisionZip", "downsample", "random"]
    assert frame[DATA].isna().tolist() == [False, False, True, False, False] and frame[DATA][0] == 100
    assert frame["draws"][4].startswith("5: ") and frame["note"][2] == f"{DATA}: not run"
    assert frame["average tokens"][3] == 24
    monkeypatch.undo()

    asked = swept(monkeypatch)
    assert run(Request(methods="fastv,downsample", **some)) == 0 and asked == [], "nothing is missing"
    looks(tmp_path)


def looks(folder: Path) -> None:
    """Every format has the two rows and the base, with the same numbers."""
    frame = pd.read_csv(folder / "table.csv")
    value = f"{frame['mean'][1]:.1f} ["
    markdown, latex = ((folder / f"table.{kind}").read_text() for kind in ("md", "tex"))
    assert value in markdown.replace("\\", "") and value in latex and r"\toprule" in latex
    sheets = load_workbook(folder / "table.xlsx")
    assert {"Methods", "Downsampling"} <= set(sheets.sheetnames)
    page = (folder / "table.html").read_text(encoding="utf-8")
    assert 'id="methods"' in page and value in page and "Downsampling" in page


def table_command(work: Path) -> tuple[list[str], dict[str, str]]:
    words = ["--base", "redrel_tiny", "--methods", "fastv,dart", "--budgets", "24", "--data", DATA, "--work-dir"]
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return [sys.executable, "-m", "redrel_vlmeval", "table", *words, str(work)], variables


@pytest.mark.slow
@needs_host
@pytest.mark.timeout(600)
def test_a_killed_table_ends_the_same(lmu: Path, tmp_path: Path) -> None:
    """Killed with no warning while it asks; the same command again asks the rest, and writes the very same table."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command, variables = table_command(killed)
    dying = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    asked: list[str] = []
    while len(asked) < 3 and dying.poll() is None:
        time.sleep(0.02)
        asked = [line for path in killed.glob("sweep/*/answers*.jsonl") for line in path.read_text().splitlines()]
    dying.kill()
    assert dying.wait() == -signal.SIGKILL, "it was still running"
    assert not (killed / "table.csv").exists() and len(asked) < 13
    for work in (whole, killed):
        command, variables = table_command(work)
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    tables = [(work / "table.csv").read_text() for work in (whole, killed)]
    assert tables[0] == tables[1] and "FastV" in tables[0]
