"""A token's cell on the original picture is the one whose pixels move the token, padding and merging included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explain_box import ask_tiny
from PIL import Image
from tiny_models import FAMILIES, build

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.maps.grid import Grid, locality, shown, through
from redrel_vlmeval.explain.maps.passes import run
from redrel_vlmeval.explain.maps.pixels import grids, rollout
from redrel_vlmeval.explain.maps.taken import Wanted
from redrel_vlmeval.models.llava import input


def square(side: int, box: tuple[float, ...], size: tuple[int, int]) -> Grid:
    return Grid(np.arange(side**2).reshape(side, side), box, size)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 12), (30, 30)])
def test_a_padded_pictures_cells_lie_where_the_padding_put_them(size: tuple[int, int]) -> None:
    """Paint one patch of the padded square and look where on the original it is."""
    side = max(size)
    grid = square(4, input.square_box(*size), size)
    assert grid.edges()[0][-1] - grid.edges()[0][0] == side
    cells = grid.cells(np.arange(16))
    for cell in range(16):
        row, column = divmod(cell, 4)
        middle = ((column + 0.5) * side / 4, (row + 0.5) * side / 4)
        x, y = int(middle[0] - (side - size[0]) // 2), int(middle[1] - (side - size[1]) // 2)
        original = Image.new("RGB", size)
        if 0 <= x < size[0] and 0 <= y < size[1]:
            original.putpixel((x, y), (255, 255, 255))
            padded = np.asarray(input.pad_to_square(original, [0, 0, 0]))
            where = np.argwhere(padded[..., 0] == 255)[0]
            assert (where * 4 // side).tolist() == [row, column]
            assert grid.picture(np.arange(16))[y, x] == cell == cells[row, column]


def test_padding_cells_are_dropped() -> None:
    grid = square(4, input.square_box(40, 20), (40, 20))
    assert grid.inside().tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]
    assert np.isnan(grid.cells(np.ones(16))).sum() == 8
    assert not np.isnan(grid.picture(np.ones(16))).any()
    assert grid.picture(np.arange(16), width=20).shape == (10, 20)
    assert Grid.from_json(grid.to_json()).box == grid.box


def sensitivity(asked: Any, change: Any) -> np.ndarray:
    """How much each image token moves as the pixels are changed."""
    node = ("input_norm", 0)
    seen = []
    for edit in (None, change):
        with run(asked, Wanted([node]), grad=False, edit=edit) as taken:
            seen.append(taken.nodes[node][0, asked.spans().image].clone())
    return (seen[0] - seen[1]).norm(dim=-1).numpy()


@pytest.mark.parametrize("name", [name for name in sorted(FAMILIES) if not name.startswith(("qwen", "llava_mistral"))])
def test_the_cell_whose_pixels_change_moves_its_own_token_most(name: str) -> None:
    """A tower with its attention out of the way, so that a token is its patch alone."""
    tiny = build(name)
    for block in ask_tiny(tiny, "tIttt", new=1).decoder.vision_blocks():
        silence(block)
    asked = ask_tiny(tiny, "tIttt", new=1)
    (grid,) = grids(asked)
    rows, cols = grid.shape
    for row in range(rows):
        for column in range(cols):

            def paint(x: torch.Tensor, row: int = row, column: int = column) -> torch.Tensor:
                high, wide = x.shape[-2] // rows, x.shape[-1] // cols
                x = x.clone()
                tile = x[0, 0] if x.ndim == 5 else x[0]  # the overview comes first
                tile[:, row * high : (row + 1) * high, column * wide : (column + 1) * wide] += 3
                return x

            assert sensitivity(asked, paint).argmax() == grid.index[row, column]


def silence(block: torch.nn.Module) -> None:
    for name, module in block.named_modules():
        if name.rpartition(".")[2] in ("out_proj", "projection_layer", "proj"):
            torch.nn.init.zeros_(module.weight)


@pytest.mark.parametrize("name", [name for name in ("qwen2_vl", "qwen2_5_vl") if name in FAMILIES])
def test_qwen2s_patches_are_merged_two_by_two(name: str) -> None:
    tiny = build(name)
    for block in ask_tiny(tiny, "tIttt", new=1).decoder.vision_blocks():
        silence(block)
    asked = ask_tiny(tiny, "tIttt", new=1)
    (grid,) = grids(asked)
    assert grid.shape == (2, 2)
    for cell in range(4):

        def paint(x: torch.Tensor, cell: int = cell) -> torch.Tensor:
            x = x.clone()
            x[4 * cell : 4 * cell + 4] += 3  # the processor's order: the four patches of a token together
            return x

        assert sensitivity(asked, paint).argmax() == grid.index.ravel()[cell]
    if name == "qwen2_vl":
        (fine,) = grids(asked, "vision")
        assert fine.index.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    else:
        with pytest.raises(ExplainError, match="orders patches by windows"):
            grids(asked, "vision")


def test_the_originals_size_comes_from_its_file(tmp_path: Path) -> None:
    asked = ask_tiny(build("llava"), "tIttt", new=1)
    assert grids(asked)[0].size == (1, 1)
    Image.new("RGB", (50, 30)).save(tmp_path / "a.png")
    asked.pictures = [str(tmp_path / "a.png")]
    (grid,) = grids(asked)
    assert grid.size == (50, 30) and grid.box == (0, -10, 50, 40)
    assert shown(asked.pictures[0], 25).shape == (15, 25, 3)
    two = ask_tiny(build("llava"), "tItIttt", new=1)
    assert [grid.index[0, 0] for grid in grids(two)] == [0, 16]


def test_a_map_carried_through_attention() -> None:
    attention = np.zeros((1, 4, 16), np.float32)
    attention[0, :, [0, 2, 8, 10]] = np.eye(4)  # each query looks at one patch of its own cell
    assert locality(attention) == 1
    assert locality(np.full((1, 4, 16), 1 / 16, np.float32)) == pytest.approx(1 / 4)
    assert locality(np.roll(attention, 1, axis=1)) == 0
    moved = through(np.array([[1.0, 2.0, 3.0, np.nan]]), attention)
    assert moved.shape == (1, 16)
    assert moved[0, [0, 2, 8, 10]].tolist() == [1, 2, 3, 0]
    assert np.isnan(through(np.full((1, 4), np.nan), attention)).all()
    with pytest.raises(ExplainError, match="both must be squares"):
        locality(np.ones((1, 3, 16)))


def test_a_towers_blocks_are_followed_in_order() -> None:
    torch.manual_seed(0)
    one, two = torch.rand(2, 1, 5, 5).softmax(-1)
    found = rollout([one, two])
    assert found.shape == (1, 4, 4)
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 4))
    whole = (two @ one)[:, 1:, 1:]
    torch.testing.assert_close(found, whole / whole.sum(-1, keepdim=True))
