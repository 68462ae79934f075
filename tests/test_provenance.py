"""What a cell came from is read from the run's own files; secrets stay out, and a judge that did not run is told."""

from __future__ import annotations

import json
from pathlib import Path

import host_files as host
import pandas as pd
import pytest

from redrel_vlmeval.results.provenance import judge_ran
from redrel_vlmeval.results.reading import PROVENANCE, read


def told(folder: Path, model: str = "m") -> pd.Series:
    return read(folder).provenance.set_index("model").loc[model]


def test_every_cell_has_a_row(tmp_path: Path) -> None:
    host.pair(tmp_path)
    host.status(tmp_path / "bad", "bad", X={"status": "done", "error_message": "boom"})
    frame = read(tmp_path).provenance
    assert list(frame.columns) == PROVENANCE and frame["model"].tolist() == ["bad", host.BASE, host.VARIANT]
    row = frame.set_index("model").loc[host.VARIANT]
    assert (row["setting"], row["weights"], row["revision"], row["kernel"]) == ("l2_k16", "w", "sha256:1", "sdpa")
    assert (row["torch"], row["judge"], row["run"]) == ("2.0", "exact_matching", host.VARIANT)
    assert (row["prompt"], row["decoding"]) == ("stock", "greedy search")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/env/site-packages/vlmeval/__main__.py", ("ms", None)),
        ("/x/VLMEvalKit/run.py", ("upstream", "3a3d236a")),
        ("other.py", (None, None)),
    ],
)
def test_the_host_and_its_commit(tmp_path: Path, command: str, expected: tuple) -> None:
    """ms-vlmeval notes the commit of whatever repository it was installed inside of: that is not the host's."""
    host.scored(tmp_path / "m", "m", "X", 0.5)
    host.status(
        tmp_path / "m", "m", X={"status": "done"}, commit="3a3d236a", argv=[command, "--data", "X", "--judge-key", "s3"]
    )
    row = told(tmp_path)
    assert tuple(None if pd.isna(value) else value for value in row[["host", "commit"]]) == expected
    assert row["arguments"] == "--data X --judge-key ..."


def test_a_judge_that_did_not_run_is_told() -> None:
    read, random = "Match Log: A. ", "Match Log: Failed to predict, thus randomly generate one. . "
    table = {"prediction": ["A", "hm"], "log": [read, random]}
    assert judge_ran("gpt4", table) == "no: 1 of 2 answers were given a random letter"
    table["log"][1] = "Match Log: Failed in Prefetch, no GPT-based answer matching under `exact_matching` policy.. "
    assert judge_ran("gpt4", table) == "no: 1 of 2 answers were counted wrong without a judge"
    table["log"][1] = "Match Log: B. "
    assert judge_ran("gpt4", table) == "yes: it read 1 of 2 answers"
    assert judge_ran("gpt4", table | {"prediction": ["A", "B"]}).startswith("not needed")
    assert judge_ran("gpt4", {"extracted": ["Yes", "Unknown"]}) == "no: 1 of 2 answers were left unread"
    assert judge_ran("gpt4", {"eval_score": [1]}).startswith("no: this benchmark is scored by rule")
    assert judge_ran("exact_matching", table).startswith("yes")
    assert judge_ran(None, table) is None and judge_ran("gpt4", None) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ({"host": "ms"}, {"host": "upstream"}, "host differs (ms; base upstream)"),
        ({"host_version": "2"}, {"host_version": "1"}, "host version differs (2; base 1)"),
        ({"commit": "b"}, {"commit": "a"}, "commit differs (b; base a)"),
        ({"commit": "b"}, {}, "commit differs (b; base not known)"),
        ({}, {"host": "ms"}, "host differs (not known; base ms)"),
        ({"commit": "a", "arguments": "--data X"}, {"commit": "a", "arguments": "--data Y"}, ""),
    ],
)
def test_base_and_variant_pair_only_from_one_host(tmp_path: Path, ours: dict, theirs: dict, reason: str) -> None:
    host.pair(tmp_path, versions={})
    for model, run in ((host.VARIANT, ours), (host.BASE, theirs)):
        path = host.records(tmp_path / model, model, "X", versions={}, base=host.BASE)
        path.write_text(json.dumps({"version": 1, "run": run}) + "\n" + path.read_text())
    rows = read(tmp_path).scores
    row = rows[rows["headline"]].set_index("model").loc[host.VARIANT]
    assert row["note"] == (f"no delta: {reason}" if reason else "")
    assert pd.isna(row["delta"]) == bool(reason)
