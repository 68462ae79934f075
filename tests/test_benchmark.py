"""``RedRelShapes``: every answer is found again from the pixels and the words alone, and no picture was trained on."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkpoints import import_host, needs_host
from PIL import Image

from redrel_vlmeval import files
from redrel_vlmeval.models.tiny import benchmark, scenes

HOPS = {"one-hop": 1, "two-hop": 2, "three-hop": 3}
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
FACTS = {
    "What color is grass?": "green",
    "What color is blood?": "red",
    "What color is snow?": "white",
    "What color is the sky?": "blue",
    "What color is a banana?": "yellow",
    "What color is a plum?": "purple",
}
BENCHMARKS = ("RedRelShapes", "RedRelShapes_MINI")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The benchmark as the host reads it, from the file's text."""
    text = benchmark.make("RedRelShapes").to_csv(sep="\t", index=False)
    return pd.read_csv(io.StringIO(text), sep="\t")


def decode(image: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(image))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def recognise(pixels: np.ndarray) -> dict[tuple[int, int], tuple[str, str]]:
    """(row, column) -> (shape, color) of every glyph; each cell must be one glyph exactly, or bare."""
    found = {}
    for row in range(8):
        for column in range(8):
            cell = pixels[row * 12 : row * 12 + 12, column * 12 : column * 12 + 12]
            ink = (cell != scenes.BACKGROUND).any(-1)
            if not ink.any():
                continue
            (shape,) = [name for name, mask in scenes.GLYPHS.items() if np.array_equal(mask, ink)]
            (color,) = [name for name, rgb in scenes.COLORS.items() if (cell[ink] == rgb).all()]
            found[row, column] = shape, color
    return found


def solve(question: str, glyphs: dict[tuple[int, int], tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """(answer, places looked at in order) by the question's words; fails where a description is not of one glyph."""
    words = re.sub(r"^What color is the shape ", "What color is ", question.rstrip("?"))
    wanted, rest = re.fullmatch(r"What (color|shape) (?:is|has) (.*)", words).groups()
    path: list[tuple[int, int]] = []
    step = next((name for name in STEPS if rest.startswith(name)), None)
    rest = rest.removeprefix(step or "").strip()
    mates = re.fullmatch(r"(?:the one that has )?the (\w+)'s color", rest)
    key = mates[1] if mates else re.fullmatch(r"the (\w+)(?: one)?", rest)[1]
    (place,) = [where for where, glyph in glyphs.items() if key in glyph]
    path.append(place)
    if mates:
        color = glyphs[place][1]
        (place,) = [where for where, glyph in glyphs.items() if glyph[1] == color and where != place]
        path.append(place)
    if step:
        place = place[0] + STEPS[step][0], place[1] + STEPS[step][1]
        path.append(place)
    return glyphs[place][wanted == "color"], path


def test_size_columns_and_categories(table):
    assert table.columns.tolist() == ["index", "image", "question", "hint", *"ABCD", "answer", "category", "cells"]
    assert len(table) >= 600 and table["index"].is_unique
    counts = table["category"].value_counts().to_dict()
    assert set(counts) == {*HOPS, "text"} and counts["one-hop"] >= 200 and min(counts.values()) >= 100
    assert not table[["question", *"ABCD", "answer"]].isna().any().any()
    assert not table.duplicated(["image", "question"]).any()
    assert 0.1 < table["hint"].notna().mean() < 0.6


def test_every_picture_question_is_answered_by_its_pixels_and_its_cells(table):
    for line in table[table["category"] != "text"].itertuples():
        answer, path = solve(line.question, recognise(decode(line.image)))
        options = dict(zip("ABCD", (line.A, line.B, line.C, line.D), strict=True))
        assert [letter for letter, option in options.items() if option == answer] == [line.answer], line.index
        assert [row * 8 + column for row, column in path] == [int(cell) for cell in line.cells.split(",")], line.index
        hops = 2 if re.search(r"^What shape has", line.question) else HOPS[line.category]
        assert len(path) == hops == HOPS[line.category], line.index


def test_text_questions_are_answered_by_the_words_alone(table):
    kinds = set()
    for line in table[table["category"] == "text"].itertuples():
        liked = re.fullmatch(r"What color does (\w+) like\?", line.question)
        if liked:
            answer = re.fullmatch(rf"{liked[1]} likes the color (\w+)\.", line.hint)[1]
        else:
            answer = FACTS[line.question]
        options = dict(zip("ABCD", (line.A, line.B, line.C, line.D), strict=True))
        assert [letter for letter, option in options.items() if option == answer] == [line.answer]
        assert line.cells != line.cells  # NaN: no cell matters
        kinds.add(bool(liked))
    assert kinds == {True, False}


def test_options_are_four_different_words_of_one_kind_and_letters_are_even(table):
    for options in table[[*"ABCD"]].to_numpy().tolist():
        assert len(set(options)) == 4
        assert set(options) <= set(scenes.COLORS) or set(options) <= set(scenes.SHAPES)
    assert (table["answer"].value_counts(normalize=True) - 0.25).abs().max() < 0.06


def test_a_context_sentence_gives_no_picture_question_away(table):
    hints = table[(table["category"] != "text") & table["hint"].notna()]["hint"]
    assert len(hints) > 50 and hints.str.fullmatch(r"\w+ likes the color \w+\.").all()


def test_pictures_have_as_many_glyphs_as_stated(table):
    counts = {len(recognise(decode(image))) for image in table["image"]}
    fewest, most = map(int, re.search(r"scene of (\d+) to (\d+) glyphs", scenes.make_scene.__doc__).groups())
    assert counts == set(range(fewest, most + 1))


def test_the_file_is_the_same_in_every_process(tmp_path):
    code = "import sys, pathlib; from redrel_vlmeval.models.tiny.benchmark import write\n"
    code += "[write(name, pathlib.Path(sys.argv[1])) for name in ('RedRelShapes', 'RedRelShapes_MINI')]"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=True, timeout=120)
    for name in BENCHMARKS:
        text = benchmark.make(name).to_csv(sep="\t", index=False)
        assert (tmp_path / f"{name}.tsv").read_text(encoding="utf-8") == text


def test_the_small_one_is_the_first_questions_of_each_category(table):
    small = pd.read_csv(io.StringIO(benchmark.make("RedRelShapes_MINI").to_csv(sep="\t", index=False)), sep="\t")
    first = table[table["index"].isin(small["index"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(small, first)
    assert (small.groupby("category")["index"].max() % 1000 + 1 == small["category"].value_counts().sort_index()).all()


def test_no_picture_was_trained_on(table):
    from redrel_vlmeval.models.llava import input
    from tools.tiny import train
    from tools.tiny.blank import MEAN, SPECIAL, STD, make_tokenizer

    def mark(values: np.ndarray) -> str:
        return hashlib.sha256(np.ascontiguousarray(values, np.float32).tobytes()).hexdigest()

    def seen(things: list[scenes.Thing]) -> str:
        return mark(input.pixels(scenes.render(things), scenes.SIZE, MEAN, STD))

    test = {mark(input.pixels(Image.fromarray(decode(i)), scenes.SIZE, MEAN, STD)) for i in table["image"]}
    assert len(test) > 0.99 * len(table)
    batches = train.Batches(make_tokenizer(), SPECIAL.index("<image>"), pictures=8, questions=1, seed=0)
    steps = [*range(41), *np.random.default_rng(5).integers(41, 100_000, 40).tolist()]
    trained = {
        mark(picture) for step in steps for picture in batches.batch(step, train.LESSONS[-1])["pixel_values"].numpy()
    }
    for step in range(20):
        rng = np.random.default_rng([train.TRAIN_SEED, 77, step])
        trained |= {seen(scenes.make_scene(rng)) for _ in range(64)}
    assert len(trained) > 8 * len(steps) + 1200 and not test & trained
    assert seen(scenes.make_scene(np.random.default_rng([benchmark.SEED, 0, 0]))) in test  # the marks are comparable


def test_the_file_is_made_once_and_renewed_when_different(tmp_path):
    path = benchmark.write("RedRelShapes_MINI", tmp_path)
    whole, made = path.read_bytes(), path.stat().st_mtime_ns
    assert benchmark.write("RedRelShapes_MINI", tmp_path).stat().st_mtime_ns == made
    path.write_bytes(whole[: len(whole) // 2])
    benchmark.write("RedRelShapes_MINI", tmp_path)
    assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == ["RedRelShapes_MINI.tsv"]


def picture_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file())


@pytest.mark.parametrize("before", ["older", None], ids=["different", "missing"])
def test_pictures_of_an_older_file_go_with_it_and_nothing_else(tmp_path, before):
    path = tmp_path / "RedRelShapes_MINI.tsv"
    if before:
        path.write_text(before)
    kept = ["images/RedRelShapes/0.png", "images/RedRelShapes_MINI/mine.png", "images/RedRelShapes_MINI/notes.txt"]
    for name in [*kept, "images/RedRelShapes_MINI/0.png", "images/RedRelShapes_MINI/3012.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    benchmark.write("RedRelShapes_MINI", tmp_path)
    assert picture_files(tmp_path) == sorted([path.name, *kept])
    (tmp_path / "images/RedRelShapes_MINI/0.png").write_text("decoded from this file")
    benchmark.write("RedRelShapes_MINI", tmp_path)
    assert "images/RedRelShapes_MINI/0.png" in picture_files(tmp_path)


def test_a_process_that_waited_leaves_the_pictures_of_the_one_before(tmp_path):
    """The second comes while the first is writing: it waits, finds the file right, and clears nothing."""
    (tmp_path / "RedRelShapes_MINI.tsv").write_text("older")
    code = "import sys, pathlib; from redrel_vlmeval.models.tiny.benchmark import write, make\n"
    code += "make('RedRelShapes_MINI')\n"
    code += "print('here', flush=True); write('RedRelShapes_MINI', pathlib.Path(sys.argv[1]))"
    with files.in_turn(tmp_path / ".RedRelShapes_MINI.tsv.lock"):
        second = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert second.stdout.readline() == "here\n"
        time.sleep(1)
        assert second.poll() is None and (tmp_path / "RedRelShapes_MINI.tsv").read_text() == "older"
        text = benchmark.make("RedRelShapes_MINI").to_csv(sep="\t", index=False)
        benchmark.files.write_whole(tmp_path / "RedRelShapes_MINI.tsv", text.encode())
        (tmp_path / "images/RedRelShapes_MINI").mkdir(parents=True)
        (tmp_path / "images/RedRelShapes_MINI/0.png").write_text("right")
    assert second.wait(60) == 0
    second.stdout.close()
    assert picture_files(tmp_path) == ["RedRelShapes_MINI.tsv", "images/RedRelShapes_MINI/0.png"]


def test_the_folder_is_the_hosts(tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", str(tmp_path))
    assert benchmark.data_root() == tmp_path
    monkeypatch.delenv("LMUData")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert benchmark.data_root() == tmp_path / "LMUData" and (tmp_path / "LMUData").is_dir()


def test_a_folder_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"LMUData=.*none: no such folder"):
        benchmark.write("RedRelShapes_MINI")
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that even root cannot write to")
def test_a_folder_that_nobody_can_write_to_is_refused(monkeypatch):
    monkeypatch.setenv("LMUData", "/proc")
    with pytest.raises(PermissionError, match=r"/proc/RedRelShapes_MINI.tsv: cannot be written .*set LMUData"):
        benchmark.write("RedRelShapes_MINI")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match=r"cannot be written .*set LMUData"):
        benchmark.write("RedRelShapes_MINI", tmp_path)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "RedRelShapes_MINI.tsv").mkdir()
    with pytest.raises(PermissionError, match="RedRelShapes_MINI.tsv"):
        benchmark.write("RedRelShapes_MINI", tmp_path)
    with pytest.raises(OSError):
        benchmark.files.write_whole(tmp_path / "RedRelShapes_MINI.tsv", b"text")
    assert [p.name for p in tmp_path.iterdir()] == ["RedRelShapes_MINI.tsv"]


def test_two_writers_at_once_leave_a_whole_file(tmp_path):
    """Each spoils the file and mends it, over and over; a reader never sees anything but the old or the new whole."""
    code = (
        "import os, pathlib, sys; from redrel_vlmeval.models.tiny.benchmark import write\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for _ in range(60):\n"
        "    stale = folder / f'stale{os.getpid()}'; stale.write_text('stale')\n"
        "    os.replace(stale, folder / 'RedRelShapes_MINI.tsv'); write('RedRelShapes_MINI', folder)\n"
    )
    path = benchmark.write("RedRelShapes_MINI", tmp_path)
    whole = path.read_bytes()
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    states = set()
    while any(writer.poll() is None for writer in writers):
        states.add(path.read_bytes())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert states <= {whole, b"stale"} and path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["RedRelShapes_MINI.tsv"]


@needs_host
def test_the_hosts_dataset_class_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", str(tmp_path))
    import_host()
    kind = benchmark.dataset_classes()[0]
    assert kind is benchmark.dataset_classes()[0] and set(kind.supported_datasets()) == set(BENCHMARKS)
    dataset = kind("RedRelShapes_MINI")
    assert (dataset.TYPE, dataset.MODALITY, dataset.dataset_name) == ("MCQ", "IMAGE", "RedRelShapes_MINI")
    assert len(dataset) == len(benchmark.make("RedRelShapes_MINI")) and "cells" in dataset.data
    (picture,) = dataset.dump_image(dataset.data.iloc[0])
    assert str(tmp_path) in picture
    with Image.open(picture) as dumped:
        pixels = np.asarray(dumped.convert("RGB"))
    assert np.array_equal(pixels, decode(benchmark.make("RedRelShapes_MINI")["image"].iloc[0]))


@pytest.mark.parametrize("name", ["RedRelShapes", "RedRelShapes_MINI"])
def test_the_open_form_asks_the_same_for_the_word_itself(name):
    choice, open_form = benchmark.make(name), benchmark.make(name.replace("Shapes", "Shapes_VQA"))
    same = ["index", "image", "question", "hint", "category", "cells"]
    pd.testing.assert_frame_equal(choice[same], open_form[same])
    assert set(open_form) == {*same, "answer"}
    words = [line[line["answer"]] for line in choice.to_dict("records")]
    assert open_form["answer"].tolist() == words


@needs_host
def test_the_host_counts_the_word_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", str(tmp_path))
    import_host()
    kind = benchmark.dataset_classes()[1]
    dataset = kind("RedRelShapes_VQA_MINI")
    assert (dataset.TYPE, dataset.dataset_name) == ("VQA", "RedRelShapes_VQA_MINI")
    picture, text = dataset.build_prompt(dataset.data.iloc[0])
    assert Path(picture["value"]).is_file() and text["value"].endswith("?\nAnswer the question directly.")
    table = dataset.data.drop(columns="image").head(4)
    said = table["answer"].tolist()
    path = tmp_path / "redrel_tiny_RedRelShapes_VQA_MINI.xlsx"
    table.assign(prediction=[said[0], said[1].upper(), f"{said[2]}, I think", "none"]).to_excel(path, index=False)
    assert dataset.evaluate(str(path))["Overall"].tolist() == [50.0]
    assert dataset.dataset_name == "RedRelShapes_VQA_MINI"
