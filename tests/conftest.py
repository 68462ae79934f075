"""What several tests begin with: tiny random models of every family (nothing is downloaded), and folders of results."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import signal
from pathlib import Path
from typing import Any

import modelbox
import pytest
import qwen_box
import sheet_files
import torch
from tiny_models import FAMILIES, TinyModel, build

from redrel_vlmeval import rules
from redrel_vlmeval.results.reading import Results, read
from redrel_vlmeval.rules import registry

# A shell without a terminal lets its background jobs ignore Ctrl-C, and so would every child of theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# With these, which few shells set, a program of ours keeps no words back and writes no bytecode: faults stay unseen.
for _name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_name, None)


@pytest.fixture(autouse=True)
def _determinism() -> None:
    torch.manual_seed(0)
    torch.set_grad_enabled(True)  # importing the host switches it off for the whole process


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> TinyModel:
    """Each family in turn, float32, SDPA."""
    return build(request.param)


@pytest.fixture
def llava() -> TinyModel:
    return build("llava")


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """The questions, in words, that a rule ``asked`` is told; it keeps the first tokens."""
    monkeypatch.setattr(registry, "_rules", dict(rules.known()))
    found = []

    @rules.rule("asked", needs={"question"}, says="that come first")
    def asked(seen, budget):
        found.append(seen.question)
        return list(range(budget))

    return found


@pytest.fixture(scope="module")
def classes():
    return modelbox.classes()


@pytest.fixture(scope="module")
def base():
    return modelbox.base_model()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    return modelbox.draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def asked(pictures):
    return modelbox.message(pictures, 0, modelbox.QUESTION)


@pytest.fixture(scope="module")
def qwen_folders(tmp_path_factory) -> dict[str, Path]:
    return qwen_box.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def qwen_models(qwen_folders) -> dict[str, Any]:
    return qwen_box.ours(qwen_folders)


@pytest.fixture(scope="module")
def qwen_pictures(tmp_path_factory) -> list[str]:
    return qwen_box.draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def no_environment(monkeypatch) -> None:
    """No device or dtype is chosen from outside."""
    monkeypatch.delenv("REDREL_DEVICE", raising=False)
    monkeypatch.delenv("REDREL_DTYPE", raising=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Runs of every state beside each other: finished, failed, partial, without a rule."""
    out = tmp_path_factory.mktemp("outputs")
    sheet_files.mixed(out)
    return read(out)


@pytest.fixture
def clear(tmp_path: Path) -> Results:
    """A base and variants that are better and worse beyond chance."""
    sheet_files.clear(tmp_path)
    return read(tmp_path)
