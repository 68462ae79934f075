"""Thumbnails come from the benchmark's TSV, each distinct picture once, references followed."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from report_box import picture

from redrel_vlmeval.sheets.page import pictures
from redrel_vlmeval.sheets.page.pictures import PictureError, find_tables, folders, thumbnails


def table(folder: Path, images: list[str | None], name: str = "X") -> dict[str, Path]:
    path = folder / f"{name}.tsv"
    pd.DataFrame({"index": range(len(images)), "image": images, "question": "q"}).to_csv(path, sep="\t", index=False)
    return {name: path}


def wanted(count: int) -> list[tuple[str, str]]:
    return [("X", str(index)) for index in range(count)]


def opened(entry: dict) -> Image.Image:
    head, _, code = entry["src"].partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(code)))


def test_equal_pictures_and_references_stand_once(tmp_path: Path) -> None:
    red, blue = picture(color="red"), picture(40, 80, color="blue")
    shown, where = thumbnails(wanted(5), table(tmp_path, [red, "0", blue, red, None]), 10)
    assert [(entry["w"], entry["h"]) for entry in shown] == [(30, 20), (40, 80)]
    assert where == {("X", "0"): [0], ("X", "1"): [0], ("X", "2"): [1], ("X", "3"): [0], ("X", "4"): []}
    assert opened(shown[0]).getpixel((3, 3))[0] > 200 and opened(shown[1]).getpixel((3, 3))[2] > 200


def test_a_reference_may_point_to_a_row_that_is_not_wanted(tmp_path: Path) -> None:
    shown, where = thumbnails([("X", "1")], table(tmp_path, [picture(), "0"]), 10)
    assert len(shown) == 1 and where == {("X", "1"): [0]}


def test_large_pictures_are_made_small_and_keep_their_shape(tmp_path: Path) -> None:
    shown, _ = thumbnails(wanted(1), table(tmp_path, [picture(1600, 400, kind="JPEG")]), 1)
    assert (shown[0]["w"], shown[0]["h"]) == (1600, 400)
    assert opened(shown[0]).size == (pictures.SIDE, pictures.SIDE // 4)


def test_no_more_than_asked_and_those_first_that_were_wanted_first(tmp_path: Path) -> None:
    tables = table(tmp_path, [picture(color=name) for name in ("red", "green", "blue")])
    shown, where = thumbnails([("X", "2"), ("X", "0"), ("X", "1")], tables, 2)
    assert len(shown) == 2 and where == {("X", "2"): [0], ("X", "0"): [1]}


def test_several_pictures_of_a_question_stay_together(tmp_path: Path) -> None:
    both = str([picture(color="red"), picture(color="blue")])
    shown, where = thumbnails(wanted(1), table(tmp_path, [both]), 5)
    assert len(shown) == 2 and where == {("X", "0"): [0, 1]}
    assert thumbnails(wanted(1), table(tmp_path, [both]), 1) == ([], {})


@pytest.mark.parametrize("column", ["no base64 !", "a" * 100, base64.b64encode(b"no picture" * 20).decode()])
def test_what_is_no_picture_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(PictureError, match=r"X\.tsv, index 0: the column image holds no picture"):
        thumbnails(wanted(1), table(tmp_path, [column if len(column) > 64 else column * 10]), 5)


def test_a_table_without_pictures_says_so(tmp_path: Path) -> None:
    (tmp_path / "X.tsv").write_text("index\tquestion\n0\tq\n")
    with pytest.raises(PictureError, match="no columns 'index' and 'image'"):
        thumbnails(wanted(1), {"X": tmp_path / "X.tsv"}, 5)


def test_tables_are_looked_for_where_hosts_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, own = tmp_path / "named", tmp_path / "outputs" / "LMUData"
    own.mkdir(parents=True)
    table(own, [picture()])
    monkeypatch.setenv("LMUData", str(named))
    places = folders(tmp_path / "outputs", None)
    assert places == [named, own, Path.home() / "LMUData"]
    assert find_tables(["X", "Y"], places) == {"X": own / "X.tsv"}
    assert folders(tmp_path, own) == [own]
    with pytest.raises(PictureError, match=r"found no Y\.tsv, Z\.tsv in .*--data-folder"):
        find_tables(["Y", "Z"], [named, own])
    with pytest.raises(PictureError, match="no such folder"):
        folders(tmp_path, named)
