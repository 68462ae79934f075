"""A grid from output folders through tables and frames to figures: numbers that were put in come out."""

from __future__ import annotations

from math import inf
from pathlib import Path
from xml.etree import ElementTree

import host_files as host
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from redrel_vlmeval.results import choosing, grid as grids, noninferiority, paired_tests
from redrel_vlmeval.results.choosing import Budget
from redrel_vlmeval.results.reading import category_curves, read
from redrel_vlmeval.sheets.figures import grid as gridfigures, outcome

BASE = host.BASE
LAYERS, KEEPS, N = (1, 2, 4), (0, 8), 200
# Questions of N that the setting gets wrong and the base right.
WRONG = {(1, 0): 120, (2, 0): 60, (4, 0): 0, (1, 8): 70, (2, 8): 0, (4, 8): 0}
TOKENS = {(layer, keep): (layer * 64 + (8 - layer) * keep) / 8 for layer in LAYERS for keep in KEEPS}
BASE_HITS = [1] * 180 + [0] * 20


def hits(wrong: int) -> list[int]:
    return [0] * wrong + [1] * (180 - wrong) + [0] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base and a grid of six, with records; letter logits in them, and a random control of one cell."""
    place = tmp_path_factory.mktemp("outputs")
    write(place, BASE, BASE_HITS, 64.0, 4.0)
    for (layer, keep), wrong in WRONG.items():
        write(place, f"{BASE}_trunc_l{layer}_k{keep}", hits(wrong), TOKENS[layer, keep], layer + keep / 10)
    write(place, f"{BASE}_trunc_l1_k8_random", hits(90), TOKENS[1, 8], 1.0)
    write(place, f"{BASE}_trunc_l1_k8_l2_k0", hits(150), 3.0, 1.0)  # two stages have no place in a grid
    return place


def write(place: Path, model: str, verdicts: list[int], tokens: float, margin: float) -> None:
    host.answered(place / model, model, "X", verdicts)
    logits = {"A": margin, "B": 0.0, "C": -1.0}
    flops = {"average_image_tokens": tokens, "prefill_flops": 1e9 * (1 + tokens / 64), "letter_logits": logits}
    host.records(place / model, model, "X", range(N), **flops)


@pytest.fixture(scope="module")
def grid(folder) -> grids.Scores:
    (found,) = grids.grids_of(read(folder))
    return found


def test_the_grid_holds_single_stage_cells_and_their_questions(grid):
    assert (grid.base, grid.benchmark, len(grid.cells), grid.baseline) == (BASE, "X", 7, 90.0)
    assert set(grid.cells["rule"]) == {"attention", "random"}
    for row, cell in enumerate(grid.cells.itertuples()):
        wrong = WRONG[cell.L, cell.K] if cell.rule == "attention" else 90
        assert grid.after[row].sum() == 180 - wrong and cell.tokens == TOKENS[cell.L, cell.K]


def test_questions_are_paired_by_index(tmp_path):
    host.answered(tmp_path / BASE, BASE, "X", BASE_HITS)
    name = f"{BASE}_trunc_l1_k0"
    host.answered(tmp_path / name, name, "X", hits(60)[::-1], index=range(N - 1, -1, -1))
    (found,) = grids.grids_of(read(tmp_path))
    assert (found.after[0] == hits(60)).all()


def test_variants_that_were_not_run_like_their_base_take_no_part(tmp_path):
    host.pair(tmp_path, kernel="eager")
    assert grids.grids_of(read(tmp_path)) == []


def test_curves_have_the_scores_and_intervals_around_them(grid):
    frame = grids.curves(grid, 2.0).set_index(["rule", "L", "K"])
    for (layer, keep), wrong in WRONG.items():
        row = frame.loc[("attention", layer, keep)]
        assert row["value"] == pytest.approx((180 - wrong) / 2) and row["delta"] == pytest.approx(-wrong / 2)
        like_sheets = paired_tests.compare(BASE_HITS, hits(wrong))
        assert (row["delta low"], row["delta high"]) == pytest.approx((like_sheets.low, like_sheets.high))
        assert row["delta low"] < row["delta"] < row["delta high"], "no flip is no proof of equality"
        assert row["low"] < row["value"] < row["high"]
        assert (row["p not worse"] < 0.05) == (wrong == 0)
        assert row["FLOPs ratio"] == pytest.approx((1 + TOKENS[layer, keep] / 64) / 2)


def test_each_k_has_its_cliff(grid):
    found = grids.cliff_layers(grid, 2.0).set_index(["rule", "K"])
    ends = {key: (row["at least"], row["at most"]) for key, row in found.iterrows()}
    assert ends == {("attention", 0): (3, 4), ("attention", 8): (2, 2), ("random", 8): (2, inf)}
    assert found.loc[("attention", 0), "layers"] == "1 to 4"


@pytest.mark.parametrize(
    "pictures, what",
    [(list(range(40)), "questions"), ([n // 2 for n in range(40)], "pictures")],
)
def test_too_few_questions_are_no_verdict(pictures, what, capsys):
    """No answer changed, and with so few nothing follows from that; a layer that fails among enough is still none."""
    cells = pd.DataFrame({"model": ["a", "b"], "rule": "attention", "L": [1, 2], "K": 8, "tokens": 1.0, "flops": 0.5})
    same = grids.Scores(BASE, "X", cells, np.ones(40), np.ones((2, 40)), pictures)
    found = grids.cliff_layers(same, 2.0)
    assert found["at most"].tolist() == [inf] and found["units"].item() == len(set(pictures))
    outcome._print_cliffs(found, 2.0, Console(width=80))
    said = capsys.readouterr().out
    assert (
        f"too few {what} to say at most ({len(set(pictures))} of {noninferiority.fewest(2.0)})" in said
        and "at least" not in said
    )
    worse = grids.Scores(BASE, "X", cells, np.ones(400), np.zeros((2, 400)), list(range(400)))
    outcome._print_cliffs(grids.cliff_layers(worse, 2.0), 2.0, Console(width=80))
    assert "at least 3  " in (said := capsys.readouterr().out) and "too few" not in said


def test_what_is_said_of_cliffs_fits_the_terminal(grid, capsys):
    outcome._print_cliffs(grids.cliff_layers(grid, 2.0), 2.0, Console(width=80, force_terminal=True))
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= 80 and said[1].startswith("Cliff layer")


@pytest.mark.parametrize("text, limit, flops", [("128", 128, False), (" 60% ", 60, True), ("7.5", 7.5, False)])
def test_budgets_are_read(text, limit, flops):
    assert Budget.read(text) == Budget(limit, flops)


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "60%%", "inf"])
def test_budgets_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="--budget"):
        Budget.read(text)


def test_the_best_within_a_budget_is_chosen_by_score_and_then_by_cost(grid):
    assert choosing.best(grid, Budget(21.9)).model == f"{BASE}_trunc_l2_k0"  # 16 tokens; l1_k8 has 15 and is worse
    assert choosing.best(grid, Budget(64)).model == f"{BASE}_trunc_l2_k8"  # as good as l4_k0 and l4_k8, and cheaper
    assert choosing.best(grid, Budget(7.9)) is None
    assert choosing.best(grid, Budget(63, flops=True)).model == f"{BASE}_trunc_l2_k0"


def test_the_winner_is_reported_on_questions_that_did_not_choose_it(grid):
    """Settings that are right by coin toss: the winner looks far better where it was chosen than elsewhere."""
    rng = np.random.default_rng(3)
    settings, rise = 60, []
    cells = pd.DataFrame({"model": [f"m{n}" for n in range(settings)], "rule": "attention", "L": range(settings)})
    cells = cells.assign(K=0, tokens=1.0, flops=0.5)
    for _ in range(20):
        after = (rng.random((settings, 200)) < 0.5).astype(float)
        found = choosing.best(grids.Scores(BASE, "X", cells, np.ones(200), after, list(range(200))), Budget(5))
        assert found.comparison.n == 100 and found.candidates == settings
        rise.append((found.chosen_on, found.score))
    chosen, reported = np.mean(rise, axis=0)
    assert chosen > 58 and 47 < reported < 53


def test_questions_of_one_picture_stay_on_one_side():
    pictures = [number // 50 for number in range(200)]
    cells = pd.DataFrame([{"model": "m", "rule": "attention", "L": 1, "K": 0, "tokens": 1.0, "flops": 0.5}])
    right = np.array([[float(picture in (0, 1)) for picture in pictures]])
    found = choosing.best(grids.Scores(BASE, "X", cells, np.ones(200), right, pictures), Budget(5))
    assert found.chosen_on + found.score == 100 and found.chosen_on % 50 == 0


def test_the_frontier_is_what_nothing_beats(grid):
    found = grids.frontier(grids.curves(grid, 2.0))
    assert [f"l{row.L}_k{row.K}" for row in found.itertuples()] == ["l1_k0", "l1_k8", "l2_k0", "l2_k8"]
    values = found["value"].tolist()
    assert values == sorted(values) == sorted(set(values))


def test_everything_is_printed_and_written(folder, grid, tmp_path, capsys):
    console = Console(width=250)
    code = outcome.show(read(folder), BASE, "X", tmp_path, console, 2.0, Budget(64))
    said = capsys.readouterr().out
    assert code == 0 and "Chosen on one half" in said and f"{BASE}_trunc_l2_k8 (22)" in said
    lines = [line.split() for line in said.splitlines() if line.startswith(("attention", "random"))]
    assert [line[:3] for line in lines] == [["attention", "0", "at"], ["attention", "8", "at"], ["random", "8", "at"]]
    assert "at least 3, at most 4" in said and "at least 2, at most 2" in said
    names = {path.name for path in tmp_path.iterdir()}
    figures = {
        f"{stem}.{kind}" for stem in ("fig6", "heatmap", "frontier", "accuracy_against_keep") for kind in ("png", "svg")
    }
    assert names == figures | {"curves.csv", "cliffs.csv", "frontier.csv"}
    table = pd.read_csv(tmp_path / "curves.csv")
    assert list(table.columns) == grids.CURVES and len(table) == 7
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 600 and len(np.unique(np.asarray(picture.convert("L")))) > 5
    for path in tmp_path.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_a_failed_cell_is_said_and_counts(folder, tmp_path, capsys):
    bad = f"{BASE}_trunc_l2_k0"
    host.answered(tmp_path / BASE, BASE, "X", BASE_HITS)
    host.answered(tmp_path / f"{BASE}_trunc_l1_k0", f"{BASE}_trunc_l1_k0", "X", hits(3))
    host.status(tmp_path / bad, bad, X={"status": "done", "error_message": "no room"})
    out = tmp_path / "figures"
    out.mkdir()
    assert outcome.show(read(tmp_path), BASE, "X", out, Console(width=200), 2.0, None) == 1
    assert f"failed: {bad}: no room" in capsys.readouterr().out
    assert outcome.show(read(tmp_path), "other", "X", out, Console(), 2.0, None) == 1


def test_lines_of_the_figure_are_the_frame_and_published_points_are_hollow(grid, tmp_path, monkeypatch):
    drawn = {}

    def keep(figure, *_rest):
        drawn["figure"] = figure
        return []

    monkeypatch.setattr(gridfigures, "_finish", keep)
    frame = grids.curves(grid, 2.0)
    published = pd.DataFrame({"L": [2, 2], "K": [8, 99], "value": [66.5, 1.0]})
    gridfigures.accuracy_over_layers(frame, tmp_path / "x", "title", published)
    attention, random = drawn["figure"].axes
    lines, others = points(attention), points(random)
    assert {1: 30.0, 2: 60.0, 4: 90.0} in lines and {1: 55.0, 2: 90.0, 4: 90.0} in lines and {2: 66.5} in lines
    hollow = next(line for line in attention.get_lines() if list(line.get_ydata()) == [66.5])
    assert hollow.get_markerfacecolor() == "white" and not any(1.0 in line.values() for line in lines)
    assert {1: 30.0, 2: 60.0, 4: 90.0} in others and {1: 45.0} in others


def points(axis) -> list[dict]:
    return [{int(x): round(float(y), 6) for x, y in zip(*line.get_data(), strict=True)} for line in axis.get_lines()]


def test_the_same_numbers_give_the_same_files(grid, tmp_path):
    frame = grids.curves(grid, 2.0)
    first, second = ([path.read_bytes() for path in gridfigures.heat_map(frame, tmp_path / n, "t", 2.0)] for n in "ab")
    assert first == second and len(first) == 2


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        gridfigures.heat_map(pd.DataFrame(columns=grids.CURVES), tmp_path / "x", "t", 2.0)


def scored(folder: Path, setting: str, value: float, benchmark: str = "X") -> None:
    name = f"{BASE}_trunc_{setting}" if setting else BASE
    host.scored(folder / name, name, benchmark, value)


def test_scores_stand_at_their_layer_and_keep(tmp_path: Path) -> None:
    scored(tmp_path, "", 0.75)
    for setting, value in {"l10_k8": 0.5, "l2_k8": 0.25, "l2_k128": 1.0, "l2_k8_random": 0.0}.items():
        scored(tmp_path, setting, value)
    attention, control = grids.grids(read(tmp_path))
    assert (attention.base, attention.benchmark, attention.rule, control.rule) == (BASE, "X", "attention", "random")
    assert (attention.layers, attention.keeps, attention.baseline) == ([2, 10], [8, 128], 75)
    assert attention.values.loc[2].tolist() == [25, 100]
    assert attention.values.loc[10, 8] == 50 and attention.values.isna().loc[10, 128]
    assert (control.layers, control.keeps, control.values.loc[2, 8]) == ([2], [8], 0)


def test_schedules_percentages_and_failures_have_no_place(tmp_path: Path) -> None:
    for setting in ("l1_k8_l2_k4", "l2_r50"):
        scored(tmp_path, setting, 0.5)
    scored(tmp_path, "l2_k8", 0.5)
    host.status(tmp_path / f"{BASE}_trunc_l2_k8", f"{BASE}_trunc_l2_k8", X={"status": "done", "error_message": "boom"})
    assert grids.grids(read(tmp_path)) == []


def test_results_without_a_score_have_no_grid(tmp_path: Path) -> None:
    host.status(tmp_path / BASE, BASE, X={"status": "infer"})
    assert grids.grids(read(tmp_path)) == []


def test_benchmarks_prompts_and_decoding_have_grids_and_curves_of_their_own(tmp_path: Path) -> None:
    scored(tmp_path, "", 0.75)
    scored(tmp_path, "l2_k8", 0.5)
    scored(tmp_path, "l2_k8", 0.25, "Y")
    others = {"p-cqm": 1.0, "ppl": 0.0, "beam3": 0.75, "p-cqm_ppl": 0.25}
    for tail, value in others.items():
        scored(tmp_path, f"l2_k8_{tail}", value)
    results = read(tmp_path)
    found = {(grid.base, grid.benchmark): grid for grid in grids.grids(results)}
    assert set(found) == {(BASE, "X"), (BASE, "Y"), *((f"{BASE}_{tail}", "X") for tail in others)}
    for tail, value in others.items():
        points, baseline = category_curves(results, f"{BASE}_{tail}", "X")
        assert points.loc[points["category"] == "", "value"].tolist() == [100 * value] and not baseline
        assert found[f"{BASE}_{tail}", "X"].values.loc[2, 8] == 100 * value
    assert found[BASE, "X"].baseline == 75 and found[BASE, "Y"].baseline is None
    assert found[BASE, "Y"].values.loc[2, 8] == pytest.approx(25)
