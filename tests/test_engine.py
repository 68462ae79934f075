"""The engine against the mask oracle, over families, kernels, types, batches, beams, stages, rules and rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from oracle import Oracle, Stages
from tiny_models import BLOCKS, FAMILIES, IMAGE, TinyModel, build

from redrel_vlmeval.bench.subjects import set_kernel
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import Trace, truncated
from redrel_vlmeval.truncation.decoders.find import find_decoder

GREEDY = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def stages_of(setting: str, images: int = 0) -> Stages:
    return {stage.layer: stage.count(images, BLOCKS) for stage in parse(setting).stages}


def kept_positions(trace: Trace, inputs: dict[str, torch.Tensor]) -> dict[int, list[list[int]]]:
    """layer -> kept positions of each row, from the numbers within the image tokens that the trace has."""
    rows = [(ids == IMAGE).nonzero()[:, 0].tolist() for ids in inputs["input_ids"]]
    prompts = trace.prompts[-len(rows) :]
    layers = sorted({layer for p in prompts for layer in p.kept})
    everything = range(10**6)
    return {
        layer: [
            [place for n, place in enumerate(row) if n in p.kept.get(layer, everything)]
            for row, p in zip(rows, prompts, strict=True)
        ]
        for layer in layers
    }


@torch.no_grad()
def compare(
    tiny: TinyModel, setting: str, inputs: dict[str, torch.Tensor], tolerance: float = 1e-4, **options: Any
) -> None:
    """Prefill logits at every token that stays, and a greedy (or beam) continuation with its logits."""
    spec = parse(setting)
    rule = {"rule": spec.rule, "row": spec.row, "official": spec.official}
    set_kernel(tiny.model, options.pop("kernel", "sdpa"))
    with truncated(tiny.model, spec) as trace:
        logits = tiny.model(**inputs).logits
        engine_kept = kept_positions(trace, inputs)
        out = tiny.model.generate(**inputs, **(GREEDY | options))
    stages = stages_of(setting, int((inputs["input_ids"] == IMAGE).sum(1).max()))
    with Oracle(tiny, stages, **rule).applied() as oracle:
        wanted = tiny.model(**inputs).logits
        if not spec.official:
            assert engine_kept == oracle.kept
        expected = tiny.model.generate(**inputs, **(GREEDY | options))
    last = max(oracle.stages)
    stays = inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE)
    for row, positions in enumerate(engine_kept[last]):
        stays[row, positions] = True
    torch.testing.assert_close(logits[stays], wanted[stays], atol=tolerance, rtol=tolerance)
    assert torch.equal(out.sequences, expected.sequences)
    for got, want in zip(out.logits, expected.logits, strict=True):
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def test_every_family_equals_the_oracle(family: TinyModel) -> None:
    for setting in ("l2_k2", "l0_k0", "l1_k3_l3_k1"):
        compare(family, setting, family.prompt("ttItttt"))


@pytest.mark.skipif("qwen3_vl" not in FAMILIES, reason="this release of transformers has no Qwen3-VL")
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"])
def test_what_deepstack_adds_behind_the_first_blocks_goes_to_the_tokens_that_are_left(name: str) -> None:
    tiny = build(name)
    for setting in ("l0_k0", "l1_k8", "l2_k8", "l2_r50"):
        compare(tiny, setting, tiny.prompt("tIItItItt"))


@pytest.mark.skipif("gemma3" not in FAMILIES, reason="this release of transformers has none, or another one")
@pytest.mark.parametrize("setting", ["l1_k5_rowmean", "l2_k6_rowimg", "l1_k7_l3_k3", "l0_k0"])
def test_where_a_prompt_attends_both_ways_a_row_is_the_models_own(setting: str) -> None:
    tiny = build("gemma3")
    inputs = tiny.prompt("ttItItItttttttttt")
    behind = (inputs["input_ids"] == IMAGE).int().cummax(1).values  # all from the picture on, as in PaliGemma
    for types in (behind, (inputs["input_ids"] == IMAGE).int()):
        compare(tiny, setting, inputs | {"token_type_ids": types})


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_padded_batch_of_every_family_equals_the_oracle(name: str) -> None:
    tiny = build(name)
    compare(tiny, "l2_k2", tiny.batch(["ttItttt", "tIt", "tttItttttttt"]))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("layouts", [["ttItttt"], ["ttItttt", "tIt", "tIttItttt"]], ids=["one", "three"])
def test_kernels_batches_and_beams(llava: TinyModel, kernel: str, beams: int, layouts: list[str]) -> None:
    if beams > 1 and transformers.__version__ < "5":  # which deals out a prompt's pictures to its beams one by one
        layouts = [layout for layout in layouts if layout.count("I") == 1]
    for setting in ("l2_k5", "l0_k0", "l4_k0", "l1_k9_l3_k2"):
        compare(llava, setting, llava.batch(layouts), kernel=kernel, num_beams=beams)


@pytest.mark.parametrize(
    "setting", ["l2_k5_lowest", "l2_k5_rowimg", "l2_k5_rowmean", "l1_k9_l3_k4_rowmean", "l1_k9_l3_k4_lowest_rowimg"]
)
def test_rules_and_rows(llava: TinyModel, setting: str) -> None:
    compare(llava, setting, llava.prompt("ttItttt"))
    compare(llava, setting, llava.batch(["ttItttt", "tItItt", "tttttttt"]))


@pytest.mark.parametrize("name", [name for name in ("llava", "qwen2_vl") if name in FAMILIES])
def test_right_padding(name: str) -> None:
    tiny = build(name)
    inputs = tiny.batch(["ttItttt", "tIt", "tIttItttt", "ttt"], side="right")
    with torch.no_grad():
        with truncated(tiny.model, "l2_k2") as trace:
            logits = tiny.model(**inputs).logits
        with Oracle(tiny, {2: 2}).applied() as oracle:
            wanted = tiny.model(**inputs).logits
    assert kept_positions(trace, inputs) == oracle.kept
    text = inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE)
    torch.testing.assert_close(logits[text], wanted[text], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("layouts", [["ttItttt"], ["ttItttt", "tIt", "tIttItttt"]], ids=["one", "three"])
def test_bfloat16_equals_the_oracle_given_its_choice(kernel: str, layouts: list[str]) -> None:
    """In bfloat16 near ties may fall either way, so the oracle takes the engine's choice; the logits must agree."""
    tiny = build("llava", kernel, torch.bfloat16)
    inputs = tiny.batch(layouts)
    with torch.no_grad():
        with truncated(tiny.model, "l2_k5") as trace:
            logits = tiny.model(**inputs).logits.float()
        choice = kept_positions(trace, inputs)
        with Oracle(tiny, {2: 5}, forced=choice).applied():
            wanted = tiny.model(**inputs).logits.float()
    single = build("llava")
    exact_inputs = single.batch(layouts)
    with torch.no_grad():
        with Oracle(single, {2: 5}, forced=choice).applied():
            sharp_logits = single.model(**exact_inputs).logits
        with truncated(single.model, "l2_k5") as exact:
            single.model(**exact_inputs)
    text = inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE)
    rounding = (wanted - sharp_logits)[text].abs().max()
    assert (logits - wanted)[text].abs().max() < 1.5 * rounding
    assert rounding < 0.2 * sharp_logits[text].abs().max()
    for rough, sharp in zip(trace.prompts, exact.prompts, strict=True):
        assert len(set(rough.kept[2]) & set(sharp.kept[2])) >= 4


@pytest.mark.parametrize("setting", ["l2_k5_official", "l1_k9_l3_k4_official", "l0_k0_official"])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_official_mode_masks_and_ranks_again_at_every_step(
    llava: TinyModel, setting: str, cache: bool, kernel: str
) -> None:
    compare(llava, setting, llava.prompt("ttItttt"), use_cache=cache, kernel=kernel)
    compare(llava, setting, llava.batch(["ttItttt", "tIt"]), use_cache=cache, kernel=kernel)


def test_official_and_dropping_agree_on_the_first_token(llava: TinyModel) -> None:
    inputs = llava.prompt("ttItttt")
    with torch.no_grad():
        with truncated(llava.model, "l2_k5") as trace:
            dropped = llava.model(**inputs).logits[:, -1]
        with truncated(llava.model, "l2_k5_official") as masked:
            official = llava.model(**inputs).logits[:, -1]
    torch.testing.assert_close(dropped, official, atol=1e-5, rtol=1e-5)
    assert trace.last.kept == masked.last.kept
    assert (trace.last.mode, masked.last.mode) == ("dropped", "official")
    assert masked.last.kv == [len(inputs["input_ids"][0])] * BLOCKS


def test_multi_turn_continues_on_the_truncated_cache(llava: TinyModel) -> None:
    inputs = llava.prompt("ttItttt")
    more = torch.tensor([[11, 12, 13]], device=llava.model.device)
    for setting, stages in (("l2_k5", {2: 5}), ("l0_k0", {0: 0})):
        answers = []
        for context in (truncated(llava.model, setting), Oracle(llava, stages).applied()):
            with torch.no_grad(), context:
                first = llava.model(**inputs, use_cache=True)
                mask = torch.ones(1, inputs["input_ids"].shape[1] + 3, dtype=torch.long, device=more.device)
                answers.append(
                    llava.model(input_ids=more, attention_mask=mask, past_key_values=first.past_key_values).logits
                )
        torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)


def test_the_next_turn_can_be_generated_on_the_cache_of_the_first(llava: TinyModel) -> None:
    inputs = llava.prompt("ttItttt")
    for setting, stages in (("l2_k5", {2: 5}), ("l0_k0", {0: 0})):
        turns = []
        for context in (truncated(llava.model, setting), Oracle(llava, stages).applied()):
            with torch.no_grad(), context:
                first = llava.model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
                ids = torch.cat([first.sequences, first.sequences.new_tensor([[11, 12, 13]])], 1)
                options = {"past_key_values": first.past_key_values, "attention_mask": torch.ones_like(ids)}
                turns.append(llava.model.generate(input_ids=ids, **options, max_new_tokens=4, do_sample=False))
        assert torch.equal(*turns)


def test_sampling_draws_the_same_tokens_as_the_oracle(llava: TinyModel) -> None:
    inputs = llava.prompt("ttItttt")
    drawn = []
    for context in (truncated(llava.model, "l2_k5"), Oracle(llava, {2: 5}).applied()):
        with torch.no_grad(), context:
            torch.manual_seed(7)
            drawn.append(llava.model.generate(**inputs, max_new_tokens=8, do_sample=True, num_return_sequences=2))
    assert torch.equal(*drawn)


def refused(llava: TinyModel, setting: str, words: str, **options: Any) -> None:
    with pytest.raises(TruncationError, match=words), truncated(llava.model, setting):
        llava.model.generate(**llava.prompt(), max_new_tokens=2, **options)


def test_refusals_name_variant_and_finding(llava: TinyModel) -> None:
    refused(llava, "l5_k1", "l5_k1: layer 5 .* 5 blocks: L is 0 to 4")
    refused(llava, "l2_k1", "cache_implementation='static'.*leave it out", cache_implementation="static")
    refused(llava, "l2_k1", "prefill_chunk_size", prefill_chunk_size=4)
    refused(llava, "l2_k1", "prompt_lookup_num_tokens", prompt_lookup_num_tokens=2)
    with pytest.raises(TruncationError, match="unknown decoder"), truncated(torch.nn.Linear(2, 2), "l1_k1"):
        pass
    with pytest.raises(TruncationError, match="text model"), truncated(find_decoder(llava.model).text, "l1_k1"):
        pass
    with pytest.raises(TruncationError, match="nothing to truncate"), truncated(llava.model, "beam3"):
        pass
    with pytest.raises(TruncationError, match="nothing to truncate"), truncated(llava.model, "l1k1"):
        pass
    with pytest.raises(KeyError, match="did you mean 'a_trunc_l1_k1'"), truncated(llava.model, "a_trunc_l1k1"):
        pass


def test_continued_prefill_is_refused(llava: TinyModel) -> None:
    inputs, device = llava.prompt("ttItttt"), llava.model.device
    with torch.no_grad():
        outside = llava.model(**inputs, use_cache=True).past_key_values
        with truncated(llava.model, "l2_k5"):
            with pytest.raises(TruncationError, match="not filled inside"):
                llava.model(input_ids=torch.tensor([[5]], device=device), past_key_values=outside)
            cache = llava.model(**inputs, use_cache=True).past_key_values
            with pytest.raises(TruncationError, match="chunked or continued"):
                llava.model(input_ids=torch.tensor([[IMAGE, 5]], device=device), past_key_values=cache)
            with pytest.raises(TruncationError, match="without input_ids"):
                llava.model(inputs_embeds=torch.zeros(1, 4, 32, device=device))
            with pytest.raises(TruncationError, match="below the model"):
                find_decoder(llava.model).text(inputs_embeds=torch.zeros(1, 4, 32, device=device))
