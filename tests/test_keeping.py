"""``redrel rules --picture``: what every rule keeps of one picture, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import needs_host
from PIL import Image
from typer.testing import CliRunner

from redrel_vlmeval import rules
from redrel_vlmeval.cli import app
from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.explain import keeping
from redrel_vlmeval.explain.draw import Panel, keptfigures
from redrel_vlmeval.explain.maps import Grid
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import truncated


def redrel(*args: str) -> Any:
    return CliRunner().invoke(app, ["rules", *args])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(3).integers(0, 256, (96, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_kept_cells_have_their_colours_and_others_none() -> None:
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 255
    grid = Grid(np.arange(4).reshape(2, 2), (0, 0, 40, 40), (40, 40))
    kept = np.array([[True, False], [False, True]])
    found = [Panel("one", kept), Panel("two", None)]
    figure = keptfigures.panels(red, grid, found, ["a head"])
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plain, one, two = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["the picture", "one", "two"]

    def colour(axis: Any, x: float, y: float) -> list[int]:
        across, up = axis.transData.transform((x, y))
        return pixels[len(pixels) - 1 - int(up), int(across)].tolist()

    corners = [(10, 10), (30, 10), (10, 30), (30, 30)]
    assert [colour(plain, *corner) == [255, 0, 0] for corner in corners] == [True] * 4
    assert [colour(one, *corner) == [255, 0, 0] for corner in corners] == kept.flatten().tolist()
    grey = colour(two, 10, 10)
    assert len(set(grey)) == 1 and colour(one, 30, 10) == grey


@needs_host
def test_every_rule_has_a_panel_with_what_it_keeps(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Panel] = {}
    own = keptfigures.panels

    def noted(shown: Any, grid: Grid, found: list[Panel], head: list[str]) -> Any:
        drawn.update({panel.rule: panel for panel in found})
        return own(shown, grid, found, head)

    monkeypatch.setattr(keptfigures, "panels", noted)
    output = picture.with_name("kept.png")
    given = ["--picture", str(picture), "--question", "What color is the cross?", "-o", str(output)]
    done = redrel(*given, "--keep", "7")
    assert done.exit_code == 0, done.output
    assert Image.open(output).size[0] > 1000 and f"open this: {output}" in done.output
    assert set(drawn) == {name if rule.before_block_1 else f"{name}*" for name, rule in rules.known().items()}
    assert drawn.pop("downsample").kept is None and "refused: " in done.output and "near it are 6 and 8" in done.output
    assert drawn.pop("cdpruner").kept is None and "set REDREL_CLIP" in done.output
    assert all(int(panel.kept.sum()) == 7 for panel in drawn.values() if panel.kept is not None)
    assert all(panel.kept is not None for panel in drawn.values())
    asked = keeping.ask_host(
        keeping.questions.build("redrel_tiny"), keeping.questions.own([picture], ["A?"])[0].message
    )
    with truncated(asked.model, parse("l2_k7_dart")) as trace:
        asked.model(**asked.inputs)
    assert keeping.kept_by(asked, rules.find("dart"), 7) == trace.last.kept[2]
    with pytest.raises(RedrelError, match="--keep 64: the picture has 64 tokens"):
        keeping.draw(picture, "A?", "redrel_tiny", output, 64)


def test_what_cannot_be_drawn_is_refused_before_a_model_is_loaded(picture: Path) -> None:
    some = ["--picture", str(picture), "--question", "A?"]
    for given in (some, ["--keep", "3"], [*some, "-o", "x.png", "--goldens", "x.json"]):
        assert "all three, and no --goldens" in str(redrel(*given).exception)
    assert "written as .png or .pdf" in str(redrel(*some, "-o", "x.svg").exception)
    named = redrel(*some, "-o", "x.png", "--model", "redrel_tiny_trunc_l2_k8")
    assert "give the base alone" in str(named.exception)
