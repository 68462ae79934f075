"""Memory and FLOPs of a run before it starts are those that its records have afterwards."""

from __future__ import annotations

import pytest
from modelbox import QUESTION, in_host, message, records
from typer.testing import CliRunner

from redrel_vlmeval import bases, cli
from redrel_vlmeval.bench import price
from redrel_vlmeval.names import parse
from redrel_vlmeval.sweep import plan


@pytest.mark.parametrize("setting", ["l2_k16", "l1_k0", "l2_k32_l5_k4"])
def test_the_price_is_what_the_record_says(classes, base, pictures, tmp_path, setting):
    model, name = classes.TruncatedVLM(base, setting), f"redrel_tiny_trunc_{setting}"
    in_host(lambda: model.generate(message(pictures, 0, QUESTION)), 1, tmp_path, name)
    (record,) = records(tmp_path)
    prompt = plan.Prompt(0, 64, record["prompt_tokens"] - 64)
    found = price.price(parse(name), bases.known("redrel_tiny"), prompt)
    assert (found.flops, found.flops_untouched) == (record["prefill_flops"], record["prefill_flops_untouched"])
    steps = (price.NEW - record["new_tokens"] + 1) * 8 * 2 * 128 * 2  # blocks, keys and values, float16
    assert found.kv == record["kv_bytes"] // 2 + steps
    blocks = sum(weight.numel() for block in base.model.model.language_model.layers for weight in block.parameters())
    assert found.weights == pytest.approx(1.1 * 2 * blocks, rel=0.01)
    eight = price.price(parse(name), bases.known("redrel_tiny"), prompt, 8)
    assert (eight.kv, eight.active, eight.weights) == (8 * found.kv, 8 * found.active, found.weights)


def test_the_command_says_whether_it_fits(monkeypatch):
    monkeypatch.delenv("REDREL_BATCH", raising=False)
    said = CliRunner().invoke(cli.app, ["check", "llava_v1.5_7b_trunc_l5_k128", "--gpu", "24GB"]).output
    assert "a prompt of 676 tokens, 576 of a picture" in said and "fits into 24GB" in said and "of the base's" in said
    assert "does not fit into 8GB" in CliRunner().invoke(cli.app, ["check", "llava_v1.5_7b", "--gpu", "8GB"]).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llava_v1.5_7b", "--gpu", "much"], "--gpu much: give the GPU's memory, such as 24GB"),
        (["llava_v1.5_7b", "--gpu", "0GB"], "--gpu 0GB"),
        (["llava_next_vicuna_7b", "--gpu", "24GB"], "a picture's tokens depend on the picture's size"),
    ],
)
def test_what_has_no_price_is_refused_by_name(arguments, words):
    assert words in str(CliRunner().invoke(cli.app, ["check", *arguments]).exception)
