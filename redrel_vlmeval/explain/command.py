"""``redrel explain``: asks, explains, writes each answer's files at once, and goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from redrel_vlmeval import files
from redrel_vlmeval.console import bar, ending
from redrel_vlmeval.errors import ExplainError, TruncationError
from redrel_vlmeval.explain import tables
from redrel_vlmeval.explain.ask import Asked, Item, ask_host, questions as items
from redrel_vlmeval.explain.draw import drawing, page
from redrel_vlmeval.explain.explanation import choose_answer, compose, option_tokens
from redrel_vlmeval.explain.job import Job, check
from redrel_vlmeval.explain.maps import Request, explain, flow
from redrel_vlmeval.explain.store import Stored, load, own_name, own_place, save
from redrel_vlmeval.explain.trust import Change, cards, change, swap_text, swapped
from redrel_vlmeval.files import make_and_try

ABOUT = ("what", "model", "dataset", "question", "pictures", "answer")  # what makes two explanations two
QUESTION = ("what", "model", "dataset", "index")  # the same of a benchmark's
MEMORY = ("batch", "checkpointing")  # settings that change what a pass needs, not what it finds


def prepare(folder: Path) -> None:
    """Make the folder and try it before anything runs.

    Raises:
        ExplainError: it cannot be made or written to.
    """
    try:
        make_and_try(folder)
    except OSError as error:
        raise ExplainError(f"--output {folder}: cannot be written to ({error.strerror})") from error


@dataclass
class Run:
    """One call of a command: what it made, what it found made already, what failed and why."""

    job: Job
    console: Console
    host: Any = None
    made: int = 0
    found: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)  # figures, pages and tables

    def close(self, what: str) -> int:
        """Say what was done and what to open; 1 if a question of a benchmark could not be explained."""
        again = f", {self.found} were there already with these settings" if self.found else ""
        what += "" if self.made == 1 else "s"
        self.console.print(f"{self.made} {what} written to {self.job.output}{again}", soft_wrap=True, highlight=False)
        for name, reason in self.failed:
            self.console.print(f"failed: {name}: {reason}", style="red", soft_wrap=True, highlight=False)
        for line in ending(self.written):
            self.console.print(line, soft_wrap=True, highlight=False)
        return int(bool(self.failed))


@contextmanager
def started(job: Job, console: Console | None) -> Iterator[tuple[Run, list[Item] | Iterator[Item], int]]:
    """Within the context: a model that is loaded, its questions and how many, and the folder for this run alone."""
    check(job)
    asked = items.own(job.images, job.questions) if job.images else None
    prepare(job.output)
    with files.only_one(job.output):
        run = Run(job, console or Console(stderr=True))
        run.host = items.build(job.model)
        if asked is not None:
            yield run, asked, len(asked)
        else:
            total, found = items.of_benchmark(run.host, str(job.data), job.limit)
            yield run, found, total


def each(run: Run, questions: Iterator[Item] | list[Item], total: int, make: Callable[[Item], Any]) -> list[Any]:
    """``make`` of every question, with a bar; one that cannot be explained is noted, and the others go on.

    Raises:
        ExplainError, TruncationError: a single question's.
    """
    results = []
    with bar(run.console, "questions", total, shown=total > 1, transient=True) as progress:
        for item in questions:
            try:
                if item.refusal:
                    raise ExplainError(item.refusal)
                results.append(make(item))
            except (ExplainError, TruncationError, ValueError) as error:
                if item.dataset is None:
                    raise
                run.failed.append((item.name, str(error)))
            progress.on()
    return results


def kept_or_made(run: Run, path: Path, settings: dict[str, Any], make: Callable[[], Stored]) -> Stored:
    """The explanation at ``path`` if it has these settings, else a new one, written there."""
    settings = json.loads(json.dumps(settings, default=str))
    about = QUESTION if settings["dataset"] is not None else ABOUT

    def mine(manifest: dict[str, Any]) -> bool:
        old = manifest.get("settings") or {}
        return all(old.get(name) == settings[name] for name in about)

    path, old = own_place(path, mine)
    if old.get("settings") == settings:
        run.found += 1
        return load(path)
    stored = make()
    stored.manifest["settings"] = settings
    save(stored, path)
    run.made += 1
    return load(path)  # figures and page are drawn of what is written


def settings(job: Job, host: Any, model: str, item: Item, what: str) -> dict[str, Any]:
    """Everything that an explanation's numbers depend on and that a call can change."""
    own = {"what": what, "model": model, "question": item.question, "dataset": item.dataset, "index": item.index}
    weights = items.facts(host) | {"answer": job.answer, "tested": job.tested}
    request = {name: value for name, value in asdict(job.request).items() if name not in MEMORY}
    pictures = [_stamp(part) for part in item.message if part["type"] == "image"]
    return own | weights | {"pictures": pictures, "request": request}


def _stamp(part: dict[str, Any]) -> list[str]:
    """A picture's name and what it holds: another picture under the same name is another question."""
    path = Path(str(part["value"]))
    return [path.name, hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""]


def others(asked: Asked, item: Item) -> list[int] | None:
    """First tokens of the other options where the answer is one of them; None to compare with the whole vocabulary.

    The answer is the one that is explained: under ``--compare`` that of the first model, whatever the second would say.
    """
    answer = asked.reply if asked.own else "".join(asked.words(asked.answer))
    letters = [letter for letter in item.options if letter != answer.strip()]
    return option_tokens(asked, letters) if len(letters) < len(item.options) and letters else None


def cam(job: Job, console: Console | None = None) -> int:
    """Maps of every question; figures and pages of them. Returns the exit code.

    Raises:
        ExplainError, TruncationError: of a single question, or what :func:`check` finds.
    """
    with started(job, console) as (run, questions, total):
        other = items.beside(run.host, job.model, job.compare) if job.compare else None
        results = each(run, questions, total, lambda item: _cam_one(run, item, other))
        if job.data:
            run.written.append(tables.write_maps([stored for found, _ in results for stored in found], job))
            if other is not None:
                run.written.append(tables.write_changes([made for _, made in results], job, run.console))
        else:
            found = [stored for stored, _ in results]
            if len(found) == 2:
                _swap(found[0][0], found[1][0], run)
            run.written += drawing.write_own(found, [made for _, made in results], job.scale, run.console)
        return run.close("explanation")


def _swap(first: Stored, second: Stored, run: Run) -> None:
    swapped(first, second)
    for stored in (first, second):
        save(stored, Path(str(stored.path)))
    run.console.print(swap_text(first), highlight=False)


def _cam_one(run: Run, item: Item, other: Any) -> tuple[list[Stored], Change | None]:
    """One question's maps, and those of the same answer under the model to compare with."""
    job = run.job
    first = _maps(run, run.host, job.model, item, None)
    if other is None:
        if job.data:
            run.written.append(page.write([first], drawing.ended(drawing.stem(first), ".html")))
        return [first], None
    ids = [int(token["id"]) for token in first.manifest["answer"]]
    second = _maps(run, other, str(job.compare), item, ids)
    if job.data:
        run.written.append(page.write([first, second], drawing.ended(drawing.stem(second), ".html")))
    return [first, second], change(first, second)


def _maps(run: Run, host: Any, model: str, item: Item, answer: list[int] | None) -> Stored:
    job = run.job

    def make() -> Stored:
        asked = choose_answer(ask_host(host, item.message, item.dataset), job.answer if answer is None else answer)
        request = job.request
        if request.objective == "contrast" and request.others is None:
            request = Request(**(asdict(request) | {"others": others(asked, item)}))
        explained = explain(asked, request)
        known = cards(asked, explained, request, item, job.tested)
        made = compose(
            asked, explained, None, request, model=model, question=item.question, cards=known, facts=items.facts(host)
        )
        made.manifest |= {"benchmark": item.dataset, "index": item.index, "right": item.right or None}
        made.manifest["targets"] = [list(box) for box in item.regions]
        return made

    wanted = settings(job, host, model, item, "cam") | ({} if answer is None else {"answer": answer})
    return kept_or_made(run, job.output / f"{own_name(model)}_{item.name}.npz", wanted, make)


def flows(job: Job, console: Console | None = None) -> int:
    """Information flow of every question, its curves, and a benchmark's means with their bands. Returns the exit code.

    Raises:
        ExplainError, TruncationError: of a single question, or what :func:`check` finds.
    """
    with started(job, console) as (run, questions, total):

        def make(item: Item) -> Stored:
            path = job.output / f"{own_name(job.model)}_{item.name}_flow.npz"
            return kept_or_made(run, path, settings(job, run.host, job.model, item, "flow"), lambda: _flow(run, item))

        found = each(run, questions, total, make)
        if job.data and found:
            run.written += tables.write_flows(found, job)
        elif found:
            run.written += drawing.write_flows(found, job.groups)
        return run.close("explanation")


def _flow(run: Run, item: Item) -> Stored:
    job = run.job
    asked = choose_answer(ask_host(run.host, item.message, item.dataset), job.answer)
    found = flow.flow(
        asked, kind=job.request.objective, others=others(asked, item), checkpointing=job.request.checkpointing
    )  # fmt: skip
    made = compose(
        asked, None, found, job.request, model=job.model, question=item.question, facts=items.facts(run.host)
    )
    made.manifest |= {"benchmark": item.dataset, "index": item.index, "right": item.right or None}
    made.manifest["objective"] = job.request.objective
    return made
