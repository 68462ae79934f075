"""What a cell came from is read from the run's own files; secrets stay out, and a judge that did not run is told."""

from __future__ import annotations

from pathlib import Path

import host_files as host
import pandas as pd
import pytest

from redrel_vlmeval.provenance import arguments, judge_ran
from redrel_vlmeval.results import PROVENANCE, read


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
    assert (row["prompt"], row["beams"]) == ("stock", 1)


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


def test_secrets_are_left_out_of_arguments() -> None:
    assert arguments(["--judge-key", "s", "--key=s", "--api-token=t", "--keys", "2"]) == (
        "--judge-key ... --key=... --api-token=... --keys 2"
    )


def test_a_judge_that_did_not_run_is_told() -> None:
    table = pd.DataFrame({"log": ["Match Log: A. ", "Match Log: Failed to predict, thus randomly generate one. . "]})
    assert judge_ran("gpt4", table) == "no: 1 of 2 answers were given a random letter"
    table["log"] = "Match Log: Failed in Prefetch, no GPT-based answer matching under `exact_matching` policy.. "
    assert judge_ran("gpt4", table) == "no: 2 of 2 answers were counted wrong without a judge"
    assert judge_ran("exact_matching", table).startswith("yes")
    assert judge_ran(None, table) is None and judge_ran("gpt4", None) is None
