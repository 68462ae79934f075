"""How explanations open: the picture in colour, dropped tokens seen through, the right answer, the paper's groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import explain_files as files
import numpy as np
import pytest
from test_explain_page import Watched, browser, in_browser

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask.spans import GROUPS, as_paper
from redrel_vlmeval.explain.draw import arcfigures, camfigures, drawing, flowfigures, page, view
from redrel_vlmeval.explain.store import load

__all__ = ["browser"]


def green(**options: Any) -> Any:
    """Maps over a picture of one colour."""
    one = files.truncated(keep=(13,), size=(60, 60), **options)
    one.arrays["picture/0"][:] = (40, 160, 60)
    return one


@in_browser
def test_the_page_opens_in_colour_and_shows_it_through_map_and_hatch(browser: Any, tmp_path: Path) -> None:
    right = {"right": "B. red", "targets": [[10, 20, 20, 30]], "benchmark": "X", "index": "7"}
    watched = Watched(browser, page.write([green(**right)], tmp_path / "p.html"))
    assert not watched.page.locator("#grey").is_checked() and watched.page.locator("#opacity").input_value() == "50"
    watched.page.locator("#method").select_option("attn (decoder)")
    watched.layer(4)
    kept, dropped = watched.pixel(15 / 60, 25 / 60), watched.pixel(45 / 60, 46 / 60)
    watched.page.locator("#opacity").fill("0")
    bare = watched.pixel(15 / 60, 25 / 60)
    assert np.abs(np.subtract(bare, (40, 160, 60))).max() <= 6, "the picture as it is"
    assert dropped[1] > dropped[0] + 15 and sum(dropped) < sum(bare), "darker, and green all the same"
    assert sum(kept) < sum(bare) and kept[1] > 60, "the map at half strength"
    assert "right: B. red" in watched.text(".stage") and "a_model_trunc_l2_k2: What is it? (X 7)" in watched.text("h1")
    assert "what the question asks for" in watched.text(".key")
    edge = watched.pixel(10 / 60, 25 / 60)
    assert max(edge) - min(edge) < 20, "outlined in black and white"
    assert watched.complaints == []


@in_browser
def test_more_is_lighter_on_a_dark_picture(browser: Any, tmp_path: Path) -> None:
    one = files.stored(methods=("attn",))
    one.arrays["picture/0"][:] = 20
    watched = Watched(browser, page.write([one], tmp_path / "p.html"))
    watched.layer(4)
    low, high = watched.pixel(5 / 60, 5 / 40), watched.pixel(55 / 60, 35 / 40)
    assert sum(high) > sum(low) + 150
    assert sum(watched.pixel(0.998, 0, of="#ramp")) > sum(watched.pixel(0, 0, of="#ramp")) + 150, "as the key says"


def test_a_figure_names_the_right_answer_and_outlines_the_place() -> None:
    one = files.stored(right="B. red", targets=[[10, 20, 20, 30]])
    figure = camfigures.grid(one, "decoder", "attn")
    assert any("answer: 'a'; right: 'B. red'" in text.get_text() for text in figure.texts)
    boxes = [[patch.get_bbox().extents.tolist() for patch in axis.patches] for axis in figure.axes[:-1]]
    assert all([10, 20, 20, 30] in found for found in boxes) and len(boxes) == 5
    feet = [
        " ".join(text.get_text() for text in drawn.texts).replace("\n", " ")
        for drawn in (figure, camfigures.grid(files.stored(), "decoder", "attn"))
    ]
    assert ["outlined: what the question asks for" in foot for foot in feet] == [True, False]


def test_titles_name_question_and_model() -> None:
    one = files.flow(question="What is it?\nA. red", model="m", benchmark="X", index="3")
    for figure in (flowfigures.curves(one), arcfigures.arcs(one)):
        assert figure.texts[-1].get_text().replace("\n", " ").startswith("m: What is it? (X 3) ") or any(
            text.get_text().replace("\n", " ").startswith("m: What is it? (X 3) ") for text in figure.texts
        )
    assert view.asked(files.stored(question="w " * 200)).endswith("…") and view.asked(files.stored(question=None)) == ""


@pytest.mark.parametrize("scale", [1, 1000, -1e-4])
def test_words_of_the_y_axes_stand_inside_the_figure(scale: float) -> None:
    one = files.flow(layers=8)
    one.arrays["flow/causal"] *= np.float32(scale)
    figure = flowfigures.curves(one)
    figure.canvas.draw()
    edge = figure.bbox.width
    for axis in figure.axes:
        label = axis.yaxis.label.get_window_extent()
        ticks = [tick.get_window_extent() for tick in axis.get_yticklabels() if tick.get_text()]
        assert label.x0 >= 2 and label.y0 >= 0 and all(tick.x1 < edge for tick in ticks)


def test_the_papers_groups_sum_to_one_without_first_token_and_answer() -> None:
    shares = np.array([[0.4, 0.1, 0.2, 0.1, 0.2], [0.5, 0, 0, 0, 0.5], [0, 0, 0, 0, 1]])
    found = as_paper(shares)
    assert np.allclose(found[0], [0, 0.625, 0.25, 0.125, 0]) and np.allclose(found[1], [0, 1, 0, 0, 0])
    assert np.isnan(found[2]).all() and shares[0, 0] == 0.4


def test_the_papers_groups_are_drawn_and_an_interval_is_not_regrouped(tmp_path: Path) -> None:
    one = files.flow(tmp_path / "one.npz")
    shares = one.arrays["flow/attention"]
    shares[..., 0], shares[..., 4] = 0.3, 0.1
    shares /= shares.sum(-1, keepdims=True)
    whole, paper = (flowfigures.lines(one, groups)["attention"].mean for groups in ("all", "paper"))
    assert np.allclose(paper.sum(-1), 1) and not np.allclose(
        whole[:, GROUPS.index("img")], paper[:, GROUPS.index("img")]
    )
    assert np.allclose(paper[:, GROUPS.index("img")], whole[:, 2] / whole[:, :4].sum(-1))
    labels = [text.get_text() for text in flowfigures.curves(one, groups="paper").legends[0].get_texts()]
    assert "answer so far" not in labels and "first token (sink)" not in labels and "image" in labels
    with pytest.raises(ExplainError, match="--groups 'two': choose one of all, paper"):
        drawing.draw([tmp_path / "one.npz"], tmp_path / "x.png", groups="two")
    means = load(tmp_path / "one.npz")
    for part in ("mean", "low", "high"):
        means.arrays[f"flow/{part}/attention"] = whole
    with pytest.raises(ExplainError, match="means in groups 'all'.*redrel explain flow --groups paper"):
        flowfigures.lines(means, "paper")


def test_many_lines_are_told_apart_by_their_squares() -> None:
    few, many = files.flow(side=6), files.flow(side=24)
    notes = [next(t.get_text() for t in arcfigures.arcs(one).texts if "wider" in t.get_text()) for one in (few, many)]
    assert "square" not in notes[0] and "as its square" in notes[1]
