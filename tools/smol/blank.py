"""The untrained ``redrel_smol``: a small CLIP tower and a projector before a given decoder, a LoRA in its blocks."""

from __future__ import annotations

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from redrel_vlmeval.models.smol.making import UNWANTED, Decoder
from redrel_vlmeval.models.tiny import scenes

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Lora(nn.Module):
    """A frozen linear layer with a trained change of low rank: ``x W' + x A' B'``, A [rank, in], B [out, rank]."""

    FACTOR = 2  # in place of a higher rate for B

    def __init__(self, inner: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = inner
        first = torch.randn(rank, inner.in_features, generator=generator) / inner.in_features**0.5
        self.A = nn.Parameter(first)
        self.B = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = self.FACTOR * (x.flatten(0, -2) @ self.A.t())
        return torch.addmm(self.inner(x).flatten(0, -2), small, self.B.t()).unflatten(0, x.shape[:-1])


def add_lora(decoder: nn.Module, rank: int, seed: int, first: int = 0) -> dict[str, Lora]:
    """Freeze the decoder and put a LoRA into each linear layer of its blocks but the ``first`` ones; name -> the LoRA.

    Below them nothing is trained, so no gradient goes there.
    """
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in list(decoder.layers[first:].named_modules()):
        for part, inner in list(module.named_children()):
            if part in LINEAR:
                block, _, rest = name.partition(".")
                full = f"layers.{int(block) + first}.{rest}.{part}"
                found[full] = Lora(inner, rank, generator)
                setattr(module, part, found[full])
    return found


def vision_config() -> CLIPVisionConfig:
    """Three layers, of which LLaVA reads the second."""
    return CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=scenes.SIZE,
        patch_size=scenes.CELL, projection_dim=128,
    )  # fmt: skip


def make_model(decoder: Decoder, seed: int) -> LlavaForConditionalGeneration:
    """Random tower and projector before ``decoder``, whose vocabulary gets one token more: ``<image>``."""
    torch.manual_seed(seed)
    text = LlamaConfig(**{key: value for key, value in decoder.config.items() if key not in UNWANTED})
    text.vocab_size += 1
    config = LlavaConfig(
        vision_config=vision_config(), text_config=text, image_token_index=text.vocab_size - 1,
        image_seq_length=scenes.GRID**2, vision_feature_layer=-2, vision_feature_select_strategy="default",
        projector_hidden_act="gelu", tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    weights = {name.removeprefix("model."): weight for name, weight in decoder.weights.items() if "lm_head" not in name}
    rows = weights["embed_tokens.weight"]
    weights["embed_tokens.weight"] = torch.cat([rows, torch.zeros_like(rows[:1])])
    model.model.language_model.load_state_dict(weights)
    model.tie_weights()
    return model.float()
