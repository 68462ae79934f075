"""The sweep against the engine: every answer equals that of the setting run alone, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modelbox
import pytest
import qwen_box
import torch
from qwen_checkpoint import write_checkpoint
from qwen_prompts import batch
from tiny_models import BLOCKS, FAMILIES, TinyModel, build
from transformers import StoppingCriteria, StoppingCriteriaList

from redrel_vlmeval.benchmodels import set_kernel
from redrel_vlmeval.models.qwen_core import QwenCore
from redrel_vlmeval.names import Stage, VariantSpec, parse
from redrel_vlmeval.sweep import Sweeper
from redrel_vlmeval.sweep.sweeper import Question
from redrel_vlmeval.truncation import TruncationError, truncated
from redrel_vlmeval.truncation.decoders import replaced_generate

ROWS = ("last", "rowimg", "rowmean")


class Host:
    """A host's model: its message is what the model is given, its text the new token ids."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.model, self.options = model, {"do_sample": False, "max_new_tokens": 9} | options
        self.asked = 0

    def generate(self, message: dict[str, torch.Tensor], dataset: str | None = None) -> str:
        self.asked += 1
        with torch.inference_mode():
            out = self.model.generate(**message, **self.options)
        return " ".join(map(str, out[0, message["input_ids"].shape[1] :].tolist()))


def grid(layers: Any, keeps: Any, rules: Any = ("attention", "random", "uniform", "lowest")) -> list[VariantSpec]:
    """Every setting that has a meaning, and the other rows for the rules that rank."""
    specs = []
    for layer in layers:
        for keep in keeps:
            for rule in rules:
                if layer == 0 and ((keep and rule in ("attention", "lowest")) or (not keep and rule != "attention")):
                    continue
                rows = ROWS if rule in ("attention", "lowest") and layer and keep else ROWS[:1]
                specs += [VariantSpec("base", (Stage(layer, keep),), rule, row) for row in rows]
    return specs


def state(model: torch.nn.Module) -> list[Any]:
    """Whatever a hook, a method or a config in the wrong place would change."""
    found = []
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        found.append(([len(h) for h in hooks], sorted(vars(module)), id(getattr(module, "config", None))))
    return found


@torch.inference_mode()
def compare(
    model: Any, inputs: dict[str, torch.Tensor], specs: list[VariantSpec], memory: int | None = None, **options: Any
) -> Sweeper:
    """Answers, first logits, kept tokens and traces of a sweep and of the engine, setting by setting."""
    host = Host(model, **options)
    untouched = host.generate(inputs)
    before = state(model)
    sweeper = Sweeper(host, specs, memory)
    question = Question(sweeper)
    with replaced_generate(model, question.listen):
        text = host.generate(inputs)
    answers = question.answers(inputs, None, text)
    assert state(model) == before
    assert answers[""].text == untouched
    settled = {"output_logits": True, "return_dict_in_generate": True}
    for spec in specs:
        with truncated(model, spec) as trace:
            out = model.generate(**inputs, **host.options, **settled)
        alone = " ".join(map(str, out.sequences[0, inputs["input_ids"].shape[1] :].tolist()))
        answer, record = answers[spec.setting].text, answers[spec.setting].record
        assert answer == alone, spec
        torch.testing.assert_close(question.found[spec.setting].logits, out.logits[0][0].float(), atol=1e-4, rtol=1e-4)
        last = trace.last
        assert record["tokens"] == last.tokens and record["images_per_block"] == last.images, spec
        assert record["kept"] == {str(layer): kept for layer, kept in last.kept.items()}, spec
        assert record["kv_tokens"] == last.kv and record["mode"] == last.mode, spec
        assert record["new_tokens"] == len(answer.split())
    sweeper.batches = question.batches
    return sweeper


SMALL_GRID = grid(range(BLOCKS), (0, 1, 3), ("attention", "uniform"))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_equals_the_engine(name: str) -> None:
    tiny = build(name)
    compare(tiny.model, tiny.prompt("ttItttt"), SMALL_GRID)
    compare(tiny.model, tiny.prompt("tItItt", seed=1), SMALL_GRID)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
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
    sweeper = compare(llava.model, inputs, specs, max_new_tokens=12, stopping_criteria=StoppingCriteriaList([AfterThree()]))
    assert set(sweeper.batches) == {1}
    lengths = {len(answer.text.split()) for answer in sweeper.answer(inputs).values()}
    assert len(lengths) > 1
