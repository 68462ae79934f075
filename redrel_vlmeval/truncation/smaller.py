"""Pictures made smaller: what a model's own tower and projector make of a picture with fewer pixels.

```
one size (LLaVA-1.5, InternVL)   [3, H, W] -> [3, rows s, columns s] -> [3, H, W] again -> tokens [n, D]
                                 -> the mean of each of rows x columns cells
any size (Qwen2-VL, Qwen2.5-VL)  patches [h w, C T s s] -> [C, H, W] -> [C, rows m s, columns m s] -> patches
                                 -> tokens [rows columns, D]
```

s: pixels along a token's side, or a patch's where m x m patches are a token. A tower of one size is shown the small
picture enlarged, as it would be shown a thumbnail.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.rules import Smaller
from redrel_vlmeval.truncation.decoders import Decoder
from redrel_vlmeval.truncation.hooks import replaced

ONE_SIZE, ANY_SIZE = ("llava", "internvl"), ("qwen2_vl", "qwen2_5_vl")
METHOD = "get_image_features"  # of transformers' models: pixels -> what enters block 1


@dataclass
class Shown:
    """What the model was shown since the last ``clear``, and its way from pixels to tokens."""

    decoder: Decoder
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = field(default_factory=list)
    again: bool = False  # while a smaller picture goes through the tower

    @property
    def config(self) -> Any:
        return self.decoder.root.config

    @property
    def any_size(self) -> bool:
        return self.config.model_type in ANY_SIZE

    def smaller(self, counts: Sequence[int]) -> list[Smaller | None]:
        """For every prompt of the batch, which have ``counts`` visual tokens; None of one without.

        Raises:
            TruncationError: the pictures went through the tower elsewhere, or are others than those of the tokens.
        """
        if not any(counts):
            return [None for _ in counts]
        if len(self.calls) != 1:
            raise TruncationError(
                f"{METHOD} ran {len(self.calls)} times in the call that has the prompt, so its pictures cannot be made "
                "smaller; give pictures, no videos, with the prompt"
            )
        grids = self._grids()
        total = sum(rows * columns for rows, columns in grids)
        times = sum(counts) // total or 1  # `generate` repeats every prompt for beams after the tower has run
        found: list[Smaller | None] = []
        first = 0
        for count in counts[::times]:
            own: list[tuple[int, int]] = []
            left = count
            while first + len(own) < len(grids) and left > 0:
                own.append(grids[first + len(own)])
                left -= math.prod(own[-1])
            if left:
                raise TruncationError(f"pictures with {total} tokens were given, but the prompts have {sum(counts)}")
            found += [Smaller(tuple(own), partial(self._made, first)) if count else None] * times
            first += len(own)
        return found

    def _grids(self) -> list[tuple[int, int]]:
        """Rows and columns of every picture's tokens, of the whole batch."""
        _, given = self.calls[0]
        if self.any_size:
            side = self.config.vision_config.spatial_merge_size
            sizes = given["image_grid_thw"].tolist()
            if any(t != 1 for t, _, _ in sizes):
                raise TruncationError("a video cannot be made smaller, pictures can")
            return [(h // side, w // side) for _, h, w in sizes]
        side = math.isqrt(self.decoder.per_picture or 0)
        return [(side, side)] * len(given["pixel_values"])

    def _made(self, first: int, picture: int, rows: int, columns: int) -> torch.Tensor:
        """Tokens [rows * columns, D] of one picture of a prompt whose pictures begin with number ``first``."""
        original, given = self.calls[0]
        number = first + picture
        if self.any_size:
            given = given | self._fewer_patches(given, number, rows, columns)
        else:
            whole = given["pixel_values"][number : number + 1]
            side = whole.shape[-1] // self._grids()[number][1]
            small = resized(resized(whole, rows * side, columns * side), *whole.shape[-2:])
            given = given | {"pixel_values": small}
        self.again = True
        try:
            tokens = _tokens_of(original(**given))
        finally:
            self.again = False
        if self.any_size:
            return tokens
        grid = tokens.T.unflatten(1, self._grids()[number]).float()
        return functional.adaptive_avg_pool2d(grid, (rows, columns)).flatten(1).T.to(tokens.dtype)

    def _fewer_patches(self, given: dict[str, Any], number: int, rows: int, columns: int) -> dict[str, torch.Tensor]:
        vision, grids = self.config.vision_config, given["image_grid_thw"]
        counts = grids.prod(-1).tolist()
        patches = given["pixel_values"].split(counts)[number]
        side, merge = vision.patch_size, vision.spatial_merge_size
        _, h, w = grids[number].tolist()
        # [h/m, w/m, m, m, C T, s, s] -> [C T, h s, w s], and back with other h and w
        blocks = patches.view(h // merge, w // merge, merge, merge, -1, side, side)
        picture = blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, h * side, w * side)
        small = resized(picture[None], rows * merge * side, columns * merge * side)[0]
        blocks = small.view(-1, rows, merge, side, columns, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
        grid = grids.new_tensor([[1, rows * merge, columns * merge]])
        return {"pixel_values": blocks.reshape(-1, patches.shape[1]), "image_grid_thw": grid}


def resized(pictures: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pictures [p, c, H, W] -> [p, c, height, width], as processors resize: bicubic, without aliasing."""
    size = (height, width)
    return functional.interpolate(pictures.float(), size, mode="bicubic", antialias=True).to(pictures.dtype)


def _tokens_of(output: Any) -> torch.Tensor:
    """What a release's ``get_image_features`` returns for one picture -> [tokens, D]."""
    found = getattr(output, "pooler_output", output)
    if isinstance(found, (list, tuple)):
        found = found[0]
    return found.flatten(0, -2)


def check_smaller(decoder: Decoder) -> None:
    """Refuse a model whose pictures cannot be made smaller.

    Raises:
        TruncationError: names those whose can.
    """
    kind = getattr(getattr(decoder.root, "config", None), "model_type", type(decoder.root).__name__)
    if kind not in (*ONE_SIZE, *ANY_SIZE):
        raise TruncationError(
            f"{kind}: its pictures are cut into tiles, enter several blocks, or are not known well enough to be made "
            f"smaller; this is possible for {', '.join((*ONE_SIZE, *ANY_SIZE))}"
        )
    if not _holders(decoder):
        raise TruncationError(f"{kind}: this release of transformers has no {METHOD} to give smaller pictures to")


def _holders(decoder: Decoder) -> list[Any]:
    """Modules that turn pixels into tokens; the outer ones call the last."""
    return [module for module in decoder.root.modules() if hasattr(module, METHOD)]


@contextmanager
def showing(decoder: Decoder) -> Iterator[Shown]:
    """Within the context it is noted what the model is shown.

    Raises:
        TruncationError: see :func:`check_smaller`.
    """
    check_smaller(decoder)
    shown = Shown(decoder)

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(original).parameters)

        def note(*args: Any, **kwargs: Any) -> Any:
            shown.calls.append((original, dict(zip(names, args, strict=False)) | kwargs))
            return original(*args, **kwargs)

        return note

    with replaced(_holders(decoder)[-1], METHOD, noting):
        yield shown
