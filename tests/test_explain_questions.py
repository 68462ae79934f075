"""Which questions `redrel explain` asks, what it compares an answer with, and what their files are called."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkpoints import needs_host
from test_explain_command import ONE, TINY, box, built, names, said

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain import command
from redrel_vlmeval.explain.ask import questions
from redrel_vlmeval.explain.ask.asking import answer_ids, ask_host
from redrel_vlmeval.explain.command import others
from redrel_vlmeval.explain.explanation import option_tokens
from redrel_vlmeval.explain.job import Job
from redrel_vlmeval.explain.maps.passes import log_likelihood
from redrel_vlmeval.explain.store import load, save
from redrel_vlmeval.models.tiny import scenes
from redrel_vlmeval.sheets.page.explained import links

__all__ = ["built"]


def write(folder: Path, name: str, lines: list[dict[str, str]]) -> None:
    """A benchmark of one's own: each line with a picture of its own."""
    columns = ["index", "image", "question", *lines[0]["letters"], "answer"]
    rows = ["\t".join(columns)]
    for number, line in enumerate(lines):
        stream = io.BytesIO()
        scenes.render([scenes.Thing(9 + number, "square", "blue")]).save(stream, "PNG")
        picture = base64.b64encode(stream.getvalue()).decode()
        options = [line.get(letter, "") for letter in lines[0]["letters"]]
        rows.append("\t".join([line["index"], picture, "What color is the square?", *options, "A"]))
    (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


@needs_host
def test_questions_with_other_signs_have_files_of_their_own_which_the_report_finds(built: None, tmp_path: Path) -> None:
    letters = "ABCD"
    colors = dict(zip(letters, ("red", "blue", "green", "yellow"), strict=True)) | {"letters": letters}
    indices = ["图1", "表1", "a/b", "a b"]
    write(tmp_path / "lmu", "Chapters", [colors | {"index": index} for index in indices])
    job = Job(TINY, tmp_path / "out", data="Chapters", request=ONE)
    code, text = said(command.cam, job)
    assert code == 0 and "4 explanations written" in text
    assert sorted(load(path).manifest["index"] for path in job.output.glob("*.npz")) == sorted(indices)
    flips = [{"model": "m", "base": TINY, "benchmark": "Chapters", "frame": pd.DataFrame({"index": indices})}]
    made = links(flips, job.output, job.output / "report.html")
    assert len(set(made.values())) == 4
    for key, page in made.items():
        manifest = json.loads((job.output / page.replace(".html", ".json")).read_text())
        assert key == f"{TINY}/Chapters/{manifest['index']}"
    assert "4 were there already" in said(command.cam, job)[1]


@needs_host
@pytest.mark.parametrize(
    "letters, values",
    [
        ("ABCDE", ("1", "2", "3", "4", "5")),  # a column of numbers
        ("ABC", ("True", "False", "True")),
        ("ABCDEFGHIJ", tuple("klmnopqrst")),
        ("ABCD", ("x", "", "z", "1.5")),  # one is empty: not asked with
    ],
    ids=["numbers", "true and false", "beyond H", "a gap"],
)
def test_an_answer_is_compared_with_all_options_that_were_asked(
    built: None, tmp_path: Path, letters: str, values: tuple[str, ...]
) -> None:
    line = dict(zip(letters, values, strict=True)) | {"index": "0", "letters": letters}
    write(tmp_path / "lmu", "Own", [line, line | {"index": "1"}])
    _, found = questions.of_benchmark(box(), "Own", 1)
    item = next(iter(found))
    asked_with = [letter for letter, value in zip(letters, values, strict=True) if value]
    assert list(item.options) == asked_with
    assert all(f"\n{letter}. " in item.question for letter in asked_with)
    asked = ask_host(box(), item.message, item.dataset)
    if "I" in letters:  # which the model in the box has no token for: said, and not left out of the comparison
        with pytest.raises(ExplainError, match="answer 'I': its tokens do not read the same"):
            others(asked.with_answer(letter_ids(asked, "A")), item)
        return
    for answer in asked_with[:2]:
        given = asked.with_answer(letter_ids(asked, answer))
        wanted = option_tokens(given, [letter for letter in asked_with if letter != answer])
        assert others(given, item) == wanted and len(wanted) == len(asked_with) - 1


def letter_ids(asked: Any, answer: str) -> list[int]:
    """Token ids of a letter."""
    return answer_ids(asked, answer, log_likelihood)


@needs_host
def test_letters_of_a_question_in_open_form_are_no_options(built: None, tmp_path: Path) -> None:
    """A column A of a benchmark that is no multiple choice is never asked, so nothing is compared with it."""
    write(tmp_path / "lmu", "Open_openended", [{"A": "x", "index": "0", "letters": "A"}])
    _, found = questions.of_benchmark(box(), "Open_openended", 1)
    assert next(iter(found)).options == ()


@needs_host
def test_a_model_and_a_benchmark_that_read_alike_do_not_share_files(built: None, tmp_path: Path) -> None:
    line = {"A": "red", "B": "blue", "index": "0", "letters": "AB"}
    write(tmp_path / "lmu", "Own", [line])
    job = Job(TINY, tmp_path / "out", data="Own", request=ONE)
    said(command.cam, job)
    path = job.output / f"{TINY}_Own_0.npz"
    stored = load(path)
    stored.manifest["settings"] |= {"model": "redrel", "dataset": "tiny_Own"}  # redrel + tiny_Own_0
    save(stored, path)
    assert "1 explanation written" in said(command.cam, job)[1]
    assert names(job.output, "npz") == [f"{TINY}_Own_0.npz", f"{TINY}_Own_0_2.npz"]
    assert load(path).manifest["settings"]["model"] == "redrel"


@needs_host
def test_a_question_that_the_host_cannot_ask_fails_alone(built: None, tmp_path: Path) -> None:
    line = {"A": "red", "B": "blue", "index": "0", "letters": "AB"}
    write(tmp_path / "lmu", "Own", [line, line | {"index": "1"}, line | {"index": "2"}])
    table = tmp_path / "lmu" / "Own.tsv"
    rows = table.read_text().split("\n")
    fields = rows[2].split("\t")
    rows[2] = "\t".join([fields[0], base64.b64encode(b"no picture" * 10).decode(), *fields[2:]])
    table.write_text("\n".join(rows))
    code, text = said(command.cam, Job(TINY, tmp_path / "out", data="Own", request=ONE))
    assert code == 1 and "2 explanations written" in text and "failed: Own_1: the host cannot ask it: " in text
    assert names(tmp_path / "out", "npz") == [f"{TINY}_Own_0.npz", f"{TINY}_Own_2.npz"]
