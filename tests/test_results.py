"""`results.read` on files that the host's real evaluation wrote, in both hosts' layouts, and on damaged ones."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from pathlib import Path

import host_files as host
import pandas as pd
import pytest

from redrel_vlmeval.host import verdicts
from redrel_vlmeval.host.scores import metrics_of
from redrel_vlmeval.results.cells import no_collection
from redrel_vlmeval.results.reading import category_curves, read

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


PERCEPTION = "OCR artwork celebrity color count existence landmark position posters scene".split()
REASONING = "code_reasoning commonsense_reasoning numerical_calculation text_translation".split()


def mme() -> pd.DataFrame:
    """Two questions on a picture in each category: both right in one of perception, one in one of reasoning."""
    categories = ["OCR", "code_reasoning", *PERCEPTION[1:], *REASONING[1:]]
    frame = pd.DataFrame({"category": [name for name in categories for _ in range(2)], "question": "q"})
    frame["index"], frame["answer"] = range(len(frame)), ["Yes", "No"] * len(categories)
    frame["image_path"] = [f"{name}.png" for name in frame["category"]]
    frame["prediction"] = ["Yes", "No", "Yes", "Yes"] + ["No", "Yes"] * (len(categories) - 2)
    return frame


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work-dir of ms-vlmeval, each score written by the host's own code."""
    pytest.importorskip("vlmeval")
    lmu, out = tmp_path_factory.mktemp("lmu"), tmp_path_factory.mktemp("outputs")
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
        ("ImageMCQDataset", "SEEDBench_IMG"): host.choices("A,B,A,A"),
        ("ImageMCQDataset", "AI2D_TEST"): host.choices("A,B,B,A").assign(image_path=["x", "x", "y", "y"]),
        ("ImageMCQDataset", "MMStar"): host.choices("B,A,B,A").assign(**{"l2-category": "fine"}),
        ("ImageMCQDataset", "RealWorldQA"): host.choices("A,A,A,A").drop(columns="category"),
        # Each question is asked again with its options turned: it counts only where every answer is right.
        ("ImageMCQDataset", "MMBench_DEV_CN"): host.choices("A,B,A,A").assign(
            split="dev", index=[1, 2, 1_000_001, 1_000_002]
        ),
        ("ImageMCQDataset", "MMBench_DEV_EN_V11"): host.choices("A,B,A,B").assign(split="dev"),
        ("ImageYORNDataset", "POPE"): YES_NO,
        ("ImageYORNDataset", "MME"): mme(),
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
        ("SEEDBench_IMG", "Overall"): 75.0,
        ("AI2D_TEST", "Overall"): 50.0,
        ("MMStar", "Overall"): 0.0,
        ("RealWorldQA", "Overall"): 50.0,
        ("MMBench_DEV_CN", "Overall"): 50.0,
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
    assert asked["ScienceQA_TEST"] == 4 and asked["MMBench_DEV_CN"] == 2


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
    assert asked.columns.tolist() == verdicts.ANSWERS and asked["index"].tolist() == ["0", "1", "2", "3"]
    assert asked["options"].tolist() == ["A. yes\nB. no\nC. maybe"] + ["A. yes\nB. no"] * 3, "empty is no option"
    assert asked["question"].tolist() == ["q0", "q1", "q2", "q3"]
    assert asked["subject"].tolist() == ["NAT", "SOC", "LAN", "NAT"] and asked["grade"].tolist()[0] == "grade2"
    assert asked["split"].tolist() == ["test"] * 4 and asked["picture"].isna().all()
    assert results.answers("m", "MME")["picture"].tolist()[1:3] == ["OCR.png", "code_reasoning.png"]
    assert results.answers("m", "POPE")["options"].isna().all()
    none = results.answers("m", "Nothing")
    assert none.empty and none.columns.tolist() == asked.columns.tolist()


def test_verdicts_of_the_headlines_questions_carry_their_picture(flat: Path) -> None:
    judged = read(flat).judged
    assert judged["m", "MME"]["picture"].tolist()[:4] == ["OCR.png"] * 2 + ["code_reasoning.png"] * 2
    assert judged["m", "MME"]["hit"].tolist() == [1, 1, 1] + [0] * 25
    assert judged["m", "AI2D_TEST"]["picture"].tolist() == ["x", "x", "y", "y"]
    assert judged["m", "MMBench_DEV_CN"]["hit"].tolist() == [1, 0], "one row per question, not per turn"
    assert judged["m", "HallusionBench"]["hit"].tolist() == judged["m", "POPE"]["hit"].tolist() == [1, 0, 0, 1]
    assert judged["m", "GQA_TestDev_Balanced"]["hit"].tolist() == [0, 0, 1, 0]
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
        "import sys; from redrel_vlmeval import results, sheets; from redrel_vlmeval.sheets import figures\n"
        f"found = results.read({str(tmp_path)!r}); sheets.leaderboard(found)\n"
        "assert not {'torch', 'vlmeval', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("collecting", [True, False])
def test_collection_is_put_back_also_after_an_error(collecting):
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(OSError, match="gone"), no_collection():
            assert not gc.isenabled()
            raise OSError("gone")
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()
