"""Folders as lmms-eval leaves them, of tasks of several kinds, read without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import host_files
import pandas as pd
import pytest

from redrel_vlmeval.results import ResultsError, read

MODEL = "redrel_llava_hf"
ARGS = "pretrained=llava-hf/llava-1.5-7b-hf,device_map=auto"
BASE = "redrel_llava_hf.llava-hf-llava-1.5-7b-hf"
DATE = "20261128_101500"


def write(
    root: Path,
    task: str,
    numbers: dict[str, Any],
    lines: list[dict[str, Any]] | None,
    args: str = ARGS,
    date: str = DATE,
    **config: Any,
) -> Path:
    """One run of one task; ``numbers`` as ``metric,filter``, metrics in the order of the task."""
    folder = root / "llava-hf__llava-1.5-7b-hf"
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(key.split(",")[0] for key in numbers))
    run = {
        "results": {task: {"alias": task, **numbers}, "a_group": {"alias": "a_group"}},
        "configs": {task: {"task": task, "metric_list": [{"metric": name} for name in names]}},
        "config": {"model": MODEL, "model_args": args, "batch_size": "8", "gen_kwargs": ""} | config,
        "lmms_eval_version": "0.7.3@abc",
        "date": date,
    }
    (folder / f"{date}_results.json").write_text(json.dumps(run))
    if lines is not None:
        text = "".join(json.dumps({"doc_id": number} | line) + "\n" for number, line in enumerate(lines))
        (folder / f"{date}_samples_{task}.jsonl").write_text(text)
    return folder


def line(answer: str, target: str, **metrics: Any) -> dict[str, Any]:
    return {"input": "Is it?", "filtered_resps": answer, "target": target, "token_counts": [None], **metrics}


def headline(root: Path, model: str = BASE) -> Any:
    scores = read(root).scores
    (row,) = scores[scores["headline"] & (scores["model"] == model)].itertuples()
    return row


def test_a_number_per_question_in_points(tmp_path: Path) -> None:
    lines = [line("A", "A", exact_match=1.0), line("B", "A", exact_match=0.0), line("A", "A", exact_match=1.0)]
    write(tmp_path, "scienceqa_img", {"exact_match,none": 2 / 3, "exact_match_stderr,none": "N/A"}, lines)
    row = headline(tmp_path)
    assert (row.benchmark, row.metric, row.n, row.status, row.reason) == ("scienceqa_img", "exact_match", 3, "ok", "")
    assert row.value == pytest.approx(200 / 3)
    answers = read(tmp_path).answers(BASE, "scienceqa_img")
    assert list(answers["prediction"]) == ["A", "B", "A"] and list(answers["hit"]) == [1, 0, 1]


def test_an_object_per_question_with_its_category(tmp_path: Path) -> None:
    def judged(hit: float, kind: str) -> dict[str, Any]:
        said = {"question_id": "q", "score": hit, "category": kind}
        return line("yes", "no", pope_accuracy=said, pope_f1_score=said)

    lines = [judged(1.0, "random"), judged(0.0, "popular"), judged(1.0, "popular")]
    write(tmp_path, "pope", {"pope_accuracy,none": 2 / 3, "pope_f1_score,none": 0.8}, lines)
    found = read(tmp_path).scores.set_index("metric")["value"].to_dict()
    assert found == pytest.approx({"pope_accuracy": 200 / 3, "random": 100, "popular": 50, "pope_f1_score [task]": 80})


def test_questions_that_another_metric_judges_are_not_the_headlines(tmp_path: Path) -> None:
    def judged(name: str, hit: float) -> dict[str, Any]:
        return line("yes", "no", **{name: {"score": hit, "category": "c"}})

    lines = [judged("seen", 1.0), judged("thought", 0.0), judged("seen", 0.0)]
    write(tmp_path, "mme", {"seen,none": 1400.0, "thought,none": 300.0}, lines)
    row = headline(tmp_path)
    assert (row.metric, row.value, row.n) == ("seen", 1400.0, 2) and "as the task sums it up" in row.reason
    assert list(read(tmp_path).judged[BASE, "mme"]["hit"]) == [1.0, 0.0]


def test_the_first_filter_is_read(tmp_path: Path) -> None:
    both = [line("A", "A", exact_match=1.0), line("B", "A", exact_match=0.0)]
    folder = write(tmp_path, "t", {"exact_match,strict": 0.5, "exact_match,loose": 1.0}, both)
    with (folder / f"{DATE}_samples_t.jsonl").open("a") as file:
        for number in (0, 1):
            file.write(json.dumps({"doc_id": number} | line("A", "A", exact_match=1.0)) + "\n")
    assert headline(tmp_path).value == 50 and list(read(tmp_path).judged[BASE, "t"]["hit"]) == [1, 0]


def test_variants_are_paired_with_the_base_that_was_called_alike(tmp_path: Path) -> None:
    good, bad = line("A", "A", exact_match=1.0), line("B", "A", exact_match=0.0)
    write(tmp_path, "t", {"exact_match,none": 1.0}, [good] * 4)
    write(tmp_path, "t", {"exact_match,none": 0.5}, [good, bad] * 2, f"{ARGS},trunc=l5_k128", "20261128_101501")
    other = f"{ARGS},trunc=l5_k128,dtype=float32"
    write(tmp_path, "t", {"exact_match,none": 0.5}, [good, bad] * 2, other, "20261128_101502")
    more = {"gen_kwargs": "num_beams=3"}
    write(tmp_path, "t", {"exact_match,none": 0.5}, [good, bad] * 2, ARGS, "20261128_101503", **more)
    assert headline(tmp_path, f"{BASE}_trunc_l5_k128").delta == -50
    assert (headline(tmp_path, f"{BASE}_trunc_l5_k128").L, headline(tmp_path, f"{BASE}_trunc_l5_k128").K) == (5, 128)
    assert "is not in this folder" in headline(tmp_path, f"{BASE}-dtype.float32_trunc_l5_k128").note
    assert headline(tmp_path, f"{BASE}-num-beams.3").status == "ok"


def test_the_newest_run_counts_and_the_older_is_told_of(tmp_path: Path) -> None:
    write(tmp_path, "t", {"exact_match,none": 1.0}, [line("A", "A", exact_match=1.0)])
    write(tmp_path, "t", {"exact_match,none": 0.0}, [line("B", "A", exact_match=0.0)], date="20261129_101500")
    assert headline(tmp_path).value == 0 and len(read(tmp_path, all_runs=True).cells) == 2


def test_without_samples_there_is_a_score_and_no_test(tmp_path: Path) -> None:
    write(tmp_path, "t", {"exact_match,none": 0.25}, None)
    row = headline(tmp_path)
    assert (row.value, row.status) == (25, "ok") and "--log_samples" in row.reason
    assert read(tmp_path).judged == {}


@pytest.mark.parametrize("what", ["torn samples", "two runs", "torn results", "no metric"])
def test_what_cannot_be_read_fails_its_cell_by_name(tmp_path: Path, what: str) -> None:
    folder = write(tmp_path, "t", {"exact_match,none": 1.0}, [line("A", "A", exact_match=1.0)] * 2)
    samples, results = folder / f"{DATE}_samples_t.jsonl", folder / f"{DATE}_results.json"
    text = samples.read_text()
    if what == "torn samples":
        samples.write_text(text[:-20])
    elif what == "two runs":
        samples.write_text(text + text)
    elif what == "torn results":
        results.write_text(results.read_text()[:-20])
    else:
        results.write_text(results.read_text().replace("exact_match,none", "alias2"))
    ((_, _, reason),) = read(tmp_path).failed
    assert ("samples_t" if "samples" in what or "runs" in what else f"{DATE}_results.json") in reason


def test_a_folder_of_both_hosts(tmp_path: Path) -> None:
    write(tmp_path, "t", {"exact_match,none": 1.0}, [line("A", "A", exact_match=1.0)])
    host_files.answered(tmp_path / "m", "m", "MMBench_DEV_EN", [1, 0])
    found = read(tmp_path)
    assert set(found.scores["benchmark"]) == {"t", "MMBench_DEV_EN"} and not found.failed
    assert isinstance(found.questions, pd.DataFrame) and set(found.questions["benchmark"]) == {"t", "MMBench_DEV_EN"}


def test_an_empty_folder_says_what_either_host_writes(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="lmms-eval"):
        read(tmp_path)


def test_reading_and_the_door_need_neither_torch_nor_a_host() -> None:
    code = "import sys, redrel_vlmeval.lmms.reading, redrel_vlmeval.lmms.door as door\n"
    code += "assert not {'torch', 'transformers', 'vlmeval', 'lmms_eval'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
