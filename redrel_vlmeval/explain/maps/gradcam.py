"""Maps over the image tokens for every layer: Grad-CAM and kin, from one forward call and one backward.

For a node with activation A and gradient G = dz/dA at the image rows (n tokens x c channels):

* ``gradcam`` (eq. 2-3): ``relu(sum_k alpha_k A_pk)``, ``alpha_k = mean_p G_pk``. In a LLaVA the picture stands before
  the question, so A at image rows knows nothing of it: pooled like this, a map finds objects, not the one asked for.
* ``elementwise``: ``relu(sum_k G_pk A_pk)``.
* ``attn``: attention of the answer rows to the image columns, mean over heads and rows.
* ``attn_grad``: ``relu(a dz/da)`` of that attention a, mean over heads and rows.
* ``gradcam_official``: what published code does: relu on G before pooling, the norm before the FFN as the node, cells
  under half the highest set to 0. For comparison only.

Maps are raw: no scale, no threshold but the official one.

At one decoder block, of b copies that hold s' of the s positions::

    node A, G [b, s', c] --image places--> [n', c] --formula--> [n'] --numbers--> [n], NaN at the n - n' dropped tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked
from redrel_vlmeval.explain.maps.formulas import FORMULAS, attention_gradient, noisy, objective
from redrel_vlmeval.explain.maps.passes import run
from redrel_vlmeval.explain.maps.rows import find, row_maps
from redrel_vlmeval.explain.maps.taken import Node, Taken, Wanted, image_places
from redrel_vlmeval.explain.maps.tower import Drawn, average, made_of, outside
from redrel_vlmeval.explain.store import METHODS, ROW, WHERE

NODE = {"elementwise": "input_norm", "gradcam": "input_norm", "gradcam_official": "middle_norm"}


Item = tuple[str, str, list[int]]  # where, method, blocks from 0


@dataclass(frozen=True)
class Maps:
    """One method's maps at one place.

    Attributes:
        where: ``vision``, ``projector`` or ``decoder``. method: one of :data:`store.METHODS`.
        layers: l layer numbers, counted from 1.
        values: float32 [t, l, n], n image tokens (patches in the vision tower); NaN where a token was dropped before,
            or no map is defined. t is 1 for the whole answer, else one for each of its tokens.
        status: [t][l], one of :data:`store.STATUS`: ``no_gradient``, the answer does not depend on the node;
            ``blank``, no cell is positive; ``pruned``, the layer holds no image token.
    """

    where: str
    method: str
    layers: tuple[int, ...]
    values: np.ndarray
    status: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Request:
    """What to map; see :func:`explain`."""

    methods: Sequence[str] = METHODS
    where: Sequence[str] = ("decoder",)
    layers: Sequence[int] | None = None
    objective: str = "logit"
    others: Sequence[int] | None = None
    per_token: bool = False
    checkpointing: bool = False
    smooth: int = 0
    noise: float = 0.1
    seed: int = 0
    batch: int = 8
    tower: bool = False
    row: str | None = None


@dataclass(frozen=True)
class Explained:
    """All maps of one answer and ``z`` [t], its objective.

    ``attention`` [pictures, tokens, patches] carries maps of image tokens to patches (:func:`grid.through`): the
    resampler's on Qwen-VL, where asked for (``tower``) that of a vision tower's blocks, else None.
    ``kept``: stage layer -> image tokens that the truncation kept. ``row``: positions of the row asked for.
    """

    maps: tuple[Maps, ...]
    z: np.ndarray
    attention: np.ndarray | None
    kept: dict[int, list[int]]
    row: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Pass:
    """One pass over ``copies``: z [copies, t], :data:`tower.Drawn` by token, item of the plan and layer, the rest."""

    copies: int
    z: np.ndarray
    drawn: list[list[list[Drawn]]]
    attention: np.ndarray | None
    kept: dict[int, list[int]]


def explain(asked: Asked, request: Request | None = None) -> Explained:
    """Maps of one answer at all layers asked for, from one forward call and one backward (one per token with
    ``per_token``).

    ``others``: first tokens of the other options, for ``contrast``. ``smooth``: SmoothGrad, the mean over that many
    copies whose pixels carry noise of ``noise`` times their range, drawn from ``seed``; ``batch`` of them make one
    pass, which is a matter of memory only; what a truncation keeps is chosen once, on the picture without noise.
    ``tower``: also keep the vision tower's attention. ``row``: also map where the row of these words looks
    (:func:`rows.find`), on the picture without noise.

    Raises:
        ExplainError: unknown method, place, layer or objective; no gradient; not enough memory.
    """
    request = request or Request()
    plan = _plan(asked, request)
    row = () if request.row is None else tuple(find(asked, request.row))
    copies = range(max(1, request.smooth))
    batch = max(1, request.batch)
    passes = [_pass(asked, request, plan, copies[first : first + batch]) for first in copies[::batch]]
    if any(one.kept != passes[0].kept for one in passes):
        raise ExplainError(
            f"smooth {request.smooth} in passes of {batch}: passes of different size round differently and the "
            "truncation kept different tokens; choose a batch that divides the copies"
        )
    weights = [one.copies for one in passes]
    attention = [one.attention for one in passes if one.attention is not None]
    maps = [_maps(item, [[token[i] for token in one.drawn] for one in passes]) for i, item in enumerate(plan)]
    if row:
        maps.append(_row_map(asked, request, row))
    return Explained(
        tuple(maps),
        np.concatenate([one.z for one in passes]).mean(0),
        np.average(attention, axis=0, weights=weights).astype(np.float32) if attention else None,
        passes[0].kept,
        row,
    )


def _pass(asked: Asked, request: Request, plan: Sequence[Item], copies: Sequence[int]) -> _Pass:
    """One forward call over some of the copies, and its backward."""
    rows = sorted({block for where, method, blocks in plan if method.startswith("attn") for block in blocks})
    nodes = _nodes(plan)
    tower = request.tower and asked.decoder.resampling() is None
    wanted = Wanted(nodes, rows, values=any(method == "attn_grad" for _, method, _ in plan), tower=tower)
    edit = noisy(request.noise, request.seed, copies) if request.smooth else None
    options = {"copies": len(copies), "edit": edit, "grad": bool(nodes), "checkpointing": request.checkpointing}
    with run(asked, wanted, settled=True, **options) as taken:  # type: ignore[arg-type]
        z = objective(taken.logits, asked.answer, request.objective, request.others)
        targets = [(z[:, t].sum(), t) for t in range(z.shape[1])] if request.per_token else [(z.sum(), None)]
        drawn = []
        for number, (target, token) in enumerate(targets):
            gradients = taken.gradients(target, number + 1 < len(targets)) if nodes else {}
            drawn.append([_draw(taken, gradients, item, token) for item in plan])
        return _Pass(len(copies), z.detach().float().cpu().numpy(), drawn, made_of(asked, taken, tower), taken.kept)


def _maps(item: Item, passes: Sequence[Sequence[Sequence[Drawn]]]) -> Maps:
    """One item of the plan from what every pass drew of it by token and layer."""
    where, method, blocks = item
    values, status = [], []
    for token in zip(*passes, strict=True):
        layers = [average(layer) for layer in zip(*token, strict=True)]
        rows = [mean.float().cpu().numpy() for mean, _ in layers]
        width = max(map(len, rows))  # a vision block that never ran has no patches to count
        rows = [row if len(row) == width else np.full(width, np.nan, np.float32) for row in rows]
        values.append(np.stack(rows).astype(np.float32))
        status.append(tuple(state for _, state in layers))
    return Maps(where, method, tuple(block + 1 for block in blocks), np.stack(values), tuple(status))


def _row_map(asked: Asked, request: Request, row: Sequence[int]) -> Maps:
    """Where the row asked for looks, at the decoder's blocks."""
    count = len(asked.decoder.blocks)
    layers = [layer for layer in request.layers or range(1, count + 1) if layer <= count]
    if not layers:
        raise ExplainError(f"row: none of the layers is one of the decoder's {count} blocks")
    values, status = row_maps(asked, row, [layer - 1 for layer in layers])
    return Maps("decoder", ROW, tuple(layers), values[None], (tuple(status),))


def _plan(asked: Asked, request: Request) -> list[Item]:
    """(where, method, blocks from 0) of everything asked for that has a meaning.

    Raises:
        ExplainError: an unknown word, or a layer that does not exist.
    """
    for given, known, what in ((request.methods, METHODS, "method"), (request.where, WHERE, "where")):
        unknown = [word for word in given if word not in known]
        if unknown or not given:
            raise ExplainError(f"{what} {', '.join(map(repr, unknown)) or '(none)'}: choose from {', '.join(known)}")
    asked.check_within(request.where)
    plan: list[Item] = []
    counts = {where: _count(asked, where) for where in request.where}
    numbers = request.layers or range(1, max(counts.values()) + 1)
    wrong = [layer for layer in numbers if not 1 <= layer <= max(counts.values())]
    if wrong:
        there = " and ".join(f"{count} blocks of {where}" for where, count in counts.items() if where != "projector")
        raise ExplainError(f"layer {wrong[0]}: there are {there or 'no layers but the projector'}")
    for where, count in counts.items():
        layers = [1] if where == "projector" else [layer for layer in numbers if layer <= count]
        for method in request.methods:
            if where == "decoder" or method in FORMULAS:
                plan += [(where, method, [layer - 1 for layer in layers])] if layers else []
    if not plan:
        raise ExplainError(f"methods {', '.join(request.methods)} are those of the decoder: add where 'decoder'")
    return plan


def _count(asked: Asked, where: str) -> int:
    """Layers there are at a place."""
    if where == "projector":
        return 1
    return len(asked.decoder.blocks if where == "decoder" else asked.decoder.vision_blocks())


def _nodes(plan: Sequence[Item]) -> list[Node]:
    """Nodes whose gradients the plan needs, none twice."""
    nodes = []
    for where, method, blocks in plan:
        kind = {"attn_grad": "attention_output", "attn": ""}.get(method, NODE.get(method, ""))
        kind = kind if where == "decoder" else where
        nodes += [(kind, block) for block in blocks] if kind else []
    return list(dict.fromkeys(nodes))


def _draw(taken: Taken, gradients: dict[Node, torch.Tensor | None], item: Item, token: int | None) -> list[Drawn]:
    """One method at all its layers, from one pass."""
    where, method, blocks = item
    if where != "decoder":
        return [outside(taken, gradients, where, method, block) for block in blocks]
    if method in FORMULAS:
        return [_inside(taken, gradients, method, block) for block in blocks]
    return [_attention(taken, gradients, method, block, token) for block in blocks]


def _inside(taken: Taken, gradients: dict[Node, torch.Tensor | None], method: str, block: int) -> Drawn:
    """A formula at a decoder node, over all n image tokens."""
    node = (NODE[method], block)
    activation, gradient = taken.nodes[node], gradients[node]
    image = taken.image
    state, copies = "no_gradient", []
    for copy, held in enumerate(index[block] for index in taken.held):
        places, numbers = image_places(image, held)
        whole = torch.full((len(image),), torch.nan, dtype=torch.promote_types(activation.dtype, torch.float32))
        # a gradient of zeros alone is none: at the last block no image row reaches the answer
        if len(places) and gradient is not None and bool(gradient[copy, places].any()):
            cam = FORMULAS[method](activation[copy, places].detach(), gradient[copy, places])
            whole[numbers] = cam.cpu()
            state = "ok"
        elif not len(places):
            state = "pruned"
        copies.append(whole)
    return copies, state


def _attention(
    taken: Taken, gradients: dict[Node, torch.Tensor | None], method: str, block: int, token: int | None
) -> Drawn:
    """``attn`` or ``attn_grad`` of a decoder block, over all n image tokens."""
    image = taken.image
    rows = slice(None) if token is None else slice(token, token + 1)
    weights = taken.rows[block]
    if method == "attn_grad":
        gradient = gradients[("attention_output", block)]
        if gradient is None:
            return [torch.full((len(image),), torch.nan)], "no_gradient"
        slope = row_gradient(taken, gradient, block)
        weights = torch.relu(weights * slope.to(weights))
    state, copies = "ok", []
    for copy, held in enumerate(index[block] for index in taken.held):
        places, numbers = image_places(image, held)
        whole = torch.full((len(image),), torch.nan)
        if len(places):
            whole[numbers] = weights[copy, :, rows][..., places.to(weights.device)].mean((0, 1)).float().cpu()
        else:
            state = "pruned"
        copies.append(whole)
    return copies, state


def row_gradient(taken: Taken, gradient: torch.Tensor, block: int) -> torch.Tensor:
    """dz/da of a block's attention at the rows that predict the answer, [b, h, t, s']; see :func:`attention_gradient`.

    ``gradient`` is dz/do, [b, s', h * d].
    """
    held = [index[block] for index in taken.held]
    rows = torch.stack([taken.predict if i is None else torch.searchsorted(i, taken.predict) for i in held])
    rows = rows.to(gradient.device)
    chosen = gradient.take_along_dim(rows[..., None], 1)
    return attention_gradient(chosen, taken.values[block])
