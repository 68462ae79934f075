"""Whether a map can be believed: facts that a wrong map fails.

Pointing game (the asked object's place is known), deletion and insertion curves against random order and, where known,
the oracle's, the same picture under another question, and weights put out of order. Each gives numbers; a card collects
those of one map. Randomising weights is necessary and separates no good map from a bad one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import integrate, stats

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked
from redrel_vlmeval.explain.maps import Edit, Grid, Wanted, grids, objective, run

STEPS = 16  # of a deletion curve
BATCH = 8  # of them to a pass
SCORE = "probability"  # of the answer, what the curves are of


def point(values: np.ndarray, asked: Collection[int], others: Collection[int] = ()) -> str:
    """What the highest cell of a map [n] is: ``asked``, ``other`` (another object), ``background``, or ``none``.

    ``none`` where nothing is positive or defined. Several highest cells count only as what all of them are.
    """
    if not np.isfinite(values).any() or np.nanmax(values) <= 0:
        return "none"
    peaks = set(np.flatnonzero(values == np.nanmax(values)).tolist())
    if peaks <= set(asked):
        return "asked"
    return "other" if peaks <= set(others) else "background"


def ranks(values: np.ndarray) -> np.ndarray:
    """Cells of a map [n], the highest first; undefined ones last, ties by number."""
    return np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")


@dataclass(frozen=True)
class Curve:
    """A deletion or insertion curve: the answer's probability after each share of cells; ``auc`` its mean height."""

    shares: np.ndarray
    scores: np.ndarray

    @property
    def auc(self) -> float:
        """Area under the curve, 0 to 1."""
        return float(integrate.trapezoid(self.scores, self.shares))


def deletion(asked: Asked, order: Sequence[int], insertion: bool = False, grid: Grid | None = None) -> Curve:
    """The answer's probability as cells of the picture go, in the order given (or, ``insertion``, come).

    A deleted cell takes the picture's median colour.

    Args:
        order: every cell of the picture's grid, numbered along its rows.
        grid: the picture's; found by itself where not given.

    Raises:
        ExplainError: several pictures, or pixels that are no squares.
    """
    shape = (grid or _one_grid(asked)).shape
    count = shape[0] * shape[1]
    if sorted(order) != list(range(count)):
        raise ExplainError(f"an order of {len(order)} cells for a grid of {count}: name each cell once")
    gone = np.unique(np.linspace(0, count, STEPS + 1).round().astype(int))
    rank = np.empty(count, int)
    rank[np.asarray(order)] = np.arange(count)
    masks = rank[None] < gone[:, None]
    masks = ~masks if insertion else masks
    scores = probabilities(asked, masks.reshape(-1, *shape))
    return Curve(gone / count, scores)


def _one_grid(asked: Asked) -> Grid:
    found = grids(asked, "pixels")
    if len(found) != 1:
        raise ExplainError(f"{len(found)} pictures: cells are deleted from one picture")
    return found[0]


def probabilities(asked: Asked, masks: np.ndarray) -> np.ndarray:
    """The answer's probability (all its tokens) with cells of the picture erased: bool [m, rows, cols] -> [m]."""
    found = []
    for some in np.array_split(masks, -(-len(masks) // BATCH)):
        with run(asked, Wanted(), copies=len(some), edit=eraser(some), grad=False) as taken:
            scores = objective(taken.logits, asked.answer, "logprob").sum(1).exp().double()
            found.append(scores.cpu().numpy())
    return np.concatenate(found)


def eraser(masks: np.ndarray) -> Edit:
    """Paints the masked cells of copy i in the picture's median colour: bool [m, rows, cols], pixels [m, 3, h, w].

    Raises (when it is used):
        ExplainError: the pixels are laid out otherwise.
    """

    def edit(pixels: torch.Tensor) -> torch.Tensor:
        copies, rows, cols = masks.shape
        if pixels.ndim != 4 or len(pixels) != copies or pixels.shape[2] % rows or pixels.shape[3] % cols:
            raise ExplainError(
                f"pixels {list(pixels.shape)} for {copies} copies of {rows} x {cols} cells: cells can be erased where "
                "each picture is one square (LLaVA-1.5, Qwen-VL)"
            )
        middle = pixels[0].float().flatten(1).median(1).values.to(pixels)
        high, wide = pixels.shape[2] // rows, pixels.shape[3] // cols
        mask = torch.from_numpy(masks).to(pixels.device)
        mask = mask.repeat_interleave(high, 1).repeat_interleave(wide, 2)[:, None]
        return torch.where(mask, middle[None, :, None, None], pixels)

    return edit


@dataclass(frozen=True)
class Deleted:
    """AUCs of one map: of its own order, of ``orders`` random ones (mean), and of the oracle's, None if unknown."""

    own: float
    random: float
    oracle: float | None

    @property
    def gain(self) -> float:
        """Random's AUC minus the map's: how much sooner than by chance the answer goes (insertion: minus that)."""
        return self.random - self.own


def delete_test(
    asked: Asked, values: np.ndarray, oracle: Sequence[int] | None = None, *, insertion: bool = False, seed: int = 0,
    orders: int = 8,
) -> Deleted:  # fmt: skip
    """Deletion (or insertion) AUC of a map [cells] against random orders and the oracle's, whose cells go first."""
    grid = _one_grid(asked)
    flat = np.asarray(values)[grid.index.ravel()]
    generator = np.random.default_rng(seed)
    count = flat.size
    own = deletion(asked, ranks(flat).tolist(), insertion, grid).auc
    chance = [deletion(asked, generator.permutation(count).tolist(), insertion, grid).auc for _ in range(orders)]
    best = None
    if oracle is not None:
        rest = generator.permutation([cell for cell in range(count) if cell not in set(oracle)]).tolist()
        best = deletion(asked, [*oracle, *rest], insertion, grid).auc
    return Deleted(own, float(np.mean(chance)), best)


def compare(one: np.ndarray, two: np.ndarray) -> dict[str, Any]:
    """Two maps [n] of one picture: ``rank`` (Spearman's correlation, None where a map is flat), and whether the highest
    cell is the same one (``same_peak``)."""
    known = np.isfinite(one) & np.isfinite(two)
    one, two = one[known], two[known]
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return {"rank": None, "same_peak": False}
    rank = float(stats.spearmanr(one, two).statistic)
    return {"rank": rank, "same_peak": int(one.argmax()) == int(two.argmax())}


@contextmanager
def shuffled(asked: Asked, blocks: int, seed: int = 0) -> Iterator[None]:
    """Within the context the weights of the last ``blocks`` decoder blocks stand in random order; then as before.

    Raises:
        ExplainError: the decoder has fewer blocks.
    """
    found = asked.decoder.blocks
    if not 1 <= blocks <= len(found):
        raise ExplainError(f"{blocks} blocks to randomise: the decoder has {len(found)}, choose from 1 to {len(found)}")
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        try:
            for block in found[-blocks:]:
                for weight in block.parameters():
                    before = weight.detach().to("cpu", copy=True)  # on a GPU there may be no room for a second one
                    kept.append((weight, before))
                    order = torch.randperm(weight.numel(), generator=generator)
                    weight.copy_(before.flatten()[order].view_as(before))
            with torch.enable_grad():
                yield
        finally:
            for weight, before in kept:
                weight.copy_(before)


def randomisation(
    asked: Asked, draw: Callable[[Asked], np.ndarray], blocks: Sequence[int], seed: int = 0
) -> list[dict[str, Any]]:
    """How like the map stays when the last n decoder blocks' weights are shuffled: one :func:`compare` for each n.

    ``draw`` makes the map [cells] of an answer.
    """
    before = draw(asked)
    found = []
    for count in blocks:
        with shuffled(asked, count, seed):
            changed = draw(replace(asked, own=False))  # these weights would answer otherwise
        found.append({"blocks": count, **compare(before, changed)})
    return found


def card(
    where: str, method: str, layer: int, values: np.ndarray, *, asked_cells: Collection[int] | None = None,
    other_cells: Collection[int] = (), deleted: Deleted | None = None, inserted: Deleted | None = None,
    swap: dict[str, Any] | None = None, randomised: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    """What is known about one map [n], for the manifest; only what was tested, never a verdict."""
    found: dict[str, Any] = {"where": where, "method": method, "layer": layer}
    if asked_cells is not None:
        found["points_at"] = point(values, asked_cells, other_cells)
    for name, test in (("deletion", deleted), ("insertion", inserted)):
        if test is not None:
            found[name] = {"auc": test.own, "random": test.random, "oracle": test.oracle}
    if swap is not None:
        found["question_swap"] = swap
    if randomised:
        found["randomisation"] = list(randomised)
    return found
