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
    found = thumbnails(wanted(5), table(tmp_path, [red, "0", blue, red, None]), 10)
    shown = found.pictures
    assert [(entry["w"], entry["h"]) for entry in shown] == [(30, 20), (40, 80)] and not found.unseen
    assert found.where == {("X", "0"): [0], ("X", "1"): [0], ("X", "2"): [1], ("X", "3"): [0], ("X", "4"): []}
    assert opened(shown[0]).getpixel((3, 3))[0] > 200 and opened(shown[1]).getpixel((3, 3))[2] > 200


def test_a_reference_may_point_to_a_row_that_is_not_wanted(tmp_path: Path) -> None:
    found = thumbnails([("X", "1")], table(tmp_path, [picture(), "0"]), 10)
    assert len(found.pictures) == 1 and found.where == {("X", "1"): [0]}


def test_large_pictures_are_made_small_and_keep_their_shape(tmp_path: Path) -> None:
    shown = thumbnails(wanted(1), table(tmp_path, [picture(1600, 400, kind="JPEG")]), 1).pictures
    assert (shown[0]["w"], shown[0]["h"]) == (1600, 400)
    assert opened(shown[0]).size == (pictures.SIDE, pictures.SIDE // 4)


def test_no_more_than_asked_and_those_first_that_were_wanted_first(tmp_path: Path) -> None:
    tables = table(tmp_path, [picture(color=name) for name in ("red", "green", "blue")])
    found = thumbnails([("X", "2"), ("X", "0"), ("X", "1")], tables, 2)
    assert len(found.pictures) == 2 and found.where == {("X", "2"): [0], ("X", "0"): [1]}


def test_several_pictures_of_a_question_stay_together(tmp_path: Path) -> None:
    both = str([picture(color="red"), picture(color="blue")])
    found = thumbnails(wanted(1), table(tmp_path, [both]), 5)
    assert len(found.pictures) == 2 and found.where == {("X", "0"): [0, 1]}
    found = thumbnails(wanted(1), table(tmp_path, [both]), 1)
    assert (found.pictures, found.where) == ([], {})


def torn() -> str:
    """A PNG that begins well and ends too early."""
    data = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(data, "PNG")
    return base64.b64encode(data.getvalue()[:2000]).decode()


@pytest.mark.parametrize("bad", ["no base64 !" * 10, "a" * 100, base64.b64encode(b"no picture" * 20).decode(), torn()])
def test_what_is_no_picture_is_named_and_the_others_are_shown(tmp_path: Path, bad: str) -> None:
    found = thumbnails(wanted(3), table(tmp_path, [picture(color="red"), bad, picture(color="blue")]), 5)
    assert len(found.pictures) == 2 and found.where == {("X", "0"): [0], ("X", "2"): [1]}
    (line,) = found.unseen
    assert line.startswith("X.tsv, index 1: the column image holds no picture")


def test_a_picture_over_the_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    found = thumbnails(wanted(2), table(tmp_path, [picture(60, 60), picture(30, 20)]), 5)
    assert found.where == {("X", "1"): [0]} and "DecompressionBombError" in found.unseen[0]


def test_a_reference_to_nothing_is_named(tmp_path: Path) -> None:
    found = thumbnails(wanted(2), table(tmp_path, [picture(), "99"]), 5)
    assert found.where == {("X", "0"): [0]} and found.unseen[0].startswith("X.tsv, index 1: ")


def test_many_that_cannot_be_shown_are_counted(tmp_path: Path) -> None:
    found = thumbnails(wanted(20), table(tmp_path, ["a" * 100] * 20), 5)
    assert len(found.told()) == pictures.TOLD + 1 and found.told()[-1] == f"and {20 - pictures.TOLD} more questions"


def test_files_that_a_table_names_are_found_where_the_host_finds_them(tmp_path: Path) -> None:
    images = tmp_path / "images" / "X"
    images.mkdir(parents=True)
    for path, color in ((tmp_path / "a.png", "red"), (tmp_path / "b.png", "blue"), (images / "c.png", "green")):
        Image.new("RGB", (30, 20), color).save(path)
    rows = [str(tmp_path / "a.png"), "b.png", "c.png", "nowhere.png", "['b.png', 'c.png']"]
    frame = pd.DataFrame({"index": range(5), "image_path": rows})
    frame.to_csv(tmp_path / "X.tsv", sep="\t", index=False)
    found = thumbnails(wanted(5), {"X": tmp_path / "X.tsv"}, 10)
    assert found.where == {("X", "0"): [0], ("X", "1"): [1], ("X", "2"): [2], ("X", "4"): [1, 2]}
    assert [opened(entry).getpixel((3, 3)).index(255) for entry in found.pictures[:2]] == [0, 2]
    assert found.unseen == ["X.tsv, index 3: the file 'nowhere.png' cannot be read: No such file or directory"]


def test_a_table_without_pictures_takes_none_from_another(tmp_path: Path) -> None:
    tables = table(tmp_path, [picture()], "Y") | {"X": tmp_path / "X.tsv", "Z": tmp_path / "Z.tsv"}
    (tmp_path / "X.tsv").write_text("index\tquestion\n0\tq\n")
    (tmp_path / "Z.tsv").write_bytes(b"\x00\xff\xfe" * 50)
    found = thumbnails([("X", "0"), ("Y", "0"), ("Z", "0")], tables, 5)
    assert found.where == {("Y", "0"): [0]}
    assert "no columns 'index' and 'image' or 'image_path'" in found.unseen[0] and "Z.tsv" in found.unseen[1]


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
