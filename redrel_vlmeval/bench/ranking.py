"""``redrel bench --rules``: what choosing costs, rule by rule, as a share of the untouched prefill.

Choosing is all that a truncated prefill does beside the model's own work: the rows, keys and tower attention that the
rule needs are read, block L+1 is looked into, and the rule runs. It is timed where it happens (``trace.ranking``), not
as a difference of two prefills, which would drown in their noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval import rules
from redrel_vlmeval.bench.command import MEASURABLE, NO_BARS, Request, heading
from redrel_vlmeval.bench.prefill import Arm, Check, clock_of, count_flops, seconds_of
from redrel_vlmeval.bench.subjects import Subject
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models import gpus
from redrel_vlmeval.rules import Rule
from redrel_vlmeval.truncation import find_decoder, truncated

KEEP, LAYER, ROUNDS = 64, 2, 5
BAR, CLIP_BAR = 0.03, 0.10  # of a prefill; with CLIP's text tower, which is no small part of a small model


@dataclass
class Cost:
    """One rule's choosing: seconds per round, and the setting that they are of; ``why`` it could not be timed."""

    rule: str
    setting: str
    seconds: list[float] = field(default_factory=list)
    why: str = ""

    def share(self, prefills: list[float]) -> float:
        """Median over rounds of the share of the same round's untouched prefill."""
        return statistics.median(own / whole for own, whole in zip(self.seconds, prefills, strict=True))


def setting_of(rule: Rule, images: int) -> str:
    """Before block 1 where the rule can choose there, as its method does; after block 2 otherwise.

    Of a picture with ``images`` tokens, no more than K, a quarter is kept: to keep all would leave nothing to choose.
    """
    stage = f"l{0 if rule.before_block_1 else LAYER}_k{KEEP if images > KEEP else max(1, images // 4)}"
    return f"{stage}{rules.suffix(rule.name)}"


def waiting_clock(model: torch.nn.Module) -> Callable[[], float]:
    """The bench's clock, read when GPUs have done what they were given."""
    devices, clock = gpus.gpus(model), clock_of(model)

    def waited() -> float:
        gpus.wait(devices)
        return clock()

    return waited


@torch.inference_mode()
def measure(
    subject: Subject, known: list[Rule], rounds: int = ROUNDS, tick: Callable[[str], None] = lambda _: None
) -> tuple[list[float], list[Cost]]:
    """Seconds of every round's untouched prefill, and the cost of every rule; a round before them is not counted."""
    clock, decoder = waiting_clock(subject.model), find_decoder(subject.model)
    images = int(decoder.image_mask(subject.inputs["input_ids"]).sum())
    costs, prefills = [Cost(rule.name, setting_of(rule, images)) for rule in known], []
    for number in range(rounds + 1):
        tick(f"round {number} of {rounds}")
        begin = clock()
        subject.model(**subject.inputs)
        prefills.append(clock() - begin)
        for cost in costs:
            if cost.why:
                continue
            try:
                with truncated(subject.model, cost.setting) as trace:
                    trace.clock = clock
                    subject.model(**subject.inputs)
                cost.seconds.append(trace.ranking)
            except TruncationError as error:
                cost.why = str(error)
    for cost in costs:
        cost.seconds = cost.seconds[1:]
    return prefills[1:], costs


def checks(prefills: list[float], costs: list[Cost]) -> list[Check]:
    """The bar of every built-in rule that was timed; none where the tower runs a second time, which is no ranking."""
    found = []
    for cost in costs:
        rule = rules.find(cost.rule)
        if cost.why or rule.before_block_1_only or not rule.built_in:
            continue
        bar, share = CLIP_BAR if "clip" in rule.needs else BAR, cost.share(prefills)
        found.append(Check(f"{cost.rule}: choosing over prefill", share, f"<= {bar:.2f}", share <= bar))
    return found


def run(request: Request) -> int:
    """Measure, print, and return the exit code: 1 if bars are checked and one is missed.

    Raises:
        ValueError: see :func:`redrel_vlmeval.bench.command.run`. RuleError: a file with rules is broken.
    """
    rounds, known = request.rounds or ROUNDS, list(rules.known(everywhere=True).values())
    what = request.model or f"random weights, {request.family} family, size {request.size}"
    with Console(stderr=True).status("building the model") as status:
        subject = request.build()
        flops = count_flops(subject, Arm("base", None, nullcontext))
        prefills, costs = measure(subject, known, rounds, status.update)
    question = f"a prefill takes {statistics.median(prefills):.3f} s"
    print(heading(subject.model, what, rounds, question) + seconds_of(subject.model))
    found = {check.what.partition(":")[0]: check for check in checks(prefills, costs) if flops >= MEASURABLE}
    rows = []
    for cost in costs:
        bar = found.get(cost.rule)
        verdict = "-" if bar is None else f"{bar.bound} {bar.verdict}"
        if cost.why:
            rows.append((cost.rule, cost.setting, "refused", "-", "-"))
        else:
            share = cost.share(prefills)
            rows.append(
                (cost.rule, cost.setting, f"{1e3 * statistics.median(cost.seconds):.1f}", f"{share:.2%}", verdict)
            )
    heads = ["rule", "setting", "ms", "of a prefill", "bar"]
    print(tabulate(rows, heads, disable_numparse=True, colalign=("left", "left", "right", "right", "left")))
    for cost in costs:
        if cost.why:
            print(f"{cost.rule}: {cost.why}")
    if not found:
        print(NO_BARS.format(flops / 1e9))
    return int(request.check and any(check.missed for check in found.values()))
