"""``redrel bench --rules``: what choosing costs, rule by rule, as a share of the untouched prefill.

Choosing is all that a truncated prefill does beside the model's own work: the rows, keys and tower attention that the
rule needs are read, block L+1 is looked into, and the rule runs. It is timed where it happens (``trace.ranking``), not
as a difference of two prefills, which would drown in their noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval import rules
from redrel_vlmeval.bench.command import Request, heading
from redrel_vlmeval.bench.prefill import Check
from redrel_vlmeval.bench.subjects import Subject
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models import gpus
from redrel_vlmeval.rules import Rule
from redrel_vlmeval.truncation import truncated

KEEP, LAYER, ROUNDS = 64, 2, 5
BAR, GREEDY_BAR = 0.03, 0.10  # of a prefill
GREEDY = ("divprune", "dpp-text", "cdpruner", "mmtok")  # K steps over pairs of tokens
AGAIN = ("downsample",)  # the tower runs a second time: no ranking, and no bar


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


def setting_of(rule: Rule) -> str:
    """Before block 1 where the rule can choose there, as its method does; after block 2 otherwise."""
    stage = f"l{0 if rule.before_block_1 else LAYER}_k{KEEP}"
    return stage if rule.name == rules.DEFAULT else f"{stage}_{rule.name}"


def clock_of(model: torch.nn.Module) -> tuple[Callable[[], float], str]:
    """On a CPU the process's own time, which other programs do not lengthen; on GPUs what a wait for them shows."""
    devices = gpus.gpus(model)
    if not devices:
        return time.process_time, "CPU time of the process"

    def waited() -> float:
        gpus.wait(devices)
        return time.perf_counter()

    return waited, "wall time"


@torch.inference_mode()
def measure(
    subject: Subject, known: list[Rule], rounds: int = ROUNDS, tick: Callable[[str], None] = lambda _: None
) -> tuple[list[float], list[Cost]]:
    """Seconds of every round's untouched prefill, and the cost of every rule; a round before them is not counted."""
    clock, _ = clock_of(subject.model)
    costs, prefills = [Cost(rule.name, setting_of(rule)) for rule in known], []
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
    """The bar of every built-in rule that was timed."""
    found = []
    for cost in costs:
        if cost.why or cost.rule in AGAIN or not rules.find(cost.rule).built_in:
            continue
        bar, share = GREEDY_BAR if cost.rule in GREEDY else BAR, cost.share(prefills)
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
        prefills, costs = measure(subject, known, rounds, status.update)
    _, kind = clock_of(subject.model)
    print(heading(subject.model, what, rounds, f"{kind}; a prefill takes {statistics.median(prefills):.3f} s"))
    found = {check.what.partition(":")[0]: check for check in checks(prefills, costs)}
    rows = []
    for cost in costs:
        bar = found.get(cost.rule)
        verdict = "-" if bar is None else f"{bar.bound} {'holds' if bar.holds else 'MISSED'}"
        if cost.why:
            rows.append((cost.rule, cost.setting, "refused", "-", "-"))
        else:
            share = cost.share(prefills)
            rows.append((cost.rule, cost.setting, 1e3 * statistics.median(cost.seconds), f"{share:.2%}", verdict))
    print(tabulate(rows, headers=["rule", "setting", "ms", "of a prefill", "bar"], floatfmt=".1f"))
    for cost in costs:
        if cost.why:
            print(f"{cost.rule}: {cost.why}")
    return int(request.check and not all(check.holds for check in found.values()))
