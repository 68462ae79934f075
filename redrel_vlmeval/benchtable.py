"""``redrel bench``: what to time, the table, and the bars."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval import bench, benchmodels
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation.decoders import find_decoder

SETTINGS = ("l5_k128", "l12_k0", "l1_k0")
ROUNDS = 5


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

    def build(self) -> benchmodels.Subject:
        """The model to time: random weights, or those of ``model``."""
        from redrel_vlmeval.models.checkpoint import choose_placement

        if self.model is not None:
            return benchmodels.loaded_subject(self.family, self.model, self.device, self.dtype)
        placement = choose_placement(self.device, self.dtype, 0)
        return benchmodels.random_subject(self.family, self.size, placement.device, placement.dtype, self.code)


def run(request: Request) -> int:
    """Measure, print, and return the exit code: 1 if bars are checked and one is missed.

    Raises:
        ValueError: unknown family, size, dtype or device. KeyError: a malformed setting.
    """
    wanted = tuple(str(parse(s.strip())) for s in request.settings.split(",")) if request.settings else SETTINGS
    console, rounds = Console(stderr=True), request.rounds or ROUNDS
    with console.status("building the model") as status:
        subject = request.build()
        blocks = len(find_decoder(subject.model).blocks)
        wanted = tuple(dict.fromkeys([*subject.bars, *wanted])) if not request.settings else wanted
        chosen = tuple(s for s in wanted if parse(s).stages and parse(s).stages[-1].layer < blocks)
        arms = bench.bench(subject, chosen, rounds, tick=status.update)
    what = request.model or f"random weights, {request.family} family, size {request.size}"
    print(heading(subject.model, what, rounds, "one question = prefill + 10 tokens"))
    print(tabulate(bench.table(arms), headers="keys", floatfmt=".3f", missingval="-"))
    found = bench.checks(arms, subject.bars, subject.race)
    print(
        tabulate(
            [(c.what, c.value, c.bound, "holds" if c.holds else "MISSED") for c in found],
            headers=["bar", "measured", "bound", ""],
            floatfmt=".3f",
        )
    )
    return int(request.check and not all(c.holds for c in found))


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
