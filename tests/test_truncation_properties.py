"""Effects, identities and counts: what would be wrong if truncation did nothing, or did more than it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BLOCKS, IMAGE, TinyModel, build, key_values

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation import truncated
from redrel_vlmeval.truncation.decoders.find import find_decoder

LAYOUT = "ttItttt"


def hidden_of(output: Any) -> torch.Tensor:
    """A block's hidden states; older releases return a tuple."""
    return output if isinstance(output, torch.Tensor) else output[0]


@torch.no_grad()
def logits(tiny: TinyModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return tiny.model(**inputs).logits


def test_a_picture_has_its_effect_and_none_after_l0_k0(family: TinyModel) -> None:
    one, other = family.prompt(LAYOUT, seed=1), family.prompt(LAYOUT, seed=1)
    other["pixel_values"] = other["pixel_values"] + 1
    assert (logits(family, one) - logits(family, other))[:, -1].abs().max() > 1e-3
    with truncated(family.model, "l0_k0"):
        assert torch.equal(logits(family, one)[:, -1], logits(family, other)[:, -1])


def test_after_its_block_a_dropped_token_changes_nothing_and_a_kept_one_does(llava: TinyModel) -> None:
    inputs = llava.prompt(LAYOUT)
    places = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    second = find_decoder(llava.model).text.layers[1]
    with truncated(llava.model, "l2_k5") as trace:
        plain = logits(llava, inputs)
        kept = trace.last.kept[2]
        dropped = [n for n in range(16) if n not in kept]
        for numbers, moves in ((dropped, False), (kept, True)):
            # changed on the way out of block 2, after the ranking has happened
            def change(_m: object, _a: object, out: Any, rows: list[int] = numbers) -> Any:
                moved = hidden_of(out).clone()
                moved[:, places[rows]] += 1
                return moved if isinstance(out, torch.Tensor) else (moved, *out[1:])

            # ahead of the engine's own hooks on block 3
            handle = second.register_forward_hook(change)
            changed = logits(llava, inputs)
            handle.remove()
            same = torch.equal(plain[:, -1], changed[:, -1])
            assert same is not moves


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_to_drop_is_bit_for_bit_the_untouched_model(kernel: str, dtype: torch.dtype) -> None:
    tiny = build("llava", kernel, dtype)
    keep_all = ("l2_k16", "l1_k500", "l2_r100", "l2_k16_official", "l1_k16_random")
    no_image = ("l0_k0", "l2_k0", "l2_k3_rowmean")
    for inputs, settings in ((tiny.prompt(LAYOUT), keep_all), (tiny.prompt("ttttt"), no_image)):
        before = logits(tiny, inputs)
        words = tiny.model.generate(**inputs, max_new_tokens=5, do_sample=False)
        for setting in settings:
            with truncated(tiny.model, setting) as trace:
                assert torch.equal(logits(tiny, inputs), before)
                assert torch.equal(tiny.model.generate(**inputs, max_new_tokens=5, do_sample=False), words)
            assert trace.last.mode == "untouched"


@pytest.mark.parametrize("setting", ["l2_k5", "l0_k0", "l1_k9_l3_k2", "l2_k5_random"])
@pytest.mark.parametrize("beams", [1, 3])
def test_cached_decoding_equals_recomputation(family: TinyModel, setting: str, beams: int) -> None:
    inputs = family.batch([LAYOUT, "tIttt"])
    with truncated(family.model, setting):
        outs = [
            family.model.generate(**inputs, max_new_tokens=5, do_sample=False, num_beams=beams, use_cache=cache)
            for cache in (True, False)
        ]
    assert torch.equal(*outs)


def test_a_prompt_in_a_padded_batch_equals_the_prompt_alone(family: TinyModel) -> None:
    layouts = [LAYOUT, "tItttttttt", "ttttt"]
    inputs = family.batch(layouts)
    with truncated(family.model, "l2_k2") as trace:
        together = logits(family, inputs)[:, -1]
    pictures = 0
    for row, layout in enumerate(layouts):
        ids = inputs["input_ids"][row : row + 1, inputs["attention_mask"][row].bool()]
        alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "I" in layout:
            for name, value in inputs.items():
                if name.startswith(("pixel", "image")):
                    step = len(value) // 2
                    alone[name] = value[pictures * step : (pictures + 1) * step]
            pictures += 1
        if "mm_token_type_ids" in inputs:
            alone["mm_token_type_ids"] = (ids == IMAGE).int()
        with truncated(family.model, "l2_k2") as single:
            expected = logits(family, alone)[:, -1]
        torch.testing.assert_close(together[row], expected[0], atol=1e-4, rtol=1e-4)
        assert trace.prompts[row].kept == single.last.kept
        assert trace.prompts[row].tokens == single.last.tokens


def test_stages_with_equal_k_equal_one_stage(llava: TinyModel) -> None:
    inputs = llava.prompt(LAYOUT)
    with truncated(llava.model, "l1_k6"):
        one = logits(llava, inputs)
    with truncated(llava.model, "l1_k6_l2_k6_l4_k6"):
        several = logits(llava, inputs)
    torch.testing.assert_close(one, several, atol=1e-5, rtol=1e-5)


def test_measured_kv_equals_the_trace_in_every_block(family: TinyModel) -> None:
    inputs = family.prompt(LAYOUT)
    images = int((inputs["input_ids"] == IMAGE).sum())
    total = inputs["input_ids"].shape[1]
    with torch.no_grad(), truncated(family.model, "l1_k3_l3_k1") as trace:
        out = family.model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    held = [keys.shape[-2] for keys, _ in key_values(out.past_key_values)]
    drop = [0, images - 3, images - 3, images - 1, images - 1]
    assert trace.last.tokens == [total - d for d in drop]
    assert trace.last.images == [images - d for d in drop]
    assert held == trace.last.kv == [total - d + 3 for d in drop]  # the fourth new token was never fed
    assert [len(k) for k in trace.last.kept.values()] == [3, 1]
    assert set(trace.last.kept[3]) <= set(trace.last.kept[1])


def test_ratio_is_rounded_half_up_and_can_be_nothing(llava: TinyModel) -> None:
    for setting, left in (("l2_r50", 8), ("l2_r0", 0), ("l2_r1", 0), ("l2_r16", 3), ("l2_r100", 16)):
        with truncated(llava.model, setting) as trace:
            logits(llava, llava.prompt(LAYOUT))
        assert trace.last.images[-1] == left


def test_random_is_the_same_in_any_batch_and_differs_between_prompts(llava: TinyModel) -> None:
    with truncated(llava.model, "l2_k5_random") as alone:
        logits(llava, llava.prompt(LAYOUT))
        logits(llava, llava.prompt("tIttt"))
    with truncated(llava.model, "l2_k5_random") as batch:
        logits(llava, llava.batch([LAYOUT, "ttIttttttt"]))
    assert alone.prompts[0].kept == batch.prompts[0].kept
    assert alone.prompts[0].kept != alone.prompts[1].kept


def test_the_model_is_restored_also_after_an_exception(llava: TinyModel) -> None:
    inputs = llava.prompt(LAYOUT)
    before = logits(llava, inputs)
    modules = list(llava.model.modules())
    configs = [getattr(m, "config", None) for m in modules]
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in modules]
    with pytest.raises(ZeroDivisionError), truncated(llava.model, "l1_k3_l3_k1"):
        logits(llava, inputs)
        assert hooks != [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in modules]
        raise ZeroDivisionError
    assert hooks == [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in modules]
    assert all(getattr(m, "config", None) is c for m, c in zip(modules, configs, strict=True))
    assert "generate" not in vars(llava.model)
    assert torch.equal(logits(llava, inputs), before)


def test_an_error_inside_the_model_leaves_the_context_usable(llava: TinyModel) -> None:
    inputs = llava.prompt(LAYOUT)
    with truncated(llava.model, "l2_k5"):
        good = logits(llava, inputs)
        with pytest.raises(ValueError, match=".*"):
            logits(llava, inputs | {"pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})
        assert torch.equal(logits(llava, inputs), good)


def test_nested_use_is_refused_and_the_outer_one_goes_on(llava: TinyModel) -> None:
    inputs = llava.prompt(LAYOUT)
    with truncated(llava.model, "l2_k5"):
        good = logits(llava, inputs)
        with pytest.raises(TruncationError, match="truncated already"), truncated(llava.model, "l2_k0"):
            pass
        assert torch.equal(logits(llava, inputs), good)
    with truncated(llava.model, "l2_k0") as trace:
        logits(llava, inputs)
    assert trace.last.images == [16, 16, 0, 0, 0]
    assert trace.blocks == BLOCKS


def test_hidden_states_come_back_at_full_length_with_what_they_left_with(llava: TinyModel) -> None:
    inputs = llava.prompt(LAYOUT)
    left: list[torch.Tensor] = []
    second, norm = find_decoder(llava.model).text.layers[1], find_decoder(llava.model).text.norm
    final: list[torch.Tensor] = []
    handles = [
        second.register_forward_hook(lambda _m, _a, out: left.append(hidden_of(out))),
        norm.register_forward_hook(lambda _m, a, _o: final.append(a[0])),
    ]
    with truncated(llava.model, "l2_k5") as trace:
        logits(llava, inputs)
    for handle in handles:
        handle.remove()
    places = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    dropped = places[[n for n in range(16) if n not in trace.last.kept[2]]]
    assert final[0].shape == left[0].shape
    assert torch.equal(final[0][:, dropped], left[0][:, dropped])
    assert not torch.equal(final[0][:, places[trace.last.kept[2]]], left[0][:, places[trace.last.kept[2]]])
