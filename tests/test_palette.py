"""One scale for one quantity: workbook, page and figures colour differences alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.colors import to_hex, to_rgb

from redrel_vlmeval.sheets import workbook
from redrel_vlmeval.sheets.figures import grid
from redrel_vlmeval.sheets.figures.palette import DIVERGING
from redrel_vlmeval.sheets.offline import html


def test_page_workbook_and_figures_have_the_same_scale() -> None:
    script = (Path(html.__file__).parent / "charts.js").read_text(encoding="utf-8")
    stops = re.findall(r'"([0-9a-f]{6})"', re.search(r"DIVERGING = \[(.*?)\]", script)[1])
    assert [stop.upper() for stop in stops] == list(DIVERGING)
    drawn = [to_hex(grid.DIFFERENCES(place / 8)) for place in range(9)]
    for ours, theirs in zip(map(to_rgb, drawn), (to_rgb(f"#{stop}") for stop in DIVERGING), strict=True):
        assert ours == pytest.approx(theirs, abs=0.02)
    assert set(workbook.HEAT) < set(DIVERGING) and workbook.HEAT[1] == DIVERGING[4]


def test_black_numbers_can_be_read_on_the_workbooks_scale() -> None:
    for color in workbook.HEAT:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(f"#{color}")]
        light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert (light + 0.05) / 0.05 > 4.5
