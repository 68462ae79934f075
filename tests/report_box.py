"""Output folders for the report's tests: a base with variants, controls, and cells that went wrong."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path

import host_files as host
import pandas as pd
from PIL import Image

from redrel_vlmeval.names import parse

BASE = host.BASE
HOSTILE = "<script>alert(1)</script></script><!-- \"quotes\" 'and' {{ 7*7 }} {% raw %} & \u2028 \u2029 "
HOSTILE += "<img src=x onerror=alert(2)>"
COUNT = 40


def picture(width: int = 30, height: int = 20, color: str = "red", kind: str = "PNG") -> str:
    """A picture as the column image of a benchmark's TSV holds it."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), color).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


def questions(count: int, text: str = "What color is it?") -> pd.DataFrame:
    frame = pd.DataFrame({"index": range(count), "A": "red", "B": "blue", "C": "green", "answer": "A"})
    frame["question"] = [f"{text} ({i})" for i in range(count)]
    return frame.assign(category=["one" if i % 2 else "two" for i in range(count)])


def answered(folder: Path, model: str, hits: list[int], benchmark: str = "X", **columns: object) -> None:
    """A finished cell, hits answered with the right letter A, others with B; scored by category, too."""
    asked = questions(len(hits)).assign(**columns)
    host.answered(folder / model, model, benchmark, hits, **{str(name): asked[name] for name in asked})
    parts = pd.Series(hits, dtype=float).groupby(asked["category"]).mean()
    host.scores(folder / model, model, benchmark, Overall=sum(hits) / len(hits), **parts)


def recorded(folder: Path, model: str, keep: int | None, layer: int, count: int = COUNT, benchmark: str = "X") -> None:
    """Efficiency records of redrel_tiny; ``keep`` first tokens stay after block ``layer`` of 8, None for the base."""
    changes: dict[str, object] = {"weights": "redrel_tiny", "backend": "transformers LlavaForConditionalGeneration"}
    if keep is not None:
        share = (64 * layer + keep * (8 - layer)) / (64 * 8)
        changes |= {"kept": {str(layer): list(range(keep))}, "images_per_block": [64] * layer + [keep] * (8 - layer)}
        changes |= {"average_image_tokens": 64 * share, "prefill_flops": 1e9 + 1e9 * share, "mode": "dropped"}
        changes |= {"kv_bytes": int(400_000 * share), "prefill_ms": 4 + 6 * share}
    host.records(folder / model, model, benchmark, range(count), **changes)


def write(folder: Path, text: str = "What color is it?") -> Path:
    """Base, grid of four, two controls; one failed, one partial and one running cell; the benchmark's TSV."""
    draw = random.Random(7)
    right = [1] * 34 + [0] * 6
    rows: dict[str, tuple[float, int | None, int]] = {"": (0.0, None, 0)}
    rows |= {"l2_k8": (0.7, 8, 2), "l2_k32": (0.3, 32, 2), "l6_k8": (0.02, 8, 6), "l6_k32": (0.0, 32, 6)}
    rows |= {"l2_k8_random": (0.4, 8, 2), "l2_k8_lowest": (0.2, 8, 2)}
    asked = [f"{text} ({i})" for i in range(COUNT)]
    for setting, (loss, keep, layer) in rows.items():
        model = f"{BASE}_trunc_{setting}" if setting else BASE
        hits = [int(draw.random() >= loss if hit else draw.random() < loss) for hit in right]
        answered(folder, model, hits, question=asked)
        recorded(folder, model, keep, layer)
    failed, partial, running = (f"{BASE}_trunc_{setting}" for setting in ("l4_k8", "l4_k32", "l1_k8"))
    host.status(folder / failed, failed, X={"status": "done", "error_message": f"boom {text}"})
    host.predictions(folder / partial, partial, "X", questions(4).assign(prediction="A"))
    host.status(folder / running, running, X={"status": "infer"})
    table = questions(COUNT).assign(question=asked, image=[picture(color=("red", "blue")[i % 2]) for i in range(COUNT)])
    (folder / "LMUData").mkdir()
    table.to_csv(folder / "LMUData" / "X.tsv", sep="\t", index=False)
    return folder


def write_many(folder: Path) -> Path:
    """400 questions; l6_k8 is the cheapest not worse by 2 points, but for a control and the blind run."""
    right = [1] * 350 + [0] * 50
    for setting, down in {"": 0, "l6_k32": 0, "l6_k8": 1, "l2_k8": 30, "l1_k8_random": 0, "l0_k0": 0}.items():
        model = f"{BASE}_trunc_{setting}" if setting else BASE
        stage = parse(setting).stages[0] if setting else None
        answered(folder, model, [0] * down + right[down:])
        recorded(folder, model, stage.keep if stage else None, stage.layer if stage else 8, 400)
    return folder


def data_of(page: str) -> dict:
    """The JSON that a page holds for its scripts."""
    block = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    return json.loads(block)
