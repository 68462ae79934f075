"""``redrel figures`` draws any results: with tests and records or without, several bases, benchmarks and headlines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import host_files as host
import pandas as pd
import pytest
import report_box as box
from typer.testing import CliRunner

from redrel_vlmeval.cli import app
from redrel_vlmeval.results import read
from redrel_vlmeval.results.paired_tests import wilson
from redrel_vlmeval.sheets.figures import curves_of
from redrel_vlmeval.sheets.page import assemble

BASE = box.BASE
STEMS = {"fig6", "accuracy_against_keep", "heatmap", "frontier"}


def figures(folder: Path, out: Path) -> tuple[int, str, set[str]]:
    """Exit code, what was said, and the figures as paths below ``out``."""
    done = CliRunner().invoke(app, ["figures", str(folder), "-o", str(out)])
    return done.exit_code, done.output, {path.relative_to(out).as_posix() for path in out.rglob("*.png")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return box.write(tmp_path_factory.mktemp("outputs"))


def test_every_figure_of_the_stock_runners_results_and_their_numbers(folder: Path, tmp_path: Path) -> None:
    code, said, drawn = figures(folder, tmp_path / "out")
    assert code == 1 and "failed: redrel_tiny_trunc_l4_k8 on X: boom" in said
    assert drawn == {f"{BASE}/X/{stem}.png" for stem in STEMS}
    table = pd.read_csv(tmp_path / "out" / BASE / "X" / "curves.csv").set_index(["rule", "L", "K"])
    scores = read(folder).scores.query("headline").set_index("model")
    assert len(table) == 6 and table.loc[("random", 2, 8), "value"] == scores.loc[f"{BASE}_trunc_l2_k8_random", "value"]
    row = table.loc[("attention", 2, 8)]
    low, high = (100 * end for end in wilson(round(row["value"] * 40 / 100), 40))
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-3)
    assert row["delta low"] < row["delta"] < row["delta high"] and row["average tokens"] == 22


def test_the_page_shows_the_numbers_of_the_figures(folder: Path) -> None:
    (drawn,) = curves_of(read(folder), 2.0)
    data = box.data_of(assemble.html(read(folder)))
    for grid in data["grids"]:
        rows = drawn.frame[drawn.frame["rule"] == grid["rule"]].set_index(["L", "K"])["value"]
        shown = {(layer, keep): grid["values"][i][j] for i, layer in enumerate(grid["layers"])
                 for j, keep in enumerate(grid["keeps"])}  # fmt: skip
        assert {place: value for place, value in shown.items() if value is not None} == rows.to_dict()
    lines = {curve["category"]: curve for curve in data["curves"]}
    assert set(lines) == {"", *drawn.categories["category"]}
    assert {tuple(p[:4]) for p in lines[""]["points"]} == {
        (row["L"], row["K"], row["rule"], row["value"]) for row in drawn.frame.to_dict("records")
    }


def test_categories_have_intervals_where_their_questions_give_the_score(folder: Path) -> None:
    (drawn,) = curves_of(read(folder), 2.0)
    assert set(drawn.categories["category"]) == {"one", "two"}
    for row in drawn.categories.to_dict("records"):
        low, high = (100 * end for end in wilson(round(row["value"] * row["n"] / 100), int(row["n"])))
        assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_a_category_of_all_questions_is_not_drawn_twice(folder: Path) -> None:
    (drawn,) = curves_of(read(folder), 2.0)
    names = drawn.categories["category"].unique()
    assert len(names) > 1 and set(drawn.over_keep["category"]) == {"", *names}
    part = drawn.categories[drawn.categories["category"] == names[0]]
    assert set(replace(drawn, categories=part).over_keep["category"]) == {"", names[0]}, "a part of the questions"
    whole = part.assign(n=drawn.frame["n"].max())
    assert set(replace(drawn, categories=whole).over_keep["category"]) == {""}


def test_a_score_without_verdicts_records_or_base_is_drawn_all_the_same(tmp_path: Path) -> None:
    model = f"{BASE}_trunc_l2_k8"
    for name, value in {model: 0.5, f"{BASE}_trunc_l4_k8": 0.75}.items():
        host.scored(tmp_path / "in" / name, name, "Y", value)
        for path in (tmp_path / "in" / name).glob("*_result.xlsx"):
            path.unlink()
    code, _, drawn = figures(tmp_path / "in", tmp_path / "out")
    assert code == 0 and drawn == {f"{BASE}/Y/fig6.png", f"{BASE}/Y/accuracy_against_keep.png"}


def test_names_of_folders_are_names_anywhere_and_differ(tmp_path: Path) -> None:
    for benchmark in ("a:b", "a%3Ab"):
        for name, value in {BASE: 1.0, f"{BASE}_trunc_l2_k8": 0.5}.items():
            host.scored(tmp_path / "in" / name, name, benchmark, value)
    _, _, drawn = figures(tmp_path / "in", tmp_path / "out")
    assert {path.split("/")[1] for path in drawn} == {"a%3Ab", "a%253Ab"}


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    host.scored(tmp_path / BASE, BASE, "X", 0.5)
    done = CliRunner().invoke(app, ["figures", str(tmp_path), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1 and "nothing to draw" in str(done.exception) and not (tmp_path / "out").exists()
