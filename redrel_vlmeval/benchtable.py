"""``redrel bench``: what to time, the table, and the bars."""

from __future__ import annotations

import platform

import torch
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval import bench
from redrel_vlmeval.names import parse


def run(
    size: str, model: str | None, device: str | None, dtype: str | None, rounds: int, settings: str | None, check: bool
) -> int:
    """Measure, print, and return the exit code: 1 if ``check`` and a bar is missed.

    Raises:
        ValueError: unknown size, dtype or device. KeyError: a malformed setting.
    """
    from redrel_vlmeval.models.checkpoint import choose_placement

    if size not in bench.SIZES:
        raise ValueError(f"--size {size!r}: choose one of {', '.join(bench.SIZES)}")
    chosen = tuple(str(parse(s.strip())) for s in settings.split(",")) if settings else bench.SETTINGS
    console = Console(stderr=True)
    with console.status("building the model") as status:
        if model is None:
            placement = choose_placement(device, dtype, 0)
            loaded = bench.random_model(size, placement.device, placement.dtype)
        else:
            from redrel_vlmeval.models.llava_core import LlavaCore

            loaded = LlavaCore(model, device=device, dtype=dtype).model
        blocks = loaded.config.text_config.num_hidden_layers
        chosen = tuple(s for s in chosen if parse(s).stages and parse(s).stages[-1].layer < blocks)
        arms = bench.bench(loaded, chosen, rounds, tick=status.update)
    print(heading(loaded, model or f"random weights, size {size}", rounds))
    rows = bench.table(arms)
    print(tabulate(rows, headers="keys", floatfmt=".3f", missingval="-"))
    found = bench.checks(arms)
    print(
        tabulate(
            [(c.what, c.value, c.bound, "holds" if c.holds else "MISSED") for c in found],
            headers=["bar", "measured", "bound", ""],
            floatfmt=".3f",
        )
    )
    return int(check and not all(c.holds for c in found))


def heading(model: torch.nn.Module, what: str, rounds: int) -> str:
    """Where and on what it was measured."""
    parameter = next(model.parameters())
    device = (
        torch.cuda.get_device_name()
        if parameter.is_cuda
        else f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    count = sum(p.numel() for p in model.parameters()) / 1e6
    dtype = str(parameter.dtype).removeprefix("torch.")
    return (
        f"{what}: {count:.0f} M parameters, {dtype} on {device}, torch {torch.__version__}, "
        f"medians of {rounds} rounds; one question = prefill + 10 tokens"
    )
