"""What a model's vision tower does for the visual tokens of every prompt.

```
tower block B   query, key [p, h, c + s, d]   p pictures, c class tokens, s patches      -> Sight
projector       its input  [p, s / g, g C]    or [all patches, C], g patches to a token  -> features
groups          long [tokens, g]              which patches a token is made of, in the order of the prompt's tokens
```

Towers whose attention is computed picture by picture (Qwen-VL's) show one call for each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.rules import Sight, Tower
from redrel_vlmeval.truncation.decoders import Decoder, attended
from redrel_vlmeval.truncation.hooks import Hook, replaced
from redrel_vlmeval.truncation.layout import Layout, attention_of, layout_of
from redrel_vlmeval.truncation.ranking import head_rows
from redrel_vlmeval.truncation.seeing import Evidence
from redrel_vlmeval.truncation.smaller import Shown, showing

ROWS = 256  # query rows of a tower that are attended to at once


@dataclass
class Watch:
    """What was seen of the tower since the last ``clear``: of one prompt, or of one batch of them.

    place: None where nobody asks what the tower attends to. shown: None where nobody asks for smaller pictures.
    """

    place: Layout | None
    shown: Shown | None = None
    asked: dict[int, list[tuple[torch.Tensor, torch.Tensor, float]]] = field(default_factory=dict)
    features: list[torch.Tensor] = field(default_factory=list)
    grids: list[torch.Tensor] = field(default_factory=list)  # Qwen-VL: long [p, 3], time, rows and columns of patches
    packed: list[torch.Tensor] = field(default_factory=list)  # tiled pictures: patch of each token, -1 a newline
    _towers: list[Tower | None] = field(default_factory=list)

    def clear(self) -> None:
        """Forget it: another prompt begins."""
        self.asked, self.features, self.grids, self.packed, self._towers = {}, [], [], [], []
        if self.shown is not None:
            self.shown.calls.clear()

    @property
    def layout(self) -> Layout:
        assert self.place is not None  # whoever asks has said so to `watching`
        return self.place

    @property
    def idle(self) -> bool:
        """True while the tower works for something else than the prompt."""
        return self.shown is not None and self.shown.again

    def tell(self, evidence: Evidence, needs: Collection[str], counts: Sequence[int]) -> None:
        """Give ``evidence`` what ``needs`` ask of the tower, for prompts of ``counts`` visual tokens."""
        if "tower" in needs:
            evidence.towers = self.towers(counts)
        if "smaller" in needs and self.shown is not None:
            evidence.smaller = self.shown.smaller(counts)

    def towers(self, counts: Sequence[int]) -> list[Tower | None]:
        """Of every prompt of the batch, which have ``counts`` visual tokens; None of one without.

        Raises:
            TruncationError: the tower did not run in this call, or not once for the tokens that there are.
        """
        if not self._towers:
            self._towers = self._found(counts) if any(counts) else [None for _ in counts]
        return self._towers

    def _found(self, counts: Sequence[int]) -> list[Tower | None]:
        if len(self.features) != 1:
            raise TruncationError(
                f"the vision tower ran {len(self.features)} times in the call that has the prompt, so its features "
                "cannot be told apart by visual token; give pixels with the prompt, pictures or a video"
            )
        groups = self._groups()
        times = sum(counts) // len(groups) or 1  # `generate` repeats every prompt for beams after the tower has run
        single = list(counts[::times])
        if sum(single) != len(groups) or [count for count in single for _ in range(times)] != list(counts):
            raise TruncationError(
                f"the vision tower has seen {len(groups)} visual tokens, but the prompts have {sum(counts)}"
            )
        whole, pictures, first = self._whole(groups), self._pictures(), 0
        found: list[Tower | None] = []
        for count in single:
            grids, left = [], count
            while pictures and left > 0:
                size, grid = pictures.pop(0)
                grids.append(grid)
                left -= size
            tower = whole.at(torch.arange(first, first + count))
            found += [replace(tower, grids=tuple(grids)) if count else None] * times
            first += count
        return found

    def _pictures(self) -> list[tuple[int, tuple[int, int] | None]]:
        """Tokens, and their rows and columns, of every picture of the batch, where the tower was told them."""
        side = self.layout.merge
        sizes = self.grids[0].tolist() if self.grids else []
        return [(t * h * w // side**2, (h // side, w // side) if t == 1 else None) for t, h, w in sizes]

    def _whole(self, groups: torch.Tensor) -> Tower:
        """All visual tokens of the batch."""
        features = self.features[0]
        if self.layout.flat:
            features = features.reshape(-1, features.shape[-1])[groups].flatten(1)  # [tokens, g C]
        else:
            features = _of_patches(features.flatten(0, 1), groups) if self.packed else features.flatten(0, 1)
        layout = self.layout
        read, middle, last = (self._sight(block, groups) for block in (layout.read, layout.middle, layout.last))
        return Tower(features, read, middle, last)

    def _groups(self) -> torch.Tensor:
        """Patches of every token, among all patches of the batch: long [tokens, g]."""
        features, side = self.features[0], self.layout.merge
        if self.packed:
            places = self.packed[0].round().long()
            if not torch.equal(places.double(), self.packed[0]):
                raise TruncationError(
                    "the model has resampled the picture's tokens, so none stands for one patch; rules that need the "
                    "tower cannot be used with a picture of this size"
                )
            return places[:, None]
        if not self.layout.flat:
            one = self._square(features.shape[1], side)
            patches = one.numel()
            return (one[None] + patches * torch.arange(len(features))[:, None, None]).flatten(0, 1)
        groups = torch.arange(self._patches()).view(-1, side * side)
        order = self._window_order()
        return groups if order is None else groups[order]

    def _patches(self) -> int:
        """All patches of the batch, those too that no token stands for."""
        features = self.features[0]
        rows = features.shape[0] if features.ndim == 2 else features.shape[0] * features.shape[1]
        return int(rows) if self.layout.flat else int(rows) * self.layout.merge**2

    def _square(self, tokens: int, side: int) -> torch.Tensor:
        """Patches of each token of a square picture, long [tokens, g], as the model itself shuffles them."""
        if side == 1:
            return torch.arange(tokens)[:, None]
        wide = math.isqrt(tokens) * side
        numbers = torch.arange(wide * wide, dtype=torch.float64).view(1, wide, wide, 1)
        shuffle = next(m for m in self.layout.model.modules() if hasattr(m, "pixel_shuffle")).pixel_shuffle
        return shuffle(numbers, scale_factor=1 / side).reshape(tokens, side * side).long()

    def _window_order(self) -> torch.Tensor | None:
        """Qwen2.5-VL's tower works window by window: where each token of the prompt stands in that order."""
        visual: Any = self.layout.visual
        if not hasattr(visual, "fullatt_block_indexes"):
            return None
        grid = self.grids[0]
        if hasattr(visual, "get_window_index"):
            index, _ = visual.get_window_index(grid)
        else:
            make = sys.modules[type(visual).__module__].get_vision_window_index  # type: ignore[attr-defined]
            index, _ = make(grid, visual.spatial_merge_size, visual.window_size, visual.patch_size)
        return torch.as_tensor(index).cpu().argsort()

    def _sight(self, block: int, groups: torch.Tensor) -> Sight:
        calls = self.asked.get(block)
        if not calls:
            raise TruncationError(
                f"block {block + 1} of the vision tower did not attend through transformers' attention interface, so "
                "rules that need the tower cannot be used with this kernel or release"
            )
        patches = self._patches()
        pictures = sum(len(query) for query, _, _ in calls)
        extra, rest = divmod(sum(query.shape[0] * query.shape[2] for query, _, _ in calls) - patches, pictures)
        if rest or extra not in (0, 1):
            raise TruncationError(
                f"block {block + 1} of the vision tower attended to something else than {patches} patches of "
                f"{pictures} pictures, with or without a class token"
            )

        def pooled(of: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> torch.Tensor:
            found = torch.cat([of(*call)[:, extra:].flatten(0, 1) for call in calls])  # [patches of all, ...]
            return _of_patches(found, groups)

        def received() -> torch.Tensor:
            return pooled(mean_rows)

        def attention() -> torch.Tensor:
            return pooled(first_row) if extra and self.layout.classed else received()

        return Sight(attention, received, lambda: pooled(lambda _query, key, _scaling: key.float().mean(1)))


def _of_patches(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean over the patches of each token, values [patches, ...]; 0 of a newline, which has none."""
    groups = groups.to(values.device)
    mean = values.float()[groups.clamp_min(0)].mean(1)
    return mean * (groups[:, 0] >= 0).view(-1, *[1] * (mean.ndim - 1))


def first_row(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """The class token's attention, mean over heads: float32 [p, k]."""
    rows = torch.zeros(len(query), 1, dtype=torch.long, device=query.device)
    return head_rows(query, key, rows, scaling, causal=False).mean(1)[:, 0]


def mean_rows(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention received, mean over heads and rows: float32 [p, k]; never all rows at once."""
    total = torch.zeros(len(key), key.shape[2], device=query.device)
    for rows in torch.arange(query.shape[2], device=query.device).split(ROWS):
        total += head_rows(query, key, rows.expand(len(query), -1), scaling, causal=False).mean(1).sum(1)
    return total / query.shape[2]


@contextmanager
def watching(decoder: Decoder, needs: Collection[str] = ("tower",)) -> Iterator[Watch]:
    """Within the context the tower of a model is looked at, as far as ``needs`` ask; ``clear`` before every prompt.

    Raises:
        TruncationError: it cannot be; see :func:`layout_of` and :func:`~redrel_vlmeval.truncation.smaller.showing`.
    """
    with ExitStack() as undo:
        shown = undo.enter_context(showing(decoder)) if "smaller" in needs else None
        watch = Watch(layout_of(decoder) if "tower" in needs else None, shown)
        undo.callback(watch.clear)
        if watch.place is not None:
            _look(watch, watch.place, undo)
        yield watch


def _look(watch: Watch, layout: Layout, undo: ExitStack) -> None:
    """Hooks that note what the tower at ``layout`` does, off again with ``undo``."""

    def attend(seen: Any) -> Any:
        if watch.idle:
            return seen.own()
        watch.asked.setdefault(seen.block, []).append((seen.query.detach(), seen.key.detach(), seen.scaling))
        return seen.own()

    def project(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not watch.idle:
            watch.features.append((args[0] if args else next(iter(kwargs.values()))).detach())

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1] if len(args) > 1 else None
        if grid is not None and not watch.idle:
            watch.grids.append(grid)

    def packing(original: Callable[..., Any]) -> Callable[..., Any]:
        def pack(image_features: Any, *args: Any, **kwargs: Any) -> Any:
            numbers, first = [], 0
            for tiles in image_features:
                count = tiles.shape[0] * tiles.shape[1]
                numbers.append(torch.arange(first, first + count, dtype=torch.float64).view(*tiles.shape[:2], 1))
                first += count
            newline = None if kwargs.get("image_newline") is None else torch.tensor([-1.0], dtype=torch.float64)
            places, _ = original(numbers, *args, **kwargs | {"image_newline": newline})
            watch.packed.append(torch.cat(list(places))[:, 0])
            return original(image_features, *args, **kwargs)

        return pack

    for block in {layout.read, layout.middle, layout.last}:
        undo.enter_context(attended(attention_of(layout.blocks[block]), block, attend))
    undo.callback(layout.projector.register_forward_pre_hook(Hook(project), with_kwargs=True).remove)
    packers = [module for module in layout.model.modules() if hasattr(module, "pack_image_features")]
    if packers:  # the outer ones call the innermost
        undo.enter_context(replaced(packers[-1], "pack_image_features", packing))
    undo.callback(layout.visual.register_forward_pre_hook(Hook(enter), with_kwargs=True).remove)
