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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from redrel_vlmeval.explain.asking import Asked
from redrel_vlmeval.explain.errors import ExplainError
from redrel_vlmeval.explain.passes import Edit, Node, Taken, Wanted, objective, run
from redrel_vlmeval.explain.pixels import rollout

METHODS = ("elementwise", "gradcam", "attn", "attn_grad", "gradcam_official")
WHERE = ("vision", "projector", "decoder")
STATUS = ("ok", "no_gradient", "blank", "pruned")
NODE = {"elementwise": "input_norm", "gradcam": "input_norm", "gradcam_official": "middle_norm"}


@dataclass(frozen=True)
class Maps:
    """One method's maps at one place.

    Attributes:
        where: ``vision``, ``projector`` or ``decoder``. method: one of :data:`METHODS`.
        layers: l layer numbers, counted from 1.
        values: float32 [t, l, n], n image tokens (patches in the vision tower); NaN where a token was dropped before,
            or no map is defined. t is 1 for the whole answer, else one for each of its tokens.
        status: [t][l], one of :data:`STATUS`: ``no_gradient``, the answer does not depend on the node; ``blank``, no
            cell is positive; ``pruned``, the layer holds no image token.
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
    tower: bool = False


@dataclass(frozen=True)
class Explained:
    """All maps of one answer and ``z`` [t], its objective.

    ``attention`` [pictures, tokens, patches] carries maps of image tokens to patches (:func:`pixels.through`): the
    resampler's on Qwen-VL, where asked for (``tower``) that of a vision tower's blocks, else None.
    ``kept``: stage layer -> image tokens that the truncation kept.
    """

    maps: tuple[Maps, ...]
    z: np.ndarray
    attention: np.ndarray | None
    kept: dict[int, list[int]]


def pooled(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (eq. 2-3): A, G [..., n, c] -> [..., n]."""
    return torch.relu((gradient.mean(-2, keepdim=True) * activation).sum(-1))


def elementwise(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient times activation, summed over channels, positive part: A, G [..., n, c] -> [..., n]."""
    return torch.relu((gradient * activation).sum(-1))


def official(activation: torch.Tensor, gradient: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """The published code's: relu on G, then pooling, then cells under ``threshold`` of the highest set to 0."""
    cam = pooled(activation, torch.relu(gradient))
    return cam * (cam >= threshold * cam.amax(-1, keepdim=True))


FORMULAS = {"elementwise": elementwise, "gradcam": pooled, "gradcam_official": official}


def attention_gradient(output_gradient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """dz/da of attention weights, without the weights: ``dz/da_hrj = (dz/do_rh) . v_jh``.

    Args:
        output_gradient: dz/do at the answer rows, o the attention's output before its projection: [b, r, h * d].
        value: [b, h_kv, s, d]; with grouped queries every value head serves ``h / h_kv`` heads.

    Returns:
        [b, h, r, s].
    """
    batch, rows, _ = output_gradient.shape
    kv_heads, width = value.shape[1], value.shape[3]
    by_head = output_gradient.view(batch, rows, kv_heads, -1, width).permute(0, 2, 3, 1, 4)
    product = by_head.flatten(2, 3) @ value.transpose(2, 3)
    return product.view(batch, kv_heads, -1, rows, value.shape[2]).flatten(1, 2)


def explain(asked: Asked, request: Request | None = None) -> Explained:
    """Maps of one answer at all layers asked for, from one forward call and one backward (one per token with
    ``per_token``).

    ``others``: first tokens of the other options, for ``contrast``. ``smooth``: SmoothGrad, the mean over that many
    copies in one batch whose pixels carry noise of ``noise`` times their range, drawn from ``seed``. ``tower``: also keep
    the vision tower's attention.

    Raises:
        ExplainError: unknown method, place, layer or objective; no gradient; not enough memory.
    """
    request = request or Request()
    plan = _plan(asked, request)
    rows = sorted({block for where, method, blocks in plan if method.startswith("attn") for block in blocks})
    nodes = _nodes(plan)
    tower = request.tower and asked.decoder.resampling() is None
    wanted = Wanted(nodes, rows, values=any(method == "attn_grad" for _, method, _ in plan), tower=tower)
    copies = max(1, request.smooth)
    edit = noisy(request.noise, request.seed) if request.smooth else None
    options = {"copies": copies, "edit": edit, "grad": bool(nodes), "checkpointing": request.checkpointing}
    with run(asked, wanted, **options) as taken:  # type: ignore[arg-type]
        z = objective(taken.logits, asked.answer, request.objective, request.others)
        targets = [(z[:, t].sum(), t) for t in range(z.shape[1])] if request.per_token else [(z.sum(), None)]
        drawn: list[list[tuple[np.ndarray, list[str]]]] = []
        for number, (target, token) in enumerate(targets):
            gradients = taken.gradients(target, number + 1 < len(targets)) if nodes else {}
            drawn.append([_draw(asked, taken, gradients, item, token) for item in plan])
        maps = tuple(
            Maps(
                where, method, tuple(block + 1 for block in blocks),
                np.stack([token[i][0] for token in drawn]), tuple(tuple(token[i][1]) for token in drawn),
            )  # fmt: skip
            for i, (where, method, blocks) in enumerate(plan)
        )
        attention = _patches_of(asked, taken, tower)
        return Explained(maps, z.detach().mean(0).float().cpu().numpy(), attention, taken.kept)


def _patches_of(asked: Asked, taken: Taken, tower: bool) -> np.ndarray | None:
    """Attention from image tokens to patches, mean over noisy copies; see :class:`Explained`."""
    found = taken.resampled
    if found is None and tower:
        last = tower_depth(asked, len(taken.tower))
        found = rollout([taken.tower[block] for block in range(last)])
    if found is None:
        return None
    return np.asarray(found.unflatten(0, (len(taken.held), -1)).mean(0).cpu().numpy(), np.float32)


def tower_depth(asked: Asked, blocks: int) -> int:
    """How many blocks of the vision tower stand before the one whose output is read (LLaVA: all but the last)."""
    layer = getattr(getattr(asked.model, "config", None), "vision_feature_layer", -1)
    if not isinstance(layer, int):
        raise ExplainError(f"vision_feature_layer {layer!r}: the tower is read at several blocks, no one path leads back")
    return layer if layer >= 0 else blocks + 1 + layer


Item = tuple[str, str, list[int]]


def _plan(asked: Asked, request: Request) -> list[Item]:
    """(where, method, blocks from 0) of everything asked for that has a meaning.

    Raises:
        ExplainError: an unknown word, or a layer that does not exist.
    """
    for given, known, what in ((request.methods, METHODS, "method"), (request.where, WHERE, "where")):
        unknown = [word for word in given if word not in known]
        if unknown or not given:
            raise ExplainError(f"{what} {', '.join(map(repr, unknown)) or '(none)'}: choose from {', '.join(known)}")
    plan: list[Item] = []
    for where in request.where:
        decoder = asked.decoder
        count = {"decoder": lambda: len(decoder.blocks), "projector": lambda: 1}.get(
            where, lambda: len(asked.decoder.vision_blocks())
        )()
        layers = range(1, count + 1) if request.layers is None or where == "projector" else request.layers
        wrong = [layer for layer in layers if not 1 <= layer <= count]
        if wrong:
            raise ExplainError(f"layer {wrong[0]} of {where}: there are {count} blocks, choose from 1 to {count}")
        for method in request.methods:
            if where == "decoder" or method in FORMULAS:
                plan.append((where, method, [layer - 1 for layer in layers]))
    if not plan:
        raise ExplainError(f"methods {', '.join(request.methods)} are those of the decoder: add where 'decoder'")
    return plan


def _nodes(plan: Sequence[Item]) -> list[Node]:
    """Nodes whose gradients the plan needs, none twice."""
    nodes = []
    for where, method, blocks in plan:
        kind = {"attn_grad": "attention_output", "attn": ""}.get(method, NODE.get(method, ""))
        kind = kind if where == "decoder" else where
        nodes += [(kind, block) for block in blocks] if kind else []
    return list(dict.fromkeys(nodes))


def _draw(
    asked: Asked, taken: Taken, gradients: dict[Node, torch.Tensor | None], item: Item, token: int | None
) -> tuple[np.ndarray, list[str]]:
    """One method at all its layers: (float32 [l, n], status [l])."""
    where, method, blocks = item
    values, status = [], []
    for block in blocks:
        if where != "decoder":
            found, state = _outside(taken, gradients, where, method, block)
        elif method in FORMULAS:
            found, state = _inside(asked, taken, gradients, method, block)
        else:
            found, state = _attention(asked, taken, gradients, method, block, token)
        values.append(found.float().cpu().numpy())
        status.append(state)
    width = max(map(len, values))  # a vision block that never ran has no patches to count
    values = [row if len(row) == width else np.full(width, np.nan, np.float32) for row in values]
    return np.stack(values).astype(np.float32), status


def _inside(
    asked: Asked, taken: Taken, gradients: dict[Node, torch.Tensor | None], method: str, block: int
) -> tuple[torch.Tensor, str]:
    """A formula at a decoder node: (map over all n image tokens, status)."""
    node = (NODE[method], block)
    activation, gradient = taken.nodes[node], gradients[node]
    image = torch.from_numpy(asked.spans().image)
    state, copies = "no_gradient", []
    for copy, held in enumerate(index[block] for index in taken.held):
        places, numbers = _image_places(image, held)
        whole = torch.full((len(image),), torch.nan, dtype=activation.dtype)
        if len(places) and gradient is not None and bool(gradient[copy, places].any()):
            cam = FORMULAS[method](activation[copy, places].detach(), gradient[copy, places])
            whole[numbers] = cam.cpu()
            state = "ok"
        elif not len(places):
            state = "pruned"
        copies.append(whole)
    return _average(copies, state)


def _image_places(image: torch.Tensor, held: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the image tokens that a block holds stand among its positions, and their numbers among all image tokens."""
    if held is None:
        return image, torch.arange(len(image))
    here = torch.isin(image, held)
    return torch.searchsorted(held, image[here]), here.nonzero()[:, 0]


def _average(copies: list[torch.Tensor], state: str) -> tuple[torch.Tensor, str]:
    """Mean over noisy copies, each cell over those that hold it; ``blank`` where nothing is positive."""
    mean = copies[0] if len(copies) == 1 else torch.stack(copies).nanmean(0)
    if state == "ok" and not bool((mean.nan_to_num() > 0).any()):
        state = "blank"
    return mean, state


def _attention(
    asked: Asked, taken: Taken, gradients: dict[Node, torch.Tensor | None], method: str, block: int, token: int | None
) -> tuple[torch.Tensor, str]:
    """``attn`` or ``attn_grad`` of a decoder block: (map over all n image tokens, status)."""
    spans = asked.spans()
    image = torch.from_numpy(spans.image)
    rows = slice(None) if token is None else slice(token, token + 1)
    weights = taken.rows[block]
    if method == "attn_grad":
        gradient = gradients[("attention_output", block)]
        if gradient is None:
            return torch.full((len(image),), torch.nan), "no_gradient"
        slope = row_gradient(taken, gradient, block, torch.from_numpy(spans.predict))
        weights = torch.relu(weights * slope.to(weights))
    state, copies = "ok", []
    for copy, held in enumerate(index[block] for index in taken.held):
        places, numbers = _image_places(image, held)
        whole = torch.full((len(image),), torch.nan)
        if len(places):
            whole[numbers] = weights[copy, :, rows][..., places.to(weights.device)].mean((0, 1)).float().cpu()
        else:
            state = "pruned"
        copies.append(whole)
    return _average(copies, state)


def row_gradient(taken: Taken, gradient: torch.Tensor, block: int, predict: torch.Tensor) -> torch.Tensor:
    """dz/da of a block's attention at the rows that predict the answer, [b, h, t, s']; see :func:`attention_gradient`.

    ``gradient`` is dz/do, [b, s', h * d]; ``predict`` the rows among all positions.
    """
    held = [index[block] for index in taken.held]
    rows = torch.stack([predict if index is None else torch.searchsorted(index, predict) for index in held])
    rows = rows.to(gradient.device)
    chosen = gradient.take_along_dim(rows[..., None], 1)
    return attention_gradient(chosen, taken.values[block])


def _outside(
    taken: Taken, gradients: dict[Node, torch.Tensor | None], where: str, method: str, block: int
) -> tuple[torch.Tensor, str]:
    """A formula at a vision block or the projector: (map over all patches of all pictures, status)."""
    node = (where, block)
    activation, gradient = taken.nodes.get(node), gradients.get(node)
    if activation is None:
        return torch.full((1,), torch.nan), "no_gradient"
    activation = _patches(activation.detach(), taken)
    if gradient is None or not bool(gradient.any()):
        return torch.full((activation.shape[0] * activation.shape[1] // len(taken.held),), torch.nan), "no_gradient"
    cam = FORMULAS[method](activation, _patches(gradient, taken))
    return _average(list(cam.reshape(len(taken.held), -1).cpu()), "ok")


def _patches(tensor: torch.Tensor, taken: Taken) -> torch.Tensor:
    """A vision node as [copies * pictures, patches, c], a class token in front left out.

    Some towers give all patches of a copy in one row, [copies * patches, c]; Qwen-VL's own code has them first,
    [patches, copies * pictures, c].
    """
    if tensor.ndim == 2:
        return tensor.unflatten(0, (len(taken.held), -1))
    pictures = None if taken.resampled is None else len(taken.resampled)
    if pictures is not None and tensor.shape[0] != pictures and tensor.shape[1] == pictures:
        tensor = tensor.transpose(0, 1)
    side = int((tensor.shape[1] - 1) ** 0.5)
    return tensor[:, 1:] if side > 1 and side * side == tensor.shape[1] - 1 else tensor


def noisy(noise: float, seed: int) -> Edit:
    """Adds noise of ``noise`` times the pixels' range; drawn on the CPU, so that a seed means the same anywhere."""

    def edit(pixels: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        scale = noise * float(pixels.max() - pixels.min())
        drawn = torch.randn(pixels.shape, generator=generator)
        return pixels + (scale * drawn).to(pixels)

    return edit
