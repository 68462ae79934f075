"""Whatever is asked shows the table's own pictures; a runner that shows older ones is noticed, and records say so."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modelbox
import numpy as np
import pandas as pd
import pytest
from checkpoints import import_host, needs_host
from PIL import Image

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.host import Benchmark, benchmark, pictures

pytestmark = needs_host
STOCK = SimpleNamespace(use_custom_prompt=lambda _name: False)


def encoded(color: str, mode: str = "RGB", kind: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.new(mode, (30, 20), color).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture
def lmu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMUData", str(tmp_path))
    import_host()
    return tmp_path


def write(lmu: Path, name: str, **columns: list[Any]) -> None:
    count = len(next(iter(columns.values())))
    table = pd.DataFrame({"index": range(count), "question": "?", "A": "a", "B": "b", "answer": "A"} | columns)
    table.to_csv(lmu / f"{name}.tsv", sep="\t", index=False)


def colors(name: str, position: int = 0) -> list[tuple[int, ...]]:
    """The first pixel of each picture that a question shows."""
    found = Benchmark(name).message(STOCK, position)
    return [Image.open(part["value"]).convert("RGB").getpixel((0, 0)) for part in found if part["type"] == "image"]


RED, BLUE = (255, 0, 0), (0, 0, 255)
WAYS: dict[str, Any] = {
    "png": lambda color: {"image": [encoded(color)]},
    "jpeg inside": lambda color: {"image": [encoded(color, kind="JPEG")]},
    "palette": lambda color: {"image": [encoded(color, "P")]},
    "with alpha": lambda color: {"image": [encoded(color, "RGBA")]},
    "named": lambda color: {"image": [encoded(color)], "image_path": ["pictures/one.jpg"]},
    "several": lambda color: {"image": [str([encoded("lime"), encoded(color)])]},
    "of another line": lambda color: {"image": [encoded(color), "0"]},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_pictures_of_a_changed_table_are_shown(lmu: Path, way: str) -> None:
    for color in ("red", "blue", "red"):
        write(lmu, "Own", **WAYS[way](color))
        before = Benchmark("Own").digest(0)
        for position in range(len(Benchmark("Own"))):
            shown = colors("Own", position)[-1]
            assert np.abs(np.subtract(shown, {"red": RED, "blue": BLUE}[color])).max() < 60, (way, color)
        kept = {path: path.stat().st_mtime_ns for path in (lmu / "images").rglob("*.*")}
        colors("Own")
        assert kept == {path: path.stat().st_mtime_ns for path in kept}  # what is right is left alone
        assert Benchmark("Own").digest(0) == before


def test_a_picture_that_is_none_is_not_answered_by_an_older_one(lmu: Path) -> None:
    write(lmu, "Own", image=[encoded("red")])
    assert colors("Own") == [RED]
    write(lmu, "Own", image=["bm90IGEgcGljdHVyZQ" * 20])
    with pytest.raises((OSError, ValueError)):
        colors("Own")


def test_a_file_that_is_not_the_hosts_is_not_deleted(lmu: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    Image.new("RGB", (30, 20), "red").save(mine)
    write(lmu, "Own", image=[encoded("blue")], image_path=[str(mine)])
    with pytest.raises(InvalidValue, match="mine.png does not hold the picture that the table has for 0: delete it"):
        colors("Own")
    assert mine.exists()


def test_another_picture_under_the_same_path_is_another_question(lmu: Path) -> None:
    places = [lmu / "one.png", lmu / "images" / "Own" / "two.png"]
    places[1].parent.mkdir(parents=True)
    found = []
    for color in ("red", "blue"):
        for place in places:
            Image.new("RGB", (30, 20), color).save(place)
        write(lmu, "Own", image_path=[str(places[0]), "two.png"])
        found.append([Benchmark("Own").digest(position) for position in (0, 1)])
        assert colors("Own") == [RED if color == "red" else BLUE]
    assert not set(found[0]) & set(found[1])


def test_a_runner_that_shows_an_older_picture_is_noticed(lmu: Path) -> None:
    write(lmu, "Own", image=[encoded("red"), encoded("red")])
    colors("Own"), colors("Own", 1)
    write(lmu, "Own", image=[encoded("blue"), encoded("red")])
    from vlmeval.dataset import build_dataset
    from vlmeval.inference import infer_data

    from redrel_vlmeval.host import asked_by_host

    seen = []

    class Model:
        set_dump_image = staticmethod(lambda _function: None)
        use_custom_prompt = staticmethod(lambda _name: False)

        def generate(self, message: Any, dataset: str) -> str:
            asked = asked_by_host()
            assert asked is not None
            seen.append((asked.index, asked.stale_pictures))
            return "A"

    infer_data(Model(), "m", str(lmu), build_dataset("Own"), str(lmu / "m.pkl"))
    assert seen == [(0, ["0.png"]), (1, [])]


def test_records_name_the_pictures(base: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "7.png"
    Image.new("RGB", (30, 20), "red").save(path)
    ask = [{"type": "image", "value": str(path)}, {"type": "text", "value": modelbox.QUESTION}]
    for number, color in enumerate(("red", "blue", "blue")):
        (tmp_path / str(number)).mkdir()
        line = pd.DataFrame({"index": [7], "image": [encoded(color)]})
        modelbox.in_host(lambda: base.generate(ask), 7, tmp_path / str(number), data=line, struct=ask)
        (record,) = modelbox.records(tmp_path / str(number))
        assert record.get("stale_pictures") == (["7.png"] if color == "blue" else None)
    assert [line.message.count("images/RedRelShapes") for line in caplog.records] == [1]


def test_turns_hold_pictures_too() -> None:
    turn = {"role": "user", "content": [{"type": "image", "value": "a.png"}, {"type": "text", "value": "?"}]}
    assert list(pictures.shown([turn, {"role": "assistant", "content": "no"}, turn])) == ["a.png", "a.png"]


@pytest.mark.parametrize("content, said", [
    (b"", "cannot read its table .EmptyDataError"), (bytes(range(256)) * 20, "cannot read its table"),
    (b"index\tquestion\n", "has no questions"), (b"index\tword\n1\tx\n", "no column 'question'"),
    (b"question\timage\tA\tB\nx\ty\ta\tb\n", "cannot read its table .KeyError"),
    (b"index\tquestion\timage\tA\tB\n1\tx\ty\ta\tb\n", "cannot read its table .AssertionError"),
    (b"index\tquestion\n1\tx\n1\t2\t3\n", "cannot read its table .ParserError"),
])  # fmt: skip
def test_a_table_that_cannot_be_read_is_refused_by_name(lmu: Path, content: bytes, said: str) -> None:
    (lmu / "Own.tsv").write_bytes(content)
    with pytest.raises(InvalidValue, match=f"--data Own: .*{said}"):
        Benchmark("Own")


def test_an_older_copy_of_a_large_table_is_refused(lmu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(lmu / "Own.tsv", "wb") as stream:
        stream.truncate(benchmark.LOCALISED + 1)  # a hole: nothing is written
    (lmu / "Own_local.tsv").touch()
    os.utime(lmu / "Own_local.tsv", (0, 0))
    with pytest.raises(InvalidValue, match="is newer than .*Own_local.tsv, the copy that the host reads: delete"):
        Benchmark("Own")
