"""``RedRelShapes``: the benchmark in the box, in the host's TSV format, made on first use from a fixed seed.

``RedRelShapes_VQA`` asks the same questions in open form: without options, for the word itself.

Columns beside the host's own: ``category`` (number of hops, or ``text``) and ``cells``, the grid cells
(row * 8 + column) that the answer depends on, joined by commas. A cell is an image token, so ``cells`` are image token
numbers too.
"""

from __future__ import annotations

import base64
import copy
import io
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from redrel_vlmeval import files
from redrel_vlmeval.models.llava import question_text
from redrel_vlmeval.models.tiny import scenes

SEED = 20240  # training draws from other streams: see train.TRAIN_SEED
WHOLE = {"one-hop": 200, "two-hop": 200, "three-hop": 200, "text": 100}
MINI = {"one-hop": 40, "two-hop": 40, "three-hop": 40, "text": 20}
CHOICE = {"RedRelShapes": WHOLE, "RedRelShapes_MINI": MINI}
OPEN = {"RedRelShapes_VQA": WHOLE, "RedRelShapes_VQA_MINI": MINI}
SIZES = CHOICE | OPEN


def question_for(category: str, rng: np.random.Generator) -> tuple[list[scenes.Thing], scenes.Question]:
    """A random picture and a random question of a category about it."""
    things = scenes.make_scene(rng)
    if category == "text":
        return things, scenes.text_question(rng)
    found = scenes.visual_questions(things)[category]
    while not found:  # a scene always has three hops, nearly always the others
        things = scenes.make_scene(rng)
        found = scenes.visual_questions(things)[category]
    return things, found[int(rng.integers(len(found)))]


@cache
def make(name: str = "RedRelShapes") -> pd.DataFrame:
    """The benchmark as a table; the MINI one is the first questions of each category of the whole.

    In open form index, picture, question and hint are the same; there are no options, and the answer is the word.
    """
    rows = []
    for number, category in enumerate(scenes.CATEGORIES):
        for item in range(SIZES[name][category]):
            rng = np.random.default_rng([SEED, number, item])
            things, question = question_for(category, rng)
            choices = scenes.options(question, rng)
            hint = question.hint or (scenes.context_sentence(rng) if rng.random() < 0.3 else None)
            asked = {"answer": question.answer}
            if name in CHOICE:
                asked = dict(zip("ABCD", choices, strict=True)) | {"answer": "ABCD"[choices.index(question.answer)]}
            rows.append(
                {
                    "index": number * 1000 + item,
                    "image": base64_of(scenes.render(things)),
                    "question": question.text,
                    "hint": hint,
                    **asked,
                    "category": category,
                    "cells": ",".join(map(str, question.cells)),
                }
            )
    return pd.DataFrame(rows)


def base64_of(picture: Image.Image) -> str:
    """A picture as the host's TSV holds it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def data_root() -> Path:
    """The host's data folder, ``LMUData``.

    Raises:
        FileNotFoundError: ``LMUData`` names a folder that does not exist (the host would silently use another).
    """
    named = os.environ.get("LMUData")
    if named and not Path(named).is_dir():
        raise FileNotFoundError(f"LMUData={named}: no such folder; create it, or unset LMUData to use ~/LMUData")
    root = Path(named) if named else Path.home() / "LMUData"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"{root}: cannot be made ({error.strerror}); set LMUData to a folder you may write to"
        ) from error
    return root


def write(name: str = "RedRelShapes", folder: Path | None = None) -> Path:
    """:func:`written` for the table of :func:`make`."""
    return written(make(name), name, folder)


def written(table: pd.DataFrame, name: str, folder: Path | None = None) -> Path:
    """The TSV in ``folder`` (default: :func:`data_root`), made anew when missing or different; never half-written.

    What the host has decoded from an older one goes with it: it would show the model those pictures, by their numbers.

    Raises:
        PermissionError: the folder cannot be written to.
    """
    path = (folder or data_root()) / f"{name}.tsv"
    text = table.to_csv(sep="\t", index=False)
    try:
        if _holds(path, text):
            return path
        with files.in_turn(path.with_name(f".{path.name}.lock")):
            # Another process may have made it meanwhile, and decoded pictures that are right.
            if not _holds(path, text):
                # Before the TSV: stopped in between, the next start finds an old TSV and clears again.
                clear_pictures(path)
                files.write_whole(path, text.encode())
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        where = cause.filename if str(cause.filename).endswith(".png") else path
        raise PermissionError(
            f"{where}: cannot be written ({cause.strerror or error}); set LMUData to a folder you may write to"
        ) from error
    return path


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8", errors="replace") == text


def clear_pictures(path: Path) -> None:
    """Remove the pictures that the host decoded from the TSV at ``path``: ``images/<name>/<index>.png``, no other."""
    folder = path.parent / "images" / path.stem
    for picture in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(r"\d+\.png", picture.name):
            picture.unlink(missing_ok=True)


Box = tuple[int, int, int, int]


def box_of(cell: int) -> Box:
    """A cell's left, top, right and bottom edge in the picture, in pixels."""
    top, left = (scenes.CELL * place for place in divmod(cell, scenes.GRID))
    return left, top, left + scenes.CELL, top + scenes.CELL


def regions(line: Any) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    """Where in the picture of a line what its question depends on lies, and where every other object."""
    asked = {int(cell) for cell in str(line["cells"]).split(",") if cell} if isinstance(line["cells"], str) else set()
    number, item = divmod(int(line["index"]), 1000)
    things, _ = question_for(scenes.CATEGORIES[number], np.random.default_rng([SEED, number, item]))
    others = {thing.cell for thing in things} - asked
    return tuple(map(box_of, sorted(asked))), tuple(map(box_of, sorted(others)))


class _Drawn:
    """Mixed in before a dataset class of the host: only where the TSV comes from is ours."""

    NAMES: Mapping[str, object]
    DATASET_MD5: dict[str, str] = {}

    @classmethod
    def supported_datasets(cls) -> list[str]:
        return list(cls.NAMES)

    def load_data(self, dataset: str) -> pd.DataFrame:
        return pd.read_csv(write(dataset), sep="\t", keep_default_na=True)

    def regions(self, line: Any) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
        """:func:`regions`, for whoever tests whether a map of the picture points at them."""
        return regions(line)


@cache
def dataset_classes() -> tuple[Any, ...]:
    """The host's dataset classes for these names, each with the host's own evaluation; imports the host."""
    from vlmeval.dataset.image_mcq import ImageMCQDataset
    from vlmeval.dataset.image_vqa import ImageVQADataset

    class RedRelShapes(_Drawn, ImageMCQDataset):  # type: ignore[misc]
        """Multiple choice."""

        NAMES = CHOICE
        DATASET_URL = dict.fromkeys(CHOICE, "")

    class RedRelShapesVQA(_Drawn, ImageVQADataset):  # type: ignore[misc]
        """Open form, in the words that the model in the box has learnt."""

        NAMES = OPEN
        DATASET_URL = dict.fromkeys(OPEN, "")

        def build_prompt(self, line: Any) -> list[dict[str, str]]:
            line = self.data.iloc[line] if isinstance(line, int) else line
            pictures = self.dump_image(line)
            asked = {"type": "text", "value": question_text(line)}
            return [*({"type": "image", "value": path} for path in pictures), asked]

        def evaluate(self, eval_file: str, **settings: Any) -> Any:
            # of the host's ways to judge, that of GQA: right is the one word asked for
            judged = copy.copy(self)
            judged.dataset_name = "GQA"
            return ImageVQADataset.evaluate(judged, eval_file, **settings)

    return RedRelShapes, RedRelShapesVQA
