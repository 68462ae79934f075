"""``redrel bench batch``: questions per second in the host's own, unmodified loop, one at a time and eight at a time.

The model is a real one, because the loop asks real questions: the one in the box unless ``--model`` says another. It is
so small that starting a kernel costs more than running it, which is how a 7B model stands on a GPU. On a CPU seconds
are those of this process: other programs do not count.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval.bases import TINY, row
from redrel_vlmeval.bench.command import Request, defaults, drawn_checks, heading
from redrel_vlmeval.bench.prefill import Check, clock_of, seconds_of
from redrel_vlmeval.host import Benchmark
from redrel_vlmeval.models import LLaVA15, TruncatedVLM, gpus
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import find_decoder

BATCH, QUESTIONS, ROUNDS = 8, 24, 3
DATA = "RedRelShapes_MINI"
BARS = {32: 2.5, 1: 0.95}  # new tokens -> least questions per second, in units of those of one at a time


@dataclass
class Arm:
    """A setting ('' is the base), questions at once and new tokens; seconds per question of each round, and answers."""

    setting: str
    batch: int
    new_tokens: int
    seconds: list[float] = field(default_factory=list)
    answers: dict[Any, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Questions per second."""
        return 1 / statistics.median(self.seconds)

    def gain(self, alone: Arm) -> float:
        """Median over rounds of the questions per second by those of ``alone`` of the same round."""
        return statistics.median(its / mine for mine, its in zip(self.seconds, alone.seconds, strict=True))


def bench(
    base: LLaVA15, settings: list[str], questions: Benchmark, rounds: int, tick: Callable[[str], None] = lambda _: None
) -> list[Arm]:
    """All arms in turn, ``rounds`` times, there and back, after a warm-up."""
    clock = clock_of(base.model)
    arms = [Arm(setting, batch, new) for new in BARS for setting in ["", *settings] for batch in (1, BATCH)]
    for arm in arms[: len(arms) // len(BARS)]:
        tick("warming up")
        in_loop(base, arm, questions, 1, clock)
    for number in range(rounds):
        for arm in arms[:: 1 if number % 2 == 0 else -1]:
            tick(
                f"round {number + 1} of {rounds}: {arm.setting or 'base'}, {arm.new_tokens} tokens, {arm.batch} at once"
            )
            seconds, arm.answers = in_loop(base, arm, questions, arm.new_tokens, clock)
            arm.seconds.append(seconds / len(questions))
    return arms


def in_loop(
    base: LLaVA15, arm: Arm, questions: Benchmark, new_tokens: int, clock: Callable[[], float]
) -> tuple[float, dict[Any, str]]:
    """Seconds by ``clock``, and answers, of the host's loop over the questions."""
    base.core.generation |= {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    name = f"{TINY}_trunc_{arm.setting}" if arm.setting else TINY
    model: Any = TruncatedVLM(base, arm.setting, batch=arm.batch) if arm.setting else base.again(arm.batch)
    with tempfile.TemporaryDirectory(prefix="redrel-") as folder:
        began = clock()
        answers = questions.ask(model, name, Path(folder))
        gpus.wait(gpus.gpus(base.model))
        return clock() - began, answers


def checks(arms: list[Arm]) -> list[Check]:
    """Answers that must be equal, and the bars on questions per second."""
    found = []
    for alone, together in zip(arms[::2], arms[1::2], strict=True):
        what = f"{together.setting or 'base'}, {together.new_tokens} new tokens"
        same = sum(together.answers[index] == said for index, said in alone.answers.items()) / len(alone.answers)
        found.append(Check(f"{what}: answers that are those of one by one", same, ">= 1", same >= 1))
        value, bar = together.gain(alone), BARS[together.new_tokens]
        found.append(Check(f"{what}: times as many questions/s", value, f">= {bar}", value >= bar))
    return found


def table(arms: list[Arm]) -> list[dict[str, Any]]:
    """One row per arm: medians, and over one at a time."""
    rows = []
    for alone, together in zip(arms[::2], arms[1::2], strict=True):
        for arm in (alone, together):
            what = {"arm": arm.setting or "base", "new tokens": arm.new_tokens, "at once": arm.batch}
            rows.append(what | {"questions/s": arm.rate, "over one at a time": arm.gain(alone)})
    return rows


def run(request: Request) -> int:
    """Measure, print, and return the exit code: 1 if bars are checked and one is missed.

    Raises:
        HostMissing: no VLMEvalKit. CheckpointError: no such model. KeyError: a malformed setting.
    """
    console, rounds = Console(stderr=True), request.rounds or ROUNDS
    asked = request.model or TINY
    known = row(asked)
    with console.status("building the model") as status:
        questions = Benchmark(DATA, QUESTIONS)
        base = LLaVA15(asked if known is None else known.weights, device=request.device, dtype=request.dtype)
        blocks, images = len(find_decoder(base.model).blocks), base.core.per_image
        given = [parse(one.strip()).setting for one in (request.settings or "").split(",") if one.strip()]
        arms = bench(base, given or list(defaults({}, blocks, images)[:1]), questions, rounds, status.update)
    print(heading(base.model, asked, rounds, f"{QUESTIONS} questions of {DATA}{seconds_of(base.model)}"))
    print(tabulate(table(arms), headers="keys", floatfmt=".3f"))
    found = checks(arms)
    print(drawn_checks(found))
    return int(request.check and any(c.missed for c in found))
