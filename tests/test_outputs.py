"""Runs, states and damaged files: every cell that was begun is found once, and a bad file fails its own cell only."""

from __future__ import annotations

from pathlib import Path

import host_files as host
import pandas as pd
import pytest
from typer.testing import CliRunner

from redrel_vlmeval.cli import app
from redrel_vlmeval.host import facts, tables
from redrel_vlmeval.host.tables import read_columns
from redrel_vlmeval.results.reading import ResultsError, read
from redrel_vlmeval.sheets import writing


def test_newest_run_wins_and_a_run_of_another_benchmark_hides_nothing(tmp_path: Path) -> None:
    host.scored(tmp_path / "m" / "T20260101-000000", "m", "X", 0.25)
    host.scored(tmp_path / "m" / "T20260101-000000", "m", "Y", 0.5)
    host.scored(tmp_path / "m" / "T20260201-000000", "m", "X", 1)
    host.scored(tmp_path / "m" / "T20251231_Gabc123", "m", "X", 0.75)
    assert host.headlines(read(tmp_path).scores) == {("X", "Overall"): 100.0, ("Y", "Overall"): 50.0}


def test_newest_run_wins_also_when_it_failed(tmp_path: Path) -> None:
    host.scored(tmp_path / "m" / "T20260101-000000", "m", "X", 0.5)
    run = tmp_path / "m" / "T20260201-000000"
    host.status(run, "m", X={"status": "done", "error_message": ""})
    assert read(tmp_path).failed == [("m", "X", facts.noted(""))]


def test_all_runs_are_kept_when_asked_for(tmp_path: Path) -> None:
    for run, value in (("T20260101-000000", 0.25), ("T20260201-000000", 1), ("T20260301-000000", 0.5)):
        host.scored(tmp_path / "m" / run, "m", "X", value)
    rows = read(tmp_path, all_runs=True)
    scores = rows.scores[rows.scores["headline"]].set_index("model")
    old = ["m [T20260201-000000]", "m [T20260101-000000]"]
    assert scores["value"].to_dict() == {"m": 50, old[0]: 100, old[1]: 25}
    assert set(scores["base"]) == {"m"} and rows.provenance["run"].tolist()[1:] == [name[3:-1] for name in old]
    assert rows.answers(old[1], "X")["hit"].tolist() == [1, 0, 0, 0]
    assert set(read(tmp_path).scores["model"]) == {"m"}
    shown = [CliRunner().invoke(app, ["sheet", str(tmp_path), *more]).output for more in ([], ["--all-runs"])]
    assert [old[1] in text for text in shown] == [False, True]


@pytest.mark.parametrize(
    ("entry", "with_answers", "expected"),
    [
        ({"status": "infer"}, False, "running"),
        ({"status": "eval"}, True, "running"),
        ({"status": "done", "skip_reason": "mode_infer"}, True, "partial"),
        ({"status": "done", "skip_reason": "Incomplete infer result"}, True, "partial"),
        ({"status": "done", "skip_reason": "No infer result found"}, False, "failed"),
        ({"status": "done", "skip_reason": "invalid_dataset"}, False, "failed"),
        ({"status": "done", "skip_reason": "evaluate_returned_none"}, True, "failed"),
        ({"status": "done", "error_message": "'no such model'"}, False, "failed"),
        ({"status": "done"}, False, "failed"),
        (None, True, "partial"),
    ],
)
def test_every_begun_cell_has_a_row_with_its_state(
    tmp_path: Path, entry: dict | None, with_answers: bool, expected: str
) -> None:
    folder = tmp_path / "m"
    if with_answers:
        host.predictions(folder, "m", "X", host.choices("A,B,A,B"))
    if entry is not None:
        host.status(folder, "m", X=entry)
    (row,) = read(tmp_path).scores.to_dict("records")
    assert (row["benchmark"], row["status"]) == ("X", expected) and row["reason"]
    assert row["n"] == (4 if with_answers else None) or pd.isna(row["n"])


def test_a_run_that_stopped_before_its_first_benchmark_is_a_failure(tmp_path: Path) -> None:
    host.status(tmp_path / "m", "m")
    assert [cell[:2] for cell in read(tmp_path).failed] == [("m", "")]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="nowhere.*does not exist.*work-dir"):
        read(tmp_path / "nowhere")
    (tmp_path / "m").mkdir()
    with pytest.raises(ResultsError, match="nothing found.*status.json"):
        read(tmp_path)
    (tmp_path / "file.txt").touch()
    with pytest.raises(ResultsError, match="is a file, not a folder"):
        read(tmp_path / "file.txt")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("m_X_exact_matching_result.xlsx", _cut),
        ("m_X.xlsx", _cut),
        ("m_X.xlsx", lambda path: path.write_bytes(b"")),
        ("m_X_acc.csv", lambda path: path.write_text("")),
        ("m_X_acc.csv", lambda path: path.write_text('"split","Overall"\n"none",""\n')),
        ("m_X_acc.csv", lambda path: path.write_bytes(b"\xff\xfe\x00\x81")),
        ("m_X_acc.csv", lambda path: path.write_text('"verdict"\n"fine"\n')),
        ("status.json", lambda path: path.write_text('{"datasets": {"X": ')),
        ("status.json", lambda path: path.write_text('{"datasets": {"X": 3}}')),
    ],
)
def test_a_damaged_file_fails_its_cell_and_no_other(tmp_path: Path, name: str, damage) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    host.status(tmp_path / "m", "m", X={"status": "done", "judge_model": "exact_matching"})
    host.scored(tmp_path / "other", "other", "X", 1)
    assert not read(tmp_path).failed
    damage(tmp_path / "m" / name)
    results = read(tmp_path)
    ((model, benchmark, reason),) = results.failed
    assert (model, benchmark) == ("m", "X") and name in reason
    assert host.headlines(results.scores) == {("X", "Overall"): 100.0}


def test_a_benchmark_without_a_rule_is_shown_as_it_stands(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    host.scored(tmp_path / "m", "m", "New", 0.5)
    (tmp_path / "m" / "m_New_acc.csv").write_text('"part","bleu","tool"\n"easy","0.25","x"\n"hard","31","x"\n')
    results = read(tmp_path)
    rows = results.scores[results.scores["benchmark"] == "New"]
    assert set(rows["status"]) == {"no rule"} and rows["reason"].str.contains("no rule .* part, bleu, tool").all()
    shown = rows[~rows["headline"]].set_index("metric")["value"].to_dict()
    assert shown == {"easy x bleu": 0.25, "hard x bleu": 31}
    assert rows.loc[rows["headline"], "value"].isna().all() and not results.failed
    board = writing.leaderboard(results)
    assert board.loc[0, ["X", "New", "status"]].tolist() == [50.0, "no rule", "no rule"]


def test_metrics_that_only_status_json_tells_of_are_shown_as_they_stand(tmp_path: Path) -> None:
    host.predictions(tmp_path / "m", "m", "New", host.choices("A,B,A,B"))
    entry = {"status": "done", "metrics": {"all": {"win rate": 0.5, "note": "fine"}, "count": "7", "open": True}}
    host.status(tmp_path / "m", "m", New=entry)
    rows = read(tmp_path).scores
    assert rows.set_index("metric")["value"].dropna().to_dict() == {"all/win rate": 0.5, "count": 7}
    assert set(rows["status"]) == {"no rule"}


@pytest.mark.parametrize("kind", ["xlsx", "tsv"])
def test_answers_that_are_empty_in_the_predictions_only_are_told(tmp_path: Path, kind: str) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    path = tmp_path / "m" / "m_X.xlsx"
    table = pd.DataFrame(read_columns(path)).assign(prediction=["A", None, "NA", None])
    judged = pd.DataFrame(read_columns(tmp_path / "m" / "m_X_exact_matching_result.xlsx"))
    host.predictions(
        tmp_path / "m", "m", "X_exact_matching_result", judged.assign(prediction=["A", "nan", "NA", "nan"])
    )
    if kind == "xlsx":
        host.predictions(tmp_path / "m", "m", "X", table)
    else:
        path.unlink()
        table.to_csv(path.with_suffix(".tsv"), sep="\t", index=False)
    reason = read(tmp_path).scores.loc[0, "reason"]
    assert reason == "2 of 4 answers are empty, scored as the host judged them"
    assert read(tmp_path).answers("m", "X")["prediction"].tolist() == ["A", None, "NA", None]


@pytest.mark.parametrize("column", ["question", "A", "answer"])
def test_the_same_index_with_another_question_is_not_paired(tmp_path: Path, column: str) -> None:
    host.answered(tmp_path / host.BASE, host.BASE, "X", [1, 1, 0, 1], A="yes")
    same = {"question": "q", "A": "yes", "answer": "A"}[column]
    other = {"A": "yes"} | {column: [same, same, "other", same]}
    host.answered(tmp_path / host.VARIANT, host.VARIANT, "X", [1, 0, 0, 1], **other, prediction=["A", "B", "B", "A"])
    rows = read(tmp_path).scores
    row = rows[rows["headline"]].set_index("model").loc[host.VARIANT]
    assert row["note"] == "no delta: 1 of 4 questions read otherwise than the base's (index '2')"
    assert pd.isna(row["delta"])


def test_a_large_folder_is_read_one_table_per_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell costs two parsed tables, whatever else lies there: what makes 200 models x 20 benchmarks readable."""
    names = [host.BASE, *(f"{host.BASE}_trunc_l{layer}_k8" for layer in range(1, 8))]
    for name in names:
        for benchmark in "XYZ":
            host.scored(tmp_path / name, name, benchmark, 0.5)
    parsed: list[str] = []
    real = tables._xlsx
    monkeypatch.setattr(tables, "_xlsx", lambda path: parsed.append(path.name) or real(path))
    results = read(tmp_path)
    board = writing.leaderboard(results)
    assert board.shape[0] == 8 and len(parsed) == 48 and sum("exact_matching_result" in name for name in parsed) == 24
    held = sum(len(frame) for frame in results.judged.values())
    assert held == 24 * 4 and set(results.judged[host.BASE, "X"]) == {"index", "hit", "picture", "asked"}
    results.answers(host.BASE, "X")
    assert len(parsed) == 50, "the answers are read when asked for"
