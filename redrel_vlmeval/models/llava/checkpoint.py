"""LLaVA-1.5 in transformers' format: its config, checked, and how its pictures are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redrel_vlmeval.models.checkpoint import CheckpointError, open_config

HUB_NAMES = "llava-hf/llava-1.5-7b-hf, llava-hf/llava-1.5-13b-hf"


@dataclass(frozen=True)
class Preprocessing:
    """Side of the square in pixels, and CLIP's mean and deviation (0..1)."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_config(path: str, revision: str | None) -> dict[str, Any]:
    """config.json of a checkpoint, checked to be a transformers-format LLaVA.

    Raises:
        CheckpointError: not there, no network, not JSON, or another architecture.
    """
    config = open_config(path, revision, HUB_NAMES)
    kind = config.get("model_type")
    if kind != "llava" or "text_config" not in config or "vision_config" not in config:
        original = " (this is the original repository's format)" if "mm_vision_tower" in config else ""
        raise CheckpointError(
            f"{path}: architecture {kind!r}{original}, expected LLaVA-1.5 in transformers' format, such as {HUB_NAMES}"
        )
    return config


def read_preprocessing(path: str, revision: str | None, config: dict[str, Any]) -> Preprocessing:
    """Size, mean and deviation from the checkpoint's preprocessor file."""
    from transformers import CLIPImageProcessor

    try:
        found, _ = CLIPImageProcessor.get_image_processor_dict(path, revision=revision)
    except OSError as error:
        raise CheckpointError(
            f"{path}: no preprocessor_config.json ({error}); the checkpoint is incomplete, fetch it again"
        ) from error
    found = found.get("image_processor", found)
    if "image_mean" not in found or "image_std" not in found:
        raise CheckpointError(
            f"{path}: preprocessor_config.json lacks image_mean or image_std; the checkpoint is broken, fetch it again"
        )
    size = config["vision_config"].get("image_size", 336)
    return Preprocessing(int(size), tuple(found["image_mean"]), tuple(found["image_std"]))
