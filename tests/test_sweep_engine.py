"""The sweep against the engine, over families, kernels and ways to end: every answer is that of the setting alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_checkpoint import write_checkpoint
from qwen_prompts import batch
from sweepbox import Host, compare, grid
from tiny_models import BLOCKS, FAMILIES, IMAGE, TinyModel, build
from transformers import StoppingCriteria, StoppingCriteriaList

from redrel_vlmeval.bench.subjects import set_kernel
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models.qwen.core import QwenCore
from redrel_vlmeval.names import parse
from redrel_vlmeval.rules import known
from redrel_vlmeval.sweep import Sweeper
from redrel_vlmeval.sweep.question import Question
from redrel_vlmeval.truncation import truncated

SMALL_GRID = grid(range(BLOCKS), (0, 1, 3), ("attention", "uniform"))


# what several stages ask of a decoder: its own row, the next block's, keys, states, block 1's input, the tower, merging
STAGED = [
    parse(f"base_trunc_{setting}")
    for setting in (
        "l1_k6_l3_k2", "l1_k6_l3_k2_rowmean", "l1_k6_l3_k2_random", "l1_k5_l3_k0", "l0_k8-divprune_l2_k3",
        "l1_k6_l2_k3_dart", "l1_k6_l2_k3_flow", "l1_k8_l3_k4_raters", "l1_r50_l2_r25_l3_r12_next",
        "l1_k6-cls_l3_k2-visionzip", "l1_k6-visionzip_l3_k2-cls", "l0_k5_visionzip", "l2_k3",
    )
]  # fmt: skip
RENUMBERED = [parse(f"base_trunc_{setting}_pos-new") for setting in ("l1_r50_l2_r25_next", "l0_k6_l2_k3_uniform")]


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "qwen2_5_vl"])
def test_several_stages_go_on_from_the_shared_blocks_as_alone(name: str) -> None:
    if name not in FAMILIES:
        pytest.skip(f"this release of transformers has no {name}")
    tiny = build(name)
    specs = STAGED + RENUMBERED * (name == "llava")
    compare(tiny.model, tiny.prompt("ttItttt"), specs)
    if name == "llava":
        compare(tiny.model, tiny.prompt("tItItt"), specs, memory=1)
        ends_in_picture = [spec for spec in STAGED if spec.rule not in ("raters", "flow")]
        compare(tiny.model, tiny.prompt("tttI"), ends_in_picture)


@pytest.mark.parametrize("name", [name for name, rule in known().items() if "clip" not in rule.needs])
def test_every_rule_chooses_as_in_a_single_run(llava: TinyModel, name: str) -> None:
    rule = known()[name]
    layers = (0,) if rule.before_block_1_only else (0, 1, 3) if rule.before_block_1 else (1, 3)
    keeps = (4, 8) if rule.before_block_1_only else (3, 7)  # what a picture of 4 x 4 tokens can be made smaller to
    specs = grid(layers, keeps, (name,))
    specs += [replace(spec, positions="new") for spec in specs[-1:]]
    specs += [replace(spec, seed=2) for spec in specs[:1] if known()[name].draws]
    compare(llava.model, llava.prompt("ttItttt"), specs)
    compare(llava.model, llava.prompt("tItItt", seed=1), specs)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_equals_the_engine(name: str) -> None:
    tiny = build(name)
    compare(tiny.model, tiny.prompt("ttItttt"), SMALL_GRID)
    compare(tiny.model, tiny.prompt("tItItt", seed=1), SMALL_GRID)


def both_ways(tiny: TinyModel, layout: str) -> dict[str, torch.Tensor]:
    """A prompt of which the model is told where its pictures lie: their tokens attend to one another."""
    inputs = tiny.prompt(layout)
    return inputs | {"token_type_ids": (inputs["input_ids"] == IMAGE).int()}


def from_the_picture_on(tiny: TinyModel, layout: str) -> dict[str, torch.Tensor]:
    """A prompt of which all tokens from the picture on attend to one another, as all do in PaliGemma."""
    inputs = tiny.prompt(layout)
    return inputs | {"token_type_ids": (inputs["input_ids"] == IMAGE).int().cummax(1).values}


@pytest.mark.skipif("gemma3" not in FAMILIES, reason="this release of transformers has none, or another one")
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_tokens_of_a_picture_that_attend_to_one_another(kernel: str) -> None:
    tiny = build("gemma3", kernel)
    if kernel == "eager":  # and the first block is one that attends to all
        kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
        tiny.model.config.text_config.layer_types[:] = kinds
    settings = ("l0_k0", "l0_k3_uniform", "l1_k3", "l1_k0", "l2_k5", "l3_k1_rowmean", "l1_k6_l3_k2_raters")
    compare(tiny.model, both_ways(tiny, "ttItIttt"), [parse(f"base_trunc_{setting}") for setting in settings])
    compare(tiny.model, both_ways(tiny, "ttItt"), [parse("base_trunc_l1_k2_pos-new")])
    settings = ("l1_k2_rowmean", "l1_k3_l3_k1_next_rowmean", "l0_k0")
    compare(tiny.model, from_the_picture_on(tiny, "ttIttt"), [parse(f"base_trunc_{setting}") for setting in settings])


@pytest.mark.skipif("gemma3" not in FAMILIES, reason="this release of transformers has none, or another one")
def test_a_sliding_window_is_not_gone_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = build("gemma3")
    inputs = both_ways(tiny, "ttIttt")
    for window, found in ((inputs["input_ids"].shape[1] - 1, "exceeds"), (inputs["input_ids"].shape[1] + 3, "exceed")):
        monkeypatch.setattr(tiny.model.config.text_config, "sliding_window", window)
        with pytest.raises(TruncationError, match=f"{found} the sliding window of {window}"):
            compare(tiny.model, inputs, SMALL_GRID[:3])
        with pytest.raises(TruncationError, match="exceeds the sliding window"), truncated(tiny.model, SMALL_GRID[1]):
            tiny.model.generate(**inputs, max_new_tokens=9)


@pytest.mark.parametrize("kernel", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_the_whole_grid_of_a_llava(llava: TinyModel, kernel: str) -> None:
    set_kernel(llava.model, kernel)
    compare(llava.model, llava.prompt("tttItttt"), grid(range(BLOCKS), (0, 1, 5, 15, 16, 40)), max_new_tokens=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen")


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("seq_length", [2048, 128], ids=["as trained", "beyond the trained length"])
def test_qwens_own_code_equals_the_engine(folder: Path, tmp_path: Path, attn: str, seq_length: int) -> None:
    core = QwenCore(str(write_checkpoint(tmp_path / "vl", blocks=5, seq_length=seq_length)), device="cpu", attn=attn)
    specs = grid(range(5), (0, 16, 300), ("attention",)) + grid((0, 2), (255,), ("random", "uniform"))
    options = {"pad_token_id": core.tokenizer.eod_id, "eos_token_id": core.tokenizer.eod_id, "min_new_tokens": 5}
    compare(core.model, batch(folder, ["tItttt"]), specs, **options)
    compare(core.model, batch(folder, ["IttItt"], seed=1), specs[1::4], **options)
    alpha = core.model.transformer.rotary_emb._ntk_alpha_cached
    assert (alpha > 1) == (seq_length == 128)


def test_answers_that_end_at_different_times(llava: TinyModel) -> None:
    inputs, specs = llava.prompt("tttItttt"), grid(range(BLOCKS), (0, 2, 9))
    lengths: set[int] = set()
    for end in (10, 40, 70):
        ends = list(range(end, end + 15))
        sweeper = compare(llava.model, inputs, specs, eos_token_id=ends, max_new_tokens=12)
        lengths |= {len(answer.text.split()) for answer in sweeper.answer(inputs).values()}
    assert {1, 2, 12} < lengths


def test_processors_of_the_hosts_own_call_hold(llava: TinyModel) -> None:
    inputs, specs = llava.prompt("tttItttt"), grid((1, 3), (0, 5))
    for options in ({"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1}, {"bad_words_ids": [[5], [6, 7]]}):
        compare(llava.model, inputs, specs, max_new_tokens=12, **options)


class AfterThree(StoppingCriteria):
    """Ends an answer that holds a token below 30 behind its third; not visible in the tokens."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return (input_ids[:, -1] < 30) & torch.full((len(input_ids),), input_ids.shape[1] > 27)


def test_other_ways_to_stop_are_kept_by_asking_one_by_one(llava: TinyModel) -> None:
    inputs, specs = llava.prompt("tttItttt"), grid(range(1, BLOCKS), (0, 5))
    criteria = StoppingCriteriaList([AfterThree()])
    sweeper = compare(llava.model, inputs, specs, max_new_tokens=12, stopping_criteria=criteria)
    assert set(sweeper.batches) == {1}
    lengths = {len(answer.text.split()) for answer in sweeper.answer(inputs).values()}
    assert len(lengths) > 1


def test_prompts_that_begin_or_end_with_the_picture(llava: TinyModel) -> None:
    """No prefix but the first token, or nothing behind the cut: the last position's own state is what answers."""
    specs = grid(range(BLOCKS), (0, 1, 7), ("attention", "uniform"))
    compare(llava.model, llava.prompt("I"), specs)
    compare(llava.model, llava.prompt("tttI"), specs)


@pytest.mark.slow
def test_more_answers_than_keys_to_share(llava: TinyModel) -> None:
    """Long answers of many settings: those that share the prompt's keys attend in groups."""
    specs = grid((4,), range(16), ("attention", "uniform", "random"))
    assert len(specs) > 30
    compare(llava.model, llava.prompt("tI"), specs, max_new_tokens=40)


def test_bfloat16_keeps_the_same_tokens_and_rounds_alike() -> None:
    """Batches round otherwise than single prompts: a near tie may fall either way, but not by more than rounding."""
    tiny = build("llava", dtype=torch.bfloat16)
    inputs, specs = tiny.prompt("tttItttt"), grid(range(1, BLOCKS), (0, 5), ("attention",))
    answers = Sweeper(Host(tiny.model), specs).answer(inputs)
    settled = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 1, "do_sample": False}
    for spec in specs:
        with torch.inference_mode(), truncated(tiny.model, spec) as trace:
            logits = tiny.model.generate(**inputs, **settled).logits[0][0].float()
        record = answers[spec.setting].record
        assert record["kept"] == {str(layer): kept for layer, kept in trace.last.kept.items()}
        first = int(answers[""].text.split()[0])
        others = torch.cat([logits[:first], logits[first + 1 :]])
        assert record["margin"] == pytest.approx(float(logits[first] - others.max()), abs=0.05 * float(logits.std()))


def test_a_gpu_without_memory_is_told_what_to_do(llava: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    sweeper = Sweeper(Host(llava.model), grid((1,), (0, 5)), memory=2**31)
    monkeypatch.setattr(Question, "answers", full)
    with pytest.raises(TruncationError, match="beside the 2 GiB that the sweep may use; go on with less, .* 1024M"):
        sweeper.answer(llava.prompt())
    monkeypatch.undo()
    assert len(sweeper.answer(llava.prompt())) > 1, "the same question, asked again"
