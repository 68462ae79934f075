"""``redrel bench explain``: maps of all layers from one pass against a pass per layer, and what answer rows cost.

The loop is what published code does: for each layer a forward call and a backward, weights trainable as they are
loaded. Every ratio is taken within one round, in which all arms run in turn; medians are printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval.bench.command import Request, drawn_checks, heading
from redrel_vlmeval.bench.prefill import Check, peak_above
from redrel_vlmeval.bench.subjects import Subject
from redrel_vlmeval.explain import (
    Asked,
    Wanted,
    ask_model,
    differentiable,
    elementwise,
    gradcam,
    objective,
    run as run_pass,
)
from redrel_vlmeval.models import gpus

FASTER, LEANER, ROWS, ROW_BYTES = 8.0, 0.6, 0.10, 2e6
MAPS = gradcam.Request(("elementwise",))
LOOP, PASS, CHECKPOINTED = "a pass per layer", "one pass", "one pass, checkpointed"
PREFILL, WITH_ROWS = "prefill", "prefill with answer rows"


@dataclass
class Arm:
    """One way to do it: seconds per round, and bytes at the peak above what the model holds."""

    name: str
    work: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None

    def over(self, other: Arm) -> float:
        """Median over rounds of this arm's time by ``other``'s of the same round."""
        return statistics.median(mine / its for mine, its in zip(self.seconds, other.seconds, strict=True))


def layer_loop(asked: Asked) -> list[torch.Tensor]:
    """Elementwise maps of every decoder block by one forward and one backward each, weights trainable: [n] each."""
    spans, maps = asked.spans(), []
    sequence = asked.sequence()
    for block in range(len(asked.decoder.blocks)):
        kept: list[torch.Tensor] = []
        module = asked.decoder.part(block, "input_norm")
        handle = module.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out))
        try:
            logits = asked.model(**sequence, use_cache=False).logits
        finally:
            handle.remove()
        z = objective(logits[:, spans.predict], asked.answer, "logit").sum()
        (slope,) = torch.autograd.grad(z, kept)
        image = torch.from_numpy(spans.image).to(slope.device)
        maps.append(elementwise(kept[0][0, image], slope[0, image]).detach().float().cpu())
    return maps


def trainable_loop(asked: Asked) -> list[torch.Tensor]:
    """:func:`layer_loop` in a process where autograd is on and weights ask for gradients, as they are loaded."""
    with differentiable(asked.model):
        before = [(parameter, parameter.requires_grad) for parameter in asked.model.parameters()]
        try:
            for parameter, _ in before:
                parameter.requires_grad_(parameter.is_floating_point())
            return layer_loop(asked)
        finally:
            for parameter, wanted in before:
                parameter.requires_grad_(wanted)


def question(subject: Subject, tokens: int = 1) -> Asked:
    """The subject's prompt and its greedy answer."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    return ask_model(subject.model, lambda: subject.model.generate(**subject.inputs, **options))


def rows_pass(asked: Asked, rows: bool) -> int:
    """A forward call with the answer rows of all blocks taken, or with none: bytes kept per answer token."""
    group = torch.from_numpy(asked.spans().group).long()
    wanted = Wanted(rows=range(len(asked.decoder.blocks)), groups=group) if rows else Wanted()
    with run_pass(asked, wanted, grad=False) as taken:
        kept = [*taken.rows.values(), *taken.shares.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept) // len(asked.answer)


def make_arms(asked: Asked) -> list[Arm]:
    """The loop, one pass, one pass checkpointed; a forward call without answer rows, and with."""
    checkpointed = gradcam.Request(("elementwise",), checkpointing=True)
    return [
        Arm(LOOP, lambda: trainable_loop(asked)),
        Arm(PASS, lambda: gradcam.explain(asked, MAPS)),
        Arm(CHECKPOINTED, lambda: gradcam.explain(asked, checkpointed)),
        Arm(PREFILL, lambda: rows_pass(asked, False)),
        Arm(WITH_ROWS, lambda: rows_pass(asked, True)),
    ]


def measure(asked: Asked, rounds: int, tick: Callable[[str], None] = lambda _: None) -> list[Arm]:
    """All arms ``rounds`` times in turn, there and back; those without a backward five times as often, being short."""
    arms = make_arms(asked)
    arms[1].work()
    for arm in arms:
        tick(f"memory: {arm.name}")
        arm.peak = peak_above(asked.model, arm.work)
    for number in range(rounds):
        for group, times in ((arms[:3], 1), (arms[3:], 5)):
            for turn in range(times):
                for arm in group[:: 1 if (number + turn) % 2 == 0 else -1]:
                    tick(f"round {number + 1} of {rounds}: {arm.name}")
                    arm.seconds.append(_timed(asked, arm.work))
    return arms


def _timed(asked: Asked, work: Callable[[], Any]) -> float:
    devices = gpus.gpus(asked.model)
    gpus.wait(devices)
    began = time.perf_counter()
    work()
    gpus.wait(devices)
    return time.perf_counter() - began


def checks(arms: list[Arm], row_bytes: int, blocks: int) -> list[Check]:
    """The bars; the one on speed is for 16 blocks and more, fewer layers have less to gain."""
    by = {arm.name: arm for arm in arms}
    faster = by[LOOP].over(by[PASS])
    more = by[WITH_ROWS].over(by[PREFILL]) - 1
    bound = FASTER * min(1.0, blocks / 16)
    found = [Check("one pass: times faster than a pass per layer", faster, f">= {bound:g}", faster >= bound)]
    loop = by[LOOP].peak
    for name in (PASS, CHECKPOINTED):
        peak = by[name].peak
        if loop and peak is not None:
            value = peak / loop
            found.append(Check(f"{name}: peak memory over the loop's", value, f"<= {LEANER}", value <= LEANER))
    found.append(Check("answer rows: share of a prefill's time", more, f"<= {ROWS}", more <= ROWS))
    at_32 = row_bytes * 32 / blocks
    found.append(Check("answer rows: MB per answer token at 32 blocks", at_32 / 1e6, "<= 2", at_32 <= ROW_BYTES))
    return found


def run(request: Request) -> int:
    """Measure, print, and return the exit code: 1 if bars are checked and one is missed.

    Raises:
        ValueError: unknown family, size, dtype or device.
    """
    console, rounds = Console(stderr=True), request.rounds or 1
    with console.status("building the model") as status:
        subject = request.build()
        asked = question(subject)
        blocks = len(asked.decoder.blocks)
        arms = measure(asked, rounds, status.update)
        row_bytes = rows_pass(asked, True)
    what = request.model or f"random weights, {request.family} family, size {request.size}"
    print(heading(subject.model, what, rounds, f"maps of {blocks} layers, {asked.prompt} tokens"))
    rows = [
        {
            "arm": arm.name,
            "seconds": statistics.median(arm.seconds),
            "peak MB over weights": arm.peak / 1e6 if arm.peak is not None else None,
        }
        for arm in arms
    ]
    print(tabulate(rows, headers="keys", floatfmt=".3f", missingval="-"))
    found = checks(arms, row_bytes, blocks)
    print(drawn_checks(found))
    return int(request.check and not all(c.holds for c in found))
