"""``redrel bench sweep``: a grid of settings in one pass, one by one, and the published way, timed side by side.

The plan is what the work amounts to in tokens times decoder blocks, prompts only. One by one, a setting (L, K) costs
``L S + (N - L) (S - n + K)`` with S tokens, n of them of images, and N blocks; the published way ``N S``; a sweep
``N S`` once, and for each setting ``(N - L) (S - n - P + K)`` with P tokens before the first image token.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval.bench.command import Request, drawn_checks, heading
from redrel_vlmeval.bench.prefill import Check, clock_of, peak_above, seconds_of
from redrel_vlmeval.bench.subjects import Subject
from redrel_vlmeval.models import gpus
from redrel_vlmeval.names import Stage, VariantSpec, parse
from redrel_vlmeval.sweep import Sweeper
from redrel_vlmeval.truncation import find_decoder, truncated

LAYERS, KEEPS = range(1, 13), (0, 72, 128, 244, 432)  # of 576 image tokens; in proportion where there are fewer
MEASURABLE = 50_000_000  # bytes of keys and values below which what libraries set aside is the larger part of a peak
MATRICES = {"output_attentions": True, "return_dict_in_generate": True}  # of attention, which published code looks at
NEW_TOKENS = 2  # a letter and the end, as in multiple choice
SLACK, ONE_BY_ONE_BAR, PUBLISHED_BAR, ONE_MORE_BAR = 1.25, 0.45, 0.28, 1 / 3
EVERY = 7  # of the published way every so manieth setting is timed: nothing is dropped there, all cost the same


class Asked:
    """A subject as a host's model: whatever it is asked, it answers its one prompt."""

    def __init__(self, subject: Subject, new_tokens: int = NEW_TOKENS) -> None:
        self.model, self.inputs, self.new_tokens = subject.model, subject.inputs, new_tokens

    @torch.inference_mode()
    def generate(self, message: Any = None, dataset: str | None = None, **forward: Any) -> str:
        settled = {"do_sample": False, "min_new_tokens": self.new_tokens, "max_new_tokens": self.new_tokens}
        output = self.model.generate(**self.inputs, **settled, **forward)
        output = getattr(output, "sequences", output)
        return " ".join(map(str, output[0, self.inputs["input_ids"].shape[1] :].tolist()))


@dataclass(frozen=True)
class Plan:
    """Tokens times blocks of a prompt (``length``, ``images``, ``prefix`` tokens) through ``blocks``."""

    length: int
    images: int
    prefix: int
    blocks: int

    @classmethod
    def of(cls, subject: Subject) -> Plan:
        decoder, ids = find_decoder(subject.model), subject.inputs["input_ids"]
        image = decoder.image_mask(ids)[0]
        return cls(ids.shape[1], int(image.sum()), int(image.int().argmax()), len(decoder.blocks))

    def tail(self, spec: VariantSpec) -> int:
        """Of one more setting in a sweep."""
        stage = spec.stages[0]
        return (self.blocks - stage.layer) * (self.length - self.images - self.prefix + stage.count(self.images))

    def sweep(self, specs: Sequence[VariantSpec]) -> int:
        return self.blocks * self.length + sum(self.tail(spec) for spec in specs)

    def one_by_one(self, specs: Sequence[VariantSpec]) -> int:
        behind = sum((self.blocks - spec.stages[0].layer) * self.prefix + self.tail(spec) for spec in specs)
        return behind + sum(spec.stages[0].layer * self.length for spec in specs)

    def published(self, specs: Sequence[VariantSpec]) -> int:
        return len(specs) * self.blocks * self.length


@dataclass
class Timed:
    """Seconds of every round, and bytes over the weights at the peak (None where the system does not tell)."""

    sweep: list[float] = field(default_factory=list)
    less: list[float] = field(default_factory=list)
    one_by_one: list[float] = field(default_factory=list)
    the_one_more: list[float] = field(default_factory=list)
    published: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    agreeing: float = 0.0  # share of the settings whose answer in the sweep is their own
    peak: int | None = None
    peak_untouched: int | None = None
    kv: int = 0

    def ratio(self, mine: str, other: str) -> float:
        """Median over rounds of one arm's seconds by another's of the same round, which drift together."""
        return statistics.median(a / b for a, b in zip(getattr(self, mine), getattr(self, other), strict=True))

    @property
    def one_more(self) -> float:
        """What one more K costs in a sweep, by what it costs by itself."""
        rounds = zip(self.sweep, self.less, self.the_one_more, strict=True)
        return statistics.median((whole - less) / alone for whole, less, alone in rounds)


def grid(blocks: int, images: int) -> list[VariantSpec]:
    """The settings of the bench, for a model with ``blocks`` and a prompt with ``images`` tokens of images."""
    keeps = dict.fromkeys(keep * images // 576 for keep in KEEPS)
    return [VariantSpec("bench", (Stage(layer, keep),)) for layer in LAYERS if layer < blocks for keep in keeps]


def middle_keep(specs: Sequence[VariantSpec]) -> int | None:
    """The K whose cost is told apart: the middle one; None where there is only one."""
    keeps = sorted({spec.stages[0].keep or 0 for spec in specs})
    return keeps[len(keeps) // 2] if len(keeps) > 1 else None


def bench(
    subject: Subject, specs: Sequence[VariantSpec], rounds: int, tick: Callable[[str], None] = lambda _: None
) -> Timed:
    """All arms in turn, ``rounds`` times, there and back, after a warm-up."""
    host, found = Asked(subject), Timed()
    keep = middle_keep(specs)
    fewer = [spec for spec in specs if spec.stages[0].keep != keep]
    whole, less = Sweeper(host, specs), Sweeper(host, fewer) if fewer else None
    tick("warming up")
    _warm_up(subject, host, whole, specs, found)

    def sweep() -> None:
        tick("the sweep")
        found.sweep.append(one_pass(host, whole, said))

    def sweep_with_less() -> None:
        tick("the sweep with one K less")
        found.less.append(timed(host, lambda: less.answer({}))[1] if less else 0.0)

    def one_by_one() -> None:
        alone = {}
        for spec in specs:
            tick(f"one by one: {spec.setting}")
            alone[spec], own[spec.setting] = alone_with(host, truncated(subject.model, spec.setting))
        found.one_by_one.append(sum(alone.values()))
        found.the_one_more.append(sum(seconds for spec, seconds in alone.items() if spec.stages[0].keep == keep))

    def published() -> None:
        chosen = specs[::EVERY]
        seconds = 0.0
        for spec in chosen:
            tick(f"the published way: {spec.setting}")
            seconds += alone_with(host, subject.published(subject.model, spec.setting), **MATRICES)[0]
        found.published.append(seconds * len(specs) / len(chosen))

    said: dict[str, str] = {}
    own: dict[str, str] = {}
    arms = [sweep, sweep_with_less, one_by_one, published]
    for number in range(rounds):
        for arm in arms[:: 1 if number % 2 == 0 else -1]:
            arm()
    found.agreeing = statistics.mean(said[setting] == text for setting, text in own.items())
    return found


def _warm_up(subject: Subject, host: Asked, whole: Sweeper, specs: Sequence[VariantSpec], found: Timed) -> None:
    """Run everything once, and note the memory that it took: peaks are no matter of time."""
    host.generate()
    found.peak_untouched = peak_above(subject.model, host.generate)
    found.peak = peak_above(subject.model, lambda: whole.answer({}))
    found.batches, found.kv = whole.batches, batched_kv(subject, specs, whole.batches)


def timed(host: Asked, run: Callable[[], Any]) -> tuple[Any, float]:
    devices, clock = gpus.gpus(host.model), clock_of(host.model)
    gpus.wait(devices)
    began = clock()
    result = run()
    gpus.wait(devices)
    return result, clock() - began


def one_pass(host: Asked, whole: Sweeper, said: dict[str, str]) -> float:
    """Seconds of a sweep of one question; what every setting says goes to ``said``."""
    answers, seconds = timed(host, lambda: whole.answer({}))
    said.update({setting: answer.text for setting, answer in answers.items()})
    return seconds


def alone_with(host: Asked, context: Any, **forward: Any) -> tuple[float, str]:
    with context:
        text, seconds = timed(host, lambda: host.generate(**forward))
    return seconds, text


def batched_kv(subject: Subject, specs: Sequence[VariantSpec], batches: Sequence[int]) -> int:
    """Bytes of keys and values that the largest batch of settings holds in the blocks after their cuts."""
    decoder, plan = find_decoder(subject.model), Plan.of(subject)
    shape, item = decoder.shape, next(decoder.text.parameters()).element_size()
    order = sorted(specs, key=lambda spec: (spec.stages[0].count(plan.images), spec.stages[0].layer))
    each = [plan.tail(s) + (plan.blocks - s.stages[0].layer) * plan.prefix for s in order]
    sums, start = [0], 0
    for count in batches:
        sums.append(sum(each[start : start + count]))
        start += count
    return max(sums) * 2 * shape.kv_heads * shape.head_dim * item


def checks(plan: Plan, specs: Sequence[VariantSpec], found: Timed, fixed: bool, exact: bool = True) -> list[Check]:
    """Bars on the plan's ratios; ``fixed``: also those that hold for the small LLaVA and the whole grid.

    ``exact``: every answer must be the setting's own. In half precision near ties of random weights may fall otherwise.
    """
    mine = plan.sweep(specs)
    least = 1.0 if exact else 0.0
    checks = [Check("answers that are the setting's own", found.agreeing, f">= {least}", found.agreeing >= least)]
    for arm, what, bar in (
        ("one_by_one", "one by one", ONE_BY_ONE_BAR), ("published", "the published way", PUBLISHED_BAR)
    ):  # fmt: skip
        value, planned = found.ratio("sweep", arm), mine / getattr(plan, arm)(specs)
        bound = min(bar, SLACK * planned) if fixed else SLACK * planned
        checks.append(Check(f"sweep over {what} (plan {planned:.3f})", value, f"<= {bound:.3f}", value <= bound))
    if middle_keep(specs) is not None:
        value = found.one_more
        holds = value < ONE_MORE_BAR
        checks.append(Check("one more K, over its settings alone", value, f"< {ONE_MORE_BAR:.3f}", holds))
    if found.peak is not None and found.peak_untouched and found.kv >= MEASURABLE:
        value, bound = found.peak / 1e6, (2 * found.peak_untouched + found.kv) / 1e6
        checks.append(Check("peak MB over the weights", value, f"<= {bound:.0f}", value <= bound))
    return checks


def table(plan: Plan, specs: Sequence[VariantSpec], found: Timed) -> list[dict[str, Any]]:
    """One row per arm: seconds (medians), measured and planned ratio to one by one."""
    one = plan.one_by_one(specs)
    rows = []
    for name, arm in (("sweep", "sweep"), ("one by one", "one_by_one"), ("published way", "published")):
        planned = getattr(plan, arm)(specs) / one
        ratio = found.ratio(arm, "one_by_one")
        rows.append(
            {
                "arm": name,
                "settings": len(specs),
                "seconds": statistics.median(getattr(found, arm)),
                "ratio": ratio,
                "plan": planned,
                "ratio / plan": ratio / planned,
            }
        )
    return rows


def run(request: Request) -> int:
    """Measure, print, and return the exit code: 1 if bars are checked and one is missed.

    Raises:
        ValueError: unknown family, size, dtype or device; a setting that is no cut of one stage.
        KeyError: a malformed setting. TruncationError: a setting that the model has no room for.
    """
    console = Console(stderr=True)
    with console.status("building the model") as status:
        subject = request.build()
        plan = Plan.of(subject)
        specs = grid(plan.blocks, plan.images)
        if request.settings:
            given = [parse(setting.strip()) for setting in request.settings.split(",")]
            specs = [VariantSpec("bench", s.stages, s.rule, s.row, s.official, s.prompt, s.beam) for s in given]
        found = bench(subject, specs, request.rounds or 2, status.update)
    what = request.model or f"random weights, {request.family} family, size {request.size}"
    print(
        heading(
            subject.model, what, request.rounds or 2, f"{NEW_TOKENS} new tokens a question{seconds_of(subject.model)}"
        )
    )
    print(f"{len(specs)} settings, {plan.length} tokens, {plan.images} of them of images; batches of {found.batches}")
    print(tabulate(table(plan, specs, found), headers="keys", floatfmt=".3f"))
    fixed = request.model is None and (request.family, request.size) == ("llava", "small") and not request.settings
    bars = checks(plan, specs, found, fixed, next(subject.model.parameters()).dtype == torch.float32)
    print(drawn_checks(bars))
    return int(request.check and not all(c.holds for c in bars))
