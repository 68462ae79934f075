"""A host's model over any torch model, and the comparison of its sweep with the engine, setting by setting."""

from __future__ import annotations

from typing import Any

import torch

from redrel_vlmeval.names import Stage, VariantSpec
from redrel_vlmeval.sweep import Sweeper
from redrel_vlmeval.sweep.question import Question
from redrel_vlmeval.truncation import truncated
from redrel_vlmeval.truncation.hooks import replaced_generate

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
