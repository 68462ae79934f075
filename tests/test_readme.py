"""The README's commands are run, its model names parsed, its file tree compared with the disk."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from redrel_vlmeval.demo import scenes
from redrel_vlmeval.names import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [
    line.split("  #")[0].split(" # ")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()
]
RUNNABLE = [command for command in COMMANDS if command.startswith("redrel ")]


def test_the_readme_has_its_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)
    assert any(c.startswith("redrel sheet") for c in RUNNABLE)
    others = [
        c
        for c in COMMANDS
        if not c.startswith(("redrel ", "make ", "pip install ", "python run.py ", "python -m vlmeval "))
    ]
    assert not others, f"the README has commands that no test looks at: {others}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--model" in c and c.startswith("python")])
def test_runner_commands_name_real_variants_and_options(command: str) -> None:
    words = shlex.split(command)
    models = words[words.index("--model") + 1 : words.index("--data")]
    assert [str(parse(m)) for m in models] == models
    assert any(parse(m).stages for m in models)
    assert [w for w in words if w.startswith("--")] == ["--model", "--data", "--judge"]


@pytest.mark.skipif(importlib.util.find_spec("vlmeval") is None, reason="needs a host (vlmeval): redrel demo runs it")
def test_redrel_commands_run_in_order_as_printed(tmp_path: Path) -> None:
    """All in one folder, one after the other; the demo leaves the outputs that the sheet reads."""
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment.pop("LMUData", None)
    (tmp_path / "LMU").mkdir()  # a benchmark that is not asked for by the demo would be made in the home folder
    scenes.render([scenes.Thing(9, "square", "blue"), scenes.Thing(30, "bar", "red")]).save(tmp_path / "picture.png")
    order = sorted(RUNNABLE, key=lambda c: ("demo" not in c, RUNNABLE.index(c)))
    for command in order:
        words = shlex.split(command)
        folders = {"LMUData": str(tmp_path / "LMU")} if "explain" in words else {}
        settings = {"cwd": tmp_path, "env": environment | folders, "capture_output": True, "text": True}
        done = subprocess.run(words, **settings, timeout=280)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        if "demo" in words:
            made = tmp_path / "outputs" / "demo"
            assert {"sheet.xlsx", "sheet.csv", "sheet.md", "page.html", "accuracy_against_keep.png"} <= {
                p.name for p in made.iterdir()
            }
            (tmp_path / "outputs" / "demo").rename(tmp_path / "moved")
            (tmp_path / "outputs").rmdir()
            (tmp_path / "moved").rename(tmp_path / "outputs")
    assert (tmp_path / "leaderboard.xlsx").stat().st_size > 5000
    assert len(list((tmp_path / "explained").glob("redrel_tiny_trunc_l2_k8_RedRelShapes_MINI_*.html"))) == 3
    assert (tmp_path / "drawn" / "redrel_tiny_picture_decoder_elementwise.png").stat().st_size > 5000


def test_the_file_tree_is_the_disk() -> None:
    tree = README.split("## Files")[1].split("```")[1]
    shown: set[str] = set()
    for line in tree.strip().splitlines():
        name = line.split()[0]
        shown.add(f"redrel_vlmeval/{name}" if line.startswith("  ") else name)
    package = {
        f"redrel_vlmeval/{p.name}{'/' * p.is_dir()}"
        for p in (ROOT / "redrel_vlmeval").iterdir()
        if not p.name.startswith("__")
    }
    package.discard("redrel_vlmeval/py.typed")
    assert {name for name in shown if name.startswith("redrel_vlmeval/") and name != "redrel_vlmeval/"} == package
    for name in shown:
        assert (ROOT / name).exists(), f"the README shows {name}, which does not exist"


def test_pictures_exist() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
