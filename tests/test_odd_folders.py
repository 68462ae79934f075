"""Numbers that cannot be, rows that stand twice, files that belong elsewhere: each is said and none is a score."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import host_files as host
import pandas as pd
import pytest

from redrel_vlmeval.host.scores import NoRule, metrics_of
from redrel_vlmeval.results.reading import read
from redrel_vlmeval.sheets import writing
from redrel_vlmeval.sheets.page import assemble

BASE, VARIANT = host.BASE, host.VARIANT


def mcq(value: object, **more: object) -> pd.DataFrame:
    return pd.DataFrame({"split": ["none"], "Overall": [value]} | {name: [one] for name, one in more.items()})


@pytest.mark.parametrize(
    "table",
    [
        mcq(float("inf")), mcq("inf"), mcq("-inf"), mcq(-5), mcq(-0.01), mcq(101.0), mcq(0.5, one=-1), mcq(0.5, one=7),
        pd.DataFrame({"Overall": [-1.0]}), pd.DataFrame({"Overall": [float("inf")]}),
        pd.DataFrame({"Overall": [50.0], "part": [float("inf")]}),
        pd.DataFrame({"split": ["Overall"], "Overall": [50], "acc": [120], "precision": [1], "recall": [1]}),
        pd.DataFrame({"split": ["Overall"], "aAcc": [50], "fAcc": [-1], "qAcc": [1]}),
        pd.DataFrame({"perception": [2001], "reasoning": [1]}), pd.DataFrame({"perception": [-1], "reasoning": [1]}),
        pd.DataFrame({"Category": ["Overall"], "Accuracy": [150]}),
        {"Final Score": 1200, "Final Score Norm": 120}, {"Final Score": -1},
    ],
)  # fmt: skip
def test_impossible_scores_are_refused(table) -> None:
    with pytest.raises(ValueError, match=r"points, expected 0 to|is no score"):
        metrics_of(table)


def test_a_measure_of_a_benchmark_of_its_own_is_shown_as_it_stands() -> None:
    with pytest.raises(NoRule) as caught:
        metrics_of(pd.DataFrame({"Overall": [1350.0], "part": [3]}))
    assert caught.value.found == {"Overall": 1350, "part": 3}


@pytest.mark.parametrize(
    "text",
    [
        'split,Overall\nnone,0.5\nnone,0.5\n', 'split,Overall\nnone,0.5\nnone,0.75\n', "Overall\n50\n50\n",
        "split,Overall,acc,precision,recall\nOverall,50,50,1,1\nOverall,60,60,1,1\n",
        "Category,Accuracy\nOverall,50\nOverall,60\n", "perception,reasoning\n1,2\n3,4\n",
    ],
)  # fmt: skip
def test_a_score_that_stands_twice_fails_its_cell_and_no_other(tmp_path: Path, text: str) -> None:
    host.pair(tmp_path)
    path = tmp_path / VARIANT / f"{VARIANT}_X_acc.csv"
    path.write_text(text)
    found = read(tmp_path)
    ((model, _, reason),) = found.failed
    assert model == VARIANT and path.name in reason and ("twice" in reason or "2 rows" in reason)
    assert writing.write(found, tmp_path / "all.md").exists() and VARIANT in assemble.html(found)


@pytest.mark.parametrize("name", ["exact_matching_result", ""])
def test_a_question_that_stands_twice_is_said(tmp_path: Path, name: str) -> None:
    host.pair(tmp_path)
    for model in (BASE, VARIANT):
        path = tmp_path / model / f"{model}_X{'_' * bool(name)}{name}.xlsx"
        table = pd.read_excel(path, engine="openpyxl")
        pd.concat([table, table]).to_excel(path, index=False)
    found = read(tmp_path)
    assert writing.write(found, tmp_path / "all.md").exists() and VARIANT in assemble.html(found)
    if name:
        verdicts = found.comparisons.set_index("model")["verdict"]
        assert verdicts[VARIANT] == f"no test: 4 questions stand twice in the table per question ({VARIANT})"


@pytest.mark.parametrize(
    ("changes", "whose"),
    [({"model": BASE, "setting": ""}, f"{BASE} untouched"), ({"setting": "l4_k8"}, "l4_k8"), ({"dataset": "Y"}, "Y")],
)
def test_records_of_another_run_do_not_count(tmp_path: Path, changes: dict, whose: str) -> None:
    host.pair(tmp_path)
    path = tmp_path / VARIANT / f"{VARIANT}_X_redrel.jsonl"
    lines = [json.dumps(json.loads(line) | changes) for line in path.read_text().split("\n")[:4]]
    path.write_text("\n".join(lines))
    found = read(tmp_path)
    assert VARIANT not in set(found.efficiency["model"])
    row = found.scores[found.scores["headline"]].set_index("model").loc[VARIANT]
    assert row["reason"] == f"4 efficiency records are of {whose!r} and do not count"
    assert pd.isna(row["delta"]) and "has no efficiency records" in row["note"]


def test_records_swapped_between_two_variants_are_noticed_and_own_ones_still_count(tmp_path: Path) -> None:
    host.pair(tmp_path)
    own = tmp_path / VARIANT / f"{VARIANT}_X_redrel.jsonl"
    lines = own.read_text().split("\n")[:-1]
    other = json.loads(lines[0]) | {"model": f"{BASE}_trunc_l4_k8", "setting": "l4_k8", "index": 0}
    own.write_text("\n".join([*lines[1:], json.dumps(other)]) + "\n")
    found = read(tmp_path)
    assert found.efficiency.set_index("model").loc[VARIANT, "n"] == 3
    assert "1 efficiency records are of" in found.scores.set_index("model").loc[VARIANT, "reason"].iloc[0]


def test_a_rank_that_was_killed_and_run_again_counts_each_question_once(tmp_path: Path) -> None:
    """As torchrun leaves it: one rank's file holds questions of the first and of the second run."""
    host.pair(tmp_path)
    path = tmp_path / VARIANT / f"{VARIANT}_X_redrel.jsonl"
    lines = [json.loads(line) for line in path.read_text().split("\n")[:4]]
    path.unlink()
    for rank, own in ((0, [0, 2, 0, 2, 1]), (1, [1, 3])):
        text = [json.dumps(lines[index] | {"prefill_ms": float(place)}) for place, index in enumerate(own)]
        path.with_name(f"{path.stem}_rank{rank}.jsonl").write_text("\n".join(text) + "\n")
    row = read(tmp_path).efficiency.set_index("model").loc[VARIANT]
    assert row["n"] == 4


def test_pictures_that_are_not_the_tables_are_named_and_not_compared(tmp_path: Path) -> None:
    host.pair(tmp_path, stale_pictures=["0.jpg"])
    found = read(tmp_path)
    row = found.scores[found.scores["headline"]].set_index("model").loc[VARIANT]
    said = "pictures that are not those of the benchmark's table in 4 of 4 questions (0.jpg)"
    assert row["reason"] == f"asked with {said}" and row["note"] == f"no delta: the variant was asked with {said}"
    assert found.provenance.set_index("model").loc[VARIANT, "pictures"] == said


@pytest.mark.parametrize(
    "mark", [" (1)", " - Copy", " - Copy (2)", " (copy)", " (another copy)", " (3rd copy)", " copy", " copy 2"]
)
@pytest.mark.parametrize("known", [False, True])
def test_copies_of_a_file_manager_are_no_columns(tmp_path: Path, mark: str, known: bool) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    if known:
        host.status(tmp_path / "m", "m", X={"status": "done"})
    before = read(tmp_path).scores
    for name in ("m_X.xlsx", "m_X_acc.csv", "m_X_exact_matching_result.xlsx"):
        path = tmp_path / "m" / name
        path.with_name(f"{path.stem}{mark}{path.suffix}").write_bytes(path.read_bytes())
    pd.testing.assert_frame_equal(read(tmp_path).scores, before)


def test_a_benchmark_with_a_number_in_brackets_is_none_such_copy(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "My Bench (2)", 0.5)
    assert set(read(tmp_path).scores["benchmark"]) == {"My Bench (2)"}


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_names_are_utf_8_whatever_the_locale(tmp_path: Path, locale: str) -> None:
    host.scored(tmp_path / "モデル", "モデル", "名前", 0.5)
    host.status(tmp_path / "モデル", "モデル", 名前={"status": "done", "judge_model": "exact_matching"})
    (tmp_path / "sweep" / "モデル_名前").mkdir(parents=True)
    code = (
        "from redrel_vlmeval.results.reading import read\n"
        f"found = read({str(tmp_path)!r})\n"
        "row = found.scores.iloc[0]\n"
        "print(ascii((row['model'], row['benchmark'], int(row['value']), row['path'])))"
    )
    plain = {
        "LC_ALL": locale,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | plain, capture_output=True, text=True)
    assert done.stdout.strip() == ascii(("モデル", "名前", 50, "モデル/モデル_名前_acc.csv")), done.stderr
