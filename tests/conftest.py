"""Tiny random models of every supported family, built from configs: nothing is downloaded."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import modelbox
import pytest
import torch
from tiny_models import FAMILIES, TinyModel, build


@pytest.fixture(autouse=True)
def _determinism() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> TinyModel:
    """Each family in turn, float32, SDPA."""
    return build(request.param)


@pytest.fixture
def llava() -> TinyModel:
    return build("llava")


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
