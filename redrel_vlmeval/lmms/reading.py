"""Finds what lmms-eval left on disk and reads it as cells: one for every task of every ``<date>_results.json``.

    <output_path>/<weights>/<date>_results.json             scores by task, and how the run was called
                            <date>_samples_<task>.jsonl     one line per question (--log_samples): verdict and record

Imports neither torch nor the harness.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from redrel_vlmeval.lmms.door import DOORS
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import Cell, Given, Metric, ResultsError

RESULTS = re.compile(r"(\d{8})_(\d{6})_results\.json")
HOST = "lmms-eval"
# Of --model_args: what is no part of a model's name, because it says where a model runs and not what it answers.
_PLACES = {"pretrained", "trunc", "device", "device_map", "batch_size"}

_NOTHING = Given(None, {}, (), "", {})


def find_cells(folder: Path) -> list[Cell]:
    """A cell for every task of every run in ``folder`` and the folders in it; none where the harness wrote nothing."""
    found = [path for pattern in ("*_results.json", "*/*_results.json") for path in Path(folder).glob(pattern)]
    return [cell for path in sorted(found) if RESULTS.fullmatch(path.name) for cell in _cells_of(path)]


def _cells_of(path: Path) -> Iterator[Cell]:
    date = RESULTS.fullmatch(path.name)
    order = (date[1], date[2], path.stat().st_mtime) if date else ("", "", 0.0)
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        label, scores = name_of(run), run["results"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{path.name} cannot be read: {type(error).__name__}: {error}"
        yield Cell(path.parent.name, "", path, {}, order=order, problem=problem, given=_NOTHING)
        return
    for task in run.get("configs", {}):
        cell = Cell(label, task, path, {}, order=order, given=_NOTHING)
        try:
            yield replace(cell, given=_given(path, run, task, scores[task]))
        except (ResultsError, KeyError, TypeError, AttributeError) as error:
            yield replace(cell, problem=f"{type(error).__name__}: {error}")


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


def _pairs(text: object) -> dict[str, str]:
    """``a=b,c=d`` as the harness's command takes it; a dict as its Python function does."""
    if isinstance(text, Mapping):
        return {str(name): str(value) for name, value in text.items()}
    words = re.split(r",(?=\s*\w+=)", str(text or ""))
    return {name.strip(): value.strip() for name, equals, value in (w.partition("=") for w in words) if equals}


def _given(path: Path, run: Mapping[str, Any], task: str, scores: Mapping[str, Any]) -> Given:
    """Scores, questions and records of one task of a run.

    Raises:
        ResultsError: the samples cannot be read, or are those of several runs.
    """
    config = run["configs"][task]
    names = [str(metric["metric"]) for metric in config.get("metric_list") or []]
    numbers = {key: float(value) for key, value in scores.items() if _is_number(value) and "," in key}
    kinds = {key: tuple(key.rsplit(",", 1)) for key in numbers if "_stderr" not in key}
    headline = next((key for name in names for key, kind in kinds.items() if kind[0] == name), None)
    if headline is None:
        raise ResultsError(f"{path.name}: task {task!r} has none of its metrics {', '.join(names) or '(no names)'}")
    filters = len({kind[1] for kind in kinds.values()})
    facts = _facts(run)
    lines = _samples(path.with_name(path.name.replace("_results.json", f"_samples_{task}.jsonl")), filters)
    table = _table(lines, names, config.get("score_key") or "score") if lines else None
    records = {str(line["doc_id"]): record | {"run": facts} for line in lines if (record := _record(line))}
    metrics, reason = _metrics(numbers[headline], kinds[headline][0], table)
    others = {key: kind for key, kind in kinds.items() if key != headline and kind[0] in names}
    percent = metrics[0].value != numbers[headline]
    for key, (name, kind) in others.items():
        value = 100 * numbers[key] if percent and 0 <= numbers[key] <= 1 else numbers[key]
        metrics.append(Metric(f"{name} [{'task' if kind == 'none' else kind}]", value, part=True))
    if table is None:
        reason += "no samples: run with --log_samples for paired tests and efficiency"
    return Given(table, records, tuple(metrics), reason, facts)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _facts(run: Mapping[str, Any]) -> dict[str, object]:
    """What a run says of itself; of its command only what the answers hang on."""
    config, date = run["config"], str(run["date"])
    words = {name: config.get(name) for name in ("model", "model_args", "batch_size", "gen_kwargs", "limit")}
    shown = [word for name, value in words.items() if value for word in (f"--{name}", str(value))]
    version = str(run.get("lmms_eval_version", ""))
    return {
        "host": HOST,
        "host_version": None if "unknown" in version else version.partition("@")[0] or None,
        "arguments": shlex.join(shown),
        "started": re.sub(r"(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)", r"\1-\2-\3T\4:\5:\6", date),
    }


def _samples(path: Path, filters: int) -> list[dict[str, Any]]:
    """One line per question, of the first of the task's filters; none where the run logged none.

    Raises:
        ResultsError: a line cannot be read; or there are more than one run writes, which two of the same second do.
    """
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        first = {line["doc_id"]: line for line in reversed(lines)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error
    if len(lines) > len(first) * max(filters, 1):
        raise ResultsError(f"{path.name}: {len(lines)} lines for {len(first)} questions: several runs wrote here")
    return [first[number] for number in sorted(first)]


def _table(lines: list[dict[str, Any]], names: list[str], key: str) -> dict[str, list[Any]]:
    """Columns as VLMEvalKit's judged tables have them; ``split`` is the metric that judges a question."""
    judged = [_verdict(line, names, key) for line in lines]
    table = {
        "index": [line["doc_id"] for line in lines],
        "question": [line.get("input") for line in lines],
        "prediction": [_text(line.get("filtered_resps")) for line in lines],
        "answer": [line.get("target") for line in lines],
        "split": [name for name, _, _ in judged],
    }
    hits, categories = [hit for _, hit, _ in judged], [category for _, _, category in judged]
    if all(hit is not None and 0 <= hit <= 1 for hit in hits):
        table["hit"] = hits
    if all(isinstance(category, str) for category in categories):
        table["category"] = categories
    return table


def _verdict(line: Mapping[str, Any], names: list[str], key: str) -> tuple[str | None, float | None, object]:
    """(metric, score, category) of a question: a task says a number, or an object with a number in it."""
    name = next((name for name in names if name in line), None)
    said = line.get(name) if name else None
    inside = said if isinstance(said, Mapping) else {}
    score = inside.get(key) if inside else said
    hit = float(score) if isinstance(score, (bool, int, float)) and math.isfinite(score) else None
    return name, hit, line.get("category", inside.get("category"))


def _text(answers: object) -> str:
    return _text(answers[0]) if isinstance(answers, list) and answers else str(answers)


def _record(line: Mapping[str, Any]) -> dict[str, Any]:
    counts = line.get("token_counts") or [None]
    return dict((counts[0] or {}).get("redrel") or {})


def _metrics(value: float, name: str, table: Mapping[str, list[Any]] | None) -> tuple[list[Metric], str]:
    """The headline in points, then its categories; and why the headline stands as the task wrote it."""
    hits = (
        [(row, hit) for row, hit in enumerate(table["hit"]) if table["split"][row] == name]
        if table and ("hit" in table)
        else []
    )
    mean = sum(hit for _, hit in hits) / len(hits) if hits else None
    if table is None and 0 <= value <= 1:
        return [Metric(name, 100 * value, True, name, most=100)], ""
    if mean is None or not (close := [scale for scale in (1, 100) if abs(value - scale * mean) < 1e-5 * scale]):
        return [Metric(name, value, True, name)], "headline: as the task sums it up, not the mean of its questions"
    metrics = [Metric(name, 100 * value / close[0], True, name, most=100)]
    if table is not None and "category" in table:
        by: dict[str, list[float]] = {}
        for row, hit in hits:
            by.setdefault(table["category"][row], []).append(hit)
        metrics += [Metric(word, 100 * sum(own) / len(own), part=True, most=100) for word, own in by.items()]
    return metrics, ""
