"""Efficiency records of a cell become one row, whatever a killed, resumed or many-process run left of them."""

from __future__ import annotations

import json
from pathlib import Path

import host_files as host
import pandas as pd
import pytest

from redrel_vlmeval.results.reading import read


def test_efficiency_is_means_and_medians_and_the_last_line_of_a_question_counts(tmp_path: Path) -> None:
    host.pair(tmp_path)
    path = tmp_path / host.VARIANT / f"{host.VARIANT}_X_redrel.jsonl"
    whole = path.read_text().split("\n")[:-1]
    again = json.loads(whole[0]) | {"prefill_ms": 90.0, "image_tokens": 128}
    path.write_text("\n".join([*whole, json.dumps(again), whole[-1][:30]]))
    row = read(tmp_path).efficiency.set_index("model").loc[host.VARIANT]
    assert row["n"] == 4 and row["image_tokens"] == 80 and row["kept"] == 16
    assert row["prefill_ms"] == 6, "a median: one slow question does not move it"
    assert row["flops_ratio"] == pytest.approx(0.6) and row["kv_ratio"] == pytest.approx(0.625)
    assert (row["backend"], row["versions"]) == ("transformers", "torch 2.0, vlmeval 1")


def test_records_of_the_run_that_was_resumed_are_counted(tmp_path: Path) -> None:
    """Upstream resumes into a new folder; the questions answered before the kill have their records in the old one."""
    old, new = tmp_path / "m" / "T20260101-000000", tmp_path / "m" / "T20260102-000000"
    host.records(old, "m", "X", indices=range(3))
    host.status(old, "m", X={"status": "infer"})
    host.scored(new, "m", "X", 0.5)
    host.records(new, "m", "X", indices=range(2, 4), prefill_ms=30.0)
    host.status(new, "m", X={"status": "done", "source_run": old.name})
    row = read(tmp_path).efficiency.iloc[0]
    assert row["n"] == 4 and row["prefill_ms"] == 20


def test_a_record_appended_to_a_torn_line_is_found(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    path = host.records(tmp_path / "m", "m", "X")
    with path.open("a") as stream:
        stream.write(json.dumps(json.loads(path.read_text().split("\n")[0]) | {"index": 99}) + "\n")
    assert read(tmp_path).efficiency.iloc[0]["n"] == 5


def test_unmeasured_fields_stay_empty(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    host.records(tmp_path / "m", "m", "X", prefill_flops=None, kernel=None, images_per_block=None, versions=None)
    row = read(tmp_path).efficiency.iloc[0]
    assert pd.isna(row[["prefill_flops", "flops_ratio", "kernel", "kept", "versions"]].astype(object)).all()
    assert row["kv_ratio"] == 1


def test_records_of_all_ranks_count_and_the_newest_of_a_question_wins(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    host.scored(folder, "m", "X", 0.5)
    path = host.records(folder, "m", "X", indices=(0, 2), time="2026-01-02T00:00:00Z")
    path.rename(folder / "m_X_redrel_rank0.jsonl")
    path = host.records(folder, "m", "X", indices=(1, 3, 2), prefill_ms=50.0, time="2026-01-01T00:00:00Z")
    path.rename(folder / "m_X_redrel_rank1.jsonl")
    host.records(folder, "m", "X_other", indices=range(50))
    row = read(tmp_path).efficiency.set_index("benchmark").loc["X"]
    assert row["n"] == 4 and row["prefill_ms"] == 30, "two of rank 0 at 10 ms, two of rank 1 at 50 ms"


def test_what_a_run_measured_is_in_its_row(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    measured = {"kv_bytes_measured": 500, "seconds": 0.25, "peak_bytes": 7_000, "new_tokens": 3}
    path = host.records(tmp_path / "m", "m", "X", tokens=[100, 100, 50, 50], **measured)
    path.write_text('{"version": 1, "run": {"host": "ms", "started": "2025-12-31T00:00Z"}}\n' + path.read_text())
    row = read(tmp_path).efficiency.iloc[0]
    assert (row["n"], row["kv_bytes_measured"], row["questions_per_second"]) == (4, 500, 4)
    assert (row["peak_bytes"], row["new_tokens"], row["tokens_per_block"]) == (7_000, 3, "100 x 2, 50 x 2")
    assert read(tmp_path).provenance.iloc[0]["date"] == "2025-12-31T00:00Z"
    old = host.records(tmp_path / "m", "m", "X", new_tokens=None)
    assert old.exists() and pd.isna(read(tmp_path).efficiency.iloc[0][["kv_bytes_measured", "peak_bytes"]]).all()
    assert read(tmp_path).provenance.iloc[0]["date"] == "2026-01-01T00:00Z"


def test_questions_that_failed_alone_are_named_and_the_sheet_ends_with_1(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    path = host.records(tmp_path / "m", "m", "X")
    bad = [{"version": 1, "index": n, "error": f"question {n} of X: its question is empty"} for n in range(90, 95)]
    path.write_text(path.read_text() + "".join(json.dumps(one) + "\n" for one in bad))
    found = read(tmp_path)
    said = "; ".join(f"question {n} of X: its question is empty" for n in (90, 91, 92)) + "; and 2 more"
    assert found.efficiency.iloc[0]["errors"] == said and found.failed == [("m", "X", said)]
    row = found.scores.iloc[0]
    assert row["status"] == "ok" and row["value"] == 50 and said in row["reason"]
    host.records(tmp_path / "m", "m", "X")
    assert read(tmp_path).failed == [] and read(tmp_path).efficiency["errors"].isna().all()
