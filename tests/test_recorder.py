"""One record per question of the host, beside its predictions and nowhere else, from one writer at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoints import needs_host
from modelbox import QUESTION, TOKENS, in_host, message, records

from redrel_vlmeval.models import llava_input
from redrel_vlmeval.truncation import truncated

pytestmark = needs_host


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
    prompt = base.core.inputs(*llava_input.single_prompt(ask))["input_ids"].shape[1]
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
    in_host(lambda: variant.chat_inner(turns), 1, tmp_path, module="vlmeval.inference_mt")
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
    in_host(lambda: first.generate(asked), 1, tmp_path)
    monkeypatch.setattr(base.core, "reply", lambda _message: pytest.fail("answered although the file is taken"))
    with pytest.raises(RuntimeError, match=r"RedRelShapes_redrel.jsonl: another run .*--work-dir"):
        in_host(lambda: second.generate(asked), 2, tmp_path)
    assert [record["index"] for record in records(tmp_path)] == [1]


def test_a_writer_may_follow_one_that_went_on_elsewhere(classes, base, asked, tmp_path):
    first, second = (classes.TruncatedVLM(base, "l2_k16") for _ in range(2))
    (tmp_path / "b").mkdir()
    in_host(lambda: first.generate(asked), 1, tmp_path)
    in_host(lambda: first.generate(asked), 1, tmp_path / "b")
    in_host(lambda: second.generate(asked), 2, tmp_path)
    assert [record["index"] for record in records(tmp_path)] == [1, 2]


def test_a_torn_last_line_is_closed_off(base, classes, asked, tmp_path):
    path = tmp_path / "redrel_tiny_RedRelShapes_redrel.jsonl"
    path.write_bytes(b'{"version": 1, "index": 0}\n{"version": 1, "ind')
    in_host(lambda: classes.TruncatedVLM(base, "l2_k16").generate(asked), 1, tmp_path)
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"version": 1, "index": 0}', '{"version": 1, "ind'] and json.loads(lines[3])["index"] == 1


def test_the_run_says_what_it_is_once_before_its_records(classes, asked, base, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", "--data", "X", "--judge-key", "secret"])
    variant = classes.TruncatedVLM(base, "l2_k16")
    for index in (1, 2):
        in_host(lambda: variant.generate(asked), index, tmp_path)
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
