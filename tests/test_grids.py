"""Grids hold every single-stage variant at its L and K, controls apart, and nothing else."""

from __future__ import annotations

from pathlib import Path

import host_files as host
import pytest

from redrel_vlmeval.results.grids import grids
from redrel_vlmeval.results.reading import category_curves, read

BASE = host.BASE


def write(folder: Path, setting: str, value: float, benchmark: str = "X") -> None:
    name = f"{BASE}_trunc_{setting}" if setting else BASE
    host.scored(folder / name, name, benchmark, value)


def test_scores_stand_at_their_layer_and_keep(tmp_path: Path) -> None:
    write(tmp_path, "", 0.75)
    for setting, value in {"l10_k8": 0.5, "l2_k8": 0.25, "l2_k128": 1.0, "l2_k8_random": 0.0}.items():
        write(tmp_path, setting, value)
    attention, control = grids(read(tmp_path))
    assert (attention.base, attention.benchmark, attention.rule, control.rule) == (BASE, "X", "attention", "random")
    assert (attention.layers, attention.keeps, attention.baseline) == ([2, 10], [8, 128], 75)
    assert attention.values.loc[2].tolist() == [25, 100]
    assert attention.values.loc[10, 8] == 50 and attention.values.isna().loc[10, 128]
    assert (control.layers, control.keeps, control.values.loc[2, 8]) == ([2], [8], 0)


def test_schedules_percentages_and_failures_have_no_place(tmp_path: Path) -> None:
    for setting in ("l1_k8_l2_k4", "l2_r50"):
        write(tmp_path, setting, 0.5)
    write(tmp_path, "l2_k8", 0.5)
    host.status(tmp_path / f"{BASE}_trunc_l2_k8", f"{BASE}_trunc_l2_k8", X={"status": "done", "error_message": "boom"})
    assert grids(read(tmp_path)) == []


def test_results_without_a_score_have_no_grid(tmp_path: Path) -> None:
    host.status(tmp_path / BASE, BASE, X={"status": "infer"})
    assert grids(read(tmp_path)) == []


def test_benchmarks_prompts_and_decoding_have_grids_and_curves_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "", 0.75)
    write(tmp_path, "l2_k8", 0.5)
    write(tmp_path, "l2_k8", 0.25, "Y")
    others = {"p-cqm": 1.0, "ppl": 0.0, "beam3": 0.75, "p-cqm_ppl": 0.25}
    for tail, value in others.items():
        write(tmp_path, f"l2_k8_{tail}", value)
    results = read(tmp_path)
    found = {(grid.base, grid.benchmark): grid for grid in grids(results)}
    assert set(found) == {(BASE, "X"), (BASE, "Y"), *((f"{BASE}_{tail}", "X") for tail in others)}
    for tail, value in others.items():
        points, baseline = category_curves(results, f"{BASE}_{tail}", "X")
        assert points.loc[points["category"] == "", "value"].tolist() == [100 * value] and not baseline
        assert found[f"{BASE}_{tail}", "X"].values.loc[2, 8] == 100 * value
    assert found[BASE, "X"].baseline == 75 and found[BASE, "Y"].baseline is None
    assert found[BASE, "Y"].values.loc[2, 8] == pytest.approx(25)
