"""Rules that read the question: which tokens are both unlike each other and near to what is asked."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Any, TypeVar

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.rules.clip import asked_words
from redrel_vlmeval.rules.geometry import by_picture, greedy, unit
from redrel_vlmeval.rules.registry import rule

if TYPE_CHECKING:
    from torch import Tensor

    from redrel_vlmeval.rules.seen import Seen

Given = TypeVar("Given", bound=Sized)
_ROUNDING = 1e-6  # of a token's own length: what float32 leaves of one that the chosen ones span


def rescaled(rho: Tensor) -> Tensor:
    """CDPruner's r, float [n]: from 1e-6 for the least of rho to a little over 1; all equal, all 1."""
    import torch

    span = rho.max() - rho.min()
    return torch.where(span > 0, (rho - rho.min() + 1e-6) / span.clamp_min(1e-12), torch.ones_like(rho))


def relevance(patches: Tensor, segments: Tensor) -> Tensor:
    """CDPruner's rho, float [n]: minus the mean cosine of ``patches`` [n, E] with the text's ``segments`` [m, E]."""
    return -(unit(patches) @ unit(segments).T).mean(1)


def determinantal(x: Tensor, r: Tensor, count: int) -> Tensor:
    """Greedy maximum of the determinant of ``diag(r) cos(X) diag(r)``, long [count] in order of choice.

    Where ``count`` exceeds the rank, what is left of every token is rounding: it changes nothing any more, and the
    rest of the budget still goes to different tokens.

    ```
    d2 [n]      what is left of each token, squared, beyond the span of the chosen ones
    c  [t, n]   the chosen ones' directions, seen by each token
    ```
    """
    import torch

    x, r = unit(x), r.float()
    kernel = r[:, None] * (x @ x.T) * r
    whole = kernel.diagonal().clone()
    left = whole.clone()
    rows: list[Tensor] = []

    def take(token: Tensor) -> None:
        nonlocal left
        row = kernel.index_select(0, token)[0]
        if rows:
            seen = torch.stack(rows)
            row = row - seen.index_select(1, token)[:, 0] @ seen
        size = left.index_select(0, token)
        real = size > _ROUNDING * whole.index_select(0, token)
        rows.append(torch.where(real, row / size.clamp_min(1e-30).sqrt(), 0.0))
        left = left - rows[-1] ** 2

    return greedy(count, lambda: left, take)


def coverage(x: Tensor, v: Tensor, z: Tensor, count: int) -> Tensor:
    """MMTok's choice, long [count] in order: what covers question and picture best, see the formula.

    Rows to cover are those of ``softmax(Z Xn^T / .01) / m`` (z float [m, D]) and ``.5 softmax(Vn Vn^T / .2) / n``; a
    row is covered as far as its largest chosen entry.
    """
    import torch

    x, v, z = unit(x), unit(v), z.float()
    rows = torch.cat([(z @ x.T / 0.01).softmax(-1) / len(z), 0.5 * (v @ v.T / 0.2).softmax(-1) / len(x)])
    covered = torch.zeros(len(rows), 1, device=rows.device)

    def take(token: Tensor) -> None:
        nonlocal covered
        covered = covered.maximum(rows.index_select(1, token))

    return greedy(count, lambda: (rows - covered).clamp_min(0).sum(0), take)


# -- as rules ---------------------------------------------------------------------------------------------------------


def _pairs(tokens: int, images: int, shape: Any) -> int:
    """Multiply-adds of the visual tokens' products with all tokens."""
    return images * tokens * int(shape.width)


def asked(text: Given) -> Given:
    """``text`` itself: words, or [m, ...] of the tokens after the pictures.

    Raises:
        InvalidValue: there is none.
    """
    if not len(text):
        raise InvalidValue("no text comes after the pictures, so there is no question to go by")
    return text


@rule(
    "dpp-text",
    needs={"embeddings", "text"},
    cost=_pairs,
    says="that are unlike each other and near to the question's words",
)
def dpp_text(seen: Seen, budget: int) -> Tensor:
    """CDPruner's greedy choice where no CLIP text tower is given: near is the cosine with the mean input embedding."""
    import torch

    question = asked(seen.text).float().mean(0, keepdim=True)
    chosen = []
    for place, share in by_picture(seen, budget):
        x = seen.embeddings[place]
        chosen.append(determinantal(x, rescaled((unit(x) @ unit(question).T)[:, 0]), share) + place.start)
    return torch.cat(chosen)


@rule(
    "cdpruner",
    needs={"embeddings", "tower", "question", "clip"},
    cost=_pairs,
    says="that are unlike each other and that CLIP finds apart from the question's words",
)
def cdpruner(seen: Seen, budget: int) -> Tensor:
    """CDPruner (NeurIPS 2025); its relevance is the cosine in CLIP's space, negated as in the authors' code.

    Raises:
        InvalidValue: there is no question.
    """
    import torch

    words, v = asked(asked_words(seen.question)), seen.tower.features
    segments, chosen = seen.clip.segments(words, v.device), []
    for place, share in by_picture(seen, budget):
        r = rescaled(relevance(seen.clip.patches(v[place]), segments))
        chosen.append(determinantal(seen.embeddings[place], r.to(seen.embeddings.device), share) + place.start)
    return torch.cat(chosen)


@rule(
    "mmtok",
    needs={"embeddings", "text", "tower"},
    cost=_pairs,
    says="that cover the question's words and the picture best",
)
def mmtok(seen: Seen, budget: int) -> Tensor:
    """MMTok."""
    return coverage(seen.embeddings, seen.tower.features, asked(seen.text), budget)
