"""What ``redrel explain`` puts to a model: a question about a picture, or the questions of a benchmark of the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from redrel_vlmeval.errors import ExplainError, one_line
from redrel_vlmeval.explain.maps import Grid
from redrel_vlmeval.explain.store import plain, question_name
from redrel_vlmeval.host import Benchmark, models
from redrel_vlmeval.models import check_readable, is_missing
from redrel_vlmeval.names import parse
from redrel_vlmeval.prompts import options, present

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Item:
    """One question to explain.

    Attributes:
        name: what its files are called, after the model's name.
        message: as the host hands it to a model. question: its text for people.
        dataset: the host's name of the benchmark, None for a question of one's own.
        options: letters of a multiple-choice question.
        regions: boxes (left, top, right, bottom, in pixels) in the picture of what the question asks for, where the
            benchmark knows them; others: of its picture's other objects.
        right: the benchmark's own answer. refusal: why it cannot be asked, empty where it can.
    """

    name: str
    message: list[dict[str, Any]]
    question: str
    dataset: str | None = None
    index: str = ""
    options: tuple[str, ...] = ()
    regions: tuple[Box, ...] = ()
    others: tuple[Box, ...] = ()
    right: str = ""
    refusal: str = ""


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
    stem = plain("_".join(path.stem for path in images))
    ends = [""] if len(questions) == 1 else [f"_q{number}" for number in range(1, len(questions) + 1)]
    return [
        Item(f"{stem}{end}", [*pictures, {"type": "text", "value": question}], question)
        for question, end in zip(questions, ends, strict=True)
    ]


def of_benchmark(host: Any, name: str, limit: int | None) -> tuple[int, Iterator[Item]]:
    """How many questions, and a benchmark's questions in its order, asked as the host's runner asks them.

    Raises:
        InvalidValue: the host has no such benchmark. ExplainError: it is not one of pictures.
    """
    data = Benchmark(name, limit)
    if not data.kind.startswith("IMAGE") or not hasattr(data.dataset, "dump_image"):
        raise ExplainError(f"--data {name}: {data.kind}; explanations are for pictures")
    data.prepare(host)
    return len(data), _asked(host, data)


def _asked(host: Any, data: Benchmark) -> Iterator[Item]:
    for position, index in enumerate(data.indices):
        line, name = data.lines.iloc[position], question_name(data.name, str(index))
        try:
            message = data.message(host, position)
        except Exception as error:  # whatever the host makes of a line that it cannot ask; the others can be
            yield Item(name, [], "", data.name, str(index), refusal=f"the host cannot ask it: {one_line(error)}")
            continue
        letters = tuple(options(dict(line))) if data.kind.endswith(" MCQ") else ()
        text = "\n".join(str(part["value"]) for part in message if part["type"] == "text")
        asked, others = data.dataset.regions(line) if hasattr(data.dataset, "regions") else ((), ())
        yield Item(name, message, text, data.name, str(index), letters, asked, others, _right(line, letters))


def _right(line: Any, letters: Sequence[str]) -> str:
    """The benchmark's own answer in words: ``B. red`` of multiple choice; empty where the table holds none."""
    answer = line.get("answer")
    if not present(answer):
        return ""
    return f"{answer}. {line[answer]}" if str(answer) in letters else str(answer)


def tokens_on(grid: Grid, boxes: Sequence[Box]) -> list[int]:
    """Numbers of the tokens (or patches) of ``grid`` whose middle lies in one of these boxes of the picture."""
    x, y = ((edges[:-1] + edges[1:]) / 2 for edges in grid.edges())
    found = np.zeros((len(y), len(x)), dtype=bool)
    for left, top, right, bottom in boxes:
        found |= ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None]
    return sorted(int(token) for token in grid.index[found])


def table() -> Any:
    """The host's model table with our names, its dataset classes with ours.

    Raises:
        HostMissing: no VLMEvalKit.
    """
    return models()


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
