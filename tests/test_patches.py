"""The patches apply to the host's real ``config.py``, and the patched file registers without the hook."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fakehost import ROOT, make_host, output

PATCHES = ROOT / "patches"
UPSTREAM = os.environ.get("REDREL_UPSTREAM")

# the real config names some hundred classes: this package has them all
ANY_CLASS = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""
USE = """
import vlmeval.config as c
from vlmeval.tools import cli
name = "llava_v1.5_7b_trunc_l5_k128"
known = "llava_v1.5_7b" in c.supported_VLM
print(known, len(c.supported_VLM) > 100, name in c.supported_VLM, cli() is c.supported_VLM)
import vlmeval.dataset as d
print(d.SUPPORTED_DATASETS)
"""


def added_lines(patch: str) -> list[str]:
    lines = (PATCHES / patch).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("+") and not line.startswith("+++")]


def installed_config() -> Path | None:
    spec = importlib.util.find_spec("vlmeval")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) / "config.py" if places else None


def host_with(config: Path, folder: Path) -> Path:
    host = make_host(folder, api=ANY_CLASS, vlm=ANY_CLASS)
    shutil.rmtree(host / "vlmeval/vlm")
    shutil.copyfile(config, host / "vlmeval/config.py")
    return host


def exercise(host: Path, command: list[str]) -> None:
    before = (host / "vlmeval/config.py").read_bytes()
    assert output(USE, host, REDREL_DISABLE="1").splitlines() == ["True True False True", "[]"]
    subprocess.run(command, cwd=host, check=True, capture_output=True, timeout=60)
    for disable in ("1", ""):  # alone, and together with the hook: once either way
        lines = output(USE, host, REDREL_DISABLE=disable).splitlines()
        assert lines == ["True True True True", "['RedRelShapes', 'RedRelPairs']"]
    subprocess.run([*command, "-R"], cwd=host, check=True, capture_output=True, timeout=60)
    assert (host / "vlmeval/config.py").read_bytes() == before


@pytest.mark.skipif(installed_config() is None, reason="no vlmeval installed")
@pytest.mark.skipif(shutil.which("patch") is None, reason="no patch command")
def test_patch_for_the_installed_host(tmp_path):
    config = installed_config()
    if (config.parents[1] / "run.py").exists():
        pytest.skip("the installed host is a checkout, not ms-vlmeval")
    exercise(host_with(config, tmp_path), ["patch", "-p1", "--fuzz=0", "-i", str(PATCHES / "ms-vlmeval.patch")])


@pytest.mark.skipif(not UPSTREAM, reason="REDREL_UPSTREAM names no VLMEvalKit checkout")
def test_patch_for_a_checkout(tmp_path):
    host = host_with(Path(UPSTREAM) / "vlmeval/config.py", tmp_path)
    exercise(host, ["git", "apply", str(PATCHES / "upstream.patch")])


def test_patched_host_works_after_the_package_is_gone(tmp_path):
    """What the patches add must not need us: the lines are run with the package made unimportable."""
    added = [line[1:] for line in added_lines("upstream.patch")]
    assert any("register_redrel" in line for line in added)
    host = make_host(tmp_path)
    with (host / "vlmeval/config.py").open("a") as file:
        file.write("\n".join(added) + "\n")
    gone = "sys.modules['_redrel_vlmeval_hook'] = None\nimport vlmeval.config as c; print(sorted(c.supported_VLM))"
    assert output(gone, host, REDREL_DISABLE="1") == "['host_7b']"


def test_both_patches_add_the_same_lines():
    lines = added_lines("upstream.patch")
    assert lines == added_lines("ms-vlmeval.patch") and 3 < len(lines) < 12
