"""``redrel bench table``: a table's settings in one pass against one by one: eight rules at three budgets.

The plan is in FLOPs of the decoder's prefill (:func:`redrel_vlmeval.sweep.plan.cost`), so that a one of one by one is a
one of seconds where nothing else costs time. What choosing itself costs is in both arms, once a setting. A third arm is
``redrel table --batch``: the same pass for several questions at once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval.bench.command import Request, drawn_checks, heading
from redrel_vlmeval.bench.prefill import Check, seconds_of
from redrel_vlmeval.bench.subjects import Subject
from redrel_vlmeval.bench.sweep import Asked, alone_with, one_pass, timed
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.sweep import Sweeper, plan
from redrel_vlmeval.truncation import find_decoder, truncated

BUDGETS = (192, 128, 64)  # of 576 image tokens; in proportion where there are fewer
RULES = (
    "l2_k{}", "l2_k{}_dart", "l2_k{}_next", "l2_k{}_random", "l0_k{}_divprune", "l0_k{}_fps", "l0_k{}_uniform",
    "l0_k{}_random",
)  # fmt: skip
NEW_TOKENS = 8
SLACK = 1.10
AT_ONCE = 4  # questions


@dataclass
class Timed:
    """Seconds a question of every round of the arms, and the share of settings whose answer is their own."""

    sweep: list[float] = field(default_factory=list)
    at_once: list[float] = field(default_factory=list)
    one_by_one: list[float] = field(default_factory=list)
    agreeing: float = 0.0

    def over_one_by_one(self, seconds: list[float]) -> float:
        """Median over rounds, whose arms drift together."""
        return statistics.median(a / b for a, b in zip(seconds, self.one_by_one, strict=True))


def settings(images: int) -> list[VariantSpec]:
    """Eight rules at three budgets."""
    return [parse(f"bench_trunc_{rule.format(keep * images // 576)}") for keep in BUDGETS for rule in RULES]


def bench(
    subject: Subject, specs: Sequence[VariantSpec], rounds: int, tick: Callable[[str], None] = lambda _: None
) -> Timed:
    """All arms in turn, ``rounds`` times, there and back, after a warm-up."""
    host, found = Asked(subject, NEW_TOKENS), Timed()
    whole = Sweeper(host, specs)
    tick("warming up")
    whole.answer({})
    said: dict[str, str] = {}
    own: dict[str, str] = {}
    together: list[dict[str, str]] = []

    def sweep() -> None:
        tick("the sweep")
        found.sweep.append(one_pass(host, whole, said))

    def at_once() -> None:
        tick(f"{AT_ONCE} questions at once")
        answers, seconds = timed(host, lambda: whole.answers([{}] * AT_ONCE))
        found.at_once.append(seconds / AT_ONCE)
        together.extend({} if one is None else {name: answer.text for name, answer in one.items()} for one in answers)

    def one_by_one() -> None:
        found.one_by_one.append(0.0)
        for spec in specs:
            tick(f"one by one: {spec.setting}")
            context: AbstractContextManager[object] = truncated(subject.model, spec.setting)
            seconds, own[spec.setting] = alone_with(host, context)
            found.one_by_one[-1] += seconds

    for number in range(rounds):
        for arm in (sweep, at_once, one_by_one)[:: 1 if number % 2 == 0 else -1]:
            arm()
    each = [said, *together]
    found.agreeing = statistics.mean(one.get(setting) == text for one in each for setting, text in own.items())
    return found


def planned(subject: Subject, specs: Sequence[VariantSpec]) -> float:
    """The plan's share of FLOPs, one pass over one by one; the untouched answer is part of the pass alone."""
    decoder, ids = find_decoder(subject.model), subject.inputs["input_ids"]
    image = decoder.image_mask(ids)[0]
    before, images = int(image.int().argmax()), int(image.sum())
    prompt = plan.Prompt(before, images, ids.shape[1] - before - images)
    found = plan.cost(specs, prompt, len(decoder.blocks), decoder.shape)
    base = plan.cost([], prompt, len(decoder.blocks), decoder.shape).flops_one_by_one
    return found.flops_shared / (found.flops_one_by_one - base)


def run(request: Request) -> int:
    """Measure, print, and return the exit code: 1 if bars are checked and one is missed.

    Raises:
        ValueError: unknown family, size, dtype or device. TruncationError: a setting that the model has no room for.
    """
    console = Console(stderr=True)
    with console.status("building the model") as status:
        subject = request.build()
        images = int(find_decoder(subject.model).image_mask(subject.inputs["input_ids"])[0].sum())
        specs = settings(images)
        if request.settings:
            specs = [parse(f"bench_trunc_{setting.strip()}") for setting in request.settings.split(",")]
        found = bench(subject, specs, request.rounds or 2, status.update)
    share, ratio = planned(subject, specs), found.over_one_by_one(found.sweep)
    what = request.model or f"random weights, {request.family} family, size {request.size}"
    print(
        heading(
            subject.model, what, request.rounds or 2, f"{NEW_TOKENS} new tokens a question{seconds_of(subject.model)}"
        )
    )
    print(f"{len(specs)} settings, {subject.inputs['input_ids'].shape[1]} tokens, {images} of them of images")
    rows = [
        ["one pass", statistics.median(found.sweep), ratio, share],
        [f"{AT_ONCE} questions at once", statistics.median(found.at_once), found.over_one_by_one(found.at_once), share],
        ["one by one", statistics.median(found.one_by_one), 1.0, 1.0],
    ]
    print(tabulate(rows, headers=["arm", "seconds a question", "ratio", "plan's share of FLOPs"], floatfmt=".3f"))
    least = 1.0 if next(subject.model.parameters()).dtype == torch.float32 else 0.0
    bars = [
        Check("answers that are the setting's own", found.agreeing, f">= {least}", found.agreeing >= least),
        Check("one pass over one by one", ratio, f"<= {SLACK * share:.3f}", ratio <= SLACK * share),
    ]
    print(drawn_checks(bars))
    return int(request.check and not all(c.holds for c in bars))
