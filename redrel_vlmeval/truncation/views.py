"""Index arithmetic of dropped tokens: which positions of the full prompt a decoder block still holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class View:
    """The positions of the full prompt, length ``length``, that blocks after ``layer`` hold.

    ```
    prompt of row 0   t t I I I I t t      stays  1 1 0 1 0 0 1 1     index  0 1 3 6 7     valid  all
    prompt of row 1   . . . t t I I t      stays  0 0 0 1 1 0 0 1            2 3 4 6 7            0 1 1 0 1
    ```

    ``index`` is long [b, n], ascending. Prompts of a batch can keep different numbers of tokens: shorter rows are
    filled with positions that nobody may attend to, and ``valid`` (bool [b, n]) is then False there; None when all are
    real. ``turned`` (long [b, n]) is the position whose rotary angle each token has, where that is another one.
    """

    layer: int
    length: int
    index: torch.Tensor
    valid: torch.Tensor | None
    turned: torch.Tensor | None = None

    @classmethod
    def of(cls, layer: int, stays: torch.Tensor, outer: View | None, renumbered: bool = False) -> View:
        """View of the real tokens that remain, ``stays`` (bool [b, s]), of those that ``outer`` holds.

        Rows that keep fewer are filled up from what ``outer`` holds and this view does not: a filler must have been
        there until now, because at the last block it goes back to where it came from.

        ``renumbered``: what stays is counted anew. Rotary attention sees differences of positions only, so tokens are
        moved up against the last one instead of down to 0, and tokens after the prompt need no correction.
        """
        counts = stays.sum(1)
        width, length = int(counts.max()), stays.shape[1]
        held = torch.ones_like(stays)
        if outer is not None:
            held = torch.zeros_like(stays).scatter(1, outer.index, True)
        positions = torch.arange(length, device=stays.device)
        order = (positions + length * (~stays).long() + length * (~held).long()).argsort(dim=1)
        index = order[:, :width].sort(dim=1).values
        valid = stays.gather(1, index)
        turned = None
        if renumbered:
            last = (positions * stays).amax(1, keepdim=True)
            after = counts[:, None] - valid.long().cumsum(1)  # real tokens behind each
            turned = torch.where(valid, last - after, index)
        return cls(layer, length, index, None if bool(valid.all()) else valid, turned)

    def to(self, device: torch.device) -> View:
        """The same on a device; itself where it lies there already."""
        if self.index.device == device:
            return self
        valid = None if self.valid is None else self.valid.to(device)
        turned = None if self.turned is None else self.turned.to(device)
        return View(self.layer, self.length, self.index.to(device), valid, turned)

    @property
    def rotary(self) -> torch.Tensor:
        """The positions that rotary angles are taken from, long [b, n]."""
        return self.index if self.turned is None else self.turned

    def extended(self, length: int) -> View:
        """The same choice for a sequence grown to ``length``; tokens after the prompt all stay."""
        new = length - self.length
        if new == 0:
            return self
        more = torch.arange(self.length, length, device=self.index.device).expand(len(self.index), new)
        index = torch.cat([self.index, more], 1)
        valid = None if self.valid is None else torch.cat([self.valid, torch.ones_like(more, dtype=torch.bool)], 1)
        turned = None if self.turned is None else torch.cat([self.turned, more], 1)
        return View(self.layer, length, index, valid, turned)

    def within(self, outer: View | None) -> torch.Tensor:
        """Where this view's positions stand among the positions of an earlier ``outer`` view: long [b, n]."""
        if outer is None:
            return self.index
        place = torch.zeros(len(outer.index), outer.length, dtype=torch.long, device=outer.index.device)
        order = torch.arange(outer.index.shape[1], device=outer.index.device).expand_as(outer.index)
        return place.scatter_(1, outer.index, order).gather(1, self.index)

    def square_mask(self, mask: torch.Tensor | None, padding: bool = False) -> torch.Tensor | None:
        """A prefill mask (None, [b, 1, s, s] or padding [b, s]) for this view's rows and columns.

        ``padding``: the kernel takes no other mask than [b, s], as flash kernels do.
        """
        if mask is None and padding:
            return self.valid
        if mask is not None and mask.ndim == 2:
            short = take(mask, self.index, 1)
            return short if self.valid is None else short * self.valid
        if mask is None:
            if self.valid is None:
                return None
            width = self.index.shape[1]
            short = causal(width, width, self.index.device)
        else:
            short = take(take(mask, self.index, 2, batch=0), self.index, 3, batch=0)
        if self.valid is None:
            return short
        # a filler row must attend to something (itself), or its softmax is NaN and spoils the values
        short = hide(short, self.valid[:, None, None])
        own = torch.eye(short.shape[-1], dtype=torch.bool, device=short.device)
        own = own & ~self.valid[:, None, :, None].to(short.device)
        return short | own if short.dtype == torch.bool else short.masked_fill(own, 0)

    def column_mask(
        self, mask: torch.Tensor | None, queries: int, keys: int, padding: bool = False
    ) -> torch.Tensor | None:
        """A decode mask (None, [b, 1, q, S] or [b, S], full-length keys) for the ``keys`` of this view's cache."""
        grown = self.extended(self.length + keys - self.index.shape[1])
        if mask is None and padding:
            return grown.valid
        if mask is not None and mask.ndim == 2:
            short = take(mask, grown.index, 1)
            return short if grown.valid is None else short * grown.valid
        if mask is None:
            if grown.valid is None:
                return None
            short = causal(queries, keys, self.index.device)
        else:
            short = take(mask, grown.index, 3, batch=0)
        return short if grown.valid is None else hide(short, grown.valid[:, None, None])


def take(tensor: torch.Tensor, index: torch.Tensor, dim: int, batch: int | None = None) -> torch.Tensor:
    """``tensor`` at ``index`` (long [b, n]) along ``dim``, for each row of axis ``batch``, which may have length 1.

    ``batch`` is the axis before ``dim`` unless given: hidden [b, s, d], rotary tables [b, s, d] or [axes, b, s, d].
    """
    dim %= tensor.ndim
    batch = dim - 1 if batch is None else batch
    index = index.to(tensor.device)
    if len(index) == 1:
        return tensor.index_select(dim, index[0])
    shape, where = list(tensor.shape), [1] * tensor.ndim
    shape[batch] = len(index)
    where[batch], where[dim] = index.shape
    return tensor.expand(shape).take_along_dim(index.view(where), dim)


def causal(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Which keys each query may attend to, bool [1, 1, q, k]; the last query stands at the last key."""
    own = torch.arange(keys - queries, keys, device=device)
    return (torch.arange(keys, device=device) <= own[:, None])[None, None]


def hide(mask: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """``mask`` (bool or additive) that also forbids what ``visible`` (broadcast bool) does not allow."""
    visible = visible.to(mask.device)
    if mask.dtype == torch.bool:
        return mask & visible
    return mask.masked_fill(~visible, torch.finfo(mask.dtype).min)


def is_per_token(value: Any, view: View) -> bool:
    """True for a tensor [b, s, ...] of floats that has an entry for each token of the whole prompt."""
    if not isinstance(value, torch.Tensor) or value.ndim < 3 or not value.is_floating_point():
        return False
    return value.shape[1] == view.length
