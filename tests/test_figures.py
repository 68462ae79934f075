"""Figures are drawn from frames; what a reader takes from them is checked on the axes, not on pixels alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from redrel_vlmeval.rules import known
from redrel_vlmeval.sheets.figures import accuracy, looks

GRID = pd.DataFrame(
    [(layer, keep, 60 + 4 * layer + keep, 600) for layer in (2, 4) for keep in (16, 0, 4)],
    columns=["L", "K", "value", "n"],
)


def _axes(frame: pd.DataFrame, baseline=None):
    return accuracy._draw(accuracy._complete(frame), baseline or {}, "title").axes


def test_png_at_150_dpi_with_something_on_it(tmp_path: Path) -> None:
    path = accuracy.accuracy_against_keep(GRID, 90.0, tmp_path / "figure.png", "tiny on Shapes")
    assert path == tmp_path / "figure.png" and [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG" and round(picture.info["dpi"][0]) == 150
        assert min(picture.size) > 500 and len(picture.convert("RGB").getcolors(10**6)) > 20


def test_one_line_per_layer_in_order_of_keep() -> None:
    (axis,) = _axes(GRID, {"": 90.0})
    lines = [line for line in axis.lines if len(line.get_xdata()) == 3]
    assert [list(line.get_xdata()) for line in lines] == [[0, 4, 16]] * 2
    assert [list(line.get_ydata()) for line in lines] == [[68, 72, 84], [76, 80, 92]]
    assert lines[0].get_color() != lines[1].get_color() and lines[0].get_marker() != lines[1].get_marker()
    assert axis.get_title(loc="left") == "n = 600"


def test_baseline_is_a_dashed_level() -> None:
    (axis,) = _axes(GRID, {"": 90.0})
    level = [line for line in axis.lines if list(line.get_ydata()) == [90, 90]]
    assert len(level) == 1 and level[0].get_linestyle() == "--"
    assert not [line for line in _axes(GRID)[0].lines if line.get_linestyle() == "--"]


def test_each_category_has_a_panel_with_its_own_baseline_and_n() -> None:
    parts = [GRID.assign(category="")] + [GRID.assign(category=name, n=150) for name in ("two", "one", "text")]
    axes = _axes(pd.concat(parts), {"": 90.0, "two": 70.0})
    titles = [axis.get_title(loc="left") for axis in axes]
    assert titles == ["all questions (n = 600)", "two (n = 150)", "one (n = 150)", "text (n = 150)"]
    assert [70.0, 70.0] in [list(line.get_ydata()) for line in axes[1].lines]
    assert len(axes[2].lines) == 2, "no baseline was given for this one"


def test_controls_share_the_layers_colour_and_differ_in_line() -> None:
    both = pd.concat([GRID.assign(rule="attention"), GRID.assign(rule="random", value=50)])
    lines = {(line.get_color(), line.get_linestyle()) for line in _axes(both)[0].lines}
    assert len(lines) == 4 and len({color for color, _ in lines}) == 2


def test_controls_that_are_single_points_differ_in_marker() -> None:
    points = [GRID[GRID["K"] == 4].assign(rule=rule) for rule in ("attention", "random", "uniform", "lowest")]
    (axis,) = _axes(pd.concat(points))
    second = [line.get_marker() for line in axis.lines if line.get_color() == axis.lines[0].get_color()]
    assert len(second) == len(set(second)) == 4


def test_points_on_one_score_stand_beside_each_other_and_no_layer_is_a_ring() -> None:
    frame = pd.concat([GRID.assign(rule=rule, value=50) for rule in ("attention", "random")])
    frame = pd.concat([frame, frame[(frame["L"] == 2) & (frame["K"] == 0)].assign(L=0)])
    (axis,) = _axes(frame)
    at_zero = sorted(line.get_transform().transform((0, 50))[0] for line in axis.lines)
    per_point = axis.figure.dpi / 72
    gaps = [(after - before) / per_point for before, after in zip(at_zero, at_zero[1:], strict=False)]
    assert len(gaps) == 5 and all(gap == pytest.approx(2) for gap in gaps), "twelve points for six lines"
    assert sum(at_zero) / 6 == pytest.approx(axis.transData.transform((0, 50))[0])
    ring = axis.lines[0]
    assert (ring.get_marker(), ring.get_markerfacecolor()) == ("o", "none") and ring.get_markersize() == 8
    handle = axis.figure.legends[0].legend_handles[0]
    assert (handle.get_marker(), handle.get_markerfacecolor()) == ("o", "none"), "the legend's L = 0"


def test_intervals_are_whiskers_and_named_in_the_legend() -> None:
    (axis,) = _axes(GRID.assign(low=GRID["value"] - 3, high=GRID["value"] + 2))
    drawn = sorted(tuple(map(tuple, path)) for found in axis.collections for path in found.get_segments())
    assert axis.get_ylim()[0] < GRID["value"].min() - 3 and axis.get_ylim()[1] > GRID["value"].max() + 2
    wanted = sorted(((row.K, row.value - 3), (row.K, row.value + 2)) for row in GRID.itertuples())
    assert drawn == wanted
    names = [text.get_text() for text in axis.figure.legends[0].get_texts()]
    assert "95 % interval" in names
    (plain,) = _axes(GRID)
    assert not plain.collections and "95 % interval" not in [t.get_text() for t in plain.figure.legends[0].get_texts()]


def test_wide_ranges_of_keep_are_spread_and_zero_has_a_place() -> None:
    (axis,) = _axes(GRID.assign(K=GRID["K"].map({0: 0, 4: 32, 16: 512})))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "32", "512"]
    assert axis.get_xlabel() == "image tokens kept, K (log scale)" and "log" not in _axes(GRID)[0].get_xlabel()
    zero, first, last = (axis.transData.transform((keep, 80))[0] for keep in (0, 32, 512))
    assert (first - zero) > 0.1 * (last - zero), "on a linear axis these two would be 6 % of the width apart"


def test_colours_are_told_apart_by_colour_blind_readers() -> None:
    """Smallest distance between any two colours, simulated for red-green blindness (Vienot 1999), stays visible."""
    seen = []
    for color in looks.COLORS:
        red, green, blue, _ = (value**2.2 for value in to_rgba(color))
        seen.append((0.11238 * red + 0.88762 * green, 0.00401 * red - 0.00401 * green + blue))
    gaps = [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5 for i, x in enumerate(seen) for y in seen[:i]]
    assert min(gaps) > 0.05


def test_a_grid_of_all_layers_has_a_look_for_each() -> None:
    assert len({looks.look(number) for number in range(48)}) == 48
    frame = pd.concat([GRID.assign(L=layer) for layer in range(32)])
    handles = _axes(frame)[0].figure.legends[0].legend_handles
    styles = [(str(handle.get_color()), handle.get_marker(), handle.get_markersize()) for handle in handles]
    assert len(styles) == len(set(styles)) >= 32


def test_what_cannot_be_drawn_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    for frame, name, message in (
        (GRID.drop(columns="K"), "a.png", "column K missing: need L, K, value"),
        (GRID.iloc[:0], "a.png", "nothing to draw"),
        (GRID.assign(value=float("nan")), "a.png", "nothing to draw"),
        (GRID, "a.pdf", "'.pdf'"),
    ):
        with pytest.raises(ValueError, match=message):
            accuracy.accuracy_against_keep(frame, 90.0, tmp_path / name, "t")
    with pytest.raises(OSError, match="No such file"):
        accuracy.accuracy_against_keep(GRID, 90.0, tmp_path / "missing" / "a.png", "t")
    assert not list(tmp_path.iterdir())


def test_every_rule_has_a_look_of_its_own_and_keeps_it() -> None:
    few, many = looks.numbers(["attention", "random"]), looks.numbers(["random", "attention", "attention rowmean"])
    assert few.items() <= many.items() and looks.in_order(["x", "random", "attention"]) == ["attention", "random", "x"]
    seen = [(looks.marker(number), looks.dashes(number)) for number in looks.numbers([*"abcdefgh", *known()]).values()]
    assert len(seen) == len(set(map(str, seen)))
    assert looks.marker(0) == "" and all(looks.marker(number) for number in range(1, 60)), "only the default has none"
