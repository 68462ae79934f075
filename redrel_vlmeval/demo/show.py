"""``redrel demo``: the stock runner on the model in the box and its variants, then the table and the paper's Fig. 6."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pandas as pd
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval import files, models, results, sheets
from redrel_vlmeval.bases import SMOL, TINY, cautions
from redrel_vlmeval.console import bar, ending
from redrel_vlmeval.demo import kept, rulesfigure
from redrel_vlmeval.errors import RedrelError, UnknownName
from redrel_vlmeval.files import usable
from redrel_vlmeval.host import child, runner as hostrun
from redrel_vlmeval.models import benchmark, scenes
from redrel_vlmeval.names import MARK
from redrel_vlmeval.results import records
from redrel_vlmeval.sheets import accuracy, curves_of, page, terminal

PICTURES = 700  # in the page: those of all questions of RedRelShapes
START = 10  # seconds that two idle cores take to start the host
LOG = "runner.log"


@dataclass(frozen=True)
class Subject:
    """What a demo shows: settings of a base on a benchmark drawn for it.

    Attributes:
        data: the benchmark; ``<data>_MINI`` is the quick demo's. each: seconds for an answer, on two idle cores.
        opened: settings that answer the same questions in open form, too, on ``<data>_VQA``; of the quick demo, three.
    """

    base: str
    data: str
    settings: tuple[str, ...]
    quick: tuple[str, ...]
    each: float
    opened: tuple[str, ...] = ()

    def plan(self, quick: bool) -> dict[str, list[str]]:
        """Benchmark -> model names, the base first; the second benchmark, if there is one, is in open form."""
        ending = "_MINI" if quick else ""
        chosen = {f"{self.data}{ending}": self.quick if quick else self.settings}
        if self.opened:
            chosen[f"{self.data}_VQA{ending}"] = self.opened[:3] if quick else self.opened
        return {data: [self.base, *(f"{self.base}{MARK}{one}" for one in names)] for data, names in chosen.items()}


RULES = ("l2_k8", "l2_k8_rowmean", "l2_k8_random", "l2_k8_uniform", "l2_k8_lowest")

SUBJECTS = {
    TINY: Subject(
        TINY,
        "RedRelShapes",
        (
            "l0_k0", *RULES[1:], *(f"l{layer}_k{keep}" for layer in (1, 2, 4, 6) for keep in (0, 8, 32)),
        ),
        ("l0_k0", "l2_k0", "l4_k0", "l6_k0", *RULES[:3]),
        0.025,
        (*RULES, "l0_k0"),
    ),
    SMOL: Subject(
        SMOL,
        "RedRelPairs",
        ("l0_k0", *(f"l{layer}_k{keep}{rule}" for layer, keep in ((5, 32), (8, 16), (18, 8))
                    for rule in ("", "_rowmean", "_random", "_uniform", "_lowest")), "l18_k0", "l22_k0", "l24_k0"),
        ("l0_k0", "l5_k32", "l5_k32_random", "l18_k0", "l24_k0"),
        0.6,
    ),
}  # fmt: skip


class DemoError(RedrelError, RuntimeError):
    """The runner did not get through; says where its log lies."""


def run(work_dir: Path, quick: bool, runner: Path | None, model: str = TINY) -> int:
    """Everything of the demo; returns the exit code of its sheet (1 if a cell failed).

    Raises:
        UnknownName: there is no demo of this model. CheckpointError: its weights are not here.
        HostMissing: no VLMEvalKit. DemoError: the runner failed, or the folder holds answers of other weights.
        PermissionError: a folder cannot be written to.
        Busy: another demo runs in this folder.
    """
    if model not in SUBJECTS:
        raise UnknownName(f"--model {model}: there is a demo of {' and of '.join(SUBJECTS)}")
    subject = SUBJECTS[model]
    models.checkpoint_path(model)  # refuses now what the runner would only log
    console = Console()
    work_dir = work_dir.absolute()
    prepare(work_dir)
    runs, start = subject.plan(quick), hostrun.command(runner)
    with files.only_one(work_dir) as lock:
        for data, chosen in runs.items():
            check_weights(work_dir, chosen, data)
        total = sum(len(chosen) * len(models.table(data)) for data, chosen in runs.items())
        done = sum(answered(work_dir, chosen, data) for data, chosen in runs.items())
        console.print(duration(total, done, subject.each, len(runs)), soft_wrap=True)
        (work_dir / LOG).unlink(missing_ok=True)
        for data, chosen in runs.items():
            own = ["--model", *chosen, "--data", data, "--judge", "exact_matching", "--work-dir", str(work_dir)]
            command, questions = [*start, *own, "--reuse"], len(models.table(data))
            console.print(f"[bold]The stock runner, on {len(chosen)} model names and {questions} questions:[/]")
            console.print(" ".join([Path(command[0]).name, *command[1:]]), soft_wrap=True, highlight=False)
            follow(command, work_dir, chosen, data, console, lock)
    found = results.read(work_dir)
    print(sheets.to_text(sheets.measured(found), terminal.terminal_width()))
    written = write(found, list(runs), work_dir, model)
    console.print(f"{'; '.join(cautions([model]))}: its numbers say nothing about LLaVA-1.5.", soft_wrap=True)
    for failed, name, reason in found.failed:
        console.print(f"failed: {failed} on {name}: {reason}", style="red")
    for line in ending(written):
        console.print(line, soft_wrap=True, highlight=False)
    return int(bool(found.failed))


def duration(total: int, done: int, each: float, starts: int = 1) -> str:
    """About how long the answers that are missing will take, and as many starts of the host."""
    minutes = max(1, round((starts * START + max(total - done, 0) * each) / 60))
    there = f", {done} of them there already" if done else ""
    return f"{total} answers{there}: about {minutes} minute{'s' * (minutes > 1)} on two idle CPU cores"


def write(found: results.Results, forms: list[str], work_dir: Path, base: str) -> list[Path]:
    """Print how often the cells that matter were kept; write it, the sheets and the figures.

    ``forms``: the benchmark as multiple choice, then in open form if that was run.
    """
    data = forms[0]
    written = [sheets.write(found, work_dir / f"sheet.{kind}") for kind in ("xlsx", "csv", "md")]
    written.append(page.write(found, work_dir / "page.html", PICTURES))
    needed = kept.needed_cells_kept(found, data)
    if not needed.empty:
        print("\nQuestions (%) whose needed cells are all among the kept image tokens, and the score on them:")
        print(needed_table(needed, terminal.terminal_width()))
        written.append(kept.write(needed, work_dir / "needed_cells_kept.csv"))
    for curves in curves_of(found):
        if (curves.base, curves.benchmark, curves.first) == (base, data, True):
            hops = {name: number for number, name in enumerate(("", *scenes.CATEGORIES))}
            frame = curves.over_keep.sort_values("category", key=lambda names: names.map(hops), kind="stable")
            title = f"{base} on {data}: accuracy over image tokens kept"
            file = work_dir / "accuracy_against_keep.png"
            written.append(accuracy.accuracy_against_keep(frame, curves.baselines, file, title))
    titles = dict(zip(forms, ("multiple choice", "open form"), strict=False))
    if len(forms) > 1 and (rules := rulesfigure.draw(found, base, titles, work_dir / "rules.png")):
        written.append(rules)
    return written


def needed_table(needed: pd.DataFrame, width: int | None) -> str:
    """The table of :func:`kept.needed_cells_kept`; what the names say too goes where the terminal is narrow."""

    def draw(names: list[str]) -> str:
        return tabulate(needed[names].values.tolist(), headers=names, floatfmt=".1f", showindex=False)

    whole = draw(list(needed.columns))
    if width is None or terminal.wide(whole) <= width:
        return whole
    needed = needed.assign(model=[name.partition(MARK)[2] for name in needed["model"]])
    return terminal.fitted(draw, list(needed.columns), ("rule", "K", "L"), width)[0]


def prepare(work_dir: Path) -> None:
    """Make and try the work dir and the data folder before anything runs; LMUData defaults to inside the work dir."""
    usable(work_dir, "--work-dir")
    if "LMUData" not in os.environ:
        (work_dir / "LMUData").mkdir(exist_ok=True)
        os.environ["LMUData"] = str(work_dir / "LMUData")
    benchmark.data_root()


def follow(command: list[str], work_dir: Path, names: list[str], data: str, console: Console, lock: IO[bytes]) -> None:
    """Run the command with its output in ``runner.log`` and a bar that counts the questions answered.

    ``lock``, the folder's, is held until the last of its processes is gone.
    """
    log = work_dir / LOG
    total = len(names) * len(models.table(data))
    # more threads than one only wait for each other on a model this small
    environment = {"OMP_NUM_THREADS": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"} | os.environ
    with open(log, "ab") as output, bar(console, "starting the host", total) as progress:
        with child.started(command, output, environment, [lock]) as process:
            while process.poll() is None:
                done = answered(work_dir, names, data)
                progress.to(done, "questions" if done else None)
                time.sleep(0.5)
        progress.to(answered(work_dir, names, data))
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise DemoError(f"the runner stopped with exit code {process.returncode}: {last[0]} (its output: {log})")


def check_weights(work_dir: Path, names: list[str], data: str) -> None:
    """Stop where the host would take earlier answers for its own: those of other weights than the model has now.

    Raises:
        DemoError: names the folder and both revisions.
    """
    earlier = {
        str(record.get("revision"))
        for path in record_files(work_dir, names, data)
        for record in records.read_records(path).values()
    }
    if not earlier:
        return
    _, now = models.weight_files(models.checkpoint_path(names[0]), None)
    if earlier != {now}:
        raise DemoError(
            f"{work_dir} holds answers of other weights ({', '.join(sorted(earlier - {now}))}; {names[0]} is {now}), "
            "which the host would reuse: delete it, or give another --work-dir"
        )


def record_files(work_dir: Path, names: list[str], data: str) -> Iterator[Path]:
    """The files of efficiency records that earlier runs left."""
    for model in names:
        yield from (work_dir / model).rglob(f"{model}_{data}_redrel*.jsonl")


def answered(work_dir: Path, names: list[str], data: str) -> int:
    """Questions answered so far, from the efficiency records."""
    files = (path.read_bytes() for path in record_files(work_dir, names, data))
    return sum(b'"index"' in line for text in files for line in text.splitlines())
