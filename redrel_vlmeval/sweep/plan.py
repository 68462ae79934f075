"""What a sweep asks for, checked: ``--layers 1-31 --keep 0,128 --rules attention,random``, or ``--settings`` by name,
-> variant specs and costs.

FLOPs are those of :mod:`redrel_vlmeval.models.efficiency`: decoder blocks at prefill, one multiply-add as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from redrel_vlmeval import bases
from redrel_vlmeval.bases import TINY, BlockShape
from redrel_vlmeval.console import numbers, words
from redrel_vlmeval.errors import InvalidValue, RedrelError
from redrel_vlmeval.models import prefill_flops
from redrel_vlmeval.names import MARK, Stage, VariantSpec, parse
from redrel_vlmeval.rules import DEFAULT, find


class PlanError(RedrelError, ValueError):
    """Arguments of a sweep that mean nothing or cannot be done; names the option, the value and valid ones."""


@dataclass(frozen=True)
class Plan:
    """The settings of one base on one benchmark: a grid, or those ``chosen`` by name.

    ``limit`` is the number of questions from the front, None for all. ``base_there``: the base has a score already,
    which is left as it is.
    """

    base: str
    data: str
    layers: tuple[int, ...] = ()
    keeps: tuple[int, ...] = ()
    rules: tuple[str, ...] = (DEFAULT,)
    limit: int | None = None
    chosen: tuple[VariantSpec, ...] = ()
    base_there: bool = False

    @cached_property
    def specs(self) -> list[VariantSpec]:
        """Those chosen; of a grid one spec per (rule, L, K), K = 0 once only, since no rule chooses anything there."""
        return list(self.chosen) or [
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

    @property
    def scored(self) -> dict[str, str]:
        """Those of them that are handed to the host."""
        return {setting: model for setting, model in self.settings.items() if setting or not self.base_there}

    @property
    def words(self) -> str:
        """What it is made of: ``31 layers x 5 K, from .. to ..``."""
        ends = f"from {self.specs[0]} to {self.specs[-1]}"
        if self.chosen:
            return ends if len(self.specs) > 1 else str(self.specs[0])
        rules = f" x {len(self.rules)} rules" if len(self.rules) > 1 else ""
        return f"{len(self.layers)} layers x {len(self.keeps)} K{rules}, {ends}"

    def check_depth(self, blocks: int) -> None:
        """Refuse layers that the loaded model does not have.

        Raises:
            PlanError: names the layers and the range.
        """
        deep = [spec for spec in self.specs if spec.stages[-1].layer >= blocks]
        if not deep:
            return
        layers = sorted({stage.layer for spec in deep for stage in spec.stages if stage.layer >= blocks})
        wrong = f"--layers {', '.join(map(str, layers))}" if not self.chosen else f"--settings {deep[0].setting}"
        raise PlanError(f"{wrong}: {self.base} has {blocks} blocks, so L is 1 to {blocks - 1}")

    def check_size(self, tokens: int | None, blocks: int) -> None:
        """Refuse more visual tokens than a picture has, ``tokens`` (None: not known), and averages out of reach.

        Raises:
            PlanError: names the setting.
        """
        if tokens is None:
            return
        for spec in self.specs:
            for stage in spec.stages:
                name = f"--settings {spec.setting}" if self.chosen else f"--keep {stage.keep}"
                if (most := max(stage.keep or 0, stage.average or 0)) > tokens:
                    what = f"so {'K' if stage.keep else 'A'} is 0 to {tokens}"
                    name = name if self.chosen else f"--keep {most}"
                    raise PlanError(f"{name}: a picture has {tokens} image tokens in {self.base}, {what}")
                try:
                    stage.count(tokens, blocks)
                except InvalidValue as error:
                    raise PlanError(f"{name}: {error}") from error


def read_plan(
    model: str, data: str, layers: str = "", keep: str = "", rules: str = DEFAULT, limit: int | None = None,
    settings: str | None = None,
) -> Plan:  # fmt: skip
    """The plan that the command line asks for: a grid, or ``settings`` by name.

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
    if settings is None:
        found = _grid(model, data, layers, keep, rules, limit)
    elif layers or keep or rules != DEFAULT:
        raise PlanError("--settings: names settings one by one; give these, or a grid of --layers, --keep and --rules")
    else:
        found = Plan(model, data, limit=limit, chosen=tuple(_chosen(model, settings)))
    base = bases.row(model)
    if base is not None:
        found.check_depth(base.blocks)
        found.check_size(base.tokens, base.blocks)
    return found


def _grid(model: str, data: str, layers: str, keep: str, rules: str, limit: int | None) -> Plan:
    chosen = words(rules)
    for rule in chosen:
        try:
            find(rule)
        except RedrelError as error:
            raise PlanError(f"--rules {rule}: {error}") from error
    _check_once("--rules", chosen)
    found = Plan(model, data, _numbers("--layers", layers), _numbers("--keep", keep), chosen, limit)
    if not (found.layers and found.keeps and found.rules):
        raise PlanError(
            "a sweep needs a layer, a K and a rule at least: --layers 1-7 --keep 0,8 --rules attention; or --settings"
        )
    try:
        found.specs  # noqa: B018 (every setting is made, and refused where it cannot be)
    except InvalidValue as error:
        raise PlanError(f"--layers {layers}: {error}") from error
    return found


def _chosen(model: str, settings: str) -> Iterator[VariantSpec]:
    """The specs of ``l0_k8_divprune,l2_k8_dart``, in this order."""
    names = words(settings)
    if not names:
        raise PlanError("--settings: give a setting at least, such as l2_k8")
    _check_once("--settings", names)
    for name in names:
        try:
            found = parse(f"{model}{MARK}{name}")
        except KeyError as error:
            raise PlanError(f"--settings {name}: {error.args[0]}") from error
        if why := not_swept(found):
            raise PlanError(f"--settings {name}: a sweep {why}; run {found} by its name")
        yield found


def not_swept(spec: VariantSpec) -> str:
    """Why a sweep has no such setting, "" where it has: one prefill and greedy decoding are shared by all."""
    if not spec.stages:
        return "truncates, and this setting does not"
    if spec.official:
        return "drops tokens, and 'official' hides them from every later block anew"
    for name, value in (("a prompt", spec.prompt != "stock"), ("ppl", spec.ppl), ("beams", spec.beam > 1)):
        if value:
            return f"takes the stock prompt and greedy decoding, not {name} of its own"
    return ""


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
    first = {(spec.stages[0].layer, spec.row, spec.chosen_by[0]) for spec in specs if not spec.stages[0].empty}
    shared += sum(rule.flops(whole, prompt.images, shape) for _, _, rule in first)
    for spec in specs:
        images = _entering(spec, prompt.images, blocks)
        counts = [prompt.kept(count) for count in images]
        ranked = [(stage.layer, spec.rule_of(stage)) for stage in spec.stages if not stage.empty]
        flops += prefill_flops(counts, shape, ranked, images)
        tokens += sum(counts)
        shared += sum(rule.flops(counts[layer - 1], images[layer - 1], shape) for layer, rule in ranked[1:])
        for count, left in zip(images, counts, strict=True):
            if count < prompt.images:
                shared += continued_flops(left - prompt.before, left, shape)
                new += left - prompt.before
    return Cost(flops, shared, tokens, new)


def _entering(spec: VariantSpec, images: int, blocks: int) -> list[int]:
    """Visual tokens that enter each block, of a prompt that has ``images``."""
    found = [images] * blocks
    for stage in spec.stages:
        found[stage.layer :] = [min(stage.count(images, blocks), found[-1])] * (blocks - stage.layer)
    return found


def continued_flops(new: int, total: int, shape: BlockShape) -> int:
    """Multiply-adds of one block over ``new`` tokens that see ``total``; block_flops where all are new."""
    inner, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return 2 * new * shape.width * (inner + keys) + 2 * new * total * inner + 3 * new * shape.width * shape.ffn
