"""DeepStack (Qwen3-VL): features that a model adds to its visual tokens behind the first blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from redrel_vlmeval.truncation.hooks import replaced
from redrel_vlmeval.truncation.views import View


@contextmanager
def fitted(text: nn.Module, view: Callable[[], View | None]) -> Iterator[None]:
    """Within the context the features fit the tokens that ``view()`` says are there, None for all."""
    if not hasattr(text, "_deepstack_process"):
        yield
        return

    def fitting(add: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def process(hidden: torch.Tensor, visual: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            held = view()
            if held is None:
                return add(hidden, visual, features)
            number = (visual.flatten().cumsum(0) - 1).view(visual.shape)  # of each visual token among the features
            index = held.index.to(visual.device)
            there = visual.gather(1, index)
            return add(hidden, there, features[number.gather(1, index)[there].to(features.device)])

        return process

    with replaced(text, "_deepstack_process", fitting):
        yield


@contextmanager
def noted(text: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within the context the features of each block are collected, [n, width] of a prompt's n visual tokens."""
    found: list[torch.Tensor] = []
    if not hasattr(text, "_deepstack_process"):
        yield found
        return

    def noting(add: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def process(hidden: torch.Tensor, visual: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            found.append(features.detach())
            return add(hidden, visual, features)

        return process

    with replaced(text, "_deepstack_process", noting):
        yield found
