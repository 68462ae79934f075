"""The page of an explanation: what it holds, how large it is, and in a real Chromium that its controls work."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import explain_files as files
import numpy as np
import pytest
from PIL import Image

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.draw import page, view

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert(1)</script></script><!-- {{ 7*7 }} <img src=x onerror=alert(2)> \u2028"


def held(text: str) -> dict[str, Any]:
    """The data of a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def test_the_page_holds_every_value_of_the_maps() -> None:
    one = files.truncated(tokens=2)
    (entry,) = held(page.html([one]))["entries"]
    maps = next(maps for maps in entry["maps"] if maps["method"] == "attn")
    (sheet,) = maps["sheets"]
    assert maps["tokens"] == [-1, 0, 1] and maps["layers"] == [1, 2, 3, 4]
    cells = np.frombuffer(base64.b64decode(sheet["cells"]), np.uint8).reshape(3, 4, 6, 6)
    for place, token in enumerate((None, 0, 1)):
        wanted = view.sheet(one, "decoder", "attn", token).values
        peaks = np.array(sheet["peaks"][place])[:, None, None]
        found = np.where(cells[place] == 255, np.nan, cells[place] / 254 * peaks)
        assert (np.isnan(found) == np.isnan(wanted)).all()
        assert np.nanmax(np.abs(found - wanted) / peaks) < 0.003
    assert held(page.html([one]))["entries"][0]["maps"][0]["sheets"][0]["status"][0][3] == "no_gradient"


def big(tokens: int) -> Any:
    """As large as LLaVA-1.5: 32 blocks, 24 x 24 tokens, 4 methods, a photograph of 768 pixels."""
    methods = ("elementwise", "gradcam", "attn", "attn_grad")
    one = files.stored(layers=32, side=24, tokens=tokens, methods=methods, size=(768, 512))
    one.arrays["picture/0"] = np.random.default_rng(0).integers(0, 255, (512, 768, 3)).astype(np.uint8)
    return one


def test_a_page_stays_under_three_megabytes_and_says_what_it_left_out() -> None:
    short, long = page.html([big(3)]), page.html([big(40)])
    assert held(short)["left_out"] == 0 and len(short.encode()) < 1_500_000
    left = held(long)["left_out"]
    assert len(long.encode()) < 3_000_000 and left > 0
    assert len(held(long)["entries"][0]["maps"][0]["tokens"]) == 1 + 40 - left
    with pytest.raises(ExplainError, match="give fewer files"):
        page.html([big(1)] * 9)


def test_texts_stay_texts_and_nothing_is_fetched() -> None:
    text = page.html([files.stored(question=HOSTILE, reply=HOSTILE, model=HOSTILE)])
    assert "<script>alert" not in text and "<img src=x" not in text
    assert held(text)["entries"][0]["question"] == HOSTILE
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", text) and "default-src 'none'" in html.unescape(text)


def test_a_page_is_html(tmp_path: Path) -> None:
    with pytest.raises(ExplainError, match="written as .html, got the ending '.png'"):
        page.write([files.stored()], tmp_path / "p.png")


playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra 'test')")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Root, as in containers, cannot have the sandbox.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Watched:
    """A page opened from its file, and everything it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.page = browser.new_context(**({"viewport": {"width": 1300, "height": 1000}} | context)).new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        asked = lambda request: None if request.url.startswith(("data:", path.as_uri())) else request.url  # noqa: E731
        self.page.on("request", lambda request: asked(request) and self.complaints.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def pixel(self, x: float, y: float, stage: int = 0, of: str = ".view canvas") -> list[int]:
        """Red, green, blue of a place of the picture, 0 to 1 each way."""
        code = """([of, n, x, y]) => { const c = document.querySelectorAll(of)[n];
            const one = document.createElement('canvas');
            const pen = one.getContext('2d', { willReadFrequently: true });
            one.width = one.height = 1;
            pen.drawImage(c, Math.round(x * c.width), Math.round(y * c.height), 1, 1, 0, 0, 1, 1);
            return [...pen.getImageData(0, 0, 1, 1).data]; }"""
        return self.page.evaluate(code, [of, stage, x, y])[:3]

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text().strip()

    def layer(self, number: int) -> None:
        self.page.locator("#layer").fill(str(number - 1))


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Watched]:
    cards = [{"where": "decoder", "method": "attn", "layer": 2, "points_at": "asked"}]
    watched = Watched(browser, page.write([files.stored(tokens=2, cards=cards)], tmp_path / "p.html"))
    watched.page.locator("#grey").check()
    watched.page.locator("#opacity").fill("100")
    yield watched
    assert watched.complaints == []


LAST = (55 / 60, 35 / 40)  # the middle of token 30 of 36, the highest that is not padding


@in_browser
def test_slider_and_arrows_change_the_layer(opened: Watched) -> None:
    opened.page.locator("#method").select_option("attn (decoder)")
    opened.layer(1)
    low = sum(opened.pixel(*LAST))
    assert opened.text("#layer-name") == "1 of 4"
    opened.page.locator("#forth").click()
    assert opened.text("#layer-name") == "2 of 4"
    opened.layer(4)
    assert sum(opened.pixel(*LAST)) < low - 100, "on one scale the fourth layer is four times as high"
    opened.page.locator("#scale").select_option("layer")
    dark = opened.pixel(*LAST)
    opened.layer(1)
    assert opened.pixel(*LAST) == dark, "on its own scale every layer's highest cell looks alike"


@in_browser
def test_hover_and_keyboard_tell_a_cells_value(opened: Watched) -> None:
    opened.page.locator("#method").select_option("attn (decoder)")
    opened.layer(2)
    canvas = opened.page.locator(".view canvas").first
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * LAST[0], "y": box["height"] * LAST[1]})
    assert opened.text(".readout") == "row 5, column 6: 90"  # 2 * 30, mean over two tokens: 1.5 times
    canvas.press("ArrowLeft")
    assert opened.text(".readout").startswith("row 5, column 5: 87")
    opened.page.locator("#tokens button", has_text="b").click()
    canvas.hover(position={"x": box["width"] * LAST[0] - 1, "y": box["height"] * LAST[1]})
    assert opened.text(".readout") == "row 5, column 6: 120"


@in_browser
def test_methods_states_and_the_card(opened: Watched) -> None:
    opened.page.locator("#method").select_option("elementwise (decoder)")
    opened.layer(4)
    assert opened.text(".state") == "no gradient"
    opened.page.locator("#method").select_option("attn (decoder)")
    assert opened.page.locator(".state").first.is_hidden()
    assert "points at" not in opened.text("#card")
    opened.page.locator("#strips button").nth(1).click()
    assert opened.text("#layer-name") == "2 of 4"
    assert "the object asked for" in opened.text("#card")


@in_browser
def test_opacity_shows_the_picture_alone(opened: Watched) -> None:
    opened.page.locator("#method").select_option("attn (decoder)")
    opened.layer(4)
    over = opened.pixel(*LAST)
    opened.page.locator("#opacity").fill("0")
    alone = opened.pixel(*LAST)
    assert len(set(alone)) == 1 and sum(alone) > sum(over) + 100, "grey, and light"
    opened.page.locator("#grey").uncheck()
    opened.page.wait_for_timeout(100)
    assert opened.pixel(*LAST) != alone


@in_browser
def test_two_explanations_side_by_side_on_one_scale(browser: Any, tmp_path: Path) -> None:
    watched = Watched(browser, page.write([files.stored(), files.truncated(tokens=1)], tmp_path / "p.html"))
    watched.page.locator("#method").select_option("attn (decoder)")
    watched.layer(3)
    kept = ((20 % 6 + 0.5) / 6, (20 // 6 * 10 + 5 - 10) / 40)
    assert watched.pixel(*kept) == watched.pixel(*kept, stage=1)
    canvas = watched.page.locator(".view canvas").nth(1)
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * LAST[0], "y": box["height"] * LAST[1]})
    assert watched.page.locator(".readout").nth(1).inner_text() == "row 5, column 6: token dropped"
    assert "2 after block 2" in watched.page.locator("#card").inner_text()
    assert watched.complaints == []


@in_browser
@pytest.mark.parametrize("dots, width", [(1, 1300), (1, 1127), (1.5, 1300), (2, 700)])
def test_hatching_is_even_on_the_screen(browser: Any, tmp_path: Path, dots: float, width: int) -> None:
    """Wherever one looks, hatching is as light as elsewhere: a canvas scaled by the browser has rings and waves."""
    one = files.truncated(keep=(13,), size=(60, 60))
    one.arrays["picture/0"][:] = 90  # it is seen through the hatching
    path = page.write([one, files.stored(size=(60, 60))], tmp_path / "p.html")
    watched = Watched(browser, path, viewport={"width": width, "height": 900}, device_scale_factor=dots)
    watched.page.locator("#method").select_option("attn (decoder)")
    watched.layer(4)
    shot = watched.page.locator(".view canvas").first.screenshot()
    drawn = np.asarray(Image.open(io.BytesIO(shot)).convert("L"), float)
    cell, patch = drawn.shape[0] // 6, round(28 * dots)  # below the one kept cell of the third row: all dropped
    hatched = drawn[3 * cell + 6 : -12, 12:-12]
    rows, columns = (size // patch for size in hatched.shape)
    whole = hatched[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch).mean((1, 3))
    assert rows > 2 and columns > 5 and np.ptp(whole) < 12 and hatched.std() > 20
    assert watched.complaints == []


@in_browser
def test_the_key_has_the_maps_colours_and_words(opened: Watched) -> None:
    """The ramp's last colour is that of the highest cell, at any opacity."""
    opened.page.locator("#method").select_option("attn (decoder)")
    opened.layer(4)
    assert opened.text("#ramp-name") == "attention, mean over heads"
    for opacity in ("100", "40"):
        opened.page.locator("#opacity").fill(opacity)
        assert np.abs(np.subtract(opened.pixel(0.998, 0, of="#ramp"), opened.pixel(*LAST))).max() < 45
    over, bare = opened.pixel(0.998, 0, of="#ramp"), opened.pixel(0, 0, of="#ramp")
    mean = view.ground(files.stored().arrays["picture/0"])
    assert abs(bare[0] - view.greyed(mean)[0]) <= 2 and len(set(bare)) == 1
    assert sum(over) > 250, "at 40 % the picture shines through"
    opened.page.locator("#method").select_option("elementwise (decoder)")
    assert opened.text("#ramp-name") == "gradient × activation; logit"


@in_browser
def test_sums_share_a_scale_where_colours_do(browser: Any, tmp_path: Path) -> None:
    low = files.stored(model="low", methods=("attn",))
    low.arrays["maps/decoder/attn"] /= 4
    watched = Watched(browser, page.write([files.stored(methods=("attn",)), low], tmp_path / "p.html"))
    width = lambda place: float(  # noqa: E731
        watched.page.locator("#strips .strip").nth(place).locator("i").last.evaluate("e => parseFloat(e.style.width)")
    )
    assert width(0) == pytest.approx(100) and width(1) == pytest.approx(25, abs=0.1)
    watched.page.locator("#scale").select_option("layer")
    assert width(0) == pytest.approx(100) and width(1) == pytest.approx(100)


@in_browser
def test_the_card_says_what_a_comparison_found(browser: Any, tmp_path: Path) -> None:
    watched = Watched(browser, page.write([files.stored(), files.truncated(reply="else")], tmp_path / "p.html"))
    watched.page.locator("#method").select_option("attn (decoder)")
    watched.layer(3)
    first, second = watched.page.locator("#card .card").all_inner_texts()
    for text, share in ((first, "5.3 %"), (second, "100.0 %")):
        assert "it flips: “ab” from a_model, “else” from a_model_trunc_l2_k2" in text
        assert f"{share} on the 2 that a_model_trunc_l2_k2 keeps" in text
    assert "Truncated" not in watched.text("#stages"), "the heading says so already"
    alone = Watched(browser, page.write([files.stored()], tmp_path / "q.html"))
    assert "flips" not in alone.text("#card") and "share on" not in alone.text("#card")


@in_browser
@pytest.mark.parametrize("scheme, width", [("light", 1300), ("dark", 380)])
def test_flow_curves_and_hostile_texts(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    one = files.flow(tmp_path / "f.npz", question=HOSTILE, reply=HOSTILE, answer=[{"id": 1, "text": HOSTILE}])
    path = page.write([one], tmp_path / "p.html")
    watched = Watched(browser, path, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert watched.page.locator("#flows svg[role='group']").count() == 3
    assert watched.page.locator("#flows path[data-group='img']").count() == 2
    assert "flat from 2" in watched.text("#flows") and watched.page.locator("#maps").is_hidden()
    assert watched.page.locator("#flows [data-mark='uncut']").count() == 1
    shown = watched.page.locator("#flows .legend li").all_inner_texts()
    assert shown == ["system text (3 tokens)", "image (36 tokens)", "user text (4 tokens)", "not cut", "flat from here"]
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.complaints == []


@in_browser
@pytest.mark.parametrize("flat, marks", [([2, 1, 3], ["interval", "uncut", "flat"]), ([4, 3, 4], ["uncut"])])
def test_where_a_benchmark_is_flat_has_its_interval(
    browser: Any, tmp_path: Path, flat: list[int], marks: list[str]
) -> None:
    groups = {"bos": 1, "sys": 0, "img": 36, "user": 4, "out": 1}
    one = files.flow(flat_from=flat, questions=7, benchmark="B", groups=groups)
    one.arrays["flow/attention"][..., 0] = 0.1
    watched = Watched(browser, page.write([one], tmp_path / "p.html"))
    found = watched.page.locator("#flows [data-mark]")
    assert found.evaluate_all("nodes => nodes.map((node) => node.dataset.mark)") == marks
    shown = watched.page.locator("#flows .legend li").all_inner_texts()
    assert "first token (sink) (1 token)" in shown and ("its 95 % interval" in shown) == ("interval" in marks)
    if "flat" in marks:
        one, two = (
            watched.page.locator(f"#flows [data-mark='{name}']").bounding_box() for name in ("flat", "interval")
        )
        assert two["x"] + two["width"] / 2 == pytest.approx(one["x"], abs=2)
        assert "flat from 2 (1 to 3)" in watched.text("#flows")
    else:
        assert "not flat before the last block" in watched.text("#flows")
    assert watched.complaints == []
