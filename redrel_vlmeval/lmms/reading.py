"""Finds what lmms-eval left on disk and reads it as cells: one for every benchmark of every ``<date>_results.json``.

    <output_path>/<weights>/<date>_results.json             scores by task, and how the run was called
                            <date>_samples_<task>.jsonl     one line per question (--log_samples): verdict and record

Imports neither torch nor the harness.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from redrel_vlmeval.lmms import samples
from redrel_vlmeval.lmms.door import DOORS
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import Cell, Given, Metric, ResultsError

SAMPLES = re.compile(r"(\d{8})_(\d{6})_samples_(.+)\.jsonl")
RESULTS = re.compile(r"(\d{8})_(\d{6})_results\.json")
HOST = "lmms-eval"
# Of a task whose published number is over a part of its questions: that metric.
HEADLINES = {"seedbench": "seed_image"}
# Of --model_args: what is no part of a model's name, because it says where a model runs and not what it answers.
_PLACES = {"pretrained", "trunc", "device", "device_map", "batch_size"}

_NOTHING = Given(None, {}, (), "", {})


def find_cells(folder: Path) -> list[Cell]:
    """A cell for every benchmark of every run in ``folder`` and the folders in it."""
    found = [path for pattern in ("*.json", "*/*.json") for path in Path(folder).glob(pattern)]
    cells = [cell for path in sorted(found) if RESULTS.fullmatch(path.name) for cell in _cells_of(path)]
    return cells + [cell for pattern in ("*.jsonl", "*/*.jsonl") for cell in _orphans(Path(folder).glob(pattern))]


def _orphans(paths: Iterable[Path]) -> Iterator[Cell]:
    """Samples without the results of their run: whose they are is not known."""
    for path in sorted(paths):
        name = SAMPLES.fullmatch(path.name)
        if name and not (results := path.with_name(f"{name[1]}_{name[2]}_results.json")).is_file():
            problem = f"{path.name} is there, {results.name} is not"
            order = (name[1], name[2], 0.0)
            yield Cell(path.parent.name, name[3], path, {}, order=order, problem=problem, given=_NOTHING)


def _cells_of(path: Path) -> Iterator[Cell]:
    date = RESULTS.fullmatch(path.name)
    order = (date[1], date[2], path.stat().st_mtime) if date else ("", "", 0.0)
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        label, parts = name_of(run), benchmarks(run)
        if not parts:
            raise ResultsError("it names no task")
    except (OSError, ResultsError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"{path.name} cannot be read: {_told(error)}"
        yield Cell(path.parent.name, "", path, {}, order=order, problem=problem, given=_NOTHING)
        return
    for name, tasks in parts.items():
        cell = Cell(label, name, path, {}, order=order, given=_NOTHING)
        try:
            yield replace(cell, given=_given(path, run, name, tasks))
        except (ResultsError, ValueError, LookupError, TypeError, AttributeError) as error:
            yield replace(cell, problem=_told(error))


def _told(error: Exception) -> str:
    """An error of ours as it is; of another shape than it should have, with that said."""
    if isinstance(error, ResultsError):
        return str(error)
    return f"not as lmms-eval 0.7 writes it: {type(error).__name__}: {error}"


def benchmarks(run: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What a run is read as: benchmark -> the tasks that its questions are of.

    A group with a number of its own is one benchmark, and so are its tasks and groups in it no more: a question counts
    once. A group without is a list of tasks, and each of those stands for itself.
    """
    tasks, children = run["configs"], run.get("group_subtasks") or {}

    def below(name: str) -> list[str]:
        """Tasks and groups in a group, at any depth."""
        own = [] if name in tasks else children.get(name) or []
        return list(dict.fromkeys(found for child in own for found in (child, *below(child))))

    groups = {name: below(name) for name, numbers in (run.get("groups") or {}).items() if _numbers(numbers)}
    inside = {name for names in groups.values() for name in names}
    outer = {name: tuple(n for n in names if n in tasks) for name, names in groups.items() if name not in inside}
    return {task: (task,) for task in tasks if task not in inside} | outer


def name_of(run: Mapping[str, Any]) -> str:
    """What a run is called in frames: ``<id>.<weights>`` and the arguments that change answers, then its setting.

    The harness's id stands in front, so no run of VLMEvalKit has this name, and none is compared with one of these.
    """
    config = run["config"]
    given = _pairs(config["model_args"])
    more = {name: value for name, value in given.items() if name not in _PLACES} | _pairs(config.get("gen_kwargs"))
    weights = "/".join(given.get("pretrained", "default").rstrip("/").split("/")[-2:])
    words = [weights, *(f"{name}.{value}" for name, value in sorted(more.items()))]
    base = f"{config['model']}.{'-'.join(re.sub(r'[^A-Za-z0-9.-]+', '-', word) for word in words)}"
    ours = config["model"] in DOORS and given.get("trunc")
    return str(replace(parse(given["trunc"]) if ours else VariantSpec(), base=base))


def setting_of(given: Mapping[str, str]) -> str:
    """The setting of one of our ids, as its records tell it."""
    return parse(given["trunc"]).setting if given.get("trunc") else ""


def _pairs(text: object) -> dict[str, str]:
    """``a=b,c=d`` as the harness's command takes it; a dict as its Python function does."""
    if isinstance(text, Mapping):
        return {str(name): str(value) for name, value in text.items()}
    words = re.split(r",(?=\s*\w+=)", str(text or ""))
    return {name.strip(): value.strip() for name, equals, value in (w.partition("=") for w in words) if equals}


def _given(path: Path, run: Mapping[str, Any], name: str, tasks: tuple[str, ...]) -> Given:
    """Scores, questions and records of one benchmark of a run.

    Raises:
        ResultsError: the samples cannot be read, or are not this run's; or there is no number.
    """
    numbers = _numbers(run["results"][name])
    configs = {task: run["configs"][task] for task in tasks}
    names = [str(one["metric"]) for config in configs.values() for one in config.get("metric_list") or []]
    kinds = {key: tuple(key.rsplit(",", 1)) for key in numbers if "_stderr" not in key}
    with_number = [word for word in dict.fromkeys(names) if any(kind[0] == word for kind in kinds.values())]
    if not with_number:
        raise ResultsError(f"{path.name}: {name!r} has none of its metrics {', '.join(names) or '(no names)'}")
    filters = len({kind[1] for kind in kinds.values()})
    lines = {task: samples.read(samples.path_of(path, task), run, task, filters) for task in tasks}
    _check_own(path, run, lines)
    every = [line for own in lines.values() for line in own]
    wanted = HEADLINES.get(name)
    metric = wanted if wanted in with_number else samples.judge(every, with_number) or with_number[0]
    headline = next(key for key, kind in kinds.items() if kind[0] == metric)
    tables = {
        task: samples.table(own, [metric, *with_number], configs[task].get("score_key") or "score")
        for task, own in lines.items()
        if own
    }
    table, said = None, _missing(path, run, [task for task in tasks if not lines[task]], with_number)
    if len(tables) == len(tasks):
        table, said = samples.whole(tables[name] if tasks == (name,) else samples.joined(tables)), ""
    grouped, facts = tasks != (name,), _facts(run, every)
    records = {
        samples.index_of(line, task if grouped else ""): record | {"run": facts}
        for task, own in lines.items()
        for line in own
        if (record := samples.record(line))
    }
    parts = {task: _numbers(run["results"][task]).get(headline) for task in tasks} if grouped else {}
    metrics, reason = _metrics(numbers, kinds, headline, with_number, table, parts)
    return Given(table, records, tuple(metrics), "; ".join(filter(None, [reason, said])), facts)


def _check_own(path: Path, run: Mapping[str, Any], lines: Mapping[str, Sequence[samples.Line]]) -> None:
    """Raises ResultsError where a question's record says that another run wrote it."""
    config = run["config"]
    given, ours = _pairs(config["model_args"]), config["model"] in DOORS
    door = DOORS.get(config["model"])
    own = {
        "weights": given.get("pretrained"),
        "setting": setting_of(given) if ours else "",
        "backend": f"{door.source}.{door.name}" if door else "",
    }
    for task, questions in lines.items():
        for record in filter(None, map(samples.record, questions)):
            other = [name for name, value in own.items() if record.get(name, value) != value]
            if other:
                said = ", ".join(f"{name} {record[name] or 'none'} (here {own[name] or 'none'})" for name in other)
                raise ResultsError(f"{samples.path_of(path, task).name}: samples of another run: {said}")


def _missing(path: Path, run: Mapping[str, Any], tasks: Sequence[str], names: Sequence[str]) -> str:
    """What is said of a score whose questions are not there."""
    lost = [samples.path_of(path, task).name for task in tasks if task in (run.get("task_hashes") or {})]
    said = f"no samples: {', '.join(lost)} is not here any more" if lost else "no samples: run with --log_samples"
    first = f"; headline: the first of the task's metrics {', '.join(names)}" if len(names) > 1 else ""
    return f"{said} for paired tests and efficiency{first}"


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a task or group, by ``metric,filter``."""
    return {key: float(value) for key, value in scores.items() if _is_number(value) and "," in key}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _facts(run: Mapping[str, Any], lines: Sequence[samples.Line]) -> dict[str, object]:
    """What a run says of itself; of its command only what the answers hang on.

    The harness's ``lmms_eval_version`` is the git commit of the folder it ran in, so its release is read of a record.
    """
    config, date = run["config"], str(run["date"])
    words = {name: config.get(name) for name in ("model", "model_args", "batch_size", "gen_kwargs", "limit")}
    shown = [word for name, value in words.items() if value for word in (f"--{name}", str(value))]
    records = map(samples.record, lines)
    versions: Mapping[str, str] = next((record["versions"] for record in records if record.get("versions")), {})
    return {
        "host": HOST,
        "host_version": str(versions.get(HOST.replace("-", "_"), "")).rpartition(" ")[2] or None,
        "arguments": shlex.join(shown),
        "started": re.sub(r"(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)", r"\1-\2-\3T\4:\5:\6", date),
    }


def _metrics(
    numbers: Mapping[str, float],
    kinds: Mapping[str, tuple[str, ...]],
    headline: str,
    names: Sequence[str],
    table: Mapping[str, list[Any]] | None,
    tasks: Mapping[str, float | None],
) -> tuple[list[Metric], str]:
    """The headline in points, then its parts and the other metrics; and why the headline stands as it was written.

    Args:
        numbers, kinds: by ``metric,filter`` the number, and the two words. headline, names: the key, and all metrics.
        table: the questions. tasks: of a group, their numbers under that key.
    """
    name, value = kinds[headline][0], numbers[headline]
    hits = _hits(table, name)
    scale, reason = _scale(value, hits), ""
    if scale is None and table is None:
        scale = 1 if 0 <= value <= 1 else None
    elif scale is None:
        scales = {_scale(number, _hits(table, name, task)) for task, number in tasks.items() if number is not None}
        scale = scales.pop() if len(scales) == 1 else None
        reason = f"headline: as the {'group' if tasks else 'task'} sums it up, not the mean of its questions"
    points = 100 / scale if scale else 1.0
    metrics = [Metric(name, points * value, True, name, most=100 if scale else math.inf)]
    if tasks:
        metrics += [Metric(task, points * number, part=True) for task, number in tasks.items() if number is not None]
    elif scale and hits and table and "category" in table:
        by: dict[str, list[float]] = {}
        for row, hit in hits:
            by.setdefault(table["category"][row], []).append(hit)
        metrics += [Metric(word, 100 * sum(own) / len(own), part=True, most=100) for word, own in by.items()]
    for key, (other, kind) in kinds.items():
        if key != headline and other in names:
            shown = 100 * numbers[key] if scale == 1 and 0 <= numbers[key] <= 1 else numbers[key]
            metrics.append(Metric(f"{other} [{'task' if kind == 'none' else kind}]", shown, part=True))
    return metrics, reason


def _hits(table: Mapping[str, list[Any]] | None, name: str, task: str = "") -> list[tuple[int, float]]:
    """(row, verdict) of the questions that a metric judges; of a group's, those of one task."""
    if not table or "hit" not in table:
        return []
    return [
        (row, hit)
        for row, hit in enumerate(table["hit"])
        if table["split"][row] == name and (not task or table["category"][row] == task)
    ]


def _scale(value: float, hits: Sequence[tuple[int, float]]) -> int | None:
    """1 where the value is the mean of the verdicts, 100 where it is that in percent; None where it is neither."""
    if not hits:
        return None
    mean = sum(hit for _, hit in hits) / len(hits)
    return next((scale for scale in (1, 100) if abs(value - scale * mean) < 1e-5 * scale), None)
