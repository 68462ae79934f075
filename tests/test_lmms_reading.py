"""Folders as lmms-eval leaves them, of tasks of several kinds, read without it."""

from __future__ import annotations

import hashlib
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
        "lmms_eval_version": "main@abc",
        "date": date,
    }
    (folder / f"{date}_results.json").write_text(json.dumps(run))
    if lines is not None:
        text = "".join(json.dumps({"doc_id": number} | line) + "\n" for number, line in enumerate(lines))
        (folder / f"{date}_samples_{task}.jsonl").write_text(text)
    return folder


def line(answer: str, target: str, **metrics: Any) -> dict[str, Any]:
    return {"input": "Is it?", "filtered_resps": answer, "target": target, "token_counts": [None], **metrics}


def write_group(
    root: Path, group: dict[str, Any], tasks: dict[str, tuple[float, list[float]]], args: str = ARGS
) -> Path:
    """One run of a group; ``tasks``: their numbers, and the verdicts of their questions."""
    folder = write(root, "t", {}, None, args)
    path = folder / f"{DATE}_results.json"
    run = json.loads(path.read_text())
    numbers = {task: {"exact_match,none": value, "exact_match_stderr,none": 0.1} for task, (value, _) in tasks.items()}
    run["results"] = {"g": group | {"alias": "g"}} | numbers
    run |= {"groups": {"g": group}} if len(group) > 1 else {}
    run["group_subtasks"] = {"g": list(tasks)}
    run["configs"] = {task: {"metric_list": [{"metric": "exact_match"}]} for task in tasks}
    run["n-samples"] = {task: {"effective": len(hits)} for task, (_, hits) in tasks.items()}
    path.write_text(json.dumps(run))
    for task, (_, hits) in tasks.items():
        lines = [json.dumps({"doc_id": i} | line("A", "A", exact_match=hit)) for i, hit in enumerate(hits)]
        (folder / f"{DATE}_samples_{task}.jsonl").write_text("\n".join(lines))
    return folder


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
    write(tmp_path, "t", {"exact_match,none": 1.0}, [line("A", "A", exact_match=1.0)], date="20261127_101500")
    write(tmp_path, "t", {"exact_match,none": 0.0}, [line("B", "A", exact_match=0.0)], date="20261129_101500")
    assert headline(tmp_path).value == 0 and len(read(tmp_path, all_runs=True).cells) == 2
    write(tmp_path, "t", {"exact_match,none": 0.0}, [line("B", "A", exact_match=0.0)], f"{ARGS},trunc=l5_k128")
    row = headline(tmp_path, f"{BASE}_trunc_l5_k128")
    assert row.delta == 0 and "2 times, compared with the newest run 20261129_101500_results.json" in row.note


def test_without_samples_there_is_a_score_and_no_test(tmp_path: Path) -> None:
    write(tmp_path, "t", {"exact_match,none": 0.25}, None)
    row = headline(tmp_path)
    assert (row.value, row.status) == (25, "ok") and "--log_samples" in row.reason
    assert read(tmp_path).judged == {}


TASKS = {"g_one": (1.0, [1.0]), "g_two": (1 / 3, [1.0, 0.0, 0.0])}
NUMBER = {"exact_match_stderr,none": 0.1}


def test_a_group_with_a_number_of_its_own_is_one_benchmark(tmp_path: Path) -> None:
    write_group(tmp_path / "base", {"exact_match,none": 0.5} | NUMBER, TASKS)
    worse = {"g_one": (0.0, [0.0]), "g_two": (1 / 3, [1.0, 0.0, 0.0])}
    write_group(tmp_path / "cut", {"exact_match,none": 0.25} | NUMBER, worse, f"{ARGS},trunc=l5_k128")
    for folder in tmp_path.iterdir():
        (folder / "llava-hf__llava-1.5-7b-hf").rename(tmp_path / f"{folder.name}_")
    found = read(tmp_path)
    assert set(found.scores["benchmark"]) == {"g"} and not found.failed
    base = found.scores[found.scores["model"] == BASE].set_index("metric")["value"].to_dict()
    assert base == pytest.approx({"exact_match": 50, "g_one": 100, "g_two": 100 / 3})
    assert list(found.judged[BASE, "g"]["index"]) == ["g_one/0", "g_two/0", "g_two/1", "g_two/2"]
    (test,) = found.comparisons[found.comparisons["model"] != BASE].itertuples()
    assert (test.delta, test.up, test.down) == (-25, 0, 1)  # one pair for each question


def test_a_group_that_is_the_mean_of_its_tasks_says_so(tmp_path: Path) -> None:
    write_group(tmp_path, {"exact_match,none": 2 / 3} | NUMBER, TASKS)
    row = headline(tmp_path)
    assert row.value == pytest.approx(200 / 3) and row.n == 4 and "as the group sums it up" in row.reason


def test_a_group_without_a_number_is_a_list_of_tasks(tmp_path: Path) -> None:
    write_group(tmp_path, {" ": " "}, TASKS)
    scores = read(tmp_path).scores
    assert dict(zip(scores["benchmark"], scores["value"], strict=True)) == pytest.approx(
        {"g_one": 100, "g_two": 100 / 3}
    )


def test_groups_in_groups_count_once(tmp_path: Path) -> None:
    folder = write_group(tmp_path, {"exact_match,none": 0.5} | NUMBER, TASKS)
    path = folder / f"{DATE}_results.json"
    run = json.loads(path.read_text())
    for name in ("outer", "plain"):
        run["results"][name] = {"exact_match,none": 0.5} if name == "outer" else {" ": " "}
        run["group_subtasks"][name] = ["g"]
    path.write_text(json.dumps(run))
    assert set(read(tmp_path).scores["benchmark"]) == {"g"}
    run["groups"]["outer"] = run["results"]["outer"]
    path.write_text(json.dumps(run))
    assert set(read(tmp_path).scores["benchmark"]) == {"outer"}


def test_the_headline_is_the_metric_that_judges_all_questions(tmp_path: Path) -> None:
    def judged(name: str, hit: float) -> dict[str, Any]:
        said = {"score": hit, "l2_category": "c"}
        return line("A", "A", **{name: said, "average": said})

    lines = [judged("math", 1.0), judged("logic", 0.0), judged("logic", 1.0)]
    numbers = {"math,none": 1.0, "logic,none": 0.5, "average,none": 2 / 3}
    write(tmp_path, "mmstar", numbers, lines)
    row = headline(tmp_path)
    assert (row.metric, row.n) == ("average", 3) and row.value == pytest.approx(200 / 3)
    write(tmp_path / "other", "mmstar", numbers, None)
    assert "the first of the task's metrics math, logic, average" in headline(tmp_path / "other").reason


def test_seed_is_its_pictures_as_published(tmp_path: Path) -> None:
    picture, video = ({"seed_image": {"score": 1.0}, "seed_all": {"score": 1.0}}, {"seed_video": {"score": 0.0}})
    lines = [line("A", "A", **picture), line("A", "B", **video, seed_all={"score": 0.0})]
    write(tmp_path, "seedbench", {"seed_image,none": 1.0, "seed_video,none": 0.0, "seed_all,none": 0.5}, lines)
    row = headline(tmp_path)
    assert (row.metric, row.value, row.n) == ("seed_image", 100, 1)


def test_other_metrics_are_in_points_beside_a_headline_of_nothing(tmp_path: Path) -> None:
    write(tmp_path, "t", {"exact_match,none": 0.0, "f1,none": 0.5}, [line("B", "A", exact_match=0.0)])
    assert dict(zip(read(tmp_path).scores["metric"], read(tmp_path).scores["value"], strict=True)) == {
        "exact_match": 0, "f1 [task]": 50,
    }  # fmt: skip


def told(root: Path) -> str:
    ((_, _, reason),) = read(root).failed
    return str(reason)


def record(**said: Any) -> dict[str, Any]:
    return line("A", "A", exact_match=1.0) | {"token_counts": [{"redrel": said}]}


@pytest.mark.parametrize(
    "said",
    [
        {"weights": "llava-hf/llava-v1.6-vicuna-7b-hf"},
        {"setting": "l5_k64"},
        {"setting": ""},
        {"backend": "lmms_eval.models.chat.qwen3_vl.Qwen3_VL"},
    ],
)
def test_samples_of_another_run_are_refused(tmp_path: Path, said: dict[str, str]) -> None:
    own = {"weights": "llava-hf/llava-1.5-7b-hf", "setting": "l5_k128"}
    own |= {"backend": "lmms_eval.models.chat.llava_hf.LlavaHf"}
    args = f"{ARGS},trunc=l5_k128"
    write(tmp_path, "t", {"exact_match,none": 1.0}, [record(**own)] * 2, args)
    assert not read(tmp_path).failed
    write(tmp_path, "t", {"exact_match,none": 1.0}, [record(**own), record(**own | said)], args)
    assert "samples of another run" in told(tmp_path) and next(iter(said)) in told(tmp_path)


def test_measured_samples_beside_the_harness_s_own_class_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "t", {"exact_match,none": 1.0}, [record(setting="l5_k128")], model="llava_hf")
    assert "samples of another run" in told(tmp_path)


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_lost_line_is_noticed(tmp_path: Path, lost: int) -> None:
    lines = [line("A", "A", exact_match=1.0) | {"doc_hash": str(number)} for number in range(4)]
    folder = write(tmp_path, "t", {"exact_match,none": 1.0}, lines)
    results, samples = folder / f"{DATE}_results.json", folder / f"{DATE}_samples_t.jsonl"
    run, text = json.loads(results.read_text()), samples.read_text().splitlines()
    digest = hashlib.sha256(b"sample_00sample_11sample_22sample_33").hexdigest()
    results.write_text(json.dumps(run | {"task_hashes": {"t": digest}}))
    assert not read(tmp_path).failed
    samples.write_text("\n".join(text[:lost] + text[lost + 1 :]))
    assert "not those that the run wrote" in told(tmp_path)
    results.write_text(json.dumps(run | {"n-samples": {"t": {"original": 9, "effective": 4}}}))
    assert "3 questions, the run asked 4" in told(tmp_path)
    samples.unlink()
    results.write_text(json.dumps(run | {"task_hashes": {"t": digest}}))
    assert f"{samples.name} is not here any more" in headline(tmp_path).reason


def test_samples_without_their_results_fail_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path, "t", {"exact_match,none": 1.0}, [line("A", "A", exact_match=1.0)])
    (folder / f"{DATE}_results.json").unlink()
    assert told(tmp_path) == f"{DATE}_samples_t.jsonl is there, {DATE}_results.json is not"


@pytest.mark.parametrize(
    "odd",
    [
        {"configs": None}, {"configs": {}}, {"configs": ["t"]}, {"configs": {"t": None}}, {"results": {}},
        {"results": {"t": [0.5]}}, {"config": {}}, {"config": None}, {"groups": {"t": 1}}, {"group_subtasks": ["t"]},
        {"date": None}, {"task_hashes": 5, "n-samples": []}, {"configs": {"t": {"metric_list": ["exact_match"]}}},
    ],
)  # fmt: skip
def test_results_of_another_shape_are_read_or_refused_by_name(tmp_path: Path, odd: dict[str, Any]) -> None:
    folder = write(tmp_path, "t", {"exact_match,none": 1.0}, [line("A", "A", exact_match=1.0)])
    path = folder / f"{DATE}_results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    if found := read(tmp_path).failed:
        assert "0.7 writes" in found[0][2] or "names no task" in found[0][2] or "has none of its metrics" in found[0][2]
    else:
        assert headline(tmp_path).value == 100


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
