"""``redrel bench``: what to time, the table, and the bars."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval.bench import prefill, subjects
from redrel_vlmeval.errors import InvalidValue, RedrelError
from redrel_vlmeval.names import Stage, VariantSpec, parse
from redrel_vlmeval.sheets import terminal
from redrel_vlmeval.truncation import find_decoder

SETTINGS = ("l5_k128", "l12_k0", "l1_k0")
FULL = 576  # image tokens that these are meant for
ROUNDS = 9
# FLOPs of a prefill below which Python's own time is what is measured, and no bar that follows from FLOPs can hold.
MEASURABLE = 10**10
NO_BARS = "no bars: a prefill of {:.2g} GFLOPs takes as long as Python needs to start its parts"

SMALL = (
    "the blocks alone, on as few rows, take longer than their FLOPs say on this machine. One thread "
    "(OMP_NUM_THREADS=1) is nearer to them"
)

# what is measured -> the module that does it
MEASURES = {name: f"{__package__}.{module}" for name, module in (
    ("prefill", "command"), ("rules", "ranking"), ("batch", "batch"), ("sweep", "sweep"), ("table", "table"),
    ("explain", "maps"), ("pictures", "pictures"),
)}  # fmt: skip


class BenchError(RedrelError, ValueError):
    """A setting that the model to be timed has no room for; names both."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for; see its help."""

    family: str = "llava"
    size: str = "small"
    model: str | None = None
    code: str | None = None
    device: str | None = None
    dtype: str | None = None
    rounds: int | None = None
    settings: str | None = None
    check: bool = False

    def build(self) -> subjects.Subject:
        """The model to time: random weights, or those of ``model``."""
        from redrel_vlmeval.models import choose_placement

        if self.model is not None:
            return subjects.loaded_subject(self.family, self.model, self.device, self.dtype)
        placement = choose_placement(self.device, self.dtype, 0)
        return subjects.random_subject(self.family, self.size, placement.device, placement.dtype, self.code)


def measure(what: str, request: Request) -> int:
    """The exit code of ``redrel bench WHAT``.

    Raises:
        InvalidValue: no such thing to measure; and what each of them raises.
    """
    if what not in MEASURES:
        raise InvalidValue(f"redrel bench {what}: choose {', '.join(MEASURES)}")
    return int(importlib.import_module(MEASURES[what]).run(request))


def run(request: Request) -> int:
    """Measure, print, and return the exit code: 1 if bars are checked and one is missed.

    Raises:
        ValueError: unknown family, size, dtype or device, or a setting too deep. KeyError: a malformed setting.
    """
    given = [parse(s.strip()) for s in request.settings.split(",")] if request.settings else []
    console, rounds = Console(stderr=True), request.rounds or ROUNDS
    what = request.model or f"random weights, {request.family} family, size {request.size}"
    with console.status("building the model") as status:
        subject = request.build()
        decoder = find_decoder(subject.model)
        blocks, images = len(decoder.blocks), int(decoder.image_mask(subject.inputs["input_ids"]).sum())
        check_depth(given, blocks, what)
        chosen = tuple(map(str, given)) or defaults(subject.bars, blocks, images)
        arms = prefill.bench(subject, chosen, rounds, tick=status.update)
    print(
        heading(subject.model, what, rounds, f"one question = prefill + 10 tokens{prefill.seconds_of(subject.model)}")
    )
    print(drawn(prefill.table(arms), terminal.terminal_width()))
    found = prefill.checks(arms, subject.bars, subject.race and arms[0].flops >= MEASURABLE)
    if not found:
        print(NO_BARS.format(arms[0].flops / 1e9))
        return 0
    if prefill.noise(arms) > prefill.NOISE:
        print(f"too noisy: the base timed twice differs by {prefill.noise(arms):.1%}")
    print(drawn_checks(found))
    if any(check.verdict == prefill.BY_HAND for check in found):
        print(f"{prefill.BY_HAND}: {SMALL}")
    return int(request.check and any(c.missed for c in found))


def drawn_checks(found: Iterable[prefill.Check]) -> str:
    """The bars as a table."""
    rows = [(c.what, c.value, c.bound, c.verdict) for c in found]
    return str(tabulate(rows, headers=["bar", "measured", "bound", ""], floatfmt=".3f"))


def drawn(rows: Sequence[Mapping[str, Any]], width: int | None) -> str:
    """The table, with headers of several lines and without its last columns where the terminal is narrow."""

    def draw(names: list[str], narrow: bool) -> str:
        headers = [name.replace(" ", "\n") for name in names] if narrow else names
        return tabulate([[row[name] for name in names] for row in rows], headers, floatfmt=".3f", missingval="-")

    names = list(rows[0])
    whole = draw(names, False)
    if width is None or terminal.wide(whole) <= width:
        return whole
    table, gone = terminal.fitted(lambda some: draw(some, True), names, names[:1:-1], width)
    return f"{table}\n{gone} more columns on a wider terminal, or in a file" if gone else table


def check_depth(specs: Sequence[VariantSpec], blocks: int, what: str) -> None:
    """Refuse settings that the model cannot be timed with.

    Raises:
        BenchError: one that truncates nothing, or is deeper than the model.
    """
    for spec in specs:
        if not spec.stages:
            raise BenchError(f"--settings {spec}: it truncates nothing; give such as {SETTINGS[0]}")
        if (layer := spec.stages[-1].layer) >= blocks:
            raise BenchError(
                f"--settings {spec.setting}: layer {layer}, but {what} has {blocks} decoder blocks: L is 0 to "
                f"{blocks - 1}"
            )


def defaults(bars: Iterable[str], blocks: int, images: int) -> tuple[str, ...]:
    """Settings with bars, then ``SETTINGS``, as far as the model is deep.

    A K that would keep every image token of a prompt becomes the same share of them as it is of ``FULL``.
    """
    specs = [parse(setting) for setting in dict.fromkeys([*bars, *SETTINGS])]
    found = [replace(spec, stages=tuple(_smaller(stage, images) for stage in spec.stages)) for spec in specs]
    return tuple(dict.fromkeys(str(spec) for spec in found if spec.stages[-1].layer < blocks))


def _smaller(stage: Stage, images: int) -> Stage:
    keep = stage.keep or 0
    return Stage(stage.layer, keep * images // FULL) if keep >= images else stage


def heading(model: torch.nn.Module, what: str, rounds: int, question: str) -> str:
    """Where and on what it was measured."""
    parameter = next(model.parameters())
    device = (
        torch.cuda.get_device_name(parameter.device)
        if parameter.is_cuda
        else f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    count = sum(p.numel() for p in model.parameters()) / 1e6
    dtype = str(parameter.dtype).removeprefix("torch.")
    return (
        f"{what}: {count:.0f} M parameters, {dtype} on {device}, torch {torch.__version__}, "
        f"medians of {rounds} rounds; {question}"
    )
