"""Rules that read the vision tower: attention, keys and features of the block that the projector reads, and of others.

In all of them a is float [n], the class row (or the mean row where a tower has no class token), V float [n, C] the
features that the projector reads. Each picture, or tile, is chosen from by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.rules.geometry import by_picture, greedy, shares, unit
from redrel_vlmeval.rules.ordering import highest
from redrel_vlmeval.rules.registry import rule
from redrel_vlmeval.rules.seen import Merged

if TYPE_CHECKING:
    from torch import Tensor

    from redrel_vlmeval.rules.seen import Seen


def diverse(v: Tensor, a: Tensor, count: int, important: int) -> Tensor:
    """VisPruner's choice, long [count]: the ``important`` highest of a, and of the rest those unlike one another.

    ```
    rest by descending a:  A B A B A B ...    drop of A the q that are most like some B, q <= 8
                           A' by descending likeness, then B                  until enough are gone
    ```
    q is at most half of the rest, or an odd rest could not lose that many.
    """
    import torch

    order = highest(a, len(a))
    first, rest, wanted = order[:important], order[important:], count - important
    if not wanted:
        return first
    v = unit(v)
    while len(rest) > wanted:
        drop = min(8, len(rest) - wanted, len(rest) // 2)
        one, other = rest[0::2], rest[1::2]
        likeness = (v[one] @ v[other].T).amax(1)
        rest = torch.cat([one[highest(likeness, len(one))[drop:]], other])
    return torch.cat([first, rest])


def contextual(keys: Tensor, a: Tensor, dominant: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """VisionZip: the ``dominant`` highest of a, and ``count`` evenly spaced others that take the rest in.

    Args:
        keys: float [n, C'], mean over heads. dominant + count <= n.

    Returns:
        dominant long [dominant], ascending; targets long [count], ascending; weights float [dominant + count, n]: a
        target becomes itself plus the mean of those whose keys are most like its own.
    """
    import torch

    top = highest(a, dominant).sort().values
    left = torch.ones(len(a), dtype=torch.bool, device=a.device).index_fill(0, top, False).nonzero()[:, 0]
    targets = left[:: max(1, len(left) // count)][:count] if count else left[:0]
    keep = torch.cat([top, targets])
    weights = torch.zeros(len(keep), len(a), device=a.device)
    weights[torch.arange(len(keep), device=a.device), keep] = 1
    others = left[~torch.isin(left, targets)]
    if count and len(others):
        directions = unit(keys)
        nearest = (directions[others] @ directions[targets].T).argmax(1)
        members = torch.bincount(nearest, minlength=count)
        weights[dominant + nearest, others] = 1 / members[nearest].float()
    return top, targets, weights


def holistic(x: Tensor, a: Tensor, count: int, runs: int = 16) -> Tensor:
    """HoloV's choice, long [count]: each of ``runs`` stretches gets a share of the budget, spent on its highest a.

    A stretch weighs ``1000 a + .09 var mean|1000 a| / (mean var + 1e-6)``, on average over its tokens; var is that of a
    token's cosines with the others of the stretch. A share beyond the stretch goes on to the next heaviest, so exactly
    ``count`` tokens come back.
    """
    import torch

    runs = max(1, min(runs, len(x)))
    parts = torch.arange(len(x), device=x.device).tensor_split(runs)
    x, a = unit(x), a.float()
    weights = torch.stack([_run_weight(x[part], 1000 * a[part]) for part in parts]).tolist()
    dealt = shares(count, weights, [len(part) for part in parts])
    return torch.cat([part[highest(a[part], share)] for part, share in zip(parts, dealt, strict=True)])


def _run_weight(x: Tensor, a: Tensor) -> Tensor:
    """Mean score of one stretch: x unit rows [s, D], a float [s] times 1000."""
    size = len(x)
    if size < 2:
        return a.mean()
    cosines = (x @ x.T).fill_diagonal_(0)
    mean = cosines.sum(1, keepdim=True) / (size - 1)
    variance = ((cosines - mean) ** 2).fill_diagonal_(0).sum(1) / (size - 1)
    return (a + 0.09 * variance * a.abs().mean() / (variance.abs().mean() + 1e-6)).mean()


def covering(v: Tensor, a: Tensor, count: int, alpha: float = 1.0) -> Tensor:
    """SCOPE's choice, long [count], in order: always the token with the largest ``gain * a^alpha``.

    The gain is what it adds to the sum over all tokens of the largest cosine with a chosen one.
    """
    import torch

    v = unit(v)
    likeness, salience = v @ v.T, a.float().clamp_min(0) ** alpha
    covered = torch.zeros(len(v), device=v.device)

    def take(token: Tensor) -> None:
        nonlocal covered
        covered = covered.maximum(likeness.index_select(0, token)[0])

    return greedy(count, lambda: (likeness - covered).clamp_min(0).sum(1) * salience, take)


def hierarchical(middle: Tensor, late: Tensor, grid: tuple[int, int], count: int, alpha: float = 0.1) -> Tensor:
    """HiPrune's choice, long [count]: anchors of a middle block, their neighbours, and the rest by a late block.

    Args:
        middle, late: float [n], attention received there, mean over rows and heads.
        grid: rows and columns of the picture's tokens.
        alpha: the share of the budget that goes to ``round(alpha count / 5)`` anchors and their four neighbours.
    """
    import torch

    rows, columns = grid
    anchors = highest(middle, min(round(alpha * count / 5), count))
    row, column = anchors // columns, anchors % columns
    first = [anchors]
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        inside = (row + down >= 0) & (row + down < rows) & (column + right >= 0) & (column + right < columns)
        first.append(((row + down) * columns + column + right)[inside])
    score = late.float().clone()
    for rank, places in ((1, torch.cat(first)), (2, anchors)):  # anchors before neighbours before everyone else
        score[places] = late[places].float() + rank * (late.max() - late.min() + 1).float()
    return highest(score, count)


def outliers(a: Tensor) -> int:
    """How many of a lie above ``Q3 + 1.5 (Q3 - Q1)``."""
    import torch

    a = a.float()
    low, high = torch.quantile(a, torch.tensor([0.25, 0.75], device=a.device))
    return int((a > high + 1.5 * (high - low)).sum())


def merging(keys: Tensor, a: Tensor, count: int, nearest: int = 32) -> tuple[Tensor, Tensor]:
    """PruMerge+ under a budget: indices long [count] and weights float [count, n].

    Kept are the outliers of a, then tokens at even steps over the others, each plus the a-weighted sum of the
    ``nearest`` tokens by cosine of keys; one row more is the a-weighted sum of what is not kept, at its last place.
    """
    import torch

    n, whole = len(a), max(count - 1, 1)  # with a budget of one there is no room for the row of the dropped
    a = a.float()
    order = highest(a, n)
    top = order[: min(outliers(a), whole)]
    free = torch.ones(n, dtype=torch.bool, device=a.device).index_fill(0, top, False).nonzero()[:, 0]
    spread = torch.arange(whole - len(top), device=a.device) * len(free) // max(whole - len(top), 1)
    keep = torch.cat([top, free[spread]])
    directions = unit(keys)
    likeness = directions[keep] @ directions.T
    rows = torch.arange(len(keep), device=a.device)
    likeness[rows, keep] = -torch.inf
    near = likeness.sort(dim=1, descending=True, stable=True).indices[:, : min(nearest, n - 1)]
    weights = torch.zeros(len(keep), n, device=a.device).scatter(1, near, a[near])
    weights[rows, keep] = 1
    if len(keep) == count:
        return keep, weights
    dropped = torch.ones(n, dtype=torch.bool, device=a.device).index_fill(0, keep, False)
    extra = dropped.nonzero()[-1:, 0]
    return torch.cat([keep, extra]), torch.cat([weights, (a * dropped)[None]])


# -- as rules ---------------------------------------------------------------------------------------------------------


def _each(seen: Seen, budget: int, choose: Callable[[slice, int], Tensor]) -> Tensor:
    """``choose(tokens, share)`` of every picture, numbered over all of them."""
    import torch

    return torch.cat([choose(place, share) + place.start for place, share in by_picture(seen, budget)])


def _merged(seen: Seen, budget: int, choose: Callable[[slice, int], tuple[Tensor, Tensor]]) -> Merged:
    """The same of rules that merge: rows stay within their picture."""
    import torch

    indices, rows = [], []
    for place, share in by_picture(seen, budget):
        kept, weights = choose(place, share)
        indices.append(kept + place.start)
        rows.append(torch.nn.functional.pad(weights, (place.start, seen.n - place.stop)))
    return Merged(torch.cat(indices), torch.cat(rows))


@rule("cls", needs={"tower"}, says="that the tower's class token attends to most")
def cls(seen: Seen, budget: int) -> Tensor:
    """FasterVLM."""
    return _each(seen, budget, lambda place, share: highest(seen.tower.read.attention[place], share))


@rule("vispruner", needs={"tower"}, says="that the tower attends to most, and others unlike one another")
def vispruner(seen: Seen, budget: int) -> Tensor:
    """VisPruner (ICCV 2025): half of the budget by attention; three quarters where a picture has 64 or less."""
    v, a = seen.tower.features, seen.tower.read.attention

    def choose(place: slice, share: int) -> Tensor:
        return diverse(v[place], a[place], share, int(share * (0.5 if share > 64 else 0.75)))

    return _each(seen, budget, choose)


@rule("visionzip", needs={"tower"}, says="that the tower attends to most, and others that take the rest in")
def visionzip(seen: Seen, budget: int) -> Merged:
    """VisionZip (CVPR 2025): 5 of 32 are contextual, as in the authors' 162 + 30, 108 + 20 and 54 + 10."""
    keys, a = seen.tower.read.keys, seen.tower.read.attention

    def choose(place: slice, share: int) -> tuple[Tensor, Tensor]:
        import torch

        top, targets, weights = contextual(keys[place], a[place], share - share * 5 // 32, share * 5 // 32)
        return torch.cat([top, targets]), weights

    return _merged(seen, budget, choose)


@rule("holov", needs={"tower", "embeddings"}, says="that the tower attends to most in each stretch of the picture")
def holov(seen: Seen, budget: int) -> Tensor:
    """HoloV."""
    x, a = seen.embeddings, seen.tower.read.attention
    return _each(seen, budget, lambda place, share: holistic(x[place], a[place], share))


@rule("scope", needs={"tower"}, says="that cover most of what the tower sees, weighed by its attention")
def scope(seen: Seen, budget: int) -> Tensor:
    """SCOPE."""
    v, a = seen.tower.features, seen.tower.read.attention
    return _each(seen, budget, lambda place, share: covering(v[place], a[place], share))


@rule("hiprune", needs={"tower"}, says="that a middle block of the tower attends to, neighbours, then a late block's")
def hiprune(seen: Seen, budget: int) -> Tensor:
    """HiPrune.

    Raises:
        InvalidValue: the rows and columns of a picture are not known, so that a token has no neighbours.
    """
    told = seen.tower.grids or [None for _ in seen.pictures]
    grids = {picture.first: picture.grid or grid for picture, grid in zip(seen.pictures, told, strict=True)}
    middle, late = seen.tower.middle.received, seen.tower.read.received

    def choose(place: slice, share: int) -> Tensor:
        size, grid = place.stop - place.start, grids[place.start]
        if grid is None or grid[0] * grid[1] != size:
            raise InvalidValue(f"rule 'hiprune': {size} tokens of a picture whose rows and columns are not known")
        return hierarchical(middle[place], late[place], grid, share)

    return _each(seen, budget, choose)


@rule("prumerge", needs={"tower"}, says="that stand out in the tower's attention or lie evenly, their likes merged in")
def prumerge(seen: Seen, budget: int) -> Merged:
    """PruMerge+, with the budget in place of its own count."""
    keys, a = seen.tower.last.keys, seen.tower.last.attention
    return _merged(seen, budget, lambda place, share: merging(keys[place], a[place], share))
