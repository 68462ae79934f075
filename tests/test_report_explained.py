"""The report's flips link to pages of ``redrel explain``, wherever they lie, and only to those that are there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import report_box as box

from redrel_vlmeval.report import page
from redrel_vlmeval.report.explained import links, plain
from redrel_vlmeval.results import read

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FOUND = [{"model": "m_trunc_l2_k8", "base": "m", "benchmark": "A B", "frame": pd.DataFrame({"index": ["1", "2"]})}]


def test_a_page_is_found_by_its_name_and_seen_from_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "some where"
    folder.mkdir()
    for name in ("m_trunc_l2_k8_A-B_1", "m_A-B_2", "m_A-B_3", "other_A-B_1"):
        (folder / f"{name}.html").touch()
    wanted = {"m_trunc_l2_k8/A B/1": "m_trunc_l2_k8_A-B_1.html", "m/A B/2": "m_A-B_2.html"}
    beside = links(FOUND, folder, tmp_path / "report.html")
    assert beside == {key: f"some%20where/{name}" for key, name in wanted.items()}
    below = links(FOUND, folder, tmp_path / "deep" / "report.html")
    assert below == {key: f"../some%20where/{name}" for key, name in wanted.items()}
    assert links(FOUND, None, tmp_path / "report.html") == {}
    with pytest.raises(NotADirectoryError, match="--explain .*none: no such folder; give that of redrel explain cam"):
        links(FOUND, tmp_path / "none", tmp_path / "report.html")


def test_names_are_file_names_anywhere() -> None:
    assert plain("llava_v1.5_7b") == "llava_v1.5_7b" and plain("a/b c:d") == "a-b-c-d" and plain("???") == "picture"


def test_the_reports_page_holds_the_links_of_its_flips(tmp_path: Path) -> None:
    folder = box.write(tmp_path)
    found = read(folder)
    model = f"{box.BASE}_trunc_l2_k8"
    plainly = page.write(found, tmp_path / "plain.html")
    held = json.loads(re.search(r'id="data">(.*?)</script>', plainly.read_text(), re.S)[1])
    cell = next(cell for cell in held["changes"]["cells"] if cell["model"] == model)
    index = held["changes"]["questions"][cell["flips"][0][0]][1]
    pages = tmp_path / "explained"
    pages.mkdir()
    (pages / f"{model}_X_{index}.html").touch()
    text = page.write(found, tmp_path / "linked.html", explained=pages).read_text()
    linked = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["explained"]
    assert linked == {f"{model}/X/{index}": f"explained/{model}_X_{index}.html"} and held["explained"] == {}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
def test_a_flip_leads_to_its_explanation(tmp_path: Path) -> None:
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra 'test')")
    folder = box.write(tmp_path)
    pages = tmp_path / "explained"
    pages.mkdir()
    model = f"{box.BASE}_trunc_l2_k8"
    for index in range(box.COUNT):
        (pages / f"{model}_X_{index}.html").write_text("<title>explained</title>")
    report = page.write(read(folder), tmp_path / "linked.html", explained=pages)
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page()
        shown.goto(f"{report.as_uri()}")
        shown.locator("#flip-filters select[aria-label='Variant']").select_option(model)
        link = shown.locator("#flips .explain-link")
        assert link.all_inner_texts() == ["Explain the variant's answer"]
        link.click()
        assert shown.title() == "explained"
        browser.close()
