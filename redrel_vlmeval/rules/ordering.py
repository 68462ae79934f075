"""Orders that rules share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redrel_vlmeval.errors import InvalidValue

if TYPE_CHECKING:
    from torch import Tensor


def highest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` entries of ``scores`` (float [n]) that are largest (eq. 10); ties go to the lower index.

    Raises:
        InvalidValue: a score is NaN, which no order knows.
    """
    if bool(scores.isnan().any()):
        raise InvalidValue(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN, so no token is the best")
    return scores.sort(descending=True, stable=True).indices[:count]
