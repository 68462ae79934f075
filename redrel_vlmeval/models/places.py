"""Where visual tokens lie on their pictures, family by family; told from what a model was given, never from a count.

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
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

from redrel_vlmeval.errors import ExplainError, Unaskable
from redrel_vlmeval.models.llava import square_box
from redrel_vlmeval.models.pictures import opened
from redrel_vlmeval.truncation import Decoder

WHOLE, TILES = "whole", "tiles"
GIVEN = ("image_sizes", "image_grid_thw")  # arguments of a model's call that say how its pictures were cut
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


def views(decoder: Decoder, given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    """The views of one prompt's ``tokens`` visual tokens, picture by picture, the whole of it first.

    Args:
        given: arguments of the model's call: ``image_sizes``, ``image_grid_thw``.
        sizes: of the prompt's pictures, in order.

    Raises:
        ExplainError: the family's tokens are no places on a picture, or how they lie is not known here.
    """
    model = decoder.root if decoder.entrance is None else decoder.entrance.outer
    config: Any = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", type(model).__name__))
    if kind not in FAMILIES:
        raise ExplainError(
            f"{type(model).__name__}: how {kind} lays its visual tokens over a picture is not known here; known are "
            f"{', '.join(FAMILIES)}"
        )
    found = FAMILIES[kind](model, given, tokens, sizes)
    if not found or _end(found[-1]) > tokens:
        raise ExplainError(
            f"{type(model).__name__}: {tokens} visual tokens of {len(sizes)} pictures are not laid out as {kind}'s are"
        )
    return sorted(found, key=lambda view: (view.picture, view.kind != WHOLE))


def recorded(decoder: Decoder, given: Mapping[str, Any], tokens: int, pictures: Sequence[str]) -> dict[str, Any]:
    """What a record says of a prompt's pictures: ``views``, a list for each :class:`View`, or why ``unplaced``.

    ``pictures``: paths.
    """
    try:
        found = views(decoder, given, tokens, [size_of(picture) for picture in pictures])
    except (ExplainError, Unaskable) as error:
        return {"unplaced": str(error)}
    return {"views": [[*astuple(view)[:-1], *(round(float(edge), 5) for edge in view.box)] for view in found]}


def size_of(path: str) -> Size:
    """Width and height of a picture's file.

    Raises:
        Unaskable: it is missing or no picture.
    """
    with opened(path) as picture:
        return picture.size


def _end(view: View) -> int:
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

    LLaVA-OneVision shows several pictures whole, each with one token for its end.
    """
    side, told, config = patches(model.config), given.get("image_sizes"), model.config
    if told is None or len(told) != len(sizes):
        return []
    limit = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    found, first = [], 0
    for number, (high, wide) in enumerate(told.tolist()):
        found.append(_grid(number, first, side))
        first += side**2
        if config.model_type == "llava_next" or len(sizes) == 1:
            found.append(_fine(config, side, (wide, high), int(limit) if limit.isdecimal() else None, number, first))
            first = _end(found[-1])
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


def _cut(side: int, tokens: int, sizes: Sequence[Size], name: str) -> list[View]:
    """Tiles row by row, each ``side`` x ``side`` tokens, then the whole picture once more, as long as it is cut.

    Of the ways to cut one into so many tiles it is the one nearest to its shape: so all of these families choose.
    """
    count, rest = divmod(tokens, side**2)
    if rest or not sizes:
        return []
    if len(sizes) > 1:
        if count != len(sizes):
            raise ExplainError(f"{name}: the tiles of several pictures are not told apart here")
        return [_grid(number, number * side**2, side) for number in range(count)]
    found = [_grid(0, (count - 1) * side**2, side)]
    if count == 1:
        return found
    wide, high = sizes[0]
    shapes = [(n, (count - 1) // n) for n in range(1, count) if (count - 1) % n == 0]
    nearest = sorted(shapes, key=lambda shape: abs(wide / high - shape[0] / shape[1]))
    if any(math.isclose(*(abs(wide / high - a / b) for a, b in two)) for two in pairwise(nearest[:2])):
        raise ExplainError(f"{name}: {count - 1} tiles of a picture of {wide} x {high} may lie in two ways")
    across, down = nearest[0]
    for number in range(count - 1):
        row, column = divmod(number, across)
        box = (column / across, row / down, (column + 1) / across, (row + 1) / down)
        found.append(View(0, TILES, number * side**2, side, side, side, box))
    return found


def _internvl(model: Any, _given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    per_tile = getattr(model, "num_image_token", None) or getattr(model.config, "image_seq_length", None) or 256
    return _cut(math.isqrt(per_tile), tokens, sizes, type(model).__name__)


def _smolvlm(model: Any, _given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    return _cut(patches(model.config) // int(model.config.scale_factor), tokens, sizes, type(model).__name__)


def _llava_package(model: Any, _given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    """The whole picture, which comes first; how its tiles lie is known to the package alone."""
    tower = model.get_vision_tower() if hasattr(model, "get_vision_tower") else None
    side = getattr(tower, "num_patches_per_side", None)
    anyres = str(getattr(model.config, "image_aspect_ratio", "")).startswith("anyres")
    if side is None or not anyres or len(sizes) != 1 or tokens < side**2:
        raise ExplainError(
            f"{type(model).__name__}: its visual tokens are laid on the picture for one picture in tiles (anyres)"
        )
    return [_grid(0, 0, side)]


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
