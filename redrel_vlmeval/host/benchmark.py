"""A benchmark of the host, and the table its models come from, for whoever asks questions as the runner does."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from redrel_vlmeval.host.runner import host_folder


def models(attach: Callable[[ModuleType], None]) -> Any:
    """The host's model table after ``attach`` has added our names and our benchmark.

    Raises:
        HostMissing: no VLMEvalKit.
    """
    host_folder()
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing the host asks the network
    config = importlib.import_module("vlmeval.config")
    attach(config)
    return config.supported_VLM


def dataset(name: str) -> Any:
    """The host's benchmark of that name, None where it has none."""
    return importlib.import_module("vlmeval.dataset").build_dataset(name)
