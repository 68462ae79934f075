"""Truncation of Qwen-VL's own decoder against the mask oracle, and the quirks that could break it in silence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from qwen_checkpoint import IMAGE_START, write_checkpoint
from qwen_prompts import IMAGE_END, PER_IMAGE, QwenOracle, batch, between_tags, picture

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models.efficiency import Meter, kv_bytes
from redrel_vlmeval.models.qwen.core import QwenCore
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import Trace, truncated
from redrel_vlmeval.truncation.decoders.find import find_decoder

BLOCKS = 5
LAYOUT = "ttItttt"
GREEDY = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
          "min_new_tokens": 4}  # fmt: skip


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> QwenCore:
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen") / "base", blocks=BLOCKS)
    return QwenCore(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def short_sighted(tmp_path_factory: pytest.TempPathFactory) -> QwenCore:
    """Trained length 64: every prompt with a picture is beyond it, so NTK and logn scaling are at work."""
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen") / "short", blocks=BLOCKS, seq_length=64, seed=1)
    return QwenCore(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


def test_the_length_up_to_which_prompts_of_a_batch_do_not_turn_one_another(core, short_sighted, monkeypatch) -> None:
    assert (find_decoder(core.model).trained, find_decoder(short_sighted.model).trained) == (2048, 64)
    for name in ("use_dynamic_ntk", "use_logn_attn"):
        assert find_decoder(core.model).trained is not None
        monkeypatch.setattr(core.model.config, name, False)
    assert find_decoder(core.model).trained is None


def stages_of(setting: str) -> dict[int, int]:
    return {stage.layer: stage.keep or 0 for stage in parse(setting).stages}


def kept_positions(trace: Trace, inputs: dict[str, torch.Tensor]) -> dict[int, list[list[int]]]:
    image = between_tags(inputs["input_ids"])
    places = [row.nonzero()[:, 0].tolist() for row in image]
    prompts = trace.prompts[-len(places) :]
    layers = sorted({layer for prompt in prompts for layer in prompt.kept})
    return {
        layer: [
            [place for number, place in enumerate(row) if number in prompt.kept.get(layer, range(10**6))]
            for row, prompt in zip(places, prompts, strict=True)
        ]
        for layer in layers
    }


@torch.no_grad()
def compare(core: QwenCore, setting: str, inputs: dict[str, torch.Tensor], **options: Any) -> None:
    """Prefill logits at every token that stays, and a continuation with its logits."""
    spec, model = parse(setting), core.model
    tiny = SimpleNamespace(model=model)
    with truncated(model, spec) as trace:
        logits = model(**inputs).logits
        kept = kept_positions(trace, inputs)
        out = model.generate(**inputs, **(GREEDY | options))
    with QwenOracle(tiny, stages_of(setting), spec.rule, spec.row, spec.official).applied() as oracle:
        wanted = model(**inputs).logits
        if not spec.official:
            assert kept == oracle.kept
        expected = model.generate(**inputs, **(GREEDY | options))
    stays = inputs["attention_mask"].bool() & ~between_tags(inputs["input_ids"])
    for row, positions in enumerate(kept[max(oracle.stages)]):
        stays[row, positions] = True
    torch.testing.assert_close(logits[stays], wanted[stays], atol=1e-4, rtol=1e-4)
    assert torch.equal(out.sequences, expected.sequences)
    for got, want in zip(out.logits, expected.logits, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("setting", ["l2_k16", "l0_k0", "l4_k0", "l1_k64_l3_k5", "l2_k16_lowest", "l2_k16_rowmean"])
def test_one_prompt_equals_the_oracle(core: QwenCore, pictures: Path, setting: str) -> None:
    compare(core, setting, batch(pictures, [LAYOUT]))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("setting", ["l2_k16", "l0_k0", "l1_k300_l3_k20"])
def test_padded_batch_with_one_two_and_no_pictures(core: QwenCore, pictures: Path, setting: str, beams: int) -> None:
    compare(core, setting, batch(pictures, [LAYOUT, "tItIt", "ttt", "Itttttttt"]), num_beams=beams)


@pytest.mark.parametrize("setting", ["l2_k16", "l0_k0", "l1_k64_l3_k5"])
def test_beyond_the_trained_length(short_sighted: QwenCore, pictures: Path, setting: str) -> None:
    compare(short_sighted, setting, batch(pictures, [LAYOUT]))
    compare(short_sighted, setting, batch(pictures, [LAYOUT, "tItIt"], seed=1))
    alpha = short_sighted.model.transformer.rotary_emb._ntk_alpha_cached
    assert alpha > 1


def test_logn_scaling_matters_in_the_test_above(short_sighted: QwenCore, pictures: Path) -> None:
    """Counting a block's own keys, as the code does by itself, would scale queries otherwise."""
    inputs = batch(pictures, [LAYOUT])
    model = short_sighted.model
    tables = [block.attn.logn_tensor for block in model.transformer.h]
    with torch.no_grad(), truncated(model, "l2_k16"):
        right = model(**inputs).logits[:, -1]
        assert [block.attn.logn_tensor is table for block, table in zip(model.transformer.h, tables, strict=True)] == [
            True, True, False, False, False
        ]  # fmt: skip
    assert all(block.attn.logn_tensor is table for block, table in zip(model.transformer.h, tables, strict=True))
    for block in model.transformer.h:
        block.attn.use_logn_attn = False
    with torch.no_grad(), truncated(model, "l2_k16"):
        unscaled = model(**inputs).logits[:, -1]
    for block in model.transformer.h:
        block.attn.use_logn_attn = True
    assert (right - unscaled).abs().max() > 1e-2


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("setting", ["l2_k16_official", "l1_k64_l3_k5_official", "l0_k0_official"])
def test_official_mode(core: QwenCore, pictures: Path, setting: str, cache: bool) -> None:
    compare(core, setting, batch(pictures, [LAYOUT]), use_cache=cache)
    compare(core, setting, batch(pictures, [LAYOUT, "tI"]), use_cache=cache)


@pytest.mark.parametrize("setting", ["l2_k16", "l0_k0", "l2_k16_random"])
@pytest.mark.parametrize("beams", [1, 3])
def test_cached_decoding_equals_recomputation(
    core: QwenCore, short_sighted: QwenCore, pictures: Path, setting: str, beams: int
) -> None:
    for model in (core.model, short_sighted.model):
        if model is short_sighted.model and beams > 1:
            continue
        inputs = batch(pictures, [LAYOUT, "tIttt"])
        with torch.no_grad(), truncated(model, setting):
            outs = [
                model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=beams, use_cache=cache)
                for cache in (True, False)
            ]
        assert torch.equal(*outs)


@torch.no_grad()
def test_nothing_to_drop_is_bit_for_bit_the_untouched_model(core: QwenCore, pictures: Path) -> None:
    model = core.model
    for layouts, settings in (
        ([LAYOUT], ("l2_k256", "l1_k900", "l2_r100", "l2_k256_official")),
        (["ttttt"], ("l0_k0", "l2_k0")),
    ):
        inputs = batch(pictures, layouts)
        before, words = model(**inputs).logits, model.generate(**inputs, max_new_tokens=4, do_sample=False)
        for setting in settings:
            with truncated(model, setting) as trace:
                assert torch.equal(model(**inputs).logits, before)
                assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), words)
            assert trace.last.mode == "untouched"


@torch.no_grad()
def test_the_picture_has_its_effect_and_none_after_l0_k0(core: QwenCore, pictures: Path) -> None:
    one, other = batch(pictures, [LAYOUT], seed=1), batch(pictures, [LAYOUT], seed=1)
    path = picture(pictures, 99)
    start = int((other["input_ids"][0] == IMAGE_START).nonzero()[0, 0]) + 1
    name = list(str(path).encode())
    other["input_ids"][0, start : start + PER_IMAGE] = IMAGE_END + 1
    other["input_ids"][0, start : start + len(name)] = torch.tensor(name)
    assert (core.model(**one).logits - core.model(**other).logits)[:, -1].abs().max() > 1e-3
    with truncated(core.model, "l0_k0"):
        assert torch.equal(core.model(**one).logits[:, -1], core.model(**other).logits[:, -1])


@torch.no_grad()
def test_after_its_block_a_dropped_token_changes_nothing_and_a_kept_one_does(core: QwenCore, pictures: Path) -> None:
    inputs = batch(pictures, [LAYOUT])
    places = between_tags(inputs["input_ids"])[0].nonzero()[:, 0]
    with truncated(core.model, "l2_k16") as trace:
        plain = core.model(**inputs).logits
        kept = trace.last.kept[2]
        dropped = [number for number in range(PER_IMAGE) if number not in kept]
        for numbers, moves in ((dropped, False), (kept, True)):

            def change(_m: object, _a: object, out: Any, rows: list[int] = numbers) -> Any:
                hidden = out[0].clone()
                hidden[:, places[rows]] += 1
                return (hidden, *out[1:])

            handle = core.model.transformer.h[1].register_forward_hook(change)
            changed = core.model(**inputs).logits
            handle.remove()
            assert torch.equal(plain[:, -1], changed[:, -1]) is not moves


@torch.no_grad()
def test_measured_keys_equal_the_trace_in_every_block(core: QwenCore, pictures: Path) -> None:
    inputs = batch(pictures, [LAYOUT])
    total = inputs["input_ids"].shape[1]
    with truncated(core.model, "l1_k30_l3_k10") as trace, Meter(core.model) as meter:
        out = core.model.generate(**inputs, **GREEDY)
    assert meter.decoder is not None
    assert meter.kv_bytes == kv_bytes(trace.last.kv, meter.decoder.shape, 4) and (meter.total or 0) > 0
    held = [keys.shape[1] for keys, _ in out.past_key_values]
    drop = [0, 226, 226, 246, 246]
    assert trace.last.tokens == [total - gone for gone in drop]
    assert trace.last.images == [256 - gone for gone in drop]
    assert held == trace.last.kv == [total - gone + 3 for gone in drop]


@pytest.mark.parametrize("setting", ["l2_k16", "l0_k0"])
def test_a_step_without_a_mask_is_a_step_with_a_mask_of_ones(core: QwenCore, pictures: Path, setting: str) -> None:
    inputs = batch(pictures, [LAYOUT])
    ids, ones = inputs["input_ids"], torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
    answers = []
    for mask in (None, ones):
        with torch.no_grad(), truncated(core.model, setting):
            cache = core.model(input_ids=ids, use_cache=True).past_key_values
            step = core.model(input_ids=torch.tensor([[7]]), past_key_values=cache, attention_mask=mask)
            answers.append(step.logits)
    assert torch.equal(*answers)


def state(core: QwenCore) -> list[Any]:
    model = core.model
    found: list[Any] = [sorted(model.__dict__), model.generate]
    for module in model.modules():
        found += [len(module._forward_hooks), len(module._forward_pre_hooks)]
    for block in model.transformer.h:
        found += [block.attn.__dict__.get("_attn"), id(block.attn.logn_tensor)]
    return found


def test_hooks_leave_no_trace_also_after_an_error(core: QwenCore, pictures: Path) -> None:
    inputs = batch(pictures, [LAYOUT])
    before = state(core)
    with torch.no_grad(), truncated(core.model, "l2_k16"):
        core.model(**inputs)
        assert state(core) != before
    assert state(core) == before
    with pytest.raises(FileNotFoundError), torch.no_grad(), truncated(core.model, "l2_k16"):
        core.model(**batch(pictures / "missing", ["t"]) | gone(pictures))
    assert state(core) == before


def gone(folder: Path) -> dict[str, torch.Tensor]:
    """A prompt whose picture is not there any more."""
    inputs = batch(folder, ["tIt"], seed=7)
    picture(folder, 70).unlink()
    return inputs


@torch.no_grad()
def test_what_cannot_be_honoured_is_refused(core: QwenCore, pictures: Path) -> None:
    model, inputs = core.model, batch(pictures, [LAYOUT])
    foreign = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(TruncationError, match="layer 5 .* 5 blocks"), truncated(model, "l5_k1"):
        pass
    with truncated(model, "l2_k16"):
        with pytest.raises(TruncationError, match="not filled inside"):
            model(input_ids=torch.tensor([[5]]), past_key_values=foreign)
        unclosed = inputs | {"input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_END, 5)}
        with pytest.raises(TruncationError, match="1 image starts and 0 image ends"):
            model(**unclosed)
        with pytest.raises(TruncationError, match="already"), truncated(model, "l2_k16"):
            pass


@pytest.mark.parametrize("setting", ["l1_k64", "l1_k64_random_official"])
def test_a_cache_of_another_prompt_is_refused_whatever_its_lengths(
    core: QwenCore, pictures: Path, setting: str
) -> None:
    one, other = batch(pictures, [LAYOUT], seed=3), batch(pictures, [LAYOUT], seed=4)
    with torch.no_grad(), truncated(core.model, setting):
        first = core.model(**one).past_key_values
        core.model(**other)
        with pytest.raises(TruncationError, match="not filled inside"):
            core.model(input_ids=torch.tensor([[7]]), past_key_values=first)


def test_the_kernel_is_named_and_the_row_is_the_eager_one(core: QwenCore, pictures: Path) -> None:
    """Ranking sees what the block's kernel was given: the same choice under SDPA and under the code's own attention."""
    inputs = batch(pictures, [LAYOUT])
    assert find_decoder(core.model).kernel == "sdpa"
    with torch.no_grad(), truncated(core.model, "l2_k16") as fused:
        core.model(**inputs)
        assert find_decoder(core.model).kernel == "sdpa"
    with torch.no_grad(), truncated(core.model, "l2_k16") as eager:
        core.model(**inputs, output_attentions=True)
    assert fused.last.kept == eager.last.kept


@pytest.mark.parametrize(("before", "chat"), [(0, False), (19, True)], ids=["base", "chat"])
def test_written_down_constants_cover_other_tokens_than_the_picture(pictures: Path, before: int, chat: bool) -> None:
    """The published constants, start 6 and length 258, against the spans of the stock prompts.

    In the base prompt the picture comes first. In the chat prompt 19 tokens stand before ``<img>``: system turn, role
    and ``Picture 1: `` in the real vocabulary. This is why spans are found and never written down.
    """
    ids = torch.tensor([[1] * before + batch(pictures, ["I"])["input_ids"][0].tolist() + [1] * 60])
    image = between_tags(ids)[0]
    covered = torch.zeros_like(image)
    covered[6 : 6 + 258] = True
    missed, hit = int((image & ~covered).sum()), int((covered & ~image).sum())
    assert (missed, hit) == ((12, 14) if chat else (5, 7))
