"""What ships of a training: tower, projector and LoRA in float16, with the settings of the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

from redrel_vlmeval.models.tiny import scenes
from tools.smol.blank import Lora
from tools.tiny.blank import picture_settings

NOTICE = """\
The LoRA in this folder changes SmolLM2-135M-Instruct (HuggingFaceTB, Apache License 2.0), whose weights are not part of
this package: `redrel smol` fetches them.
"""


def write(model: LlavaForConditionalGeneration, lora: dict[str, Lora], folder: Path) -> None:
    """Weights spelled as those of ``llava-hf``; the LoRA's factor is in B."""
    folder.mkdir(parents=True, exist_ok=True)
    tower = {name.removeprefix("vision_model."): one for name, one in model.model.vision_tower.state_dict().items()}
    found = {f"vision_tower.vision_model.{name}": one for name, one in tower.items()}
    projector = model.model.multi_modal_projector.state_dict()
    found |= {f"multi_modal_projector.{name}": one for name, one in projector.items()}
    for name, one in lora.items():
        found |= {f"lora.{name}.A": one.A.data, f"lora.{name}.B": one.FACTOR * one.B.data}
    weights = {name: one.to(torch.float16).contiguous() for name, one in found.items() if "position_ids" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = model.config.to_diff_dict() | {"architectures": ["LlavaForConditionalGeneration"]}
    config |= {"tie_word_embeddings": False, "dtype": "float16"}
    config.pop("transformers_version", None)
    config["text_config"]["vocab_size"] -= 1  # the decoder's own, without <image>
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(picture_settings(scenes.SIZE), indent=2) + "\n")
    (folder / "NOTICE").write_text(NOTICE)
