"""Speed, measured side by side in one process: untouched, truncated, and the way published code does it.

Every claim is a median of ratios, each within one round in which all arms run in turn. The limit is the FLOPs ratio,
counted by torch over the whole model, vision tower included; what the machine makes of it is timed, too, by rows that
are cut by hand. On a CPU times are CPU seconds of the process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from redrel_vlmeval.bench.byhand import can_be_cut, cut_by_hand
from redrel_vlmeval.bench.subjects import Subject
from redrel_vlmeval.models import Meter, gpus, kv_bytes
from redrel_vlmeval.truncation import find_decoder, truncated

PUBLISHED_BAR, IDLE_BAR = 0.95, 1.03
NOISE = 0.03  # what the base timed twice may differ by for a bar on times to say anything
ALL, GONE = "K = all", "base, hooks gone"
OWN_BAR = 1.04  # of a variant's prefill, in units of that of rows cut by hand
BY_HAND = "by hand, too"


@dataclass
class Arm:
    """One way to run the model, and what was measured: milliseconds per round, FLOPs, bytes."""

    name: str
    setting: str | None
    context: Callable[[], Any]
    forward: dict[str, Any] = field(default_factory=dict)
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    flops: int = 0
    kv: int = 0
    peak: int | None = None
    hand: Arm | None = None  # of a variant: what the blocks alone take on its rows

    @property
    def prefill_ms(self) -> float:
        return statistics.median(self.prefill)

    @property
    def decode_ms(self) -> float:
        return statistics.median(self.decode)

    def prefill_over(self, other: Arm) -> float:
        """Median over rounds of this arm's prefill by ``other``'s of the same round, which drift together."""
        return statistics.median(mine / its for mine, its in zip(self.prefill, other.prefill, strict=True))


@dataclass(frozen=True)
class Check:
    """One bar: what was measured, the bound, whether it holds, and what else but the variant would explain a miss.

    ``noisy``: the machine was too noisy to tell. ``floor``: rows cut by hand miss the same bar.
    """

    what: str
    value: float
    bound: str
    holds: bool
    noisy: bool = False
    floor: bool = False

    @property
    def missed(self) -> bool:
        return self.verdict == "MISSED"

    @property
    def verdict(self) -> str:
        return "too noisy" if self.noisy else "holds" if self.holds else BY_HAND if self.floor else "MISSED"


def clock_of(model: Any) -> Callable[[], float]:
    """What seconds are measured by: on a CPU this process's own, in which other programs do not count."""
    return time.perf_counter if gpus.gpus(model) else time.process_time


def seconds_of(model: Any) -> str:
    """The end of a heading: whose seconds they are."""
    return "" if gpus.gpus(model) else "; CPU seconds of this process"


def noise(arms: list[Arm]) -> float:
    """By how much the base timed twice differs, as a share; 0 where it was timed once."""
    by = {arm.name: arm for arm in arms}
    return abs(by[GONE].prefill_over(by["base"]) - 1) if GONE in by else 0.0


def make_arms(subject: Subject, settings: tuple[str, ...]) -> list[Arm]:
    """Untouched first and once more when all hooks are gone; the variants and the published way in between."""
    model, decoder = subject.model, find_decoder(subject.model)
    arms = [Arm("base", None, nullcontext)]
    images = int(decoder.image_mask(subject.inputs["input_ids"]).sum())
    everything = f"l{min(5, len(decoder.blocks) - 1)}_k{images}"
    for setting in settings:
        arms.append(Arm(setting, setting, partial(truncated, model, setting)))
        if can_be_cut(decoder, setting):
            arms[-1].hand = Arm(f"by hand {setting}", setting, partial(cut_by_hand, model, setting, images))
    arms.append(Arm(ALL, everything, partial(truncated, model, everything)))
    for setting in settings[:2]:
        way = {"output_attentions": True}
        arms.append(Arm(f"published {setting}", setting, partial(subject.published, model, setting), way))
    return [*arms, Arm(GONE, None, nullcontext)]


@torch.inference_mode()
def answer(subject: Subject, arm: Arm, new_tokens: int) -> Any:
    """Prefill and greedy decoding of the prompt, in a context of the arm."""
    return subject.model.generate(
        **subject.inputs,
        **arm.forward,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
    )


def time_arm(subject: Subject, arm: Arm, new_tokens: int) -> None:
    """One measurement of prefill and decoding, and of the cache they leave.

    An unmeasured prefill stands before it: what the arm before left behind (freed memory above all, of which eager
    attention leaves most) would otherwise count against this one.
    """
    with arm.context():
        answer(subject, arm, 1)
    with arm.context(), Meter(subject.model, clock_of(subject.model)) as meter:
        out = answer(subject, arm, new_tokens)
    decoder = meter.decoder
    if decoder is None or meter.prefill_ms is None:
        return
    arm.prefill.append(meter.prefill_ms)
    arm.decode.append(meter.decode_ms or 0.0)
    cache = decoder.cache_after(out, out.past_key_values)
    held = [decoder.held_length(cache, block) for block in range(len(decoder.blocks))]
    arm.kv = kv_bytes(held, decoder.shape, next(decoder.text.parameters()).element_size())


def count_flops(subject: Subject, arm: Arm) -> int:
    """FLOPs of one prefill of the whole model by torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with arm.context(), FlopCounterMode(display=False) as counter:
        answer(subject, arm, 1)
    return int(counter.get_total_flops())


def measure_peak(subject: Subject, arm: Arm) -> int | None:
    """Bytes at the peak of one prefill: allocated on a GPU; above the resident set before it on Linux; else None."""
    weights = gpus.held(gpus.gpus(subject.model))

    def prefill() -> None:
        with arm.context():
            answer(subject, arm, 1)

    above = peak_above(subject.model, prefill)
    return None if above is None else above + weights


def peak_above(model: Any, run: Callable[[], Any]) -> int | None:
    """Bytes at the peak of ``run`` above what was held before it; None where the system does not tell."""
    if devices := gpus.gpus(model):
        before = gpus.start_peak(devices)
        run()
        return gpus.peak(devices, before)
    try:
        _return_free_memory()
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except OSError:
        return None


def _return_free_memory() -> None:
    """Give freed heap back to the system, so that the resident set starts from what is in use."""
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def bench(
    subject: Subject,
    settings: tuple[str, ...],
    rounds: int = 5,
    new_tokens: int = 5,
    tick: Callable[[str], None] = lambda _: None,
) -> list[Arm]:
    """All arms, ``rounds`` times in turn, there and back, after one warm-up round, on the subject's prompt."""
    arms = make_arms(subject, settings)
    answer(subject, arms[0], 1)  # a model that keeps a picture's features has them from here on, in every arm
    for arm in arms:
        tick(f"counting and warming up: {arm.name}")
        if not arm.forward:
            arm.flops = count_flops(subject, arm)
        arm.peak = measure_peak(subject, arm)
    for number in range(rounds):
        for arm in arms[:: 1 if number % 2 == 0 else -1]:  # what stands before an arm changes from round to round
            tick(f"round {number + 1} of {rounds}: {arm.name}")
            time_arm(subject, arm, new_tokens)
            if arm.hand is not None:
                time_arm(subject, arm.hand, 1)
    return arms


def table(arms: list[Arm]) -> list[dict[str, Any]]:
    """One row per arm: medians, ratios to the base, the FLOPs ratio as the limit, memory."""
    base = arms[0]
    rows = []
    for arm in arms:
        limit = arm.flops / base.flops if arm.flops else None
        ratio = arm.prefill_over(base)
        total = (arm.prefill_ms + 10 * arm.decode_ms) / 1e3
        rows.append(
            {
                "arm": arm.name,
                "prefill ms": arm.prefill_ms,
                "prefill ratio": ratio,
                "FLOPs ratio": limit,
                "ratio / limit": ratio / limit if limit else None,
                "over by hand": arm.prefill_over(arm.hand) if arm.hand else None,
                "decode ms/token": arm.decode_ms,
                "KV MB": arm.kv / 1e6,
                "peak MB": arm.peak / 1e6 if arm.peak is not None else None,
                "questions/s (10 tokens)": 1 / total,
            }
        )
    return rows


def checks(arms: list[Arm], bars: dict[str, float], race: bool = True) -> list[Check]:
    """``bars`` on prefill; ``race``: bars on the published way and on idle hooks, too.

    Where the base timed twice differs by more than ``NOISE``, none can be told.
    """
    by = {arm.name: arm for arm in arms}
    base, noisy = by["base"], noise(arms) > NOISE
    found = []
    for setting, bar in bars.items():
        if setting in by:
            variant = by[setting]
            limit, hand = variant.flops / base.flops, variant.hand
            value = variant.prefill_over(base) / limit
            floor = hand is not None and hand.prefill_over(base) / limit > bar
            what = f"{setting}: prefill over base / FLOPs ratio"
            found.append(Check(what, value, f"<= {bar}", value <= bar, noisy, floor))
            if hand is not None:
                value = variant.prefill_over(hand)
                what = f"{setting}: prefill over rows cut by hand"
                found.append(Check(what, value, f"<= {OWN_BAR}", value <= OWN_BAR, noisy))
    for name, arm in by.items():
        if race and name.startswith("published ") and arm.setting in by:
            variant = by[arm.setting]
            if variant.flops >= base.flops:  # it drops nothing, so there is nothing to gain
                continue
            value, bound = arm.prefill_over(variant), PUBLISHED_BAR * base.flops / variant.flops
            found.append(
                Check(
                    f"{arm.setting}: times faster than the published way",
                    value,
                    f">= {bound:.2f}",
                    value >= bound,
                    noisy,
                )
            )
        if race and name in (ALL, GONE):
            value = arm.prefill_over(base)
            found.append(Check(f"{name}: prefill over base", value, f"<= {IDLE_BAR}", value <= IDLE_BAR, noisy))
    return found
