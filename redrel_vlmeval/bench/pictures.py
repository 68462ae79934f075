"""``redrel bench pictures``: questions per second in the host's own loop, pictures made ready ahead and not.

Every question has a photograph of its own, whose decoding and shrinking take about as long as the model in the box, on
one torch thread, for an answer. So the time is that on the wall, and a second core, or a GPU, is what it is about.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval.bases import TINY, row
from redrel_vlmeval.bench.batch import Arm, in_loop
from redrel_vlmeval.bench.command import Request, drawn_checks, heading
from redrel_vlmeval.bench.prefill import Check
from redrel_vlmeval.host import Benchmark
from redrel_vlmeval.models import Ahead, LLaVA15

DATA, QUESTIONS, SIZE, NEW_TOKENS, ROUNDS = "RedRelPhotographs", 12, (2400, 1600), 16, 5
BAR = 1.0  # least questions per second, in units of those without
CORES = 1.5  # cores that this process must be given for the bar to mean something
WAYS = ("as they are asked", "ahead")
NOTHING = Ahead(lambda path: None, threads=0)


@contextmanager
def photographs(count: int, size: tuple[int, int]) -> Iterator[Benchmark]:
    """A benchmark of so many questions, each about a JPEG of its own: smooth colours and grain, of ``size`` pixels."""
    draw, before = np.random.default_rng(18), os.environ.get("LMUData")
    with tempfile.TemporaryDirectory(prefix="redrel-") as folder:
        paths = [Path(folder, f"{number}.jpg") for number in range(count)]
        for path in paths:
            smooth = Image.fromarray(draw.integers(0, 256, (16, 24, 3), dtype=np.uint8)).resize(size)
            grain = draw.integers(-9, 10, (size[1], size[0], 3))
            Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        table = {"index": range(count), "question": "What color is it?", "A": "red", "B": "blue", "answer": "A"}
        frame = pd.DataFrame(table | {"image_path": list(map(str, paths))})
        frame.to_csv(Path(folder, f"{DATA}.tsv"), sep="\t", index=False)
        os.environ["LMUData"] = folder
        try:
            yield Benchmark(DATA)
        finally:
            os.environ.pop("LMUData")
            os.environ |= {} if before is None else {"LMUData": before}


def bench(
    base: LLaVA15, questions: Benchmark, rounds: int, tick: Callable[[str], None] = lambda _: None
) -> tuple[Arm, Arm]:
    """Without and with, in turn, ``rounds`` times, there and back, after a warm-up."""
    own = base.core.ahead
    arms = {name: Arm("", 1, NEW_TOKENS) for name in WAYS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(rounds + 1):
            for name in list(arms)[:: 1 if number % 2 else -1]:
                tick(f"round {number} of {rounds}: pictures {name}" if number else "warming up")
                base.core.ahead = own if name == WAYS[1] else NOTHING
                seconds, arms[name].answers = in_loop(base, arms[name], questions, NEW_TOKENS, time.perf_counter)
                arms[name].seconds += [seconds / len(questions)] * bool(number)
    finally:
        base.core.ahead = own
        torch.set_num_threads(threads)
    without, ahead = arms.values()
    return without, ahead


def cores(seconds: float = 0.2) -> float:
    """How many cores two threads are given at this moment; other programs may have the rest."""
    data, end = bytes(2**20), time.perf_counter() + seconds

    def busy() -> None:
        while time.perf_counter() < end:
            hashlib.sha256(data)  # lets other threads run meanwhile

    began, cpu = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - cpu) / (time.perf_counter() - began)


def checks(without: Arm, ahead: Arm, free: float) -> list[Check]:
    """Answers that must be equal, and the bar on questions per second."""
    same = sum(ahead.answers[index] == said for index, said in without.answers.items()) / len(without.answers)
    gain = ahead.gain(without)
    return [
        Check("answers that are those without", same, ">= 1", same >= 1),
        Check("times as many questions/s", gain, f">= {BAR}", gain >= BAR, noisy=free < CORES),
    ]


def run(request: Request) -> int:
    """Measure, print, and return the exit code: 1 if bars are checked and one is missed.

    Raises:
        HostMissing: no VLMEvalKit. CheckpointError: no such model.
    """
    console, rounds, asked = Console(stderr=True), request.rounds or ROUNDS, request.model or TINY
    known, given = row(asked), []
    with console.status("building the model") as status, photographs(QUESTIONS, SIZE) as questions:
        base = LLaVA15(asked if known is None else known.weights, device=request.device, dtype=request.dtype, batch=1)

        def tick(words: str) -> None:
            status.update(words)
            given.append(cores())

        without, ahead = bench(base, questions, rounds, tick)
    what = f"{QUESTIONS} photographs of {SIZE[0]} x {SIZE[1]}, {NEW_TOKENS} new tokens, seconds on the wall"
    print(heading(base.model, asked, rounds, what))
    arms = zip(WAYS, (without, ahead), strict=True)
    rows = [{"pictures": way, "questions/s": arm.rate, "gain": arm.gain(without)} for way, arm in arms]
    print(tabulate(rows, headers="keys", floatfmt=".3f"))
    if (free := statistics.median(given)) < CORES:
        print(f"too noisy: two threads were given {free:.1f} cores of {os.cpu_count()}, and pictures need one")
    found = checks(without, ahead, free)
    print(drawn_checks(found))
    return int(request.check and any(one.missed for one in found))
