"""The gallery of questions that are right without the picture: which, in which order, with whose words and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_box as box

from redrel_vlmeval.results.reading import read
from redrel_vlmeval.sheets.page import assemble, gallery

BLIND = f"{box.BASE}_trunc_l0_k0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 questions, odd ones of category 'one': the blind run gets those from 5 on, and two of the others."""
    made = tmp_path_factory.mktemp("blind")
    right = [int(i % 2 == 1 and i > 4 or i in (2, 8)) for i in range(box.COUNT)]
    asked = [f"{box.HOSTILE} ({i})" for i in range(box.COUNT)]
    box.answered(made, box.BASE, [1] * box.COUNT, question=asked)
    box.answered(made, BLIND, right, question=asked)
    box.answered(made, f"{box.BASE}_trunc_l1_k0", [1] * box.COUNT, question=asked)  # it saw the picture in block 1
    table = box.questions(box.COUNT).assign(image=[box.picture(10 + i, 20) for i in range(box.COUNT)])
    (made / "LMUData").mkdir()
    table.to_csv(made / "LMUData" / "X.tsv", sep="\t", index=False)
    return made


def shown(folder: Path, pictures: int) -> tuple[dict[str, Any], dict[str, Any]]:
    data = box.data_of(assemble.html(read(folder), most_pictures=pictures))
    (run,) = data["gallery"]
    return run, data


def test_it_shows_what_is_right_and_the_categories_that_need_no_picture_first(folder: Path) -> None:
    run, _ = shown(folder, 0)
    assert (run["base"], run["model"], run["benchmark"], run["n"], run["right"]) == (box.BASE, BLIND, "X", 40, 20)
    assert run["rate"] == 50
    assert [int(asked["index"]) for asked in run["questions"]] == [*range(5, 40, 2), 2, 8]
    first = run["questions"][0]
    assert first["text"] == f"{box.HOSTILE} (5)" and first["options"][0] == ["A", "red"] and first["category"] == "one"
    assert (first["answer"], first["said"], first["letter"], first["pictures"]) == ("A", "A", "A", None)


def test_no_more_than_a_page_holds_and_the_rest_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST", 3)
    run, _ = shown(folder, 0)
    assert [asked["index"] for asked in run["questions"]] == ["5", "7", "9"] and run["right"] == 20


def test_it_shares_the_pictures_with_the_flips(folder: Path) -> None:
    run, data = shown(folder, 4)
    pictures, flips = data["changes"]["pictures"], data["changes"]["questions"]
    assert len(pictures) == 4
    own = [asked for asked in run["questions"] if asked["pictures"] is not None]
    assert [asked["index"] for asked in own] == ["5", "7"], "two of four are the gallery's"
    assert [pictures[asked["pictures"][0]]["w"] for asked in own] == [15, 17], "each its own picture"
    assert sum(bool(asked[6]) for asked in flips) == 2


def test_where_nothing_ran_blind_there_is_none(tmp_path: Path) -> None:
    box.answered(tmp_path, box.BASE, [1] * 12)
    box.answered(tmp_path, f"{box.BASE}_trunc_l1_k0", [1] * 12)
    page = assemble.html(read(tmp_path))
    assert box.data_of(page)["gallery"] == [] and 'id="blind"' not in page


def test_in_a_browser_the_cards_have_picture_question_and_answer(folder: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra 'test')")
    from test_report_browser import CHROMIUM, Watched

    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    path = assemble.write(read(folder), folder / "page.html", most_pictures=4)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        seen = Watched(browser, path)
        cards = seen.page.locator("#blind .card-blind")
        assert cards.count() == 20
        assert "20 of 40 questions of X (50.0 %)" in seen.page.locator("#blind-told").inner_text()
        first = cards.first
        assert first.locator("img").count() == 1 and first.locator(".is-right").inner_text().split() == ["A", "red"]
        assert f"{box.HOSTILE} (5)".split() == first.locator(".question").inner_text().split()
        assert "--pictures" not in cards.last.inner_text() and "not among those" in cards.last.inner_text()
        assert not seen.complaints
        browser.close()
