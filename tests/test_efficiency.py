"""Declared costs are measured costs: FLOPs by torch's counter, KV by the cache, records by reading them back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import BLOCKS, FAMILIES, TinyModel, build, key_values
from torch.utils.flop_counter import FlopCounterMode

from redrel_vlmeval.bases import BASES
from redrel_vlmeval.models.efficiency import Meter, RecordFile, block_flops, costs, kv_bytes, prefill_flops
from redrel_vlmeval.names import parse
from redrel_vlmeval.sweep.preview import decoder_bytes
from redrel_vlmeval.truncation import truncated
from redrel_vlmeval.truncation.decoders.base import BlockShape
from redrel_vlmeval.truncation.decoders.find import find_decoder


def counted(tiny: TinyModel, setting: str | None) -> tuple[int, list[int]]:
    """(multiply-adds of the decoder blocks alone, counted by torch; tokens entering each block)."""
    inputs = tiny.prompt("ttItttt")
    decoder = find_decoder(tiny.model)
    names = [name for name, module in tiny.model.named_modules() if any(module is block for block in decoder.blocks)]
    with torch.no_grad(), FlopCounterMode(display=False, depth=None) as counter:
        if setting is None:
            tiny.model(**inputs)
            tokens = [inputs["input_ids"].shape[1]] * BLOCKS
        else:
            with truncated(tiny.model, setting) as trace:
                tiny.model(**inputs)
            tokens = trace.last.tokens
    found = counter.get_flop_counts()
    blocks = 0
    for name in names:
        (key,) = [key for key in found if key.endswith(f".{name}")]
        blocks += sum(found[key].values())
    return blocks // 2, tokens  # the counter takes a multiply-add for two


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("setting", [None, "l2_k5", "l1_k9_l3_k2", "l0_k0", "l4_k0", "l2_k5_random"])
def test_counted_flops_equal_the_formula(kernel: str, setting: str | None) -> None:
    tiny = build("llava", kernel)
    flops, tokens = counted(tiny, setting)
    spec = parse(setting) if setting else None
    ranked = [(stage.layer, spec.rule_of(stage)) for stage in spec.stages if not stage.empty] if spec else []
    assert flops == prefill_flops(tokens, find_decoder(tiny.model).shape, ranked, tokens)


@pytest.mark.skipif("qwen3_vl" not in FAMILIES, reason="this release of transformers has no Qwen3-VL")
def test_of_experts_those_that_a_token_is_sent_to_are_counted() -> None:
    tiny = build("qwen3_vl_moe")
    tiny.model.set_experts_implementation("eager")  # others run on kernels that torch does not count
    decoder = find_decoder(tiny.model)
    assert (decoder.shape.ffn, decoder.shape.held) == (2 * 20, 4 * 20)
    flops, tokens = counted(tiny, "l2_k3_random")
    sending = sum(tokens) * decoder.shape.width * 4  # scores of four experts
    assert flops - sending == prefill_flops(tokens, decoder.shape)


def test_bytes_of_weights_are_those_of_all_experts() -> None:
    for name, billions in (("Qwen3-VL-30B-A3B-Instruct", 29.9), ("Qwen3-VL-235B-A22B-Thinking", 234)):
        assert round(decoder_bytes(BASES[name]) / 2e9, 1 if billions < 99 else 0) == billions


def test_the_formula_is_that_of_the_literature() -> None:
    """LLaVA-1.5-7B, 576 image tokens: 3.817 T, as PyramidDrop and SparseVLM count."""
    shape = BlockShape(4096, 32, 32, 128, 11008)
    assert round(prefill_flops([576] * 32, shape) / 1e12, 3) == 3.817
    n, d, m = 576, 4096, 11008
    assert block_flops(n, shape) == 4 * n * d * d + 2 * n * n * d + 3 * n * d * m


def test_kv_bytes_are_those_of_the_cache(llava: TinyModel) -> None:
    inputs = llava.prompt("ttItttt")
    with torch.no_grad(), truncated(llava.model, "l2_k5") as trace:
        cache = llava.model(**inputs, use_cache=True).past_key_values
    real = sum(t.numel() * t.element_size() for pair in key_values(cache) for t in pair)
    assert kv_bytes(trace.last.kv, find_decoder(llava.model).shape, 4) == real


def test_a_meter_sees_prefill_and_every_later_step_and_leaves(llava: TinyModel) -> None:
    inputs = llava.prompt("ttItttt")
    hooks = len(llava.model._forward_hooks)
    with truncated(llava.model, "l2_k5") as trace, Meter(llava.model) as meter:
        llava.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert len(llava.model._forward_hooks) == hooks
    assert len(meter.seconds) == 4
    assert meter.prefill_ms is not None and meter.decode_ms is not None
    record = costs(meter, trace.last, parse("x_trunc_l2_k5"))
    total = inputs["input_ids"].shape[1]
    assert record["tokens"] == [total, total, total - 11, total - 11, total - 11]
    assert record["kv_tokens"] == [n + 3 for n in record["tokens"]]
    assert record["prefill_flops"] < record["prefill_flops_untouched"]
    assert record["kv_bytes_measured"] == record["kv_bytes"] < record["kv_bytes_untouched"]
    assert record["seconds"] >= sum(meter.seconds) > 0 and record["new_tokens"] == 4
    assert record["peak_bytes"] is None, "only a GPU's allocator tells"
    assert record["average_image_tokens"] == (16 * 2 + 5 * 3) / 5
    assert (record["mode"], record["kernel"], record["dtype"]) == ("dropped", "sdpa", "float32")


def test_an_untouched_model_costs_what_the_untouched_columns_say(llava: TinyModel) -> None:
    inputs = llava.prompt("ttItttt")
    with Meter(llava.model) as meter:
        llava.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    record = costs(meter, None, parse("x"))
    assert record["mode"] == "untouched"
    assert record["prefill_flops"] == record["prefill_flops_untouched"]
    assert record["kv_bytes_measured"] == record["kv_bytes"] == record["kv_bytes_untouched"]


def test_records_are_lines_and_have_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "a_redrel.jsonl"
    path.write_bytes(b'{"index": 1}\n{"ind')  # its writer was killed
    file = RecordFile(path)
    file.append({"index": torch.tensor(3), "path": Path("x")})
    with pytest.raises(RuntimeError, match="another run is writing here"):
        RecordFile(path)
    file.close()
    RecordFile(path).close()
    lines = path.read_text().splitlines()
    assert [json.loads(lines[0]), json.loads(lines[2])] == [{"index": 1}, {"index": 3, "path": "x"}]
