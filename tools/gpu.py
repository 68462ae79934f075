"""``make gpu``: what a GPU gains, with random weights and no network; writes ``gpu.json`` part by part, and a table.

Each part stands alone (``--parts``, ``--without``), has its time (``--limit``), and is saved as it goes: one that is
stopped keeps what it has. Without a GPU it runs on the CPU, which ``gpu.json`` then says: fewer tests, short prompts.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tabulate import tabulate

from redrel_vlmeval.bench import prefill, subjects, sweep, table as of_rules
from redrel_vlmeval.files import write_whole
from redrel_vlmeval.models.gpus import gpus
from redrel_vlmeval.truncation import find_decoder, truncated
from tools import gpu_checks

SETTINGS = ("l2_k144", "l5_k128", "l12_k0", "l0_k64_divprune")  # of 576 image tokens, in proportion of fewer
PUBLISHED = "l5_k128"
BATCHES, ROUNDS, NEW_TOKENS = (1, 8), 3, 5
CPU_BATCHES, CPU_ROUNDS, CPU_SIDE = (1, 2), 1, 8  # so that a run without a GPU ends in minutes
CPU_EVERY = 3  # of a table's settings: every rule once, at one of the budgets
LIMIT, CPU_LIMIT = 150.0, 300.0  # seconds of a part
ANSWER = 10  # tokens of the answer that questions per second are of


def repeated(subject: subjects.Subject, batch: int) -> subjects.Subject:
    """The subject with its prompt ``batch`` times."""
    inputs = {name: torch.cat([value] * batch) for name, value in subject.inputs.items()}
    return subjects.Subject(subject.model, inputs, subject.published)


def images_of(subject: subjects.Subject) -> int:
    return int(find_decoder(subject.model).image_mask(subject.inputs["input_ids"]).sum())


def scaled(setting: str, images: int) -> str:
    """A setting of 576 image tokens for a picture of ``images``."""
    return re.sub(r"(?<=_k)\d+", lambda keep: str(int(keep[0]) * images // 576), setting)


def right(subject: subjects.Subject) -> dict[str, Any]:
    """Largest difference of the last logits: of a setting that drops nothing to the base, of a batch to one prompt."""
    model, images = subject.model, images_of(subject)

    def logits(setting: str | None, batch: int = 1) -> torch.Tensor:
        with torch.inference_mode(), truncated(model, setting) if setting else nullcontext():
            return model(**repeated(subject, batch).inputs, logits_to_keep=1).logits.float()

    found = {"K = all, over base": float((logits(f"l1_k{images}") - logits(None)).abs().max())}
    for setting in (scaled(one, images) for one in SETTINGS):
        found[f"{setting}, of two at once over one"] = float((logits(setting, 2) - logits(setting)).abs().max())
    return found


def speed(subject: subjects.Subject) -> Iterator[dict[str, Any]]:
    """Medians of every arm at every batch, arms in turn, there and back."""
    gpu, images = gpus(subject.model), images_of(subject)
    settings, cut = [scaled(setting, images) for setting in SETTINGS], scaled(PUBLISHED, images)
    for batch in BATCHES if gpu else CPU_BATCHES:
        asked = repeated(subject, batch)
        arms = [prefill.Arm("untouched", None, nullcontext)]
        arms += [prefill.Arm(one, one, partial(truncated, asked.model, one)) for one in settings]
        way = {"output_attentions": True}
        published = partial(subject.published, asked.model, cut)
        arms.append(prefill.Arm(f"published {cut}", cut, published, way))
        peaks = {arm.name: prefill.measure_peak(asked, arm) for arm in arms}
        for number in range(ROUNDS if gpu else CPU_ROUNDS):
            for arm in arms[:: 1 if number % 2 == 0 else -1]:
                prefill.time_arm(asked, arm, NEW_TOKENS)
        for arm in arms:
            peak = peaks[arm.name]
            total = (arm.prefill_ms + (ANSWER - 1) * arm.decode_ms) / 1e3
            yield {
                "arm": arm.name, "batch": batch, "prefill ms": arm.prefill_ms,
                "prefill over untouched": arm.prefill_over(arms[0]), "decode ms/token": arm.decode_ms,
                "KV MB": batch * arm.kv / 1e6, "peak MB": None if peak is None else peak / 1e6,
                "questions/s": batch / total,
            }  # fmt: skip


def swept(subject: subjects.Subject) -> list[dict[str, Any]]:
    """A grid in one pass against its settings one by one, in seconds."""
    plan = sweep.Plan.of(subject)
    specs = sweep.grid(plan.blocks, plan.images)[:: 1 if gpus(subject.model) else sweep.EVERY]
    found = sweep.bench(subject, specs, 1)
    return [row | {"answers that agree": found.agreeing} for row in sweep.table(plan, specs, found)]


def tabled(subject: subjects.Subject) -> dict[str, Any]:
    """A table's settings, eight rules at three budgets: in one pass, and that for several questions at once."""
    specs = of_rules.settings(sweep.Plan.of(subject).images)[:: 1 if gpus(subject.model) else CPU_EVERY]
    found = of_rules.bench(subject, specs, 1)
    return {
        "settings": len(specs),
        "over one by one": found.over_one_by_one(found.sweep),
        "questions at once": of_rules.AT_ONCE,
        "at once, over one by one": found.over_one_by_one(found.at_once),
        "share of FLOPs": of_rules.planned(subject, specs),
        "answers that agree": found.agreeing,
    }


@dataclass(frozen=True)
class Part:
    """Of ``family`` with a random model; '' where the part makes its own and is given the device.

    ``measure`` may give its rows one by one: those that are there when its time is over are kept.
    """

    family: str
    measure: Callable[[Any], Any]


QWEN = "qwen2_5_vl"
PARTS = {
    "tests": Part("", gpu_checks.device_tests), "rules": Part("", gpu_checks.rules), "right": Part("llava", right),
    "speed": Part("llava", speed), "flash": Part("llava", partial(gpu_checks.flash, setting=PUBLISHED)),
    "sweep": Part("llava", swept), "table": Part("llava", tabled), "qwen right": Part(QWEN, right),
    "qwen speed": Part(QWEN, speed),
}  # fmt: skip


def place_of(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Where it runs."""
    gpu = device != "cpu"
    name = torch.cuda.get_device_name(device) if gpu else f"{platform.machine()} CPU"
    threads = None if gpu else torch.get_num_threads()
    return {"device": name, "threads": threads, "dtype": str(dtype), "torch": torch.__version__}


def table(found: dict[str, Any]) -> str:
    """The tables of speeds for docs/results.md."""
    lines = [f"{found['device']}, {found['dtype']}, torch {found['torch']}, size {found['size']}"]
    for part, title in (("speed", "LLaVA-1.5"), ("qwen speed", "Qwen2.5-VL")):
        if part in found:
            drawn = tabulate(found[part], headers="keys", floatfmt=".3g", tablefmt="github", missingval="-")
            lines += [f"{title}'s shape:", drawn]
    return "\n\n".join(lines)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Stop what runs in the context after ``seconds``, where the system can.

    Raises:
        TimeoutError: it was stopped.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(
    build: Callable[[str], subjects.Subject], device: str, found: dict[str, Any], parts: Sequence[str], output: Path,
    limit: float = LIMIT,
) -> dict[str, Any]:  # fmt: skip
    """Every part in turn, saved as it ends; one that fails says why and does not stop the others.

    ``build``: family -> its model, of which one is held at a time. ``found``: what is known before, see
    :func:`place_of`. ``limit``: seconds of a part.
    """
    found |= {"seconds": {}, "failed": {}}
    subject, family = None, ""
    for part in parts:
        began = time.perf_counter()
        try:
            with within(limit):
                if (wanted := PARTS[part].family) and wanted != family:
                    subject, family = None, ""  # its memory first
                    subject, family = build(wanted), wanted
                told = PARTS[part].measure(subject if wanted else device)
                found[part] = [] if isinstance(told, Iterator) else told
                if isinstance(told, Iterator):
                    found[part].extend(told)
            if failed := isinstance(found[part], dict) and found[part].get("failed"):
                found["failed"][part] = ", ".join(failed)[:500]
        except Exception as error:  # because what a new device raises is not known before it is tried
            found["failed"][part] = f"{type(error).__name__}: {error}"[:500]
        found["seconds"][part] = time.perf_counter() - began
        write_whole(output, json.dumps(found, indent=1).encode())
        print(f"{part}: {found['failed'].get(part, 'done')}, {found['seconds'][part]:.0f} s", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--size", default="7b" if gpu else "small", choices=sorted(subjects.SIZES))
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas")
    parser.add_argument("--without", default="", help="all but these, with commas")
    parser.add_argument("--limit", type=float, default=LIMIT if gpu else CPU_LIMIT, help="seconds of a part")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    given = parser.parse_args()
    parts, without = given.parts.split(","), given.without.split(",") if given.without else []
    if wrong := [part for part in [*parts, *without] if part not in PARTS]:
        parser.error(f"{wrong[0]}: choose of {', '.join(PARTS)}")
    device, dtype = ("cuda", torch.float16) if gpu else ("cpu", torch.float32)
    torch.backends.cudnn.allow_tf32 = False  # rules are compared with the CPU's
    side = subjects.SIDE if gpu else CPU_SIDE
    found = run(
        lambda family: subjects.random_subject(family, given.size, device, dtype, side=side), device,
        place_of(device, dtype) | {"size": given.size, "image tokens": side**2},
        [part for part in parts if part not in without], given.output, given.limit,
    )  # fmt: skip
    print(table(found))
    return int(bool(found["failed"]))


if __name__ == "__main__":
    raise SystemExit(main())
