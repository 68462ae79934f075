"""Finds what the hosts left on disk, one :class:`Cell` per model and benchmark, and reads none of their tables.

Upstream writes ``<work-dir>/<model>/T<date>-<time>/`` and links beside it, ms-vlmeval writes flat into
``<work-dir>/<model>/`` (and leaves an empty ``T...`` folder there). Pickles can run code: none is opened but by
:mod:`dialogues`, which admits tables only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from redrel_vlmeval import files
from redrel_vlmeval.host.scores import Metric
from redrel_vlmeval.host.tables import Columns, ResultsError
from redrel_vlmeval.names import parse

RUN_FOLDER = re.compile(r"T(\d{8})(?:-(\d{6}))?(?:_G[0-9a-fA-F]+)?")
STATUS = "status.json"
DIALOGUES = "MMDU"  # the host's benchmark of several turns
SWEEPING = "a sweep is writing here"
# Each process of a run with several ranks keeps a file of its own.
RECORDS = re.compile(r"_redrel(?:_rank\d+)?\.jsonl$")
TABLES = ("xlsx", "tsv", "csv", "json")
# What follows ``<model>_<benchmark>_`` in the name of a table with verdicts: of a named judge, or of the host's rules.
_JUDGED = re.compile(r"([^_]\S*)_result\.(?:xlsx|tsv)")
_ENDING = re.compile(r"\.(?:xlsx|tsv|csv|json|jsonl|pkl)$")
# What file managers add to the name of a copy.
_COPY = re.compile(r" (?:\(\d+\)|- Copy(?: \(\d+\))?|\((?:another |\d+\w\w )?copy(?: \d+)?\)|copy(?: \d+)?)$")
_BY_RULE = ("auxmatch", "results")
# The host calls these judges otherwise in the names of their tables; all else differs in hyphens and dots at most.
_ALIASES = {"chatgpt0125": "openai", "gpt40125": "gpt4"}
# Side files of an evaluation: their names begin like a prediction file's and are none.
_SIDE = re.compile(r"_(?:results?|auxmatch|acc|acc_all|score|score_fine|rating|openai|gpt[\w.-]*|exact_matching)$")


@dataclass(frozen=True, eq=False)
class Given:
    """A cell's content that the reader of another host has read already; such a cell has no files of VLMEvalKit's.

    ``table``: one row per question as VLMEvalKit's judged tables have it, None without; ``records``: efficiency
    records by question; ``metrics``, headline first, and the ``reason`` beside them; ``run``: what the run says of
    itself, as a record's head does.
    """

    table: Columns | None
    records: Mapping[str, Mapping[str, object]]
    metrics: tuple[Metric, ...]
    reason: str
    run: Mapping[str, object]


@dataclass(frozen=True)
class Cell:
    """One benchmark of one run of one model: where its files are and what ``status.json`` says of it.

    ``entry`` is the benchmark's part of ``status.json`` and ``status`` all of it. ``order`` sorts runs by age;
    ``problem`` is set when the run's own ``status.json`` cannot be read; ``older`` names the runs with a score that
    this one replaces; ``replaced`` is true of such a run itself, which is found only when all runs are asked for.
    """

    model: str
    benchmark: str
    run: Path
    files: Mapping[str, Path]
    entry: Mapping[str, object] = field(default_factory=dict)
    order: tuple[str, str, float] = ("", "", 0.0)
    problem: str = ""
    older: tuple[str, ...] = ()
    status: Mapping[str, object] = field(default_factory=dict)
    replaced: bool = False
    given: Given | None = None

    @property
    def label(self) -> str:
        """What the model is called in frames: a replaced run has its folder's name behind the model's."""
        return f"{self.model} [{files.told(self.run.name)}]" if self.replaced else self.model

    def file(self, *endings: str) -> Path | None:
        """First existing ``<model>_<benchmark><ending>``, in the order given."""
        names = (f"{self.model}_{self.benchmark}{ending}" for ending in endings)
        return next((self.files[name] for name in names if name in self.files), None)

    @property
    def sweep(self) -> Path | None:
        """Where a sweep of this base on this benchmark keeps its answers; None for a name that is no model's."""
        work_dir = self.run.parent.parent if RUN_FOLDER.fullmatch(self.run.name) else self.run.parent
        try:
            return work_dir / "sweep" / files.on_disk(f"{parse(self.model).base}_{self.benchmark}")
        except KeyError:
            return None

    @property
    def predictions(self) -> Path | None:
        """The host's prediction table; its format follows PRED_FORMAT."""
        return self.file(".xlsx", ".tsv", ".json")

    @property
    def metric(self) -> Path | None:
        """The host's score file; of several the one in the format that ``status.json`` names, else the newest."""
        endings = (f"{kind}.{form}" for kind in ("_acc", "_score") for form in ("csv", "json", "xlsx", "tsv"))
        found = [path for ending in endings if (path := self.file(ending))]
        if not found and self.benchmark.startswith(DIALOGUES):  # whose score file is named after its judge
            found = list(self.of_judge("_score.csv").values())
        return newest(found, str(self.status.get("eval_format") or ""))

    def of_judge(self, ending: str) -> dict[str, Path]:
        """``<model>_<benchmark>_<judge><ending>`` by judge: of the one that ``status.json`` names, else of all."""
        start, judge = f"{self.model}_{self.benchmark}_", self.entry.get("judge_model")
        found = {
            name.removeprefix(start).removesuffix(ending): path
            for name, path in self.files.items()
            if name.startswith(start) and name.endswith(ending)
        }
        return {name: path for name, path in found.items() if not judge or same_judge(name, str(judge))}

    @property
    def per_sample(self) -> Path | None:
        """The table with one verdict per question: MCQ ``hit``, Y/N ``score``, VQA ``eval_score``.

        It is the one of the judge that ``status.json`` names; another judge's verdicts are none of this score. Only
        where no judge is named, as by older hosts, it is the newest.
        """
        form = str(self.status.get("pred_format") or "")
        if verified := self._verified:
            return verified
        judge = self.entry.get("judge_model")
        own = [path for name, path in self.judged.items() if not judge or same_judge(name, str(judge))]
        return newest(own, form) or newest(self._tables(*_BY_RULE), form)

    @property
    def _verified(self) -> Path | None:
        """The verifier's table, if it judged: that shows in the arguments only, ``judge_model`` stays as it was."""
        argv = self.status.get("argv")
        asked = isinstance(argv, list) and "--use-verifier" in argv
        return newest(self._tables("detailed_results"), "") if asked else None

    def _tables(self, *names: str) -> list[Path]:
        return [path for name in names for kind in ("xlsx", "tsv") if (path := self.file(f"_{name}.{kind}"))]

    @property
    def judged(self) -> dict[str, Path]:
        """Tables that name their judge, by that name; a later evaluation of a flat folder leaves the older ones."""
        start = f"{self.model}_{self.benchmark}_"
        named = ((_JUDGED.fullmatch(name, len(start)), path) for name, path in self.files.items()
                 if name.startswith(start))  # fmt: skip
        return {match[1]: path for match, path in named if match}

    @property
    def judge(self) -> str | None:
        """Who judged: as ``status.json`` names it, else as the table per question is named."""
        if self._verified:
            return "verifier"
        if known := self.entry.get("judge_model"):
            return str(known)
        path = self.per_sample
        return next((name for name, table in self.judged.items() if table == path), None)


def same_judge(table: str, judge: str) -> bool:
    """Whether a table's name is the judge's: ``openai`` is chatgpt-0125, ``gpt4omini`` is gpt-4o-mini."""
    here, there = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (table, judge))
    return here == there or here == _ALIASES.get(there)


def newest(paths: list[Path], form: str) -> Path | None:
    """Of files in the format ``form``, or of all where none is, the one that was written last; ties to the first."""
    of_form = [path for path in paths if path.suffix == f".{form}"]
    some = of_form or paths
    return max(some, key=lambda path: path.stat().st_mtime) if len(some) > 1 else next(iter(some), None)


def find_cells(folder: Path, all_runs: bool = False, others: Iterable[Cell] = ()) -> list[Cell]:
    """Newest run of every (model, benchmark) under a work-dir, a model's folder or one run's folder.

    Args:
        folder: where to look.
        all_runs: keep the runs that a newer one replaces, each behind it and marked ``replaced``.
        others: what other hosts left there.

    Raises:
        ResultsError: no such folder, or nothing in it that a host writes.
    """
    folder = Path(os.path.abspath(folder))  # '.' has no name of its own
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ResultsError(f"results folder {str(folder)!r} {kind}: give the runner's --work-dir or a model's folder")
    try:
        runs = list(_runs(folder))
        cells = [*others, *(cell for run, model in runs for cell in _cells_of_run(run, model))]
    except PermissionError as error:
        raise ResultsError(f"results folder {str(folder)!r} cannot be read: {error}") from error
    if not cells and any(map(files.is_held, folder.glob("sweep/*"))):
        raise ResultsError(f"results folder {str(folder)!r}: {SWEEPING} and has no scores yet: wait for it")
    if not cells:
        raise ResultsError(
            f"nothing found in {str(folder)!r}: looked for <model>/{STATUS}, <model>/<model>_<benchmark>.xlsx|tsv and "
            f"<model>/T<date>-<time>/ of a VLMEvalKit run, and <weights>/<date>_results.json of lmms-eval; give the "
            f"runner's --work-dir (lmms-eval: --output_path) or a model's folder in it"
        )
    newest: dict[tuple[str, str], Cell] = {}
    older: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.order):
        key = cell.model, cell.benchmark
        last = newest.get(key)
        older.setdefault(key, []).extend([replace(last, replaced=True, older=())] if last else [])
        scored = (*last.older, *([last.run.name] if last.metric or last.given else [])) if last else ()
        newest[key] = replace(cell, older=scored)
    with_benchmark = {model for model, benchmark in newest if benchmark}
    # A run that died before its first benchmark matters only where no other run says more.
    keys = [key for key in sorted(newest) if key[1] or key[0] not in with_benchmark]
    return [cell for key in keys for cell in [newest[key], *(older[key][::-1] if all_runs else [])]]


def _runs(folder: Path) -> Iterable[tuple[Path, str]]:
    """(run folder, model) pairs, flat folders included."""
    if RUN_FOLDER.fullmatch(folder.name):
        yield folder, files.told(folder.parent.name)
        return
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not RUN_FOLDER.fullmatch(path.name)]
    for model in [path for path in inner if _is_model_folder(path)] or [folder]:
        yield model, files.told(model.name)
        for name in sorted(name for name in os.listdir(model) if RUN_FOLDER.fullmatch(name)):
            if (model / name).is_dir():
                yield model / name, files.told(model.name)


def _is_model_folder(folder: Path) -> bool:
    return any(
        path.name == STATUS or path.name.startswith(f"{folder.name}_") or RUN_FOLDER.fullmatch(path.name)
        for path in folder.iterdir()
    )


def _cells_of_run(folder: Path, model: str) -> list[Cell]:
    with os.scandir(folder) as listed:
        # An entry knows its kind without being asked again: folders hold many files, and work-dirs many folders.
        own = [file.name for file in listed if file.is_file() and not (file.is_symlink() and _links_into_run(file))]
    here = {files.told(name): folder / name for name in sorted(own)}
    here = {name: path for name, path in here.items() if _original(name) not in here}
    status, problem = _read_status(here.get(STATUS))
    model = str(status.get("model_name") or model)
    entries = status.get("datasets")
    entries = entries if isinstance(entries, dict) else {}
    names = set(entries) | _names_from_files(here, model, entries)
    if not names and STATUS in here:
        problem = problem or f"{STATUS} names no benchmark: the run stopped before its first one"
        names = {""}
    cells = []
    for name in sorted(names):
        entry = entries.get(name, {})
        wrong = "" if isinstance(entry, dict) else f"{STATUS}: the entry of {name!r} is no object"
        entry = {} if wrong else entry
        order = _age(folder, status)
        longer = tuple(f"{model}_{other}" for other in names if other.startswith(f"{name}_"))
        its = {file: path for file, path in here.items() if not file.startswith(longer)} if longer else here
        cells.append(Cell(model, name, folder, its, entry, order, problem or wrong, status=status))
    return cells


def _links_into_run(link: os.DirEntry[str]) -> bool:
    """Upstream links the newest files beside its run folders: the same cell, not a second one."""
    return bool(RUN_FOLDER.fullmatch(Path(link.path).resolve().parent.name))


def _read_status(path: Path | None) -> tuple[dict[str, object], str]:
    if path is None:
        return {}, ""
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, f"{STATUS} cannot be read: {error}"
    return (status, "") if isinstance(status, dict) else ({}, f"{STATUS} holds no JSON object")


def _names_from_files(files: Iterable[str], model: str, known: Iterable[str]) -> set[str]:
    """Benchmarks that only their files tell of: no ``status.json`` (older hosts), or one that was replaced."""
    found, extra = set(known), set[str]()
    stems = [name[len(model) + 1 :] for name in files if name.startswith(f"{model}_")]
    tables = {stem.rpartition(".")[0] for stem in stems if stem.rpartition(".")[2] in ("xlsx", "tsv", "json")}
    records = {RECORDS.sub("", stem) for stem in stems if RECORDS.search(stem)}
    metrics = {m[1] for stem in stems if (m := re.fullmatch(r"(.+)_(?:acc|score)\.(?:csv|json)", stem))}
    predictions = {stem for stem in tables if not _SIDE.search(stem)}
    for name in sorted(predictions | records) + sorted(metrics):
        whole = name in predictions & metrics  # has both files of its own, so it is no side file of a shorter name
        if whole or not any(name.startswith(f"{other}_") for other in found | (extra if name in metrics else set())):
            extra.add(name)
    return {name for name in extra - found if _original(name) not in found | extra}


def _original(name: str) -> str | None:
    """What a file or benchmark was called before a file manager copied it; None for a name without such a mark."""
    stem, suffix = (name, "") if not _ENDING.search(name) else name.rsplit(".", 1)
    mark = _COPY.search(stem)
    return f"{stem[: mark.start()]}{'.' * bool(suffix)}{suffix}" if mark else None


def _age(folder: Path, status: Mapping[str, object]) -> tuple[str, str, float]:
    """Runs sort by the id the host gave them; a flat folder keeps the id of its last run in ``status.json``."""
    for name in (folder.name, str(status.get("eval_id", ""))):
        if match := RUN_FOLDER.fullmatch(name):
            return match[1], match[2] or "", folder.stat().st_mtime
    # A flat folder of an older host has no id at all: its date decides.
    stamp = pd.Timestamp(folder.stat().st_mtime, unit="s")
    return stamp.strftime("%Y%m%d"), stamp.strftime("%H%M%S"), folder.stat().st_mtime
