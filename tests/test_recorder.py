"""One record per question of the host, beside its predictions and nowhere else, from one writer at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoints import needs_host
from modelbox import QUESTION, TOKENS, in_host, message, records

from redrel_vlmeval.models.llava import input
from redrel_vlmeval.truncation import truncated

pytestmark = needs_host
CUT = "redrel_tiny_trunc_l2_k16"


def test_a_record_is_written_beside_the_predictions(classes, base, pictures, tmp_path):
    variant = classes.TruncatedVLM(base, "redrel_tiny_trunc_l2_k16")
    ask = message(pictures, 0, QUESTION)
    with truncated(base.model, "l2_k16") as trace:
        expected = base.core.reply(ask)
    kept = trace.prompts[-1]
    answer = in_host(lambda: variant.generate(ask), np.int64(1007), tmp_path, "redrel_tiny_trunc_l2_k16")
    assert answer == expected
    assert [path.name for path in tmp_path.iterdir()] == ["redrel_tiny_trunc_l2_k16_RedRelShapes_redrel.jsonl"]
    (record,) = records(tmp_path)
    prompt = base.core.inputs(*input.single_prompt(ask))["input_ids"].shape[1]
    wanted = {
        "version": 1, "index": 1007, "model": "redrel_tiny_trunc_l2_k16", "base": "redrel_tiny", "setting": "l2_k16",
        "dataset": "RedRelShapes", "image_tokens": TOKENS, "prompt_tokens": prompt, "mode": "dropped",
        "tokens": [prompt] * 2 + [prompt - 48] * 6, "images_per_block": [TOKENS] * 2 + [16] * 6,
        "average_image_tokens": 28.0, "kept": {"2": kept.kept[2]}, "weights": "redrel_tiny", "device": "cpu",
        "dtype": "float32", "kernel": "sdpa", "revision": base.core.revision, "backend": base.core.backend,
    }  # fmt: skip
    assert {key: record[key] for key in wanted} == wanted
    grown = record["new_tokens"] - 1
    assert 4 <= record["new_tokens"] <= 6 and record["kv_tokens"] == [n + grown for n in record["tokens"]] == kept.kv
    assert record["kv_bytes"] == record["kv_bytes_measured"] == sum(record["kv_tokens"]) * 2 * 128 * 4
    assert record["seconds"] > record["prefill_ms"] / 1e3
    assert record["prefill_flops"] < record["prefill_flops_untouched"]
    assert record["prefill_ms"] > 0 and record["decode_ms_per_token"] > 0
    assert set(record["versions"]) == {"redrel_vlmeval", "torch", "transformers", "vlmeval"}
    assert "?" not in record["versions"].values() and record["revision"].startswith("sha256:")


def test_the_base_has_records_too(base, asked, tmp_path):
    for index in (3, "four"):
        in_host(lambda: base.generate(asked), index, tmp_path)
    first, second = records(tmp_path)
    assert (first["index"], second["index"], first["base"], first["setting"]) == (3, "four", "redrel_tiny", "")
    assert first["mode"] == "untouched" and first["kept"] == {} and set(first["images_per_block"]) == {TOKENS}
    assert first["prefill_flops"] == first["prefill_flops_untouched"]


def test_conversations_are_recorded_and_a_text_question_has_no_image_tokens(base, classes, tmp_path):
    variant = classes.TruncatedVLM(base, "l2_k16")
    turns = [{"role": "user", "content": [{"type": "text", "value": "What color is grass?"}]}]
    in_host(lambda: variant.chat_inner(turns), 1, tmp_path, CUT, module="vlmeval.inference_mt")
    (record,) = records(tmp_path)
    assert record["image_tokens"] == 0 and record["mode"] == "untouched"


@pytest.mark.parametrize("module", ["vlmeval.run", "tests", "vlmeval.inferences"])
def test_nothing_is_written_outside_of_the_hosts_loop(base, asked, tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    base.generate(asked)
    in_host(lambda: base.generate(asked), 1, tmp_path, module=module)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_question_leaves_no_record(base, tmp_path):
    with pytest.raises(ValueError):
        in_host(lambda: base.generate(message(["gone.png"], 0, QUESTION)), 1, tmp_path)
    assert not list(tmp_path.glob("*.jsonl")) or records(tmp_path) == []


def test_each_rank_has_its_own_file(base, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    in_host(lambda: base.generate(asked), 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["redrel_tiny_RedRelShapes_redrel_rank1.jsonl"]


def test_a_second_writer_is_refused_before_it_answers(classes, base, asked, tmp_path, monkeypatch):
    first, second = (classes.TruncatedVLM(base, "l2_k16") for _ in range(2))
    in_host(lambda: first.generate(asked), 1, tmp_path, CUT)
    monkeypatch.setattr(base.core, "reply", lambda _message: pytest.fail("answered although the file is taken"))
    with pytest.raises(RuntimeError, match=r"RedRelShapes_redrel.jsonl: another run .* another folder"):
        in_host(lambda: second.generate(asked), 2, tmp_path, CUT)
    assert [record["index"] for record in records(tmp_path)] == [1]


def test_a_writer_may_follow_one_that_went_on_elsewhere(classes, base, asked, tmp_path):
    first, second = (classes.TruncatedVLM(base, "l2_k16") for _ in range(2))
    (tmp_path / "b").mkdir()
    in_host(lambda: first.generate(asked), 1, tmp_path, CUT)
    in_host(lambda: first.generate(asked), 1, tmp_path / "b", CUT)
    in_host(lambda: second.generate(asked), 2, tmp_path, CUT)
    assert [record["index"] for record in records(tmp_path)] == [1, 2]


def test_a_torn_last_line_is_closed_off(base, classes, asked, tmp_path):
    path = tmp_path / f"{CUT}_RedRelShapes_redrel.jsonl"
    path.write_bytes(b'{"version": 1, "index": 0}\n{"version": 1, "ind')
    in_host(lambda: classes.TruncatedVLM(base, "l2_k16").generate(asked), 1, tmp_path, CUT)
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"version": 1, "index": 0}', '{"version": 1, "ind'] and json.loads(lines[3])["index"] == 1


def test_the_run_says_what_it_is_once_before_its_records(classes, asked, base, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", "--data", "X", "--judge-key", "secret"])
    variant = classes.TruncatedVLM(base, "l2_k16")
    for index in (1, 2):
        in_host(lambda: variant.generate(asked), index, tmp_path, CUT)
    (path,) = tmp_path.iterdir()
    head, *rest = map(json.loads, path.read_text().splitlines())
    run = head["run"]
    assert [record["index"] for record in rest] == [1, 2] and "index" not in head
    assert (run["host"], run["commit"], run["arguments"]) == ("ms", None, "--data X --judge-key ...")
    assert f"ms-vlmeval {run['host_version']}" == rest[0]["versions"]["vlmeval"]
    assert run["started"] <= rest[0]["time"]


def test_a_folder_that_is_not_there_is_an_error_before_the_answer(base, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(base.core, "reply", lambda _message: pytest.fail("answered although no record can be kept"))
    with pytest.raises(OSError, match="none"):
        in_host(lambda: base.generate(asked), 1, tmp_path / "none")


@pytest.mark.parametrize(
    ("setting", "name", "better"),
    [
        ("l2_k16", "redrel_tiny", "redrel_tiny_trunc_l2_k16"),
        ("p-cqm", "x", "x_p-cqm"),
        ("ppl", "mine_p-cqm", "mine_ppl"),
        ("l2_k16", "mine_trunc_l2_k17", "mine_trunc_l2_k16"),
        ("l2_k16", "not_trunc_a_name", "redrel_tiny_trunc_l2_k16"),
    ],
)
def test_a_run_that_sheets_would_take_for_another_is_refused(classes, base, asked, tmp_path, setting, name, better):
    """In a ``--config`` a run may have any name; only the setting in it has to be the model's."""
    variant = classes.TruncatedVLM(base, f"redrel_tiny_{'trunc_' * (setting[0] == 'l')}{setting}")
    with pytest.raises(ValueError, match=rf"run '{name}': .* but the model is '{setting}'; call the run '{better}'"):
        in_host(lambda: variant.recorder.question().__enter__(), 1, tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_run_may_have_a_base_name_of_its_own(classes, base, asked, tmp_path):
    variant = classes.TruncatedVLM(base, CUT)
    in_host(lambda: variant.generate(asked), 1, tmp_path, "mine_trunc_l2_k16")
    in_host(lambda: base.generate(asked), 1, tmp_path / ".", "mine")
    found = {path.name: json.loads(path.read_text().splitlines()[-1]) for path in tmp_path.iterdir()}
    assert {name: record["setting"] for name, record in found.items()} == {
        "mine_trunc_l2_k16_RedRelShapes_redrel.jsonl": "l2_k16", "mine_RedRelShapes_redrel.jsonl": "",
    }  # fmt: skip
    words = "run 'mine_trunc_l2_k16': .* but the model is 'untouched'; call the run 'mine'"
    with pytest.raises(ValueError, match=words):
        in_host(lambda: base.generate(asked), 1, tmp_path, "mine_trunc_l2_k16")
