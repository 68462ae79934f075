"""A whole sweep of the model in the box through the real host: predictions of the single names, scores by the host."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import host_files
import modelbox
import pandas as pd
import pytest
from checkpoints import import_host, needs_host

from redrel_vlmeval import cli
from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.host import benchmark as hosts
from redrel_vlmeval.models.tiny import benchmark
from redrel_vlmeval.results import reading as results
from redrel_vlmeval.sheets.figures import outcome
from redrel_vlmeval.sweep import handover, run as sweeping
from redrel_vlmeval.sweep.asking import HostSource
from redrel_vlmeval.sweep.plan import PlanError, read_plan
from redrel_vlmeval.sweep.run import Request
from redrel_vlmeval.sweep.store import StoreError, Writer

pytestmark = [needs_host, pytest.mark.timeout(300)]
DATA, BAD, N = "SweepShapes", 1040, 6
GRID = ("2,5", "0,8", "attention,random")


def run(request: Request) -> int:
    """As the command line runs it."""
    return sweeping.run(request, outcome.show)


@pytest.fixture(scope="module")
def lmu(tmp_path_factory):
    """A benchmark of one, two and three hops, one of whose pictures is none."""
    table = benchmark.make("RedRelShapes").iloc[[0, 1, 240, 241, 440, 640]].copy()
    assert table["index"].iloc[2] == BAD
    table.loc[table["index"] == BAD, "image"] = "bm90IGEgcGljdHVy" * 20
    with host_files.lmu_data(tmp_path_factory.mktemp("LMUData"), DATA, table) as folder:
        yield folder


@pytest.fixture(scope="module")
def swept(lmu, tmp_path_factory) -> SimpleNamespace:
    work = tmp_path_factory.mktemp("out")
    code = run(Request("redrel_tiny", DATA, *GRID, work_dir=work, batch=4))
    return SimpleNamespace(work=work, code=code, plan=read_plan("redrel_tiny", DATA, *GRID))


def folder_of(swept, model: str) -> Path:
    (path,) = swept.work.glob(f"{model}/**/status.json")
    return path.parent


def predictions(swept, model: str) -> dict[int, str]:
    table = pd.read_excel(folder_of(swept, model) / f"{model}_{DATA}.xlsx")
    return dict(zip(table["index"], table["prediction"].fillna("").astype(str), strict=True))


def test_predictions_are_those_of_the_single_names_over_the_grid(swept):
    base = modelbox.classes().LLaVA15("redrel_tiny", device="cpu")
    source = HostSource(DATA, None)
    source.read()
    source.model = base
    source.benchmark.prepare(base)
    for setting, model in swept.plan.settings.items():
        alone = modelbox.classes().TruncatedVLM(base, setting) if setting else base
        found = predictions(swept, model)
        assert len(found) == N
        for position, index in enumerate(source.indices):
            if index != BAD:
                assert found[index] == alone.generate(source.message(position), DATA), (model, index)
    different = {tuple(predictions(swept, model).values()) for model in swept.plan.settings.values()}
    assert len(different) > 2  # else nothing was truncated


def test_a_picture_that_is_none_fails_its_question_for_every_variant(swept, capsys):
    assert swept.code == 1
    for model in swept.plan.settings.values():
        found = predictions(swept, model)
        assert [index for index, text in found.items() if text == handover.FAILED] == [BAD]


def test_the_host_has_scored_every_name_and_counts_the_failure(swept):
    read = results.read(swept.work)
    rows = read.scores[read.scores["headline"]]
    assert set(rows["model"]) == set(swept.plan.settings.values()) and set(rows["status"]) == {"ok"}
    assert set(rows["reason"]) == {f"1 of {N} questions could not be asked and count as wrong"}
    variants = rows[rows["model"] != "redrel_tiny"]
    assert variants["delta"].notna().all(), variants["note"].tolist()
    for model in swept.plan.settings.values():
        hits = read.judged[model, DATA].set_index("index")["hit"]
        assert hits[str(BAD)] == 0 and 100 * hits.mean() == pytest.approx(rows.set_index("model").loc[model, "value"])
        status = json.loads((folder_of(swept, model) / "status.json").read_text())["datasets"][DATA]
        assert status["status"] == "done" and "error_message" not in status
    assert not list(swept.work.rglob("01_*.pkl"))


def test_records_say_that_they_come_from_a_sweep_and_have_no_times(swept):
    for setting, model in swept.plan.settings.items():
        path = folder_of(swept, model) / f"{model}_{DATA}_redrel.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert [record["index"] for record in records] == [0, 1, 1041, 2040, 3040]
        for record in records:
            assert (record["source"], record["model"], record["setting"]) == ("sweep", model, setting)
            assert record.get("prefill_ms") is None and record.get("decode_ms_per_token") is None
            assert record["weights"] == "redrel_tiny" and record["versions"]["torch"].startswith("torch")
    row = results.read(swept.work).efficiency.set_index("model").loc["redrel_tiny_trunc_l2_k8_random"]
    assert row["average_image_tokens"] == 22 and row["mode"] == "dropped" and pd.isna(row["prefill_ms"])
    assert 0.6 < row["flops_ratio"] < 0.75


def test_the_hosts_reuse_takes_the_answers_and_retries_the_failed_one(swept):
    import_host()
    from vlmeval.smp import is_prediction_complete

    path = str(folder_of(swept, "redrel_tiny") / f"redrel_tiny_{DATA}.xlsx")
    whole = [0, 1, BAD, 1041, 2040, 3040]
    assert is_prediction_complete(path, whole, retry_failed=False)
    assert not is_prediction_complete(path, whole) and is_prediction_complete(path, [i for i in whole if i != BAD])


def test_the_outcome_is_drawn(swept):
    names = {path.name for path in (swept.work / "sweep" / f"redrel_tiny_{DATA}").iterdir()}
    assert {
        "fig6.png",
        "fig6.svg",
        "heatmap.png",
        "frontier.png",
        "accuracy_against_keep.svg",
        "curves.csv",
        "cliffs.csv",
    } <= names
    assert {"answers.jsonl", "sweep.json"} <= names and not [name for name in names if "rank" in name]


def test_again_it_asks_and_scores_only_what_failed(swept, monkeypatch, capsys):
    monkeypatch.setattr(handover, "_evaluate", lambda *_args: pytest.fail("nothing has changed"))
    before = {path: path.read_bytes() for path in swept.work.rglob("*") if path.suffix in (".xlsx", ".jsonl")}
    assert run(Request("redrel_tiny", DATA, *GRID, work_dir=swept.work, budget="30")) == 1
    said = capsys.readouterr().out
    assert "35 answers to 6 questions are there and reused" in said and "Best within 30 average image tokens" in said
    assert before == {path: path.read_bytes() for path in before}


def test_killed_while_the_host_scores_only_the_rest_is_scored(swept, monkeypatch):
    model = "redrel_tiny_trunc_l5_k8"
    path, left = folder_of(swept, model) / "status.json", []
    before = path.read_text()
    path.write_text(before.replace('"done"', '"eval"'))
    monkeypatch.setattr(handover, "_evaluate", lambda _target, models, *_args: left.extend(models))
    files = {found: found.read_bytes() for found in path.parent.iterdir() if found.is_file()}
    try:
        run(Request("redrel_tiny", DATA, *GRID, work_dir=swept.work))
    finally:
        for found, content in files.items():
            found.write_bytes(content)
        path.write_text(before)
    assert left == [model]


def test_ordinary_runs_are_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(handover, "is_flat", lambda: True)
    target = handover.Target(tmp_path, "X", "exact_matching", tmp_path)
    for model, source in {"swept": ', "source": "sweep"', "mine": ""}.items():
        (tmp_path / model).mkdir()
        (tmp_path / model / f"{model}_X_redrel.jsonl").write_text(f'{{"version": 1, "index": 1{source}}}\n')
        (tmp_path / model / f"{model}_X.xlsx").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "bare_X.tsv").touch()
    assert handover.occupied(target, ["swept", "mine", "bare", "none"]) == ["mine", "bare"]
    (tmp_path / "redrel_tiny").mkdir()
    (tmp_path / "redrel_tiny" / "redrel_tiny_X.xlsx").touch()
    with pytest.raises(StoreError, match="holds ordinary runs on X that a sweep would replace .redrel_tiny."):
        run(Request("redrel_tiny", "X", "1", "0", work_dir=tmp_path))


def test_files_of_an_earlier_sweep_go_and_those_of_others_stay(tmp_path):
    target = handover.Target(tmp_path, "MMBench", "exact_matching", tmp_path)
    stems = ["m_MMBench", "m_MMBench_V11"]
    ends = [".xlsx", "_redrel.jsonl", "_acc.csv", "_exact_matching_result.xlsx", "_exact_matching_result.pkl"]
    for stem in stems:
        for end in ends:
            (tmp_path / f"{stem}{end}").touch()
    (tmp_path / "status.json").write_text('{"datasets": {"MMBench": {"status": "done"}, "MMBench_V11": {"x": 1}}}')
    handover._clear(tmp_path, target, "m_MMBench")
    assert {path.name for path in tmp_path.iterdir()} == {"status.json", *(f"m_MMBench_V11{end}" for end in ends)}
    assert json.loads((tmp_path / "status.json").read_text())["datasets"] == {"MMBench_V11": {"x": 1}}


def table(*indices: int) -> SimpleNamespace:
    return SimpleNamespace(data=pd.DataFrame({"index": list(indices)}), MODALITY="IMAGE", TYPE="MCQ")


@pytest.mark.parametrize("built, said", [
    (None, "the host has no such benchmark"), (table(), "has no questions"), (table(1, 1), "have one index"),
    (table(1), "no column 'answer', so the host could not score"),
    (SimpleNamespace(data=table(1).data, MODALITY="VIDEO", TYPE="MCQ"), "VIDEO MCQ; a sweep asks single"),
    (SimpleNamespace(data=table(1).data, MODALITY="IMAGE", TYPE="MT"), "IMAGE MT; a sweep asks single"),
])  # fmt: skip
def test_benchmarks_that_cannot_be_swept_are_refused(monkeypatch, built, said):
    import_host()
    import vlmeval.dataset

    monkeypatch.setattr(vlmeval.dataset, "build_dataset", lambda _name: built)
    with pytest.raises(ValueError, match=f"--data X: .*{said}"):
        HostSource("X", None).read()


@pytest.mark.parametrize("model, said", [("redrel_tyni", "did you mean"), ("GPT4o", "")])
def test_bases_that_are_none_or_cannot_be_truncated_are_refused(lmu, tmp_path, model, said):
    with pytest.raises((PlanError, RuntimeError)) as raised:
        run(Request(model, DATA, "1", "0", work_dir=tmp_path))
    assert model in str(raised.value) and said in str(raised.value)


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_unknown_benchmark_is_refused_before_anything_is_made(lmu, tmp_path, dry_run):
    with pytest.raises(InvalidValue, match="--data RedRelShape: the host has no such .* did you mean 'RedRelShapes'"):
        run(Request("redrel_tiny", "RedRelShape", "1", "0", work_dir=tmp_path / "out", dry_run=dry_run))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidValue, match="did you mean 'ScienceQA_TEST'"):
        hosts.check("scienceqa_test")
    hosts.check(DATA)  # the user's own TSV


def test_a_work_dir_that_cannot_be_written_to_is_named_by_its_option(lmu, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=f"--work-dir {tmp_path / 'file'}: cannot be written to"):
        run(Request("redrel_tiny", DATA, "1", "0", work_dir=tmp_path / "file"))


def test_ctrl_c_says_how_far_it_came_and_that_it_goes_on(lmu, tmp_path, monkeypatch, capsys):
    append, left = Writer.append, 2

    def stop(self: Writer, entry: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        append(self, entry)

    monkeypatch.setattr(Writer, "append", stop)
    assert run(Request("redrel_tiny", DATA, "1", "0", work_dir=tmp_path)) == 130
    assert "stopped at 2/6 questions; the same command goes on" in capsys.readouterr().out

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "append", append)
    monkeypatch.setattr(handover, "_evaluate", interrupted)
    assert run(Request("redrel_tiny", DATA, "1", "0", work_dir=tmp_path)) == 130
    assert "stopped while the host scored the answers" in capsys.readouterr().out


def test_wrong_arguments_are_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", "redrel sweep --model redrel_tiny --data X --layers 9 --keep 0".split())
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "redrel: --layers 9: redrel_tiny has 8 blocks, so L is 1 to 7\n"
