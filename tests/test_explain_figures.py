"""Figures from stored explanations: each value where it belongs on the picture, one scale, hatching where none is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import explain_files as files
import numpy as np
import pytest
from matplotlib.image import imread

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain import store
from redrel_vlmeval.explain.ask import spans
from redrel_vlmeval.explain.draw import arcfigures, camfigures, drawing, flowfigures, lettering, panels, view
from redrel_vlmeval.explain.maps import formulas
from redrel_vlmeval.explain.store import load
from redrel_vlmeval.explain.trust import comparing


def test_a_cell_lies_where_its_token_sees_the_picture() -> None:
    """A 60 x 40 picture on 6 x 6 cells: cells of 10 pixels, the first and the last row all padding."""
    sheet = view.sheet(files.stored(), "decoder", "attn")
    assert sheet.box == (0, -10, 60, 50)
    assert np.isnan(sheet.values[:, 0]).all() and np.isnan(sheet.values[:, -1]).all()
    assert sheet.values[1, 1, 2] == 2 * 9 and sheet.middle(8) == (25.0, 5.0)
    assert not sheet.dropped.any()


def test_padding_is_not_dropped_and_dropped_is_not_padding() -> None:
    dropped = view.sheet(files.truncated(), "decoder", "attn").dropped
    assert not dropped[:2].any()
    assert dropped[2].sum() == 6 * 4 - 2 and not dropped[:, 0].any()
    assert not dropped[3].reshape(-1)[[13, 20]].any()


def test_the_whole_answer_is_the_mean_of_its_tokens() -> None:
    one = files.stored(tokens=3)
    mean, last = (view.sheet(one, "decoder", "attn", token).values for token in (None, 2))
    assert np.nanmax(np.abs(mean - last * 2 / 3)) < 1e-4


@pytest.mark.parametrize(
    "wrong, options, words",
    [
        ("vision", {}, "no maps vision/attn; it holds decoder/attn, decoder/elementwise"),
        ("decoder", {"token": 5}, "answer token 6: the file has maps of 1"),
        ("decoder", {"picture": 1}, "picture 2: the maps of decoder lie on 1"),
    ],
)
def test_what_a_file_lacks_is_named(wrong: str, options: dict, words: str) -> None:
    with pytest.raises(ExplainError, match=words):
        view.sheet(files.stored(), wrong, "attn", **options)
    with pytest.raises(ExplainError, match="layer 9 of decoder/attn: there are 1 to 4"):
        view.sheet(files.stored(), "decoder", "attn").at([1, 9])


def heat(figure) -> list:
    """The heat images of a figure's panels, in order."""
    found = [image for axis in figure.axes for image in axis.images if image.get_cmap().name == "ember"]
    return [image for image in found if image.get_array().ndim == 2 and image.get_array().shape != (256, 1)]


def test_all_panels_share_one_scale_unless_asked() -> None:
    shared = [image.get_clim() for image in heat(camfigures.grid(files.stored(), "decoder", "attn"))]
    assert len(shared) == 4 and set(shared) == {(0.0, 4 * 30.0)}  # token 30 is the last that is not padding
    own = [image.get_clim() for image in heat(camfigures.grid(files.stored(), "decoder", "attn", scale="layer"))]
    assert own == [(0.0, layer * 30.0) for layer in (1, 2, 3, 4)]
    rows = camfigures.rows([files.stored(), files.stored(tokens=3)], ["a", "b"], "decoder", "attn")
    assert {image.get_clim() for image in heat(rows)} == {(0.0, 2 * 4 * 30.0)}
    with pytest.raises(ExplainError, match="scale 'own': choose one of shared, layer"):
        camfigures.grid(files.stored(), "decoder", "attn", scale="own")


def hatched(axis) -> list:
    return [patch for patch in axis.patches if patch.get_hatch()]


def test_a_layer_without_a_map_is_hatched_and_named() -> None:
    figure = camfigures.grid(files.stored(), "decoder", "elementwise")
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [bool(hatched(axis)) for axis in panels] == [False, False, False, True]
    assert panels[3].texts[0].get_text() == "no\ngradient" and not panels[0].texts


def test_dropped_tokens_are_hatched_where_they_lay() -> None:
    figure = camfigures.grid(files.truncated(), "decoder", "attn")
    panels = [axis for axis in figure.axes if axis.get_title()]
    (patch,) = hatched(panels[2])
    path = patch.get_path()
    assert not path.contains_point((15, 15)) and not path.contains_point((25, 25))  # tokens 13 and 20
    assert path.contains_point((5, 15)) and path.contains_point((55, 35))
    assert not hatched(panels[0])


def test_the_darkest_place_of_the_drawn_figure_is_the_highest_cell(tmp_path: Path) -> None:
    one = files.stored(layers=1, methods=("attn",))
    one.arrays["maps/decoder/attn"][:] = 0
    one.arrays["maps/decoder/attn"][0, 0, 6 * 2 + 4] = 1  # third row, fifth column: 45, 15 of 60 x 40
    one.arrays["picture/0"][:] = 255
    figure = camfigures.grid(one, "decoder", "attn")
    (axis,) = (axis for axis in figure.axes if axis.get_title())
    box = axis.get_position()
    drawn = imread(panels.save(figure, tmp_path / "f.png"))[..., :3].mean(-1)
    high, wide = drawn.shape
    top, bottom, left, right = (1 - box.y1) * high, (1 - box.y0) * high, box.x0 * wide, box.x1 * wide
    panel = drawn[int(top) + 3 : int(bottom) - 3, int(left) + 3 : int(right) - 3]
    rows, columns = np.nonzero(panel < 0.3)
    assert abs(columns.mean() / panel.shape[1] - 45 / 60) < 0.02 and abs(rows.mean() / panel.shape[0] - 15 / 40) < 0.03
    assert 0.8 < len(rows) / (panel.size / 24) < 1.1  # one cell of the 24 that show the picture


def said(figure) -> str:
    """What is written below the panels, as one line."""
    return figure.texts[-1].get_text().replace("\n", " ")


def test_the_foot_names_the_quantity_and_hatching_where_there_is_any() -> None:
    one, less = files.stored(), files.truncated()
    head, shared = "gradient × activation; logit", "one scale for all panels"
    assert said(camfigures.grid(one, "decoder", "attn")) == f"attention, mean over heads; {shared}"
    assert said(camfigures.grid(one, "decoder", "elementwise")) == f"{head}; {shared}; hatched: no gradient"
    own = said(camfigures.grid(less, "decoder", "elementwise", scale="layer"))
    assert own == f"{head}; each panel from 0 to its own highest; hatched: token dropped or no gradient"
    rows = camfigures.rows([one, less], ["a", "b"], "decoder", "attn", notes=[{}, {}])
    assert said(rows).endswith(f"decoder blocks; {shared}; %: share on the kept tokens; hatched: token dropped")
    columns = said(camfigures.rows([one, one], ["a", "b"], "decoder", "attn", scale="layer"))
    assert columns.endswith("decoder blocks; each column from 0 to its own highest")


def test_a_quantity_has_its_objective_and_what_was_done_to_it() -> None:
    one = files.stored(provenance={"request": {"smooth": 16}}, objective="contrast")
    assert view.quantity(one, "decoder", "attn_grad") == "attention × gradient; contrast; SmoothGrad 16"
    one.arrays["pixels/decoder/attn"] = one.arrays["maps/decoder/attn"]
    assert view.quantity(one, "decoder", "attn") == "attention, mean over heads; SmoothGrad 16; carried to patches"
    assert set(view.QUANTITIES) == {*store.METHODS, store.ROW} > set(formulas.FORMULAS)


def test_the_bar_shows_the_colours_of_the_panels(tmp_path: Path) -> None:
    """A grey picture under one value in every cell: that panel and the bar at that value look alike."""
    one = files.stored(layers=1, methods=("attn",))
    one.arrays["maps/decoder/attn"][:] = 0.3
    one.arrays["maps/decoder/attn"][0, 0, 6] = 1
    one.arrays["picture/0"][:] = 60
    figure = camfigures.grid(one, "decoder", "attn")
    drawn = imread(panels.save(figure, tmp_path / "f.png"))[..., :3]
    high, wide = drawn.shape[:2]

    def at(axis, x: float, y: float) -> np.ndarray:
        box = axis.get_position()
        return drawn[int((1 - box.y0 - y * box.height) * high), int((box.x0 + x * box.width) * wide)]

    panel, bar = (next(axis for axis in figure.axes if bool(axis.get_title()) == titled) for titled in (True, False))
    bar = figure.axes[-1]
    assert np.abs(at(panel, 0.75, 0.35) - at(bar, 0.3, 0.5)).max() < 0.02
    assert [text.get_text() for text in bar.get_xticklabels()] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


@pytest.mark.parametrize("width", [2.0, 3.45])
@pytest.mark.parametrize("text", ["WIDE WORDS " * 20, "W" * 150, "iiii " * 90, "中文" * 60, "a\tb\u200d😀" * 40])
def test_no_text_leaves_its_figure(text: str, width: float, recwarn: pytest.WarningsRecorder) -> None:
    one = files.truncated(question=text, reply=text, answer=[{"id": 1, "text": text}])
    drawn = [camfigures.grid(one, "decoder", "elementwise", width=width)]
    drawn.append(camfigures.rows([one, one], [text, text], "decoder", "attn", width=width))
    if width > 3:
        flow = files.flow(answer=[{"id": 1, "text": text}])
        drawn += [flowfigures.curves(flow), arcfigures.arcs(flow)]
    for figure in drawn:
        figure.set_dpi(lettering.DOTS)  # as it is saved
        figure.canvas.draw()
        ends = [part.get_window_extent() for part in figure.texts]
        assert max(box.x1 for box in ends) <= figure.bbox.x1 + 0.5 and min(box.y0 for box in ends) >= -1.5
    assert not [str(warning.message) for warning in recwarn.list if "lyph" in str(warning.message)]


def test_a_sign_that_no_font_has_is_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lettering.families()[0] == "DejaVu Sans" and lettering.readable("é×\ud800") == "é×[U+D800]"
    known = {ord("中"), *range(32, 127)}
    monkeypatch.setattr(lettering, "_signs", lambda weight: known)
    assert lettering.readable("a中\n国") == "a中\n[U+56FD]"


def test_lines_break_at_spaces_and_beside_wide_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "readable", lambda text, weight: text)
    monkeypatch.setattr(lettering, "_advance", lambda sign, weight: 1.0)
    cut = lambda text, most=9: lettering.wrapped(text, 5, 72, most)  # noqa: E731
    assert cut("ab cd  ef") == ["ab cd", "ef"] and cut("abcdefgh ij") == ["abcde", "fgh", "ij"]
    assert cut("ab中文中文") == ["ab中文中", "文"] and cut("a\nb") == ["a", "b"] and cut("") == []
    assert cut("ab cd ef ghi", 2) == ["ab cd", "ef …"] and cut("ab cd\nef", 1) == ["ab …"]


def test_a_pdf_keeps_its_text_as_text(tmp_path: Path) -> None:
    data = panels.save(camfigures.grid(files.stored(), "decoder", "attn"), tmp_path / "f.pdf").read_bytes()
    assert b"/Subtype /Type3" not in data and b"/FontFile2" in data


def test_more_is_darker_without_any_colour() -> None:
    colors = panels.EMBER(np.linspace(0, 1, 256))
    over_white = colors[:, :3] * colors[:, 3:] + 1 - colors[:, 3:]
    light = over_white @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) < 1e-3).all() and light[0] > 0.97 and light[-1] < 0.15


def test_the_groups_are_those_of_the_spans() -> None:
    assert flowfigures.GROUPS == spans.GROUPS == tuple(flowfigures.WORDS) == tuple(flowfigures.LOOKS)


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_flat_from_the_last_block_says_nothing_and_is_no_line() -> None:
    last = flowfigures.curves(files.flow(flat_from=4))
    assert legend(last)[-1] == "not cut" and len(last.axes[2].lines) == 3, "the curve, the uncut margin and 0"
    assert [text.get_text() for text in last.axes[2].texts] == ["not flat before the last block"]
    assert flowfigures.flat(files.flow(flat_from=[4, 3, 4])).span is None
    assert flowfigures.flat(files.flow(flat_from=3)).text == "flat from 3"
    assert flowfigures.flat(files.flow(flat_from=None)).text == ""


def test_curves_show_shares_margin_and_where_it_is_flat() -> None:
    figure = flowfigures.curves(files.flow())
    attention, gradient, causal = figure.axes
    image = next(line for line in attention.lines if line.get_color() == flowfigures.LOOKS["img"][0])
    assert np.allclose(image.get_ydata(), [0.8, 0.6, 0.4, 0.2]) and list(image.get_xdata()) == [1, 2, 3, 4]
    line = causal.lines[0]
    assert list(line.get_ydata()) == [0, 0.5, 3, 3, 3] and list(line.get_xdata()) == [0, 1, 2, 3, 4]
    assert [text.get_text() for text in causal.texts] == ["flat from 2"]
    assert len(attention.lines) == 3, "a group without any share has no line"
    assert legend(figure) == ["system text", "image", "user text", "not cut", "flat from here"]
    with pytest.raises(ExplainError, match="no information flow in it"):
        flowfigures.curves(files.stored())


def test_a_benchmark_has_bands_and_no_arcs() -> None:
    one = files.flow(questions=7, benchmark="B", flat_from=[2, 1, 3])
    for name in ("attention", "gradient", "causal"):
        values = one.arrays.pop(f"flow/{name}")
        values = values.mean((1, 2)) if name == "attention" else values
        one.arrays |= {f"flow/mean/{name}": values, f"flow/low/{name}": values - 0.1, f"flow/high/{name}": values + 0.1}
    del one.arrays["flow/rows"]
    figure = flowfigures.curves(one)
    assert all(axis.collections for axis in figure.axes)
    assert [text.get_text() for text in figure.axes[2].texts] == ["flat from 2 (1 to 3)"]
    assert legend(figure)[-3:] == ["not cut", "flat from here", "its 95 % interval"]
    with pytest.raises(ExplainError, match="Fig. 1 is drawn of one question"):
        arcfigures.arcs(one)


def test_arcs_start_at_their_group_and_end_at_the_answer() -> None:
    one = files.flow()
    one.arrays["flow/rows"][:] = 0
    one.arrays["flow/rows"][0, 0, 10] = 1.0  # an image token
    figure = arcfigures.arcs(one, layers=[1, 2])
    first, second = (axis for axis in figure.axes)
    (shape,) = [path.vertices for path in first.collections[0].get_paths()]
    assert shape[0].tolist() == [10.0, 0.0] and shape[-1][1] == 1.0
    assert not second.collections[0].get_paths()
    assert "the wider and darker, the more attention (the widest: 1)" in figure.texts[0].get_text().replace("\n", " ")


def test_shares_on_kept_tokens_before_and_after() -> None:
    change = comparing.change(files.stored(), files.truncated(reply="else"))
    layers, before, after = change.shares["attn"]
    part = (14 + 21) / sum(range(1, 37))
    assert layers == [1, 2, 3, 4] and np.allclose(before, part) and np.allclose(after, [part, part, 1, 1])
    assert np.isnan(change.shares["elementwise"][1][-1])
    assert change.flip and "it flips" in comparing.to_text(change) and change.kept == [13, 20]
    assert comparing.notes(change, "attn") == [dict.fromkeys(layers, "5%"), {1: "5%", 2: "5%", 3: "100%", 4: "100%"}]
    assert "1 of 2 answers flip" in comparing.summary([change, comparing.change(files.stored(), files.truncated())])
    with pytest.raises(ExplainError, match="must be of one answer"):
        comparing.change(files.stored(), files.stored(tokens=2))


def test_drawn_from_the_npz_alone_without_torch(tmp_path: Path) -> None:
    files.stored(tmp_path / "a_v1.5_x.npz")
    files.truncated(tmp_path / "b.npz")
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'vlmeval'):\n    sys.modules[name] = None\n"
        "from pathlib import Path\nfrom redrel_vlmeval.explain.draw.drawing import draw\n"
        "print(*[path.name for path in draw([Path('a_v1.5_x.npz')])], sep='\\n')\n"
        "found = [Path('a_v1.5_x.npz'), Path('b.npz')]\n"
        "print(*[path.name for path in draw(found, Path('both'), methods=['attn'])], sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    stem, both = "a_v1.5_x", "a_v1.5_x_vs_a_model_trunc_l2_k2"
    ends = [f"_decoder_{method}.{kind}" for method in ("elementwise", "attn") for kind in ("png", "pdf")]
    wanted = [*(stem + end for end in ends), f"{stem}.html", f"{both}_decoder_attn.png", f"{both}_decoder_attn.pdf"]
    assert done.stdout.split() == [*wanted, f"{both}.html"]
    assert (tmp_path / "both" / f"{both}.html").is_file()
    assert (tmp_path / f"{stem}_decoder_attn.pdf").read_bytes().startswith(b"%PDF")


def test_one_file_is_one_figure(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    files.stored(path)
    with pytest.raises(ExplainError, match="one figure, the file has decoder_elementwise, decoder_attn: choose with"):
        drawing.draw([path], tmp_path / "f.png")
    assert drawing.draw([path], tmp_path / "f.pdf", methods=["attn"]) == [tmp_path / "f.pdf"]
    with pytest.raises(ExplainError, match="nothing to draw .* it holds decoder/elementwise, decoder/attn"):
        drawing.draw([path], where=["vision"])
    with pytest.raises(ExplainError, match="written as .png or .pdf, got the ending '.jpg'"):
        panels.save(camfigures.grid(load(path), "decoder", "attn"), tmp_path / "f.jpg")
