"""The GPUs that a model's weights lie on, one, several or none: waiting for them, and their memory."""

from __future__ import annotations

from typing import Any

import torch


def gpus(model: Any) -> list[torch.device]:
    """Every GPU that holds weights of the model, in their order."""
    return list(dict.fromkeys(weight.device for weight in model.parameters() if weight.is_cuda))


def wait(devices: list[torch.device]) -> None:
    """Let GPUs finish, so that a clock reads what was done and not what was queued."""
    for device in devices:
        torch.cuda.synchronize(device)


def held(devices: list[torch.device]) -> int:
    """Bytes that tensors take on these GPUs now."""
    return sum(torch.cuda.memory_allocated(device) for device in devices)


def start_peak(devices: list[torch.device]) -> int:
    """Begin to watch for the peak; what is held at the start."""
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    return held(devices)


def peak(devices: list[torch.device], before: int) -> int | None:
    """Bytes above ``before`` at the peak, each GPU's own peak summed; None without a GPU."""
    if not devices:
        return None
    return sum(torch.cuda.max_memory_allocated(device) for device in devices) - before
