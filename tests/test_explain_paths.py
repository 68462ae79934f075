"""What README and docs of 0.1.0 imported still comes from there, with a warning; the front needs no warning."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

from redrel_vlmeval import explain as front

OLD = [("asking", "ask_host"), ("flow", "flow"), ("gradcam", "Request"), ("gradcam", "explain")]


@pytest.mark.parametrize("module, name", OLD)
def test_an_old_path_gives_what_the_new_one_gives(module: str, name: str) -> None:
    old = importlib.import_module(f"redrel_vlmeval.explain.{module}")
    with pytest.warns(DeprecationWarning, match=f"redrel_vlmeval.explain.{module}.{name}: take it from redrel_vlmeval"):
        found = getattr(old, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found is getattr(front, name)


def test_old_and_new_imports_do_not_hide_one_another() -> None:
    code = """
import warnings
warnings.simplefilter("ignore")
from redrel_vlmeval.explain.asking import ask_host
from redrel_vlmeval.explain.flow import flow
from redrel_vlmeval.explain.gradcam import Request, explain
from redrel_vlmeval import explain as front
from redrel_vlmeval.explain import flow as again, explain as once_more
assert again is flow and once_more is explain and callable(flow) and front.Request is Request
import redrel_vlmeval.explain.draw.drawing, inspect
inspect.getmodule(flow)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_a_name_that_was_never_there_is_none() -> None:
    old = importlib.import_module("redrel_vlmeval.explain.flow")
    with pytest.raises(AttributeError, match="nosuch"):
        old.nosuch  # noqa: B018
