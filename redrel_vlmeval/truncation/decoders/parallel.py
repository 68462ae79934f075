"""Tensor parallel models: each process holds some heads of every block, so it sees a part of what heads attend to."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def group_of(module: nn.Module) -> Any:
    """The processes over which the weights of ``module`` are divided; None where it has them all to itself."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    from torch.distributed.tensor import DTensor

    for weights in module.parameters():
        if isinstance(weights, DTensor):
            for number, placement in enumerate(weights.placements):
                if placement.is_shard() and weights.device_mesh.size(number) > 1:
                    return weights.device_mesh.get_group(number)
    return None


def mean_of(part: torch.Tensor, group: Any) -> torch.Tensor:
    """The mean over all heads, the same in every process; ``part`` is that over its own, as many as the others'."""
    if group is None:
        return part
    whole = part.contiguous()
    torch.distributed.all_reduce(whole, group=group)
    return whole / torch.distributed.get_world_size(group)
