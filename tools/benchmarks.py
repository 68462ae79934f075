"""``make benchmarks``: each kind of benchmark that the host has, on a small table of its own columns.

Base and variant of the model in the box answer every table through the stock runner, and ``docs/benchmarks.md`` says
what ran. The tables are generated: a host checks those that it downloads by their checksum and fetches others, so
checksums, and for videos the download, are left out here; nothing else of the host is changed. Judges are a server of
this script that gives full marks.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from redrel_vlmeval.models.tiny import scenes
from redrel_vlmeval.results.records import read_records

ROOT = Path(__file__).resolve().parents[1]
BASE, VARIANT = "redrel_tiny", "redrel_tiny_trunc_l2_k8"
MEANS = "What the variant's name means: [names](names.md)."
PAGE = ROOT / "docs" / "benchmarks.md"
EXACT, NOBODY = "exact_matching", "nobody"
FILMS = "REDREL_FILMS"  # where the runner's process finds the generated videos
OPTIONS = {"A": "red", "B": "blue", "C": "green", "D": "white"}
Rows = list[dict[str, Any]]


def picture(number: int) -> str:
    """A generated scene as the base64 text that tables hold."""
    stream = io.BytesIO()
    scenes.render(scenes.make_scene(np.random.default_rng(number))).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def rows(count: int = 3, **columns: Any) -> Rows:
    """Lines with a picture each; a list in ``columns`` gives each line its own value."""
    return [
        {"index": number, "image": picture(number), "question": "What color is the square?", "answer": "red"}
        | {name: value[number] if isinstance(value, list) else value for name, value in columns.items()}
        for number in range(count)
    ]


def choice(**columns: Any) -> Rows:
    return rows(**({"answer": "A", "category": "one-hop", "split": "dev"} | OPTIONS | columns))


def yes_no(**columns: Any) -> Rows:
    asked = {"question": "Is there a square? Please answer yes or no.", "answer": ["Yes", "No", "Yes"]}
    return rows(**(asked | columns))


def open_rows() -> Rows:
    """As MMMU's: a line without options and one of two pictures among the others."""
    lines = choice(question=["What color is <image 1>?", "What shape is <image 1>?", "Which is larger, <image 1>?"])
    for letter in OPTIONS:
        lines[1][letter] = np.nan
    lines[1]["answer"] = "square"
    lines[2]["image"] = str([picture(7), picture(8)])
    return lines


@dataclass(frozen=True)
class Case:
    """A benchmark of the host: its name, what its class asks, the lines, and who judges.

    Judges are ``exact_matching``, ``stub``, or nobody: then it is asked and not scored, because the host has no score
    for it, or no judge of its own. ``FILMS`` is a benchmark of videos, which nobody judges.
    """

    name: str
    kind: str
    lines: Callable[[], Rows]
    judge: str = EXACT


MATH = {"question_type": "free_form", "answer_type": "text", "precision": 0, "choices": np.nan, "answer_option": np.nan,
        "task": "figure question answering", "skills": "['numeric commonsense']", "category": "general"}  # fmt: skip
DIALOGUE = {
    "question": str(["<ImageHere>What color is the square?", "And its shape?"]),
    "answer": str(["red", "square"]),
}
CASES = (
    Case("MMBench_DEV_EN", "multiple choice", lambda: choice(**{"l2-category": "color"})),
    Case("ScienceQA_VAL", "multiple choice with hints", lambda: choice(hint=["Look.", np.nan, "图"])),
    Case("MMMU_DEV_VAL", "multiple choice, open lines and two pictures among it", open_rows),
    Case("BLINK", "multiple choice, two pictures a question", lambda: choice(image=str([picture(1), picture(2)]))),
    Case("RedRelMixed", "a table of your own, a line without options", lambda: choice(A=["red", np.nan, "blue"],
         B=["blue", np.nan, "red"], C=np.nan, D=np.nan)),
    Case("RedRelOpen", "a table of your own without options", rows, NOBODY),
    Case("MME", "yes or no", lambda: yes_no(
         count=4, answer=["Yes", "No"] * 2, category="color", image_path=["a.png", "a.png", "b.png", "b.png"])),
    Case("POPE", "yes or no", lambda: yes_no(category="random")),
    Case("HallusionBench", "yes or no", lambda: yes_no(
         index=[f"VD_color_{n}_0_1_{n}" for n in range(3)], category="VD", **{"l2-category": "color"})),
    Case("TextVQA_VAL", "short answers", lambda: rows(answer=str(["red"] * 10))),
    Case("ChartQA_TEST", "short answers", lambda: rows(answer="red", split="human")),
    Case("OCRBench", "text in pictures", lambda: rows(answer=str(["red"]), category="Scene Text-centric VQA")),
    Case("MathVista_MINI", "mathematics, judged", lambda: rows(**MATH), "stub"),
    Case("MMVet", "free answers, judged", lambda: rows(category=["rec,ocr", "know,gen", "spat,math"]), "stub"),
    Case("MMDU", "several turns, judged", lambda: rows(count=2, **DIALOGUE), "stub"),
    Case("COCO_VAL", "captions", lambda: rows(answer=str(["a red square"])), NOBODY),
    Case("Video-MME_8frame", "videos, as 8 pictures", lambda: [], FILMS),
)  # fmt: skip


# -- the runner's process ---------------------------------------------------------------------------------------------


def as_runner(arguments: Sequence[str]) -> None:
    """``python -m vlmeval ARGUMENTS`` that takes the tables as they are."""
    import vlmeval.dataset
    from vlmeval.dataset.videomme import VideoMME

    for kind in vlmeval.dataset.DATASET_CLASSES:
        kind.DATASET_MD5 = {}
    films = Path(os.environ[FILMS])
    VideoMME.prepare_dataset = lambda *_args, **_kwargs: {"root": str(films), "data_file": str(films / "table.tsv")}
    sys.argv = ["vlmeval", *arguments]
    runpy.run_module("vlmeval", run_name="__main__", alter_sys=True)


class Judge(BaseHTTPRequestHandler):
    """Full marks for everybody, in the form that each benchmark's judge is asked for."""

    DIMENSIONS = ("Creativity", "Richness", "Visual Perception", "Logical Coherence", "Answer Accuracy",
                  "Image Relationship Understanding", "Overall Score")  # fmt: skip

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        said = json.dumps(dict.fromkeys(self.DIMENSIONS, 10)) if "Logical Coherence" in asked else "1.0"
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Nothing: the runner's own log says what was judged."""


def run(cases: Sequence[Case], place: Path, judge: str) -> None:
    """One process of the runner for all cases of one judge."""
    command = [sys.executable, __file__, "--as-runner", "--work-dir", str(place / "out")]
    if judge == FILMS:  # this release of the host takes videos from a config alone
        config = {"model": {BASE: {}, VARIANT: {}}, "data": {case.name: {} for case in cases}}
        (place / "films.json").write_text(json.dumps(config), encoding="utf-8")
        command += ["--config", str(place / "films.json")]
    else:
        command += ["--model", BASE, VARIANT, "--data", *(case.name for case in cases)]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    Thread(target=server.serve_forever, daemon=True).start()
    if judge == "stub":
        address = f"http://127.0.0.1:{server.server_port}"
        command += ["--judge", "gpt-4o-mini", "--judge-base-url", address, "--judge-key", "none"]
    else:
        command += ["--judge", judge] if judge == EXACT else ["--mode", "infer"]
    own = {
        "LMUData": str(place / "LMUData"),
        FILMS: str(place / "films"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    own |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "REDREL_DEVICE": "cpu"}
    with open(place / f"{judge}.log", "w", encoding="utf-8") as log:
        subprocess.run(command, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=3600)
    server.shutdown()


# -- tables and videos ------------------------------------------------------------------------------------------------


def write(cases: Sequence[Case], place: Path) -> None:
    (place / "LMUData").mkdir(parents=True)
    for case in cases:
        if lines := case.lines():
            pd.DataFrame(lines).to_csv(place / "LMUData" / f"{case.name}.tsv", sep="\t", index=False)
    films = place / "films"
    (films / "video").mkdir(parents=True)
    film(films / "video" / "film.mp4")
    line = {"index": 0, "video": "film", "video_path": "./video/film.mp4", "subtitle_path": "", "duration": "short",
            "domain": "shapes", "sub_category": "color", "task_type": "color", "question": "What color is the square?",
            "candidates": str([f"{letter}. {text}" for letter, text in OPTIONS.items()]), "answer": "A"}  # fmt: skip
    pd.DataFrame([line]).to_csv(films / "table.tsv", sep="\t", index=False)


def film(path: Path) -> None:
    """Sixteen frames of scenes."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 8, (scenes.SIZE, scenes.SIZE))
    for number in range(16):
        frame = np.asarray(scenes.render(scenes.make_scene(np.random.default_rng(number // 4))))
        writer.write(frame[:, :, ::-1].copy())
    writer.release()


# -- the page ---------------------------------------------------------------------------------------------------------


def outcome(case: Case, model: str, out: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """How the host ended with a case, and the records of its questions."""
    entry = json.loads((out / model / "status.json").read_text(encoding="utf-8"))["datasets"][case.name]
    file = out / model / f"{model}_{case.name}_redrel.jsonl"
    records = read_records(file) if file.is_file() else {}
    if "error_message" in entry:
        return f"failed: {' '.join(str(entry['error_message']).split())[:90]}", records
    return ("scored" if case.judge in (EXACT, "stub") else "asked, not scored"), records


def line(case: Case, out: Path) -> tuple[list[str], bool]:
    """A row of the page, and whether both models answered every question, the variant with fewer tokens."""
    cells, right = [case.name, case.kind], True
    for model in (BASE, VARIANT):
        said, records = outcome(case, model, out)
        images = {tuple(record["images_per_block"]) for record in records.values() if "images_per_block" in record}
        kept = {blocks[-1] for blocks in images}
        failed = sum("error" in record for record in records.values())
        ends = "/".join(map(str, sorted(kept))) or "none"
        cells.append(f"{said}; {len(records)} questions{f', {failed} failed' * bool(failed)}; {ends} image tokens")
        right &= bool(records) and not failed and not said.startswith("failed") and (model == BASE or kept == {8})
    return cells, right


def main() -> int:
    parser = argparse.ArgumentParser(description="Run every kind of benchmark and write docs/benchmarks.md.")
    parser.add_argument("--only", nargs="*", help="Names of benchmarks; the page is printed, not written.")
    parser.add_argument("--keep", type=Path, help="A folder for tables, results and logs; a temporary one otherwise.")
    given = parser.parse_args()
    cases = [case for case in CASES if not given.only or case.name in given.only]
    with tempfile.TemporaryDirectory() as temporary:
        place = given.keep or Path(temporary)
        write(cases, place)
        for judge in dict.fromkeys(case.judge for case in cases):
            run([case for case in cases if case.judge == judge], place, judge)
        found = [line(case, place / "out") for case in cases]
    heads = ["benchmark", "asks", "base", f"`{VARIANT}`"]
    table = tabulate([cells for cells, _ in found], headers=heads, tablefmt="github", disable_numparse=True)
    page = f"# Benchmarks that were run\n\n{__doc__.partition(chr(10) * 2)[2].strip()}\n\n{MEANS}\n\n{table}\n"
    if given.only:
        print(page)
    else:
        PAGE.write_text(page, encoding="utf-8")
    return int(not all(right for _, right in found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-runner"]:
        as_runner(sys.argv[2:])
    else:
        raise SystemExit(main())
