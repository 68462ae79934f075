"""Writes what a host leaves behind, by the host's own `evaluate` and `status.json` code where it matters."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from redrel_vlmeval.results.records import setting_of


@contextmanager
def lmu_data(folder: Path, name: str, table: pd.DataFrame) -> Iterator[Path]:
    """Within the context the host finds the benchmark ``name`` in ``folder``, and models run on the CPU."""
    table.to_csv(folder / f"{name}.tsv", sep="\t", index=False)
    before = os.environ.get("LMUData")
    os.environ |= {"LMUData": str(folder), "REDREL_DEVICE": "cpu"}
    yield folder
    os.environ.pop("LMUData")
    os.environ |= {} if before is None else {"LMUData": before}


def predictions(folder: Path, model: str, benchmark: str, frame: pd.DataFrame) -> Path:
    """The table that the runner writes after inference."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model}_{benchmark}.xlsx"
    frame.to_excel(path, index=False, engine="xlsxwriter")
    return path


def records(folder: Path, model: str, benchmark: str, indices=range(4), **changes: object) -> Path:
    """Efficiency records with one torn line at the end, as a killed run leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, object] = {
        "version": 1, "model": model, "base": model, "setting": setting_of(model), "dataset": benchmark,
        "image_tokens": 64, "prompt_tokens": 100, "tokens": [100] * 4, "images_per_block": [64] * 4, "kept": {},
        "kv_tokens": [100] * 4,
        "average_image_tokens": 64.0, "prefill_flops": 2.0e9, "prefill_flops_untouched": 2.0e9, "kv_bytes": 400_000,
        "kv_bytes_untouched": 400_000, "prefill_ms": 10.0, "decode_ms_per_token": 2.0, "new_tokens": 2,
        "mode": "untouched", "backend": "transformers", "weights": "w", "revision": "sha256:1", "device": "cpu",
        "dtype": "float32", "kernel": "sdpa", "versions": {"torch": "2.0", "vlmeval": "1"}, "time": "2026-01-01T00:00Z",
    }  # fmt: skip
    path = folder / f"{model}_{benchmark}_redrel.jsonl"
    lines = [json.dumps(record | changes | {"index": index}) for index in indices]
    path.write_text("\n".join(lines) + "\n" + lines[0][:40], encoding="utf-8")
    return path


TRUNCATED = {
    "images_per_block": [64, 64, 16, 16], "average_image_tokens": 40.0, "prefill_flops": 1.2e9, "kv_bytes": 250_000,
    "prefill_ms": 6.0, "mode": "dropped",
}  # fmt: skip


def choices(answers: str, right: str = "ABAB") -> pd.DataFrame:
    """Four multiple-choice questions in two categories; `answers` are the predictions, separated by commas."""
    frame = pd.DataFrame({"index": range(4), "question": [f"q{i}" for i in range(4)], "A": "yes", "B": "no"})
    return frame.assign(answer=list(right), category=["one", "two"] * 2, prediction=answers.split(","))


def scored(folder: Path, model: str, benchmark: str, value: float, count: int = 4) -> None:
    """A finished multiple-choice cell in the exact form that `ImageMCQDataset.evaluate` leaves, without the host."""
    right = round(value * count)
    frame = pd.DataFrame({"index": range(count), "question": "q", "answer": "A", "category": "one"})
    frame["prediction"] = ["A"] * right + ["B"] * (count - right)
    predictions(folder, model, benchmark, frame)
    judged = frame.assign(hit=(frame["prediction"] == "A").astype(int), log="-")
    predictions(folder, model, f"{benchmark}_exact_matching_result", judged)
    scores(folder, model, benchmark, Overall=right / count, one=right / count)


def answered(
    folder: Path, model: str, benchmark: str, hits: list[float], value: float | None = None, **columns: object
) -> None:
    """A finished cell with these verdicts, one question each, and `columns` (index, image_path, ..) beside them."""
    frame = pd.DataFrame({"index": range(len(hits)), "question": "q", "answer": "A", "category": "one"})
    frame = frame.assign(**columns)
    frame["prediction"] = columns.get("prediction", ["A" if hit else "B" for hit in hits])
    predictions(folder, model, benchmark, frame)
    predictions(folder, model, f"{benchmark}_exact_matching_result", frame.assign(hit=hits, log="-"))
    scores(folder, model, benchmark, Overall=sum(hits) / len(hits) if value is None else value)


def scores(folder: Path, model: str, benchmark: str, **shares: float) -> None:
    """The host's scores of a multiple-choice benchmark: ``Overall``, and by category."""
    lines = (",".join(f'"{cell}"' for cell in row) for row in (("split", *shares), ("none", *shares.values())))
    (folder / f"{model}_{benchmark}_acc.csv").write_text("".join(f"{line}\n" for line in lines))


def status(folder: Path, model: str, eval_id: str = "", **datasets: object) -> None:
    """The host's status.json: one entry per benchmark; what is no dict (argv, commit) is said of the whole run."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: datasets.pop(name) for name, value in list(datasets.items()) if not isinstance(value, dict)}
    value = {"schema_version": "1.0", "eval_id": eval_id or folder.name, "datasets": datasets, "model_name": model}
    value |= whole
    (folder / "status.json").write_text(json.dumps(value))


def custom_benchmark(lmu: Path, name: str):
    """A multiple-choice benchmark of the user's own, through the host's real constructor."""
    from PIL import Image
    from vlmeval.dataset import build_dataset

    stream = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(stream, "PNG")
    table = choices("-,-,-,-").drop(columns="prediction").assign(image=base64.b64encode(stream.getvalue()).decode())
    table.to_csv(lmu / f"{name}.tsv", sep="\t", index=False)
    return build_dataset(name)


def official(kind: str, name: str, table: pd.DataFrame):
    """A host dataset without its constructor, which would download; `evaluate` is untouched."""
    import vlmeval.dataset as host

    built = object.__new__(getattr(host, kind))
    built.dataset_name, built.data, built.meta_only = name, table.drop(columns="prediction"), True
    return built


def evaluate(folder: Path, model: str, built, table: pd.DataFrame) -> None:
    """Predictions, the host's real evaluation of them, and its own entry in status.json, as its runner does it."""
    from vlmeval.smp import upsert_dataset_status, upsert_run_status

    path = predictions(folder, model, built.dataset_name, table)
    upsert_run_status(folder, eval_id="T20260102-030405", model_name=model)
    same = {"run_dir": folder, "model_name": model, "dataset_name": built.dataset_name}
    upsert_dataset_status(**same, prediction_file=str(path), judge_model="exact_matching", status="eval")
    try:
        score = built.evaluate(str(path), model="exact_matching", nproc=1)
    except Exception as error:  # the runner goes on after any error, with exit code 0
        upsert_dataset_status(**same, status="done", error_message=str(error))
    else:
        upsert_dataset_status(**same, status="done", metrics_source=score, dataset_obj=built)


def headlines(scores: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(benchmark, metric) -> headline in points, of the cells that have one."""
    rows = scores[scores["headline"] & (scores["status"] == "ok")]
    return {(row.benchmark, row.metric): round(row.value, 3) for row in rows.itertuples()}


BASE, VARIANT = "redrel_tiny", "redrel_tiny_trunc_l2_k16"


def pair(folder: Path, **changes: object) -> None:
    """A base at 75 points and a variant at 50, with records; `changes` are made to the variant's."""
    scored(folder / BASE, BASE, "X", 0.75)
    records(folder / BASE, BASE, "X")
    scored(folder / VARIANT, VARIANT, "X", 0.5)
    records(folder / VARIANT, VARIANT, "X", **(TRUNCATED | changes))
