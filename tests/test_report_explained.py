"""The report's flips link to pages of ``redrel explain``, wherever they lie, and only to those that are there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import report_box as box
from typer.testing import CliRunner

from redrel_vlmeval.cli import app
from redrel_vlmeval.results.reading import read
from redrel_vlmeval.sheets.page import assemble
from redrel_vlmeval.sheets.page.explained import coverage, links

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FOUND = [{"model": "m_trunc_l2_k8", "base": "m", "benchmark": "A B", "frame": pd.DataFrame({"index": ["1", "2"]})}]


def explained(folder: Path, name: str, model: str, benchmark: str, index: str) -> None:
    """A page and its manifest, as ``redrel explain cam --data`` leaves them."""
    (folder / f"{name}.html").write_text("<title>explained</title>")
    manifest = {"model": model, "benchmark": benchmark, "index": index}
    (folder / f"{name}.json").write_text(json.dumps(manifest))


def test_a_page_is_found_by_its_manifest_and_seen_from_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "some where"
    folder.mkdir()
    explained(folder, "one ~ two", "m_trunc_l2_k8", "A B", "1")
    explained(folder, "m_A-B_2", "m", "A B", "2")
    explained(folder, "m_A-B_3", "m", "A B", "3")
    explained(folder, "other", "other", "A B", "1")
    explained(folder, "m_A-B_1", "m", "A-B", "1")  # of another benchmark, whatever its name looks like
    (folder / "m_trunc_l2_k8_A-B_2.html").touch()  # of nobody knows what
    wanted = {"m_trunc_l2_k8/A B/1": "one%20~%20two.html", "m/A B/2": "m_A-B_2.html"}
    beside = links(FOUND, folder, tmp_path / "report.html")
    assert beside == {key: f"some%20where/{name}" for key, name in wanted.items()}
    below = links(FOUND, folder, tmp_path / "deep" / "report.html")
    assert below == {key: f"../some%20where/{name}" for key, name in wanted.items()}
    assert links(FOUND, None, tmp_path / "report.html") == {}
    with pytest.raises(NotADirectoryError, match="--explain .*none: no such folder; give that of redrel explain cam"):
        links(FOUND, tmp_path / "none", tmp_path / "report.html")


def test_the_reports_page_holds_the_links_of_its_flips(tmp_path: Path) -> None:
    folder = box.write(tmp_path)
    found = read(folder)
    model = f"{box.BASE}_trunc_l2_k8"
    plainly = assemble.write(found, tmp_path / "plain.html")
    held = json.loads(re.search(r'id="data">(.*?)</script>', plainly.read_text(), re.S)[1])
    cell = next(cell for cell in held["changes"]["cells"] if cell["model"] == model)
    index = held["changes"]["questions"][cell["flips"][0][0]][1]
    pages = tmp_path / "explained"
    pages.mkdir()
    explained(pages, f"{model}_X_{index}", model, "X", str(index))
    text = assemble.write(found, tmp_path / "linked.html", explained=pages).read_text()
    linked = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["explained"]
    assert linked == {f"{model}/X/{index}": f"explained/{model}_X_{index}.html"} and held["explained"] == {}


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (["m_trunc_l2_k8_Other_1", "m_Other_2"], "Other"),
        ([], "no page"),
        (["page"], "1 pages, none known to be of a benchmark"),
    ],
)
def test_pages_of_no_flip_are_told(tmp_path: Path, names: list[str], held: str) -> None:
    for name in names:
        (tmp_path / f"{name}.html").touch()
        (tmp_path / f"{name}.json").write_text('{"benchmark": "Other"}' if "Other" in name else "[]")
    made = links(FOUND, tmp_path, tmp_path / "report.html")
    assert coverage(FOUND, made, tmp_path).endswith(f": 0 of 2 flips have a page there; it holds {held}")
    explained(tmp_path, "m_A-B_2", "m", "A B", "2")
    made = links(FOUND, tmp_path, tmp_path / "report.html")
    assert coverage(FOUND, made, tmp_path).endswith(": 1 of 2 flips have a page there")


def test_the_command_says_how_many_flips_have_a_page(tmp_path: Path) -> None:
    folder = box.write(tmp_path)
    (tmp_path / "pages").mkdir()
    options = ["-o", str(tmp_path / "new/page.html"), "--explain", str(tmp_path / "pages")]
    said = CliRunner().invoke(app, ["report", str(folder), *options]).output
    assert re.search(r"0 of [1-9]\d* flips have a page there; it holds no page", said)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
def test_a_flip_leads_to_its_explanation(tmp_path: Path) -> None:
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra 'test')")
    folder = box.write(tmp_path)
    pages = tmp_path / "explained"
    pages.mkdir()
    model = f"{box.BASE}_trunc_l2_k8"
    for index in range(box.COUNT):
        explained(pages, f"{model}_X_{index}", model, "X", str(index))
    report = assemble.write(read(folder), tmp_path / "linked.html", explained=pages)
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
