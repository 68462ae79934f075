"""Every variant's row is tested or says why not: on small output folders, through to the leaderboard."""

from __future__ import annotations

from pathlib import Path

import host_files as host
import numpy as np
import pandas as pd
import pytest

from redrel_vlmeval import sheets
from redrel_vlmeval.results import comparisons, paired_tests
from redrel_vlmeval.results.reading import read

BASE = host.BASE
RIGHT = [1] * 30 + [0] * 10
WORSE, SAME = [0] * 15 + [1] * 15 + [0] * 10, [0] + [1] * 30 + [0] * 9
NAMES = {f"{BASE}_trunc_l1_k0": WORSE, f"{BASE}_trunc_l4_k8": SAME}


def write(folder: Path, model: str, hits: list, benchmark: str = "X", **columns: object) -> None:
    host.answered(folder / model, model, benchmark, hits, **columns)


def row(folder: Path, model: str = host.VARIANT, benchmark: str = "X", metric: str = "") -> pd.Series:
    found = read(folder)
    rows = found.scores[found.scores["headline"]].join(comparisons.compare(found))
    rows = rows[(rows["model"] == model) & (rows["benchmark"] == benchmark)]
    return rows[rows["metric"] == metric].iloc[0] if metric else rows.iloc[0]


def test_each_variant_is_tested_and_corrected_for_the_others(tmp_path: Path) -> None:
    write(tmp_path, BASE, RIGHT)
    for name, hits in NAMES.items():
        write(tmp_path, name, hits)
    worse, same = (row(tmp_path, name) for name in NAMES)
    alone = paired_tests.compare(RIGHT, WORSE)
    assert (worse["up"], worse["down"], worse["p"]) == (0, 15, alone.p) and worse["p (Holm)"] == 2 * alone.p
    assert (worse["CI low"], worse["CI high"]) == (alone.low, alone.high)
    assert worse["verdict"].endswith("(Holm < .001 over 2), 0 up / 15 down: worse than the base")
    assert (same["up"], same["down"], same["p"], same["p (Holm)"]) == (1, 1, 1, 1)
    assert same["verdict"].endswith("1 up / 1 down: not separable from the base")
    assert row(tmp_path, BASE)["verdict"] == "base"


def test_questions_are_paired_by_index_not_by_place(tmp_path: Path) -> None:
    write(tmp_path, BASE, RIGHT)
    write(tmp_path, host.VARIANT, WORSE[::-1], index=range(39, -1, -1))
    assert (row(tmp_path)["up"], row(tmp_path)["down"]) == (0, 15)


def test_other_questions_of_the_same_number_are_not_paired(tmp_path: Path) -> None:
    write(tmp_path, BASE, RIGHT)
    write(tmp_path, host.VARIANT, WORSE, index=[*range(38), 50, 51])
    found = row(tmp_path)
    assert pd.isna(found["delta"]) and pd.isna(found["p"]) and pd.isna(found["CI low"])
    assert found["verdict"] == "no test: 2 of 40 questions were not asked of the base (index '50')"


def test_only_questions_of_the_headlines_split_are_tested(tmp_path: Path) -> None:
    split = ["dev"] * 20 + ["validation"] * 20
    for name, hits in ((BASE, RIGHT), (host.VARIANT, WORSE)):
        write(tmp_path, name, hits, split=split)
        parts = [f'"{part}","{np.mean(hits[at : at + 20])}"' for part, at in (("dev", 0), ("validation", 20))]
        (tmp_path / name / f"{name}_X_acc.csv").write_text("\n".join(['"split","Overall"', *parts]) + "\n")
    found = row(tmp_path)
    assert (found["n"], found["delta"], found["up"], found["down"]) == (20, 0, 0, 0)


def test_questions_of_one_picture_are_taken_together(tmp_path: Path) -> None:
    pictures = [f"{number // 4}.png" for number in range(80)]
    base, cut = [1] * 60 + [0] * 20, [0] * 20 + [1] * 40 + [0] * 20
    write(tmp_path, BASE, base, "POPE_like", image_path=pictures)
    write(tmp_path, host.VARIANT, cut, "POPE_like", image_path=pictures)
    found = row(tmp_path, benchmark="POPE_like")
    assert found["p"] == pytest.approx(2 / 2**5), "five pictures fell, not twenty questions"
    assert "0 up / 20 down in 20 pictures: not separable" in found["verdict"]
    for name, hits in ((BASE, base), (host.VARIANT, cut)):
        write(tmp_path, name, hits, "POPE_like")
    found = row(tmp_path, benchmark="POPE_like")
    assert found["p"] == pytest.approx(2 / 2**20)
    assert "down, pictures shared by questions not known: worse" in found["verdict"]


def test_a_score_that_is_no_mean_is_not_tested_under_its_name(tmp_path: Path) -> None:
    header = '"split","Overall","acc","precision","recall"\n"Overall",'
    for name, hits, figures in ((BASE, RIGHT, "80,75,1,1"), (host.VARIANT, WORSE, "50,37.5,1,1")):
        write(tmp_path, name, hits)
        (tmp_path / name / f"{name}_X_acc.csv").unlink()
        (tmp_path / name / f"{name}_X_score.csv").write_text(f"{header}{figures}\n")
    assert row(tmp_path, metric="F1")["verdict"] == "no test: F1 is no mean over questions; acc is, and is tested"
    assert row(tmp_path, metric="F1")["delta"] == -30 and row(tmp_path, metric="acc")["down"] == 15
    for name in (BASE, host.VARIANT):
        (tmp_path / name / f"{name}_X_score.csv").write_text('"perception","reasoning"\n"1000","200"\n')
    found = row(tmp_path)
    assert found["verdict"].startswith("mean score per question, not perception + reasoning: -37.5 (95 % CI ")
    assert found["down"] == 15 and pd.isna(found["CI low"]), "the interval is not one of MME's points"


def test_graded_scores_are_tested(tmp_path: Path) -> None:
    write(tmp_path, BASE, [0.6, 1.0, 0.3, 0.9] * 10)
    write(tmp_path, host.VARIANT, [0.3, 1.0, 0.3, 0.6] * 10)
    found = row(tmp_path)
    assert (found["up"], found["down"], found["p"]) == (0, 20, 1e-4) and found["CI high"] < -10


@pytest.mark.parametrize(
    ("hits", "columns", "reason"),
    [
        ([1, None, 0, 1], {"value": 0.5}, "1 of 4 questions have no verdict"),
        ([1, 0, 0, 1], {"index": [0, 1, 2, 2]}, "1 questions stand twice in the table per question"),
        ([1, 0, 0, 7], {"value": 0.5}, "scores per question are not between 0 and 1"),
    ],
)
def test_tables_that_cannot_be_paired_say_why(tmp_path: Path, hits: list, columns: dict, reason: str) -> None:
    host.answered(tmp_path / BASE, BASE, "X", [1, 1, 0, 1])
    host.answered(tmp_path / host.VARIANT, host.VARIANT, "X", hits, **columns)
    verdict = row(tmp_path)["verdict"]
    assert verdict == f"no test: {reason} ({host.VARIANT})"
    assert f"{host.VARIANT}: X: {verdict}" in sheets.to_text(sheets.measured(read(tmp_path)))


def test_no_table_per_question_says_so(tmp_path: Path) -> None:
    host.pair(tmp_path)
    (tmp_path / host.VARIANT / f"{host.VARIANT}_X_exact_matching_result.xlsx").unlink()
    assert row(tmp_path)["verdict"] == f"no test: no table with a verdict per question ({host.VARIANT})"


def test_failed_missing_and_differing_cells_say_so(tmp_path: Path) -> None:
    host.pair(tmp_path, device="cuda")
    bad, late = f"{BASE}_trunc_l3_k4", f"{BASE}_trunc_l4_k4"
    host.status(tmp_path / bad, bad, X={"status": "done", "error_message": "boom"})
    host.scored(tmp_path / late, late, "Y", 0.5)
    board = sheets.leaderboard(read(tmp_path)).set_index("model")
    assert board["X verdict"].to_dict() == {
        BASE: "base",
        host.VARIANT: "no test: device differs (cuda; base cpu)",
        bad: "no test: failed",
        late: "no test: not run",
    }
    assert board.loc[late, "Y verdict"] == f"no test: base '{BASE}' is not in this folder"
    assert not board["X p"].notna().any()


def test_empty_answers_are_counted_in_the_row(tmp_path: Path) -> None:
    write(tmp_path, BASE, [1, 1, 0, 1])
    write(tmp_path, host.VARIANT, [1, 0, 0, 1], prediction=["A", None, "nan", "A"])
    board = sheets.leaderboard(read(tmp_path)).set_index("model")
    assert board.loc[host.VARIANT, "note"] == "2 of 4 answers are empty, scored as the host judged them"
    assert board.loc[host.VARIANT, "X down"] == 1 and board.loc[BASE, "note"] == ""


def test_two_runs_of_the_base_are_told_and_the_newest_counts(tmp_path: Path) -> None:
    for run, hits in (("T20260101-000000", WORSE), ("T20260201-000000", RIGHT)):
        host.answered(tmp_path / BASE / run, BASE, "X", hits)
    write(tmp_path, host.VARIANT, WORSE)
    found = row(tmp_path)
    assert found["down"] == 15
    assert found["note"] == f"base '{BASE}' was run 2 times, compared with the newest run T20260201-000000"


def test_models_without_variants_get_no_verdict(tmp_path: Path) -> None:
    write(tmp_path, "gpt-4o", RIGHT)
    board = sheets.leaderboard(read(tmp_path))
    assert "X" in board and "X verdict" not in board
