"""A variant is set against its base only where both ran alike; otherwise the note names the field and both values."""

from __future__ import annotations

import shutil
from pathlib import Path

import host_files as host
import pandas as pd
import pytest

from redrel_vlmeval.results.reading import category_curves, read


def _delta(folder: Path) -> tuple[float, str]:
    rows = read(folder).scores
    row = rows[(rows["model"] == host.VARIANT) & rows["headline"]].iloc[0]
    return row["delta"], row["note"]


def test_delta_is_points_to_the_base_and_the_name_is_taken_apart(tmp_path: Path) -> None:
    host.pair(tmp_path)
    assert _delta(tmp_path) == (-25.0, "")
    row = read(tmp_path).scores.set_index("model").loc[host.VARIANT].iloc[0]
    assert (row["base"], row["setting"], row["L"], row["K"], row["rule"]) == (host.BASE, "l2_k16", 2, 16, "attention")
    found = read(tmp_path)
    assert {str(frame[name].dtype) for frame in (found.scores, found.efficiency) for name in "LK"} == {"Int64"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("backend", "llava"), ("device", "cuda"), ("dtype", "float16"), ("kernel", "eager"), ("weights", "v"),
     ("revision", "sha256:2")],
)  # fmt: skip
def test_no_delta_across_different_settings(tmp_path: Path, field: str, value: str) -> None:
    host.pair(tmp_path, **{field: value})
    delta, note = _delta(tmp_path)
    assert pd.isna(delta) and note.startswith(f"no delta: {field} differs ({value}")


def test_no_delta_across_versions_and_only_those_that_differ_are_named(tmp_path: Path) -> None:
    host.pair(tmp_path, versions={"torch": "2.1", "vlmeval": "1", "transformers": "5.0"})
    delta, note = _delta(tmp_path)
    assert pd.isna(delta) and note == "no delta: versions differ (torch 2.1; base torch 2.0)"
    host.pair(tmp_path, versions={"vlmeval": "1", "torch": "2.0", "transformers": "5.0"})
    assert _delta(tmp_path) == (-25.0, ""), "a version that only one side tells of is no difference"


def test_no_delta_across_judges(tmp_path: Path) -> None:
    host.pair(tmp_path)
    folder, name = tmp_path / host.VARIANT, f"{host.VARIANT}_X_{{}}_result.xlsx"
    (folder / name.format("exact_matching")).rename(folder / name.format("openai"))
    delta, note = _delta(tmp_path)
    assert pd.isna(delta) and note == "no delta: judge differs (openai; base exact_matching)"


def test_no_delta_across_other_questions_of_the_same_number(tmp_path: Path) -> None:
    host.pair(tmp_path)
    host.answered(tmp_path / host.VARIANT, host.VARIANT, "X", [1, 1, 0, 0], index=["0", "1", "2", "9"])
    delta, note = _delta(tmp_path)
    assert pd.isna(delta) and note == "no delta: 1 of 4 questions were not asked of the base (index '9')"


def test_no_delta_without_base_records_or_equal_counts(tmp_path: Path) -> None:
    host.pair(tmp_path)
    host.scored(tmp_path / host.VARIANT, host.VARIANT, "X", 0.5, count=2)
    assert pd.isna(_delta(tmp_path)[0]) and "2 questions, base 4" in _delta(tmp_path)[1]
    host.scored(tmp_path / host.VARIANT, host.VARIANT, "X", 0.5)
    (tmp_path / host.BASE / f"{host.BASE}_X_redrel.jsonl").unlink()
    assert pd.isna(_delta(tmp_path)[0]) and "base has no efficiency records" in _delta(tmp_path)[1]
    host.status(tmp_path / host.BASE, host.BASE, X={"status": "done", "error_message": "boom"})
    assert pd.isna(_delta(tmp_path)[0]) and f"base '{host.BASE}' is failed" in _delta(tmp_path)[1]
    shutil.rmtree(tmp_path / host.BASE)
    assert pd.isna(_delta(tmp_path)[0]) and "is not in this folder" in _delta(tmp_path)[1]


PAIRS = {
    "": None, "_trunc_l2_k16": "", "_p-cqm": None, "_trunc_l2_k16_p-cqm": "_p-cqm", "_beam3": None,
    "_trunc_l2_k16_beam3": "_beam3", "_p-cqm_beam3": None, "_trunc_l2_k16_p-cqm_beam3": "_p-cqm_beam3",
}  # fmt: skip


def test_a_variant_pairs_only_with_the_same_prompt_and_beams(tmp_path: Path) -> None:
    value = {tail: number / 8 for number, tail in enumerate(PAIRS)}
    for tail in PAIRS:
        name = f"{host.BASE}{tail}"
        host.scored(tmp_path / name, name, "X", value[tail], count=8)
        host.records(tmp_path / name, name, "X", indices=range(8))
    rows = read(tmp_path).scores
    rows = rows[rows["headline"]].set_index("model")
    for tail, other in PAIRS.items():
        row = rows.loc[f"{host.BASE}{tail}"]
        assert row["note"] == "" and row["setting"] == tail.removeprefix("_trunc").removeprefix("_")
        if other is None:
            assert row["base"] == f"{host.BASE}{tail}" and pd.isna(row["delta"])
        else:
            assert (row["base"], row["delta"]) == (f"{host.BASE}{other}", 100 * (value[tail] - value[other]))
    curves, baseline = category_curves(read(tmp_path), host.BASE, "X")
    assert curves["value"].tolist() == [12.5, 12.5] and baseline[""] == 0


def test_without_the_base_of_its_own_prompt_a_variant_has_no_delta(tmp_path: Path) -> None:
    host.pair(tmp_path)
    name = f"{host.VARIANT}_p-cqm"
    host.scored(tmp_path / name, name, "X", 0.5)
    host.records(tmp_path / name, name, "X")
    row = read(tmp_path).scores.drop_duplicates("model").set_index("model").loc[name]
    assert pd.isna(row["delta"]) and row["note"] == f"no delta: base '{host.BASE}_p-cqm' is not in this folder"
