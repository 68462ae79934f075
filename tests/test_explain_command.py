"""``redrel explain`` from the command line's arguments to its files: on the model in the box, through the host."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import import_host, needs_host
from explain_files import flow
from rich.console import Console
from typer.testing import CliRunner

from redrel_vlmeval import cli
from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain import command
from redrel_vlmeval.explain.ask import questions
from redrel_vlmeval.explain.ask.asking import Asked
from redrel_vlmeval.explain.ask.questions import Item
from redrel_vlmeval.explain.draw import drawing
from redrel_vlmeval.explain.job import Job
from redrel_vlmeval.explain.maps.gradcam import Request
from redrel_vlmeval.explain.maps.grid import Grid
from redrel_vlmeval.explain.store import load
from redrel_vlmeval.models.tiny import benchmark, scenes

TINY, CUT = "redrel_tiny", "redrel_tiny_trunc_l2_k8"
ONE = Request(methods=("attn_grad",), where=("decoder",))


@cache
def box() -> Any:
    """The model in the box, loaded once."""
    import_host()
    from redrel_vlmeval.models.llava.model import LLaVA15

    return LLaVA15(TINY, device="cpu")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``--model redrel_tiny`` is the loaded one; benchmarks are made in a folder of the test's own."""
    box()
    questions.table()
    monkeypatch.setattr(questions, "build", lambda name: {TINY: box}[name]())
    (tmp_path / "lmu").mkdir()
    monkeypatch.setenv("LMUData", str(tmp_path / "lmu"))


def picture(folder: Path) -> Path:
    path = folder / "a picture.png"
    scenes.render([scenes.Thing(9, "square", "blue"), scenes.Thing(30, "bar", "red")]).save(path)
    return path


def said(run: Any, job: Job) -> tuple[int, str]:
    """Exit code and output of a call."""
    console = Console(file=io.StringIO(), width=300)
    return run(job, console), console.file.getvalue()


def names(folder: Path, kind: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*.{kind}"))


SOME = Path("p.png")
WRONG = [
    ({}, "either --image with --question, or --data, got none"),
    ({"images": [SOME], "questions": ["q"], "data": "X"}, "either --image with --question, or --data, not both"),
    ({"images": [SOME]}, "--image and --question belong together"),
    ({"data": "X", "questions": ["q"]}, "--data brings its own questions"),
    ({"data": "X", "answer": "B"}, "--answer is for one question"),
    ({"images": [SOME], "questions": ["q"], "limit": 3}, "--limit is for --data"),
    ({"images": [SOME], "questions": ["q", "r"], "compare": CUT}, "--compare is for one question"),
    ({"data": "X", "request": Request(methods=("cam",))}, "--methods 'cam': choose from elementwise, gradcam"),
    ({"data": "X", "request": Request(methods=())}, "--methods .empty.: choose from"),
    ({"data": "X", "request": Request(where=("eye",))}, "--where 'eye': choose from vision, projector, decoder"),
    ({"data": "X", "request": Request(objective="loss")}, "--objective 'loss': choose from logit"),
    ({"data": "X", "scale": "own"}, "--scale 'own': choose from shared, layer"),
    ({"images": [Path("none.png")], "questions": ["q"]}, "--image none.png: no such file"),
    ({"images": [Path(__file__)], "questions": ["q"]}, "cannot be read as an image"),
]


@pytest.mark.parametrize("wrong, words", WRONG, ids=[words[:30] for _, words in WRONG])
def test_bad_input_is_named_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(questions, "build", lambda name: pytest.fail("a model was loaded"))
    if SOME in wrong.get("images", []) and "belong" not in words:
        wrong = wrong | {"images": [picture(tmp_path)]}
    with pytest.raises(ExplainError, match=words):
        command.cam(Job(TINY, tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


def test_a_picture_too_large_to_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ExplainError, match="--image .*a picture.png: larger than is safe to open"):
        command.cam(Job(TINY, tmp_path / "out", [path], ["q"]))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExplainError, match="--output .*file.out: cannot be written to"):
        command.cam(Job(TINY, tmp_path / "file" / "out", [picture(tmp_path)], ["q"]))


LAYERS = [
    ("a", "'a' is neither"),
    ("²", "'²' is neither"),
    ("1-9999999999", "is neither a number"),
    (",", "at least one"),
]
LAYERS += [("3-1", "'3-1' is neither"), ("1-", "'1-' is neither"), ("1-2-3", "is neither"), ("9" * 5000, "is neither")]


@pytest.mark.parametrize("layers, words", LAYERS, ids=[words for _, words in LAYERS])
def test_layers_are_numbers_and_ranges(layers: str, words: str) -> None:
    done = CliRunner().invoke(cli.app, ["explain", "cam", "--model", TINY, "--data", "X", "--layers", layers])
    assert done.exit_code and words in str(done.exception)


@needs_host
def test_one_question_leaves_maps_figures_and_page_and_is_not_made_twice(built: None, tmp_path: Path) -> None:
    job = Job(TINY, tmp_path / "out", [picture(tmp_path)], ["What color is the square?"], request=ONE)
    code, text = said(command.cam, job)
    stem = "redrel_tiny_a-picture"
    assert code == 0 and "1 explanation written" in text
    assert names(job.output, "npz") == [f"{stem}.npz"] and names(job.output, "json") == [f"{stem}.json"]
    assert names(job.output, "p*[gf]") == [f"{stem}_decoder_attn_grad.pdf", f"{stem}_decoder_attn_grad.png"]
    assert names(job.output, "html") == [f"{stem}.html"]
    one = load(job.output / f"{stem}.npz")
    assert one.maps("decoder", "attn_grad").shape == (1, 8, 64) and one.manifest["reply"] == "blue"
    assert one.manifest["provenance"]["weights"] == TINY and not list(job.output.glob(".*"))
    before = (job.output / f"{stem}.npz").stat().st_mtime_ns
    assert "1 were there already" in said(command.cam, job)[1]
    assert (job.output / f"{stem}.npz").stat().st_mtime_ns == before
    scenes.render([scenes.Thing(9, "square", "red")]).save(job.images[0])
    said(command.cam, job)
    assert load(job.output / f"{stem}_2.npz").manifest["reply"] == "red", "another picture under the same name"
    assert load(job.output / f"{stem}.npz").manifest["reply"] == "blue" and f"{stem}_2.html" in names(
        job.output, "html"
    )
    assert "1 were there already" in said(command.cam, job)[1]
    other = Job(TINY, job.output, job.images, job.questions, request=Request(methods=("attn",), where=("decoder",)))
    assert "there already" not in said(command.cam, other)[1]
    assert set(load(job.output / f"{stem}_2.npz").manifest["maps"]) == {"decoder/attn"}, (
        "other maps of the same question"
    )


@needs_host
def test_an_answer_of_several_tokens_is_explained_at_once(built: None, tmp_path: Path) -> None:
    job = Job(TINY, tmp_path / "out", [picture(tmp_path)], ["What color is the square?"], answer="blue.", request=ONE)
    assert said(command.cam, job)[0] == 0
    one = load(job.output / "redrel_tiny_a-picture.npz")
    assert len(one.manifest["answer"]) == len(one.manifest["z"]) > 1
    assert names(job.output, "html") == ["redrel_tiny_a-picture.html"]


@needs_host
def test_before_and_after_a_truncation(built: None, tmp_path: Path) -> None:
    job = Job(TINY, tmp_path / "out", [picture(tmp_path)], ["What color is the square?"], compare=CUT, request=ONE)
    code, text = said(command.cam, job)
    both = f"redrel_tiny_a-picture_vs_{CUT}"
    assert code == 0 and "answer: 'blue' before" in text and f"on the 8 image tokens that {CUT} keeps" in text
    assert f"{both}_decoder_attn_grad.png" in names(job.output, "png") and f"{both}.html" in names(job.output, "html")
    first, second = (load(job.output / f"{name}_a-picture.npz") for name in (TINY, CUT))
    assert first.manifest["answer"] == second.manifest["answer"]
    kept = np.isfinite(second.maps("decoder", "attn_grad")[0]).sum(1)
    assert kept.tolist() == [64, 64] + [8] * 6


@needs_host
def test_two_questions_are_compared_and_swapped_in_the_cards(built: None, tmp_path: Path) -> None:
    asked = ["What color is the square?", "What shape is the red one?"]
    job = Job(TINY, tmp_path / "out", [picture(tmp_path)], asked, request=ONE)
    assert "rank correlation" in said(command.cam, job)[1]
    said(command.cam, job)  # again: cards must not grow
    one = load(job.output / "redrel_tiny_a-picture_q1.npz")
    swaps = [card["question_swap"] for card in one.manifest["cards"]]
    assert len(swaps) == 8 and {"rank", "same_peak"} == set(swaps[0])
    assert "redrel_tiny_a-picture_q1_and_q2.html" in names(job.output, "html")


@needs_host
def test_tests_of_a_map_go_into_its_card(built: None, tmp_path: Path) -> None:
    job = Job(TINY, tmp_path / "out", [picture(tmp_path)], ["What color is the square?"], request=ONE, tested=True)
    said(command.cam, job)
    (card,) = json.loads((job.output / "redrel_tiny_a-picture.json").read_text())["cards"]
    assert 0 <= card["deletion"]["auc"] <= 1 and 0 <= card["insertion"]["random"] <= 1
    assert [test["blocks"] for test in card["randomisation"]] == [1, 4, 8]


@needs_host
def test_a_benchmark_leaves_a_table_and_pages_and_goes_on(built: None, tmp_path: Path) -> None:
    job = Job(TINY, tmp_path / "out", data="RedRelShapes", limit=2, request=ONE)
    assert said(command.cam, job)[0] == 0
    more = Job(TINY, job.output, data="RedRelShapes", limit=3, request=ONE)
    assert "1 explanation written" in said(command.cam, more)[1]
    assert names(job.output, "html") == [f"redrel_tiny_RedRelShapes_{index}.html" for index in range(3)]
    table = pd.read_parquet(job.output / "redrel_tiny_RedRelShapes_cam.parquet")
    assert len(table) == 3 * 8 and list(table["index"].unique()) == ["0", "1", "2"]
    assert set(table["points_at"]) <= {"asked", "other", "background", "none"} and table["x"].between(0, 96).all()


@needs_host
def test_a_question_that_cannot_be_explained_is_told_and_the_rest_goes_on(
    built: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = [{"type": "image", "value": str(picture(tmp_path))}, {"type": "text", "value": "What color is the bar?"}]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = [{"type": "image", "value": str(tmp_path / "broken.png")}, message[1]]
    asked = [Item("X_1", message[1:], "?", "X", "1"), Item("X_2", message, "What color is the bar?", "X", "2")]
    asked.insert(1, Item("X_3", broken, "?", "X", "3"))
    monkeypatch.setattr(questions, "of_benchmark", lambda *_args: (3, iter(asked)))
    code, text = said(command.cam, Job(TINY, tmp_path / "out", data="X", request=ONE))
    assert code == 1 and "failed: X_1: the question has no picture" in text
    assert "failed: X_3: picture" in text and "cannot be read as an image" in text
    assert names(tmp_path / "out", "npz") == ["redrel_tiny_X_2.npz"]


@needs_host
def test_a_benchmarks_flow_is_the_mean_of_its_questions(built: None, tmp_path: Path) -> None:
    job = Job(TINY, tmp_path / "out", data="RedRelShapes", limit=3)
    assert said(command.flows, job)[0] == 0
    each = [load(job.output / f"redrel_tiny_RedRelShapes_{index}_flow.npz") for index in range(3)]
    means = load(job.output / "redrel_tiny_RedRelShapes_flow.npz")
    wanted = np.mean([one.arrays["flow/attention"].mean((1, 2)) for one in each], 0)
    assert np.allclose(means.arrays["flow/mean/attention"], wanted, atol=1e-6)
    assert "flow/low/causal" not in means.arrays, "three pictures are too few to draw from"
    assert means.manifest["questions"] == 3 and len(means.manifest["flat_from"]) == 1
    table = pd.read_parquet(job.output / "redrel_tiny_RedRelShapes_flow.parquet")
    sums = table.groupby(["index", "layer"])["attention"].sum()
    assert len(sums) == 3 * 8 and np.allclose(sums, 1, atol=1e-5)
    assert "redrel_tiny_RedRelShapes_flow_curves.png" in names(job.output, "png")
    code, text = said(command.flows, replace(job, groups="paper"))
    assert code == 0 and "3 were there already" in text
    paper = load(job.output / "redrel_tiny_RedRelShapes_flow.npz")
    shares = paper.arrays["flow/mean/attention"]
    assert (
        np.allclose(shares.sum(-1), 1, atol=1e-5)
        and not shares[:, [0, 4]].any()
        and paper.manifest["grouping"] == "paper"
    )
    assert len(drawing.draw([paper.path], tmp_path / "again")) == 3, "as they were made: curves, twice, and a page"


@needs_host
def test_one_questions_flow_is_drawn(built: None, tmp_path: Path) -> None:
    job = Job(TINY, tmp_path / "out", [picture(tmp_path)], ["What color is the square?"], answer="red")
    assert said(command.flows, job)[0] == 0
    assert names(job.output, "png") == [f"redrel_tiny_a-picture_flow_{end}.png" for end in ("arcs", "curves")]
    one = load(job.output / "redrel_tiny_a-picture_flow.npz")
    assert one.tokens == ["red"] and not one.manifest["own"] and one.manifest["reply"] == "blue"


def test_cells_of_the_benchmark_are_found_on_any_grid() -> None:
    def boxes(*cells: int) -> list[tuple[int, int, int, int]]:
        return [benchmark.box_of(cell) for cell in cells]

    same = Grid(np.arange(64).reshape(8, 8), (0, 0, 96, 96), (96, 96))
    assert questions.tokens_on(same, boxes(9, 30)) == [9, 30]
    finer = Grid(np.arange(24 * 24).reshape(24, 24), (0, 0, 96, 96), (96, 96))
    rows = [(3 + row) * 24 + 3 + column for row in range(3) for column in range(3)]
    assert questions.tokens_on(finer, boxes(9)) == rows
    padded = Grid(np.arange(16).reshape(4, 4), (-96, 0, 96, 192), (96, 96))
    assert questions.tokens_on(padded, boxes(*range(64))) == [2, 3, 6, 7]


def test_a_token_that_cannot_be_decoded_alone_has_its_name() -> None:
    """Qwen-VL's code reads a picture's opening and closing tag only together."""

    class Tags:
        def decode(self, ids: list[int]) -> str:
            if ids != [5]:
                raise ValueError("Unclosed image token")
            return "word"

        def convert_ids_to_tokens(self, token: int) -> Any:
            return {1: "<img>", 2: b"\xc3\xa9"}[token]

    asked = Asked(torch.nn.Identity(), {}, [], tokenizer=Tags())
    assert asked.words([1, 5, 2]) == ["<img>", "word", "é"]


def test_flows_are_not_compared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        flow(tmp_path / f"{name}.npz")
    with pytest.raises(ExplainError, match=r"a\.npz: holds no maps; several files are compared by their maps"):
        drawing.draw([tmp_path / "a.npz", tmp_path / "b.npz"])
