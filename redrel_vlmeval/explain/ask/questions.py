"""What ``redrel explain`` puts to a model: a question about a picture, or the questions of a benchmark of the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.maps import Grid
from redrel_vlmeval.host import benchmark as hosts
from redrel_vlmeval.models import benchmark, check_readable, is_missing, scenes
from redrel_vlmeval.names import parse
from redrel_vlmeval.plugin import attach
from redrel_vlmeval.sheets import plain


@dataclass(frozen=True)
class Item:
    """One question to explain.

    Attributes:
        name: what its files are called, after the model's name.
        message: as the host hands it to a model. question: its text for people.
        dataset: the host's name of the benchmark, None for a question of one's own.
        options: letters of a multiple-choice question.
        cells: the grid cells of RedRelShapes that the question asks for; others: cells of other objects.
    """

    name: str
    message: list[dict[str, Any]]
    question: str
    dataset: str | None = None
    index: str = ""
    options: tuple[str, ...] = ()
    cells: tuple[int, ...] | None = None
    others: tuple[int, ...] = field(default=())


def own(images: Sequence[Path], questions: Sequence[str]) -> list[Item]:
    """Questions about pictures of one's own; several are told apart as ``_q1``, ``_q2``, ...

    Raises:
        ExplainError: no such picture, or a file that is none; an empty question.
    """
    for path in images:
        if is_missing(path):
            raise ExplainError(f"--image {path}: {'a folder' if path.is_dir() else 'no such file'}")
        try:
            check_readable(str(path))
        except ValueError as error:
            raise ExplainError(f"--image: {error}") from error
        except Image.DecompressionBombError as error:
            raise ExplainError(f"--image {path}: larger than is safe to open ({error}); make it smaller") from error
    if any(not question.strip() for question in questions):
        raise ExplainError("--question: the question is empty")
    pictures = [{"type": "image", "value": str(path)} for path in images]
    stem = plain("_".join(path.stem for path in images))[:80]
    ends = [""] if len(questions) == 1 else [f"_q{number}" for number in range(1, len(questions) + 1)]
    return [
        Item(f"{stem}{end}", [*pictures, {"type": "text", "value": question}], question)
        for question, end in zip(questions, ends, strict=True)
    ]


def of_benchmark(host: Any, name: str, limit: int | None) -> tuple[int, Iterator[Item]]:
    """How many questions, and a benchmark's questions in its order, asked as the host's runner asks them.

    Raises:
        ExplainError: the host has no such benchmark, or it is one of videos.
    """
    data = _dataset(name)
    host.set_dump_image(data.dump_image)
    rows = data.data if limit is None else data.data.head(limit)
    return len(rows), _asked(host, name, data, rows)


def _asked(host: Any, name: str, data: Any, rows: pd.DataFrame) -> Iterator[Item]:
    for _, line in rows.iterrows():
        if getattr(data, "force_use_dataset_prompt", False) or not host.use_custom_prompt(name):
            message = data.build_prompt(line)
        else:
            message = host.build_prompt(line, dataset=name)
        options = tuple(letter for letter in "ABCDEFGH" if isinstance(line.get(letter), str))
        text = "\n".join(str(part["value"]) for part in message if part["type"] == "text")
        asked, others = _cells(name, line)
        index = str(line["index"])
        yield Item(plain(f"{name}_{index}"), message, text, name, index, options, asked, others)


def _dataset(name: str) -> Any:
    found = hosts.dataset(name)
    if found is None:
        raise ExplainError(f"--data {name}: the host has no such benchmark; names are those of its --data")
    if getattr(found, "MODALITY", "IMAGE") != "IMAGE" or not hasattr(found, "dump_image"):
        raise ExplainError(f"--data {name}: a benchmark of videos; explanations are for pictures")
    return found


def _cells(name: str, line: pd.Series) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """Cells that a question of RedRelShapes asks for, and those of its picture's other objects."""
    if name not in benchmark.SIZES or not isinstance(line.get("cells"), str):
        return None, ()
    asked = {int(cell) for cell in str(line["cells"]).split(",") if cell}
    number, item = divmod(int(line["index"]), 1000)
    things, _ = benchmark.question_for(scenes.CATEGORIES[number], np.random.default_rng([benchmark.SEED, number, item]))
    return tuple(sorted(asked)), tuple(sorted({thing.cell for thing in things} - asked))


def tokens_on(grid: Grid, cells: Sequence[int]) -> list[int]:
    """Numbers of the tokens (or patches) of ``grid`` whose middle lies on these cells of a RedRelShapes picture."""
    x, y = ((edges[:-1] + edges[1:]) / 2 / scenes.CELL for edges in grid.edges())
    inside = (y[:, None] >= 0) & (x[None] >= 0) & (x[None] < scenes.GRID) & (y[:, None] < scenes.GRID)
    place = np.floor(y)[:, None] * scenes.GRID + np.floor(x)[None]
    return sorted(int(token) for token in grid.index[inside & np.isin(place, list(cells))])


def table() -> Any:
    """The host's model table with our names, its dataset classes with ours.

    Raises:
        HostMissing: no VLMEvalKit.
    """
    return hosts.models(attach)


def build(name: str) -> Any:
    """A host model by name, a variant's or any other.

    Raises:
        KeyError: no such name; says what was probably meant.
    """
    return table()[name]()


def beside(host: Any, name: str, other: str) -> Any:
    """The model ``other``; over the weights of ``host`` (built as ``name``) where both have one base.

    Raises:
        KeyError: no such name.
    """
    from redrel_vlmeval.models import TruncatedVLM

    mine, theirs = parse(name), parse(other)
    if mine.base != theirs.base:
        return build(other)
    inner = host.inner if isinstance(host, TruncatedVLM) else host
    return TruncatedVLM(inner, other) if theirs.is_variant else inner


def facts(host: Any) -> dict[str, Any]:
    """Backend, weights and revision of a built model, as its efficiency records have them."""
    recorder = getattr(host, "recorder", None)
    known = getattr(recorder, "facts", None) or {}
    return {name: known.get(name) for name in ("backend", "weights", "revision")}
