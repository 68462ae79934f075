"""How each family lays its visual tokens over its pictures.

```
tiles of LLaVA-NeXT, 2 x 3 patches whole, then 4 x 5 of the tiles, each row with a token for its end (n)

    0 1 2      6  7  8  9 10 n      View "whole": first 0, 2 x 3, stride 3
    3 4 5     12 13 14 15 16 n      View "tiles": first 6, 4 x 5, stride 6
              18 ..
```

A family cuts a picture in its own way, which its processor has done before the model is called. What the call does not
say of it follows from the picture's size. Boxes are parts of the picture's width and height, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.models.llava import square_box

WHOLE, TILES = "whole", "tiles"
# what a prompt's ids say of its pictures: length of each stretch of visual tokens, and the id before it
RUNS = "runs"
Size = tuple[int, int]  # width and height of a picture


@dataclass(frozen=True)
class View:
    """Tokens that lie in rows over a part of one picture: that of row r, column c is ``first + r * stride + c``.

    Attributes:
        picture: its number among the prompt's. kind: ``whole``, or ``tiles``: the same once more and finer.
        box: left, top, right, bottom of all cells together, in widths and heights of the picture; beyond where padded.
    """

    picture: int
    kind: str
    first: int
    rows: int
    cols: int
    stride: int
    box: tuple[float, float, float, float]


def end_of(view: View) -> int:
    """One behind its last token."""
    return view.first + (view.rows - 1) * view.stride + view.cols


def _grid(picture: int, first: int, side: int, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> View:
    return View(picture, WHOLE, first, side, side, side, box)


def patches(config: Any) -> int:
    """Patches along a side of the vision tower's pictures.

    Raises:
        ExplainError: its config does not say.
    """
    vision = getattr(config, "vision_config", None)
    sizes = [getattr(vision, name, None) for name in ("image_size", "patch_size")]
    image, patch = (size[0] if isinstance(size, (list, tuple)) else size for size in sizes)
    if not image or not patch:
        raise ExplainError(f"{config.model_type}: its config names no patches of its vision tower")
    return int(image) // int(patch)


def _squares(side: int, tokens: int, sizes: Sequence[Size], padded: bool) -> list[View]:
    """As many tokens for every picture, which is stretched to a square, or padded to one."""
    if tokens != side**2 * len(sizes):
        return []
    found = []
    for number, (wide, high) in enumerate(sizes):
        left, top, right, bottom = square_box(wide, high) if padded else (0, 0, wide, high)
        found.append(_grid(number, number * side**2, side, (left / wide, top / high, right / wide, bottom / high)))
    return found


def _llava(model: Any, _given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    """Padded before CLIP (LLaVA-1.5), stretched before SigLIP (LLaVA-interleave)."""
    padded = "siglip" not in str(getattr(model.config.vision_config, "model_type", ""))
    return _squares(patches(model.config), tokens, sizes, padded)


def _gemma3(model: Any, _given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    return _squares(math.isqrt(model.config.mm_tokens_per_image), tokens, sizes, False)


def _paligemma(model: Any, _given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    return _squares(patches(model.config), tokens, sizes, False)


def _qwen2_vl(model: Any, given: Mapping[str, Any], _tokens: int, sizes: Sequence[Size]) -> list[View]:
    """A picture has patches of nearly its own shape, of which ``merge`` times ``merge`` are a token."""
    grids = given.get("image_grid_thw")
    if grids is None or len(grids) != len(sizes):
        return []
    merge, found, first = int(model.config.vision_config.spatial_merge_size), [], 0
    for number, (_, high, wide) in enumerate(grids.tolist()):
        rows, cols = high // merge, wide // merge
        found.append(View(number, WHOLE, first, rows, cols, cols, (0, 0, 1, 1)))
        first += rows * cols
    return found


def _llava_next(model: Any, given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    """The whole picture stretched to a square, then its tiles put together, without the rows that are padding alone.

    LLaVA-OneVision shows pictures that its processor was given in one list of a list whole, each with one token for its
    end.
    """
    side, made, config = patches(model.config), given.get("image_sizes"), model.config
    lists = given.get("batch_num_images") if config.model_type == "llava_onevision" else None
    lists = [1] * len(sizes) if lists is None else torch.as_tensor(lists).tolist()
    if made is None or not len(made) == len(sizes) == sum(lists):
        return []
    limit = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    found, first = [], 0
    tiled = [count == 1 for count in lists for _ in range(count)]
    for number, ((high, wide), cut) in enumerate(zip(made.tolist(), tiled, strict=True)):
        found.append(_grid(number, first, side))
        first += side**2
        if cut:
            found.append(_fine(config, side, (wide, high), int(limit) if limit.isdecimal() else None, number, first))
            first = end_of(found[-1])
        first += 1
    return found if first == tokens else []


def _fine(config: Any, side: int, size: Size, limit: int | None, number: int, first: int) -> View:
    """The tiles of a picture: of all the model's resolutions the one that shows most of it; ``limit``: in tiles."""
    wide, high = size
    tile = int(config.vision_config.image_size)

    def shows(resolution: Sequence[int]) -> tuple[int, int]:
        rows, cols = resolution
        scale = min(cols / wide, rows / high)
        pixels = min(int(wide * scale) * int(high * scale), wide * high)
        return pixels, -(rows * cols - pixels)

    height, width = max(config.image_grid_pinpoints, key=shows)
    rows, cols = height // tile * side, width // tile * side
    box = [0.0, 0.0, 1.0, 1.0]
    if wide / high > cols / rows:  # padded above and below
        gone = (rows - int(round(high * cols / wide, 7))) // 2
        made = min(math.ceil(high * width / wide), height)
        box[1::2] = _edges(gone, rows, height, made)
        rows -= 2 * gone
    else:
        gone = (cols - int(round(wide * rows / high, 7))) // 2
        made = min(math.ceil(wide * height / high), width)
        box[::2] = _edges(gone, cols, width, made)
        cols -= 2 * gone
    ratio = math.sqrt(rows * cols / (limit * side**2)) if limit else 0
    if ratio > 1.1:
        rows, cols = int(rows // ratio), int(cols // ratio)
    left, top, right, bottom = box
    return View(number, TILES, first, rows, cols, cols + 1, (left, top, right, bottom))


def _edges(gone: int, cells: int, pixels: int, made: int) -> tuple[float, float]:
    """Both edges of ``cells`` less ``gone`` on either side, which lie on ``pixels``, ``made`` of them the picture."""
    cell, padding = pixels / cells, (pixels - made) // 2
    return (gone * cell - padding) / made, (pixels - gone * cell - padding) / made


def tokens_of_each(given: Mapping[str, Any], tokens: int, sizes: Sequence[Size], name: str) -> list[int]:
    """Visual tokens of each picture, whose last stretch stands behind the same id as that of the last picture.

    InternVL marks a picture, SmolVLM every tile and at last the whole:
    ```
    <img> I I I I </img> text <img> I I </img>                        4, 2
    <row_1_col_1> I <row_1_col_2> I <global> I text <global> I        3, 1
    ```

    Raises:
        ExplainError: these are not as many as there are pictures.
    """
    if len(sizes) == 1:
        return [tokens]
    runs, found, held = given.get(RUNS, ()), [], 0
    for length, before in runs:
        held += length
        if before == runs[-1][1]:
            found.append(held)
            held = 0
    if len(found) != len(sizes) or sum(found) != tokens:
        raise ExplainError(f"{name}: the tiles of {len(sizes)} pictures are not told apart by the prompt's ids")
    return found


def _cut(side: int, each: Sequence[int], sizes: Sequence[Size], name: str) -> list[View]:
    """Tiles row by row, each ``side`` x ``side`` tokens, then the whole picture once more, as long as it is cut.

    ``each``: visual tokens of each picture.
    """
    found, first = [], 0
    for number, (tokens, size) in enumerate(zip(each, sizes, strict=True)):
        count, rest = divmod(tokens, side**2)
        if rest or not count:
            return []
        found.append(_grid(number, first + (count - 1) * side**2, side))
        found += _tiles(side, count - 1, size, number, first, name)
        first += tokens
    return found


def _tiles(side: int, count: int, size: Size, number: int, first: int, name: str) -> list[View]:
    """The ``count`` tiles of a picture, the first of them at token ``first``.

    Of the ways to cut one into so many it is the one nearest to its shape: so all of these families choose.
    """
    if not count:
        return []
    wide, high = size
    shapes = [(n, count // n) for n in range(1, count + 1) if count % n == 0]
    nearest = sorted(shapes, key=lambda shape: abs(wide / high - shape[0] / shape[1]))
    if any(math.isclose(*(abs(wide / high - a / b) for a, b in two)) for two in pairwise(nearest[:2])):
        raise ExplainError(f"{name}: {count} tiles of a picture of {wide} x {high} may lie in two ways")
    across, down = nearest[0]
    found = []
    for tile in range(count):
        row, column = divmod(tile, across)
        box = (column / across, row / down, (column + 1) / across, (row + 1) / down)
        found.append(View(number, TILES, first + tile * side**2, side, side, side, box))
    return found


def _internvl(model: Any, given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    per_tile = getattr(model, "num_image_token", None) or getattr(model.config, "image_seq_length", None) or 256
    name = type(model).__name__
    return _cut(math.isqrt(per_tile), tokens_of_each(given, tokens, sizes, name), sizes, name)


def _smolvlm(model: Any, given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    side, name = patches(model.config) // int(model.config.scale_factor), type(model).__name__
    return _cut(side, tokens_of_each(given, tokens, sizes, name), sizes, name)


def _llava_package(model: Any, given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    """Each whole picture, which comes first; how its tiles lie is known to the package alone."""
    tower = model.get_vision_tower() if hasattr(model, "get_vision_tower") else None
    side = getattr(tower, "num_patches_per_side", None)
    anyres = str(getattr(model.config, "image_aspect_ratio", "")).startswith("anyres")
    each = [tokens] if len(sizes) == 1 else [length for length, _ in given.get(RUNS, ())]
    if side is None or not anyres or len(each) != len(sizes) or min(each, default=0) < side**2:
        raise ExplainError(
            f"{type(model).__name__}: its visual tokens are laid on pictures in tiles (anyres), with text between them"
        )
    return [_grid(number, sum(each[:number]), side) for number in range(len(each))]


FAMILIES: dict[str, Callable[[Any, Mapping[str, Any], int, Sequence[Size]], list[View]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_next,
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), _qwen2_vl),
    **dict.fromkeys(("internvl", "internvl_chat"), _internvl),
    **dict.fromkeys(("smolvlm", "idefics3"), _smolvlm),
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "llava_qwen": _llava_package,
}
