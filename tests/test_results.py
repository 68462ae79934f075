"""`results.read` on files that the host's real evaluation wrote, in both hosts' layouts, and on damaged ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import host_files as host
import pandas as pd
import pytest

from redrel_vlmeval import questions
from redrel_vlmeval.benchmarks import metrics_of
from redrel_vlmeval.results import category_curves, read

YES_NO = pd.DataFrame(
    {
        "index": range(4),
        "question": "q",
        "answer": ["Yes", "No", "Yes", "No"],
        "category": ["adversarial,popular"] * 2 + ["random"] * 2,
        "prediction": ["Yes", "Yes", "No", "no."],
    }
)
WORDS = pd.DataFrame(
    {
        "index": range(4),
        "question": "q",
        "answer": ["10", "dog", "3", "x"],
        "prediction": ["10.2", "cow", "3", "NA"],
    }
)


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work-dir of ms-vlmeval, each score written by the host's own code."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("vlmeval")
    lmu, out = tmp_path_factory.mktemp("lmu"), tmp_path_factory.mktemp("outputs")
    # Importing the host switches autograd off for every later test of this process.
    torch.set_grad_enabled(True)
    folder = out / "m"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMUData", str(lmu))
        _write_every_benchmark(folder, lmu)
    (folder / "T20260102-030405").mkdir()  # ms leaves an empty one per run
    return out


def _write_every_benchmark(folder: Path, lmu: Path) -> None:
    host.evaluate(folder, "m", host.custom_benchmark(lmu, "OwnQuestions"), host.choices("A,B,NA,B"))
    tables = {
        ("ImageMCQDataset", "ScienceQA_TEST"): host.choices("A,B,B,B").assign(
            split="test",
            C=["maybe", None, None, None],
            subject=["natural science", "social science", "language science", "natural science"],
            grade=["grade2", "grade7", "grade12", "grade8"],
        ),
        ("MMMUDataset", "MMMU_DEV_VAL"): host.choices("B,B,B,B").assign(split=["dev", "validation"] * 2),
        ("ImageMCQDataset", "MMBench_DEV_EN"): host.choices("A,A,A,B").assign(split="dev"),
        ("ImageMCQDataset", "MMBench_DEV_EN_V11"): host.choices("A,B,A,B").assign(split="dev"),
        ("ImageYORNDataset", "POPE"): YES_NO,
        ("ImageYORNDataset", "MME"): YES_NO.assign(
            category=["OCR"] * 2 + ["code_reasoning"] * 2,
            image_path=["a", "a", "b", "b"],
            prediction=["Yes", "No", "Yes", "Yes"],
        ),
        ("ImageYORNDataset", "HallusionBench"): YES_NO.assign(
            **{"index": ["VD_chart_x_0_0_0", "VD_chart_x_0_1_0", "VD_chart_x_1_0_0", "VD_chart_x_1_0_1"]},
            **{"category": "VD", "l2-category": "chart"},
        ),
        ("ImageVQADataset", "TextVQA_VAL"): WORDS.assign(
            answer=["['10.2', '10.2']", "['dog']", "['3', '3', '3', '3']", "['x']"]
        ),
        ("ImageVQADataset", "ChartQA_TEST"): WORDS.assign(split=["test_human"] * 2 + ["test_augmented"] * 2),
        ("ImageVQADataset", "GQA_TestDev_Balanced"): WORDS,
        ("OCRBench", "OCRBench"): WORDS.assign(
            answer=["['10.2']", "['dog']", "['3']", "['x']"],
            category=["Regular Text Recognition", "Doc-oriented VQA", "Key Information Extraction", "Doc-oriented VQA"],
        ),
        # No category column: the host's POPE rating stops with a KeyError, and the run goes on.
        ("ImageYORNDataset", "POPE_broken"): YES_NO.drop(columns="category"),
    }
    for (kind, name), table in tables.items():
        host.evaluate(folder, "m", host.official(kind, name, table), table)


@pytest.fixture(scope="session")
def upstream(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files as upstream lays them: a run folder, and links to it beside it."""
    out = tmp_path_factory.mktemp("upstream")
    run = out / "m" / "T20260102-030405"
    shutil.copytree(flat / "m", run, ignore=shutil.ignore_patterns("T2*"))
    for path in run.iterdir():
        (run.parent / path.name).symlink_to(Path(run.name) / path.name)
    return out


def test_headlines_follow_the_rule_of_each_benchmark(flat: Path) -> None:
    """Right answers counted by hand; fractions become points, MMMU takes its validation row."""
    assert host.headlines(read(flat).scores) == {
        ("OwnQuestions", "Overall"): 75.0,
        ("ScienceQA_TEST", "Overall"): 75.0,
        ("MMMU_DEV_VAL", "Overall"): 100.0,
        ("MMBench_DEV_EN", "Overall"): 75.0,
        ("MMBench_DEV_EN_V11", "Overall"): 100.0,
        ("POPE", "F1"): pytest.approx(57.143),
        ("POPE", "acc"): 50.0,
        ("MME", "perception + reasoning"): 250.0,
        ("HallusionBench", "aAcc"): 50.0,
        ("HallusionBench", "fAcc"): pytest.approx(33.333),
        ("HallusionBench", "qAcc"): pytest.approx(33.333),
        ("TextVQA_VAL", "Overall"): pytest.approx(33.333),
        ("ChartQA_TEST", "Overall"): 50.0,
        ("GQA_TestDev_Balanced", "Overall"): 25.0,
        ("OCRBench", "Final Score / 10"): 0.2,
    }


def test_parts_stand_beside_the_headline(flat: Path) -> None:
    scores = read(flat).scores
    value = scores.set_index(["benchmark", "metric"])["value"]
    assert value["MME", "perception"] == 200 and value["MME", "reasoning"] == 50
    assert value["MMMU_DEV_VAL", "Overall [dev]"] == 0
    assert value["ScienceQA_TEST", "one"] == 50 and value["ScienceQA_TEST", "two"] == 100
    asked = scores[scores["headline"]].set_index("benchmark")["n"]
    assert asked["MMMU_DEV_VAL"] == 2, "only the questions of the validation split"
    assert asked["ScienceQA_TEST"] == 4


def test_an_error_that_only_status_json_tells_of_fails_its_cell(flat: Path) -> None:
    results = read(flat)
    (model, benchmark, reason), *more = results.failed
    assert (model, benchmark, more) == ("m", "POPE_broken", []) and "category" in reason
    assert results.scores.loc[results.scores["benchmark"] == "POPE_broken", "value"].isna().all()


def test_both_layouts_read_alike_and_links_are_not_counted_twice(flat: Path, upstream: Path) -> None:
    ours, theirs = read(flat).scores, read(upstream).scores
    assert set(theirs["path"].map(lambda path: Path(path).parent.name)) == {"T20260102-030405"}
    pd.testing.assert_frame_equal(ours.drop(columns="path"), theirs.drop(columns="path"))


@pytest.mark.parametrize("inner", [".", "m", "m/T20260102-030405"])
def test_work_dir_model_folder_and_run_folder_give_the_same_rows(upstream: Path, inner: str) -> None:
    found = read(upstream / inner).scores.drop(columns="path")
    pd.testing.assert_frame_equal(found, read(upstream).scores.drop(columns="path"))


def test_questions_carry_verdict_category_and_the_raw_answer(flat: Path) -> None:
    rows = read(flat).questions.set_index(["benchmark", "index"])
    assert rows.loc["OwnQuestions", "hit"].tolist() == [1, 1, 0, 1]
    assert rows.loc["OwnQuestions", "category"].tolist() == ["one", "two", "one", "two"]
    assert rows.loc["OwnQuestions", "prediction"].tolist() == ["A", "B", "NA", "B"], "NA is a word, not a hole"
    assert rows.loc["POPE", "hit"].tolist() == [1, 0, 0, 1]
    assert rows.loc["ChartQA_TEST", "hit"].tolist() == [1, 0, 1, 0]
    assert rows.loc["OCRBench", "hit"].tolist() == [1, 0, 1, 0], "judged without a table: its rule, applied again"


def test_answers_are_rows_that_people_can_read(flat: Path) -> None:
    results = read(flat)
    asked = results.answers("m", "ScienceQA_TEST")
    assert asked.columns.tolist() == questions.ANSWERS and asked["index"].tolist() == ["0", "1", "2", "3"]
    assert asked["options"].tolist() == ["A. yes\nB. no\nC. maybe"] + ["A. yes\nB. no"] * 3, "empty is no option"
    assert asked["question"].tolist() == ["q0", "q1", "q2", "q3"]
    assert asked["subject"].tolist() == ["NAT", "SOC", "LAN", "NAT"] and asked["grade"].tolist()[0] == "grade2"
    assert asked["split"].tolist() == ["test"] * 4 and asked["picture"].isna().all()
    assert results.answers("m", "MME")["picture"].tolist() == ["a", "a", "b", "b"]
    assert results.answers("m", "POPE")["options"].isna().all()
    none = results.answers("m", "Nothing")
    assert none.empty and none.columns.tolist() == asked.columns.tolist()


def test_verdicts_of_the_headlines_questions_carry_their_picture(flat: Path) -> None:
    judged = read(flat).judged
    assert judged["m", "MME"]["picture"].tolist() == ["a", "a", "b", "b"]
    assert judged["m", "MME"]["hit"].tolist() == [1, 1, 1, 0]
    assert judged["m", "POPE"]["picture"].isna().all()
    assert judged["m", "MMMU_DEV_VAL"]["index"].tolist() == ["1", "3"], "the validation split only"
    assert judged["m", "TextVQA_VAL"]["hit"].tolist() == pytest.approx([1 / 3, 0, 1, 0])
    assert judged["m", "OCRBench"]["hit"].tolist() == [1, 0, 1, 0]
    assert ("m", "POPE_broken") not in judged


def test_several_unknown_splits_are_averaged_over_their_questions(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    host.scored(folder, "m", "X", 0.5)
    table = host.choices("A,B,A,A").assign(split=["s1", "s1", "s1", "s2"], hit=[1, 1, 1, 0])
    host.predictions(folder, "m", "X_exact_matching_result", table)
    (folder / "m_X_acc.csv").write_text('"split","Overall"\n"s2","0.0"\n"s1","1.0"\n')
    scores = read(tmp_path).scores
    assert host.headlines(scores) == {("X", "Overall"): 75.0}, "not 50, the mean of the two rows"
    assert scores.set_index("metric")["n"].to_dict() == {"Overall": 4, "Overall [s1]": 3, "Overall [s2]": 1}
    (folder / "m_X_exact_matching_result.xlsx").unlink()
    assert "s1, s2" in read(tmp_path).failed[0][2]


def test_a_score_file_already_in_points_is_not_scaled() -> None:
    table = pd.DataFrame({"split": ["none"], "Overall": [62.5]})
    assert metrics_of(table)[0].value == 62.5
    assert metrics_of(table.assign(Overall=1.0))[0].value == 100


def _delta(folder: Path) -> tuple[float, str]:
    rows = read(folder).scores
    row = rows[(rows["model"] == host.VARIANT) & rows["headline"]].iloc[0]
    return row["delta"], row["note"]


def test_delta_is_points_to_the_base_and_the_name_is_taken_apart(tmp_path: Path) -> None:
    host.pair(tmp_path)
    assert _delta(tmp_path) == (-25.0, "")
    row = read(tmp_path).scores.set_index("model").loc[host.VARIANT].iloc[0]
    assert (row["base"], row["setting"], row["L"], row["K"], row["rule"]) == (host.BASE, "l2_k16", 2, 16, "attention")
    assert type(row["L"]) is int


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


def test_a_name_that_is_no_variant_is_a_plain_model(tmp_path: Path) -> None:
    for name in ("llava_trunc_x", "gpt-4o"):
        host.scored(tmp_path / name, name, "X", 0.5)
    rows = read(tmp_path).scores.drop_duplicates("model").set_index("model")
    assert rows["base"].to_dict() == {"llava_trunc_x": "llava_trunc_x", "gpt-4o": "gpt-4o"}
    assert rows["L"].isna().all()


def test_curves_hold_single_stage_variants_by_category(tmp_path: Path) -> None:
    host.pair(tmp_path)
    for name in (f"{host.BASE}_trunc_l1_k8_l2_k4", f"{host.BASE}_trunc_l2_r50", "stranger_trunc_l2_k16"):
        host.scored(tmp_path / name, name, "X", 1)
    frame, baseline = category_curves(read(tmp_path), host.BASE, "X")
    assert baseline == {"": 75.0, "one": 75.0}
    assert frame.to_dict("list") == {
        "L": [2, 2], "K": [16, 16], "rule": ["attention"] * 2, "category": ["", "one"], "value": [50.0] * 2,
        "n": [4, 4],
    }  # fmt: skip


def test_reading_needs_neither_torch_nor_the_host(tmp_path: Path) -> None:
    host.pair(tmp_path)
    code = (
        "import sys; from redrel_vlmeval import results, sheets, figures\n"
        f"found = results.read({str(tmp_path)!r}); sheets.leaderboard(found)\n"
        "assert not {'torch', 'vlmeval', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
