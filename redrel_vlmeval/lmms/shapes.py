"""RedRelShapes as a task folder of lmms-eval, made from a fixed seed: nothing is downloaded."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from redrel_vlmeval import files
from redrel_vlmeval.models import benchmark, question_text

TASKS = {"redrel_shapes": "RedRelShapes", "redrel_shapes_mini": "RedRelShapes_MINI"}
_YAML = """\
task: {task}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: prompt
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 32
  temperature: 0
  do_sample: false
process_results: !function utils.judged
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
_UTILS = "from redrel_vlmeval.lmms.shapes import judged, pictures  # noqa: F401\n"


def write(folder: Path) -> list[Path]:
    """The tasks of :data:`TASKS` below ``folder``, for ``--include_path``; returns their YAML files."""
    import pyarrow as pa
    from pyarrow import parquet

    made = []
    for task, name in TASKS.items():
        place = Path(folder).absolute() / task
        place.mkdir(parents=True, exist_ok=True)
        table = benchmark.make(name)
        columns = {column: table[column].tolist() for column in ("index", "category", "answer")}
        columns["image"] = [{"bytes": base64.b64decode(text), "path": None} for text in table["image"]]
        lines = [{str(name): value for name, value in line.items()} for line in table.to_dict("records")]
        columns["prompt"] = [question_text(line) for line in lines]
        content = io.BytesIO()
        parquet.write_table(pa.table(columns), content)
        data = place / "test.parquet"
        files.write_whole(data, content.getvalue())
        files.write_whole(place / "utils.py", _UTILS.encode())
        made.append(place / f"{task}.yaml")
        files.write_whole(made[-1], _YAML.format(task=task, data=data).encode())
    return made


def pictures(document: Mapping[str, Any]) -> list[Image.Image]:
    """What the task shows the model."""
    return [Image.open(io.BytesIO(document["image"]["bytes"])).convert("RGB")]


def judged(document: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """1 where the answer's letter is the right one; ``A``, ``(A)``, ``A.`` and ``A. red`` are letters."""
    letter = re.match(r"\s*\(?([A-D])\b", answers[0])
    hit = float(letter is not None and letter[1] == document["answer"])
    return {"exact_match": hit, "category": document["category"]}
