"""What a sweep asks for, checked: ``--layers 1-31 --keep 0,128 --rules attention,random`` -> variant specs and costs.

FLOPs are those of :mod:`redrel_vlmeval.models.efficiency`: decoder blocks at prefill, one multiply-add as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redrel_vlmeval import bases
from redrel_vlmeval.bases import TINY, BlockShape
from redrel_vlmeval.console import numbers, words
from redrel_vlmeval.errors import InvalidValue, RedrelError
from redrel_vlmeval.models import prefill_flops
from redrel_vlmeval.names import Stage, VariantSpec, parse
from redrel_vlmeval.rules import DEFAULT, find


class PlanError(RedrelError, ValueError):
    """Arguments of a sweep that mean nothing or cannot be done; names the option, the value and valid ones."""


@dataclass(frozen=True)
class Plan:
    """The grid of one base on one benchmark; ``limit`` is the number of questions from the front, None for all."""

    base: str
    data: str
    layers: tuple[int, ...]
    keeps: tuple[int, ...]
    rules: tuple[str, ...] = (DEFAULT,)
    limit: int | None = None

    @property
    def specs(self) -> list[VariantSpec]:
        """One spec per (rule, L, K); K = 0 once only, since no rule chooses anything there."""
        return [
            VariantSpec(self.base, (Stage(layer, keep=keep),), rule)
            for rule in self.rules
            for layer in self.layers
            for keep in self.keeps
            if keep or rule == self.rules[0]
        ]

    @property
    def settings(self) -> dict[str, str]:
        """Setting -> model name, the untouched base ('') first."""
        return {"": self.base} | {spec.setting: str(spec) for spec in self.specs}

    def check_depth(self, blocks: int) -> None:
        """Refuse layers that the loaded model does not have.

        Raises:
            PlanError: names the layers and the range.
        """
        if wrong := [layer for layer in self.layers if layer >= blocks]:
            listed = ", ".join(map(str, wrong))
            raise PlanError(f"--layers {listed}: {self.base} has {blocks} blocks, so L is 1 to {blocks - 1}")


def read_plan(model: str, data: str, layers: str, keep: str, rules: str = DEFAULT, limit: int | None = None) -> Plan:
    """The plan that the command line asks for.

    Raises:
        PlanError: a value out of range, repeated, or of no meaning; too deep for an unknown base is found later.
    """
    try:
        spec = parse(model)
    except KeyError as error:
        raise PlanError(f"--model {model}: {error.args[0]}") from error
    if spec.is_variant or not spec.base:
        raise PlanError(f"--model {model}: give the base alone ({spec.base or 'such as ' + TINY}); the sweep varies it")
    if not data:
        raise PlanError("--data: give the name of one benchmark")
    if limit is not None and limit < 1:
        raise PlanError(f"--limit {limit}: at least 1 question")
    chosen = words(rules)
    for rule in chosen:
        try:
            find(rule)
        except RedrelError as error:
            raise PlanError(f"--rules {rule}: {error}") from error
    _check_once("--rules", chosen)
    found = Plan(model, data, _numbers("--layers", layers), _numbers("--keep", keep), chosen, limit)
    if not (found.layers and found.keeps and found.rules):
        raise PlanError("a sweep needs a layer, a K and a rule at least: --layers 1-7 --keep 0,8 --rules attention")
    if found.layers[0] == 0:
        raise PlanError(f"--layers 0: the blind control {model}_trunc_l0_k0 shares nothing, run it by its name; L >= 1")
    base = bases.row(model)
    if base is not None:
        found.check_depth(base.blocks)
        if base.tokens is not None and (most := found.keeps[-1]) > base.tokens:
            tokens = base.tokens
            raise PlanError(f"--keep {most}: a picture has {tokens} image tokens in {model}, so K is 0 to {tokens}")
    return found


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """``1,2,5-8`` -> (1, 2, 5, 6, 7, 8), ascending."""
    try:
        found = numbers(option, text)
    except InvalidValue as error:
        raise PlanError(str(error)) from error
    _check_once(option, found)
    return tuple(sorted(found))


def _check_once(option: str, values: Sequence[object]) -> None:
    if repeated := sorted({str(value) for value in values if values.count(value) > 1}):
        raise PlanError(f"{option}: {', '.join(repeated)} given more than once")


@dataclass(frozen=True)
class Prompt:
    """Tokens of one prompt: text before the picture, image tokens, text after."""

    before: int
    images: int
    after: int

    def kept(self, keep: int) -> int:
        """Tokens that blocks after the cut see."""
        return self.before + min(keep, self.images) + self.after


@dataclass(frozen=True)
class Cost:
    """Prefill of every variant and of the base for one question: FLOPs, and tokens summed over blocks."""

    flops_one_by_one: int
    flops_shared: int
    tokens_one_by_one: int
    tokens_shared: int


def cost(specs: Sequence[VariantSpec], prompt: Prompt, blocks: int, shape: BlockShape) -> Cost:
    """What the plan costs for one question, run one by one and with everything shared that can be.

    Shared are the untouched prefill (blocks 1..L of every variant) and the keys of the text before the picture, which
    truncation does not change: block L+1 and on see only the text after it and the kept tokens as new ones.
    """
    whole = prompt.kept(prompt.images)
    flops, shared = prefill_flops([whole] * blocks, shape), prefill_flops([whole] * blocks, shape)
    tokens, new = whole * blocks, whole * blocks
    choosing = {(spec.stages[0].layer, spec.row, spec.chosen_by[0]) for spec in specs if not spec.stages[0].empty}
    shared += sum(rule.flops(whole, prompt.images, shape) for _, _, rule in choosing)
    for spec in specs:
        layer, keep = spec.stages[0].layer, spec.stages[0].count(prompt.images, blocks)
        left = prompt.kept(keep)
        counts = [whole] * layer + [left] * (blocks - layer)
        ranked = [] if spec.stages[0].empty else [(layer, spec.chosen_by[0])]
        flops += prefill_flops(counts, shape, ranked, [prompt.images] * blocks)
        tokens += sum(counts)
        if keep < prompt.images:
            shared += (blocks - layer) * continued_flops(left - prompt.before, left, shape)
            new += (blocks - layer) * (left - prompt.before)
    return Cost(flops, shared, tokens, new)


def continued_flops(new: int, total: int, shape: BlockShape) -> int:
    """Multiply-adds of one block over ``new`` tokens that see ``total``; block_flops where all are new."""
    inner, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return 2 * new * shape.width * (inner + keys) + 2 * new * total * inner + 3 * new * shape.width * shape.ffn
