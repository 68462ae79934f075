"""The report in a real headless Chromium: it sorts, filters, opens flips and switches its theme, and complains not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import report_box as box

from redrel_vlmeval.results.reading import read
from redrel_vlmeval.sheets.page import assemble as report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra 'test')")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        # Root, as in containers, cannot have the sandbox.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same results once with plain texts, once with texts that would like to be markup."""
    made = {}
    for name, text in {"plain": "What color is it?", "hostile": box.HOSTILE}.items():
        folder = box.write(tmp_path_factory.mktemp(name), text)
        made[name] = report.write(read(folder), folder / "page.html", most_pictures=5)
    return made


class Watched:
    """A page opened from its file, with everything that it complained of or asked for."""

    def __init__(self, browser, path: Path, **context: object) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | context))
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._asked)
        self.path = path
        self.page.goto(path.as_uri())

    def _asked(self, request) -> None:
        if not request.url.startswith("data:") and request.url.split("#")[0] != self.path.as_uri():
            self.complaints.append(f"request: {request.url}")

    def pick(self, label: str, value: str) -> None:
        self.page.locator(f"select[aria-label='{label}']").select_option(value)

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]


@pytest.fixture
def opened(browser, files) -> Iterator[Watched]:
    watched = Watched(browser, files["plain"])
    yield watched
    assert watched.complaints == []
    watched.context.close()


RULES = ("attention", "random")
NAMES, SCORES = "#board-table tbody .who", "#board-table tbody td:nth-child(2)"


def test_the_leaderboard_sorts_both_ways_with_missing_scores_last(opened: Watched) -> None:
    head = opened.page.get_by_role("button", name="Score", exact=True)
    for direction in ("descending", "ascending"):
        head.click()
        assert opened.page.locator("#board-table th[aria-sort]").nth(1).get_attribute("aria-sort") == direction
        scores = opened.texts(SCORES)
        values = [float(text) for text in scores if text != "–"]
        assert values == sorted(values, reverse=direction == "descending") and len(set(values)) > 4
        assert scores[-3:] == ["–"] * 3
    opened.page.get_by_role("button", name="K", exact=True).click()
    assert [text for text in opened.texts("#board-table tbody td:nth-child(8)") if text][0] == "8"


def test_the_leaderboard_filters_and_says_how_many_are_left(opened: Watched) -> None:
    everything = len(opened.texts(NAMES))
    opened.pick("Verdict", "worse")
    badges = opened.texts("#board-table tbody .badge")
    assert badges and set(badges) == {"▼ worse"} and len(badges) < everything
    opened.pick("Verdict", "open")
    assert sorted(opened.texts("#board-table tbody .badge")) == ["failed", "partial", "running"]
    opened.pick("Verdict", "")
    opened.page.locator("#board-filters input").fill("l2_k8_")
    assert len(opened.texts(NAMES)) == 2
    assert "2 of 10 rows" in opened.page.locator("#board-filters output").inner_text()
    opened.page.locator("#board-filters input").fill("nothing like it")
    assert "No row matches" in opened.page.locator("#board-table tbody").inner_text()


def test_a_row_opens_to_its_comparison_in_words(opened: Watched) -> None:
    button = opened.page.get_by_role("button", name="Details of redrel_tiny_trunc_l4_k8 on X")
    button.click()
    assert "boom" in opened.page.locator("#board-table .detail").inner_text()
    button.click()
    assert opened.page.locator("#board-table .detail").count() == 0


def test_flips_open_from_the_leaderboard_and_step_by_keys(opened: Watched) -> None:
    line = opened.page.locator("tr[data-model='redrel_tiny_trunc_l2_k32']")
    up, down = map(int, re.findall(r"\d+", line.locator("button.link").inner_text()))
    line.locator("button.link").click()
    place = opened.page.locator("#flip-place")
    assert place.inner_text() == f"1 of {up + down}" and up + down > 3
    first = opened.page.locator(".flip").inner_text()
    assert "redrel_tiny" in first and "l2_k32" in first and "32 of 64 image tokens kept" in first
    opened.page.keyboard.press("ArrowRight")
    assert place.inner_text().startswith("2 of") and opened.page.locator(".flip").inner_text() != first
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowLeft")
    assert place.inner_text().startswith("2 of")
    opened.page.keyboard.press("End")
    assert opened.page.get_by_role("button", name="Next flip").is_disabled()
    selected = opened.page.locator("#flip-list li[aria-selected='true']")
    assert selected.get_attribute("id") == f"flip-{up + down - 1}"
    opened.pick("Variant", "")
    opened.pick("Direction", "0")
    assert set(opened.texts("#flip-list .sign")) <= {"▲"}


def test_a_flip_shows_the_picture_on_its_padded_square_with_the_dropped_tokens_dimmed(opened: Watched) -> None:
    """30 x 20 pixels, 5 above and below; the first 8 of 64 tokens are the square's first row."""
    opened.page.locator("tr[data-model='redrel_tiny_trunc_l2_k8'] button.link").click()
    drawing = opened.page.locator(".flip .picture svg")
    assert drawing.get_attribute("viewBox") == "0 0 30 30"
    picture = drawing.locator("image")
    assert [picture.get_attribute(name) for name in ("x", "y", "width", "height")] == ["0", "5", "30", "20"]
    dropped = drawing.locator("path.dropped").get_attribute("d")
    assert dropped.count("M") == 56 and dropped.startswith("M0 3.75h") and "M0 0h" not in dropped
    opened.page.get_by_label("show tokens: outlined kept, hatched dropped").uncheck()
    assert not opened.page.locator(".overlay").is_visible()


# 16 tokens over the whole picture, then rows of 7 with an end each, of which the first column is padding in part
TILED = [[0, "whole", 0, 4, 4, 4, 0, 0, 1, 1], [0, "tiles", 16, 6, 7, 8, -0.1, 0, 1, 1]]


def test_a_flip_of_a_picture_in_tiles_shows_it_twice(browser, tmp_path: Path) -> None:
    folder = box.write(tmp_path)
    for file in folder.glob("*/*_redrel.jsonl"):
        more = {"views": TILED, "kept": {"2": [0, 17, 31, 40]}} if file.parent.name.endswith("l2_k8") else {}
        lines = [json.loads(line) | {"backend": "a.Class"} | more for line in file.read_text().splitlines()[:-1]]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    watched = Watched(browser, report.write(read(folder), folder / "page.html", most_pictures=5))
    watched.page.locator("tr[data-model='redrel_tiny_trunc_l2_k8'] button.link").click()
    whole, tiles = watched.page.locator(".flip .picture svg").all()
    assert [drawing.get_attribute("viewBox") for drawing in (whole, tiles)] == ["0 0 30 20", "0 0 33 20"]
    assert whole.locator("path.dropped").get_attribute("d").count("M") == 15
    assert tiles.locator("path.dropped").get_attribute("d").count("M") == 40  # 31 is the end of a row
    assert tiles.locator("image").get_attribute("x") == "3"
    assert watched.texts(".flip .picture .soft") == ["as a whole: 1 of 16", "in tiles: 2 of 42"]
    watched.page.get_by_label("show tokens: outlined kept, hatched dropped").uncheck()
    assert not any(overlay.is_visible() for overlay in watched.page.locator(".overlay").all())
    assert watched.complaints == []
    watched.context.close()


def test_a_link_leads_to_its_flip(opened: Watched, browser, files) -> None:
    opened.page.get_by_role("button", name="Next flip").click()
    text = opened.page.locator(".flip .head").inner_text()
    address = opened.page.get_by_role("link", name="Link to this flip").get_attribute("href")
    other = Watched(browser, files["plain"])
    other.page.goto(files["plain"].as_uri() + address)
    other.page.reload()
    assert other.page.locator(".flip .head").inner_text() == text and other.complaints == []
    other.context.close()


def test_points_grid_and_curves_are_drawn_and_named(opened: Watched) -> None:
    marks = opened.page.locator("#scatter .mark")
    labels = [mark.get_attribute("aria-label") for mark in marks.all()]
    assert len(labels) == 7 and any("redrel_tiny_trunc_l2_k8_random" in label for label in labels)
    opened.pick("Cost", "average_image_tokens")
    assert "average image tokens" in marks.first.get_attribute("aria-label")
    assert opened.page.locator("#heat table").count() == 3 and len(opened.texts("#heat td")) == 6
    assert all(text[0] in "+−±" for text in opened.texts("#heat td")), "differences to the base come first"
    fills = opened.page.locator("#heat td").evaluate_all("cells => cells.map((cell) => cell.style.background)")
    assert "not truncated: " in opened.page.locator("#heat .key").inner_text() and len(set(fills)) > 2
    opened.pick("Number", "score")
    assert not any(text[0] in "+−±" for text in opened.texts("#heat td"))
    again = opened.page.locator("#heat td").evaluate_all("cells => cells.map((cell) => cell.style.background)")
    assert again == fills, "colours turn at the base, whichever number is shown"
    assert opened.page.locator("#over-k .mark").count() == 6
    marks.nth(2).focus()
    assert opened.page.locator("#tip").is_visible()
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("#board-table .detail").count() == 1


def test_the_efficient_variants_are_those_that_nothing_beats_for_less(opened: Watched) -> None:
    found = opened.page.evaluate(
        "redrel.frontier([[3, 9], [1, 5], [2, 4], [2, 7], [4, 9]].map(([c, value]) => ({c, value})), 'c')"
    )
    assert [(point["c"], point["value"]) for point in found] == [(1, 5), (2, 7), (3, 9)]
    same = "redrel.frontier([[0.50011, 5], [0.50012, 6], [0.6, 7]].map(([c, value]) => ({c, value})), 'c')"
    assert [point["value"] for point in opened.page.evaluate(same)] == [6, 7], "costs shown as the same are the same"


def test_names_of_efficient_points_touch_no_marker(opened: Watched) -> None:
    opened.page.locator("#scatter").scroll_into_view_if_needed()
    marks = [mark.bounding_box() for mark in opened.page.locator("#scatter .mark > :last-child").all()]
    names = [name.bounding_box() for name in opened.page.locator("#scatter text.label").all()]
    assert len(names) > 1 and len(marks) == 7
    for name in names:
        for mark in marks:
            clear = name["x"] > mark["x"] + mark["width"] + 2 or name["x"] + name["width"] + 2 < mark["x"]
            assert clear or name["y"] > mark["y"] + mark["height"] or name["y"] + name["height"] < mark["y"]


def test_points_on_one_score_stand_beside_each_other_and_no_layer_is_a_ring(opened: Watched) -> None:
    """Two layers and two rules with the same K and score, and L = 0."""
    points = [[0, 0, "attention", 50, None, None]]
    points += [[layer, keep, rule, 50, None, None] for layer in (1, 2) for keep in (0, 8, 400) for rule in RULES]
    curve = {"baseline": 60, "points": points}
    opened.page.evaluate("curve => Object.assign(redrel.data.curves[0], curve)", curve)
    opened.page.set_viewport_size({"width": 1200, "height": 900})  # which draws anew
    playwright.expect(opened.page.locator("#over-k .mark")).to_have_count(13)
    centres = [mark.bounding_box() for mark in opened.page.locator("#over-k .mark > :last-child").all()]
    at_zero = sorted(box["x"] + box["width"] / 2 for box in centres)[:5]
    assert all(2 <= after - before <= 4 for before, after in zip(at_zero, at_zero[1:], strict=False)), at_zero
    ring = opened.page.locator("#over-k .mark > :last-child").first
    assert ring.get_attribute("fill") == "none" and ring.evaluate("node => node.tagName") == "circle"
    titles = opened.page.locator("#over-k text, #over-l text").all_text_contents()
    titles = [text for text in titles if "K" in text or "block" in text]
    assert titles == ["image tokens kept, K (log scale)", "decoder block L after which image tokens are dropped"]
    star = opened.page.evaluate("redrel.marker('star', 0, 0, 5, 'red').getAttribute('d')")
    assert star.count("L") == 9, "a star, as in the figures"


def test_the_glance_says_what_cannot_be_shown_with_so_few_questions(opened: Watched) -> None:
    said = opened.page.locator("#glance-cards").inner_text()
    assert "No variant can be shown to lose less than 2 points with 40 questions; it takes about" in said


def test_the_glance_links_what_was_shown_and_gives_its_interval(browser, tmp_path: Path) -> None:
    watched = Watched(browser, report.write(read(box.write_many(tmp_path)), tmp_path / "page.html"))
    text = watched.page.locator("#glance-cards").inner_text()
    words = (
        r"Cheapest shown to lose less than 2 points: (\S+): ([+−±][\d.]+) \(95\s%\sCI (\S+) to (\S+)\), at ([\d.]+) of"
    )
    found = re.search(words, text)
    assert found and found[1] == "l6_k8"
    row = watched.page.locator(f"tr[data-model='redrel_tiny_trunc_{found[1]}']").inner_text()
    assert all(found[number] in row for number in (2, 3, 4, 5)) and watched.complaints == []


def test_the_glossary_has_the_words_of_the_headers(opened: Watched) -> None:
    opened.page.locator("summary", has_text="What the columns mean").click()
    heads = opened.texts("#board-table thead th button")
    terms = opened.texts("#notes dt")
    assert terms[: len(heads)] == heads and len(set(terms)) == len(terms)
    assert all(len(text) > 10 for text in opened.texts("#notes dd"))


def test_no_row_of_a_short_leaderboard_is_cut_off(opened: Watched) -> None:
    assert opened.page.locator("#board").evaluate("box => box.scrollHeight - box.clientHeight") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_switched(browser, files, scheme: str) -> None:
    watched = Watched(browser, files["plain"], color_scheme=scheme)

    def light() -> bool:
        color = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in color[4:-1].split(",")) > 380

    assert light() == (scheme == "light")
    watched.page.get_by_role("button", name="Switch between light and dark").click()
    assert light() == (scheme == "dark")
    watched.page.wait_for_timeout(200)  # Chromium keeps what a page stores a moment later
    watched.page.reload()
    assert light() == (scheme == "dark") and watched.complaints == []
    watched.context.close()


@pytest.mark.parametrize("width", [400, 1400])
def test_texts_that_would_be_markup_stay_texts(browser, files, width: int) -> None:
    watched = Watched(browser, files["hostile"], viewport={"width": width, "height": 800})
    question = watched.page.locator(".flip .question").inner_text()
    assert "<script>alert(1)</script>" in question and "{{ 7*7 }}" in question and "onerror" in question
    assert watched.page.locator("img[src='x']").count() == 0
    assert watched.page.locator("script:not([type])").count() == 8
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.complaints == []
    watched.context.close()


def test_on_a_narrow_page_names_break_between_words_only(browser, files) -> None:
    watched = Watched(browser, files["plain"], viewport={"width": 400, "height": 800})
    name = watched.page.locator("tr[data-model='redrel_tiny_trunc_l2_k8_random'] .setting")
    width = "node => { const text = [...node.childNodes].at(-1), range = document.createRange(); "
    width += "range.selectNodeContents(text); return [text.textContent, range.getClientRects().length]; }"
    assert name.evaluate(width) == ["random", 1]
    assert name.inner_text().replace("\n", "") == "l2_k8_random"
    watched.page.set_viewport_size({"width": 900, "height": 800})
    assert name.bounding_box()["height"] < 30, "there is room for one line"
    watched.context.close()


def test_the_rule_above_the_foot_is_as_wide_as_the_content(opened: Watched) -> None:
    ends = "(node, pseudo) => { const own = node.getBoundingClientRect(), style = getComputedStyle(node);"
    ends += "return [own.left + parseFloat(style.paddingLeft), own.right - parseFloat(style.paddingRight)]; }"
    foot = opened.page.locator("footer")
    assert foot.evaluate("node => getComputedStyle(node).borderTopWidth") == "0px"
    assert foot.evaluate("node => getComputedStyle(node, '::before').borderTopWidth") == "1px"
    assert foot.evaluate(ends) == opened.page.locator("main").evaluate(ends)


def test_keyboard_alone_reaches_every_control(opened: Watched) -> None:
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    unnamed = opened.page.evaluate(
        "[...document.querySelectorAll('button, select, input, a, [tabindex=\"0\"]')].filter((node) => "
        "!(node.textContent.trim() || node.getAttribute('aria-label') || node.closest('label'))).length"
    )
    assert unnamed == 0
