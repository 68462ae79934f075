"""Random models of the six families with five decoder blocks each, and prompts for them.

``TinyModel.prompt`` makes what the family's processor would: input ids with one image token per picture feature,
pixels, and whatever else its forward wants.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from transformers.models.qwen2_vl import modeling_qwen2_vl

from redrel_vlmeval.bench.subjects import set_kernel

DEVICE = os.environ.get("REDREL_TEST_DEVICE", "cpu")  # of models and prompts
BLOCKS = 5
IMAGE = 99
NEWEST = tf.__version__ >= "5"  # releases before it spell some configs otherwise
_TOKEN = {"image_token_id" if NEWEST else "image_token_index": IMAGE}
TEXT = {
    "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 3, "initializer_range": 0.3, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 6,
}


@dataclass
class TinyModel:
    """A model, how many image tokens one picture has, and how to make the vision inputs of ``n`` pictures."""

    name: str
    model: Any
    per_image: int
    pixels: Callable[[int], dict[str, torch.Tensor]]

    def prompt(self, layout: str = "ttttIttttt", seed: int = 0) -> dict[str, torch.Tensor]:
        """One prompt: ``t`` is a text token, ``I`` a picture. Batch of one, without padding."""
        return self.batch([layout], seed)

    def batch(self, layouts: list[str], seed: int = 0, side: str = "left") -> dict[str, torch.Tensor]:
        """Prompts padded to one length on ``side``; attention_mask is always given, as processors do."""
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for layout in layouts:
            row = [1]
            for part in layout:
                row += self._picture() if part == "I" else torch.randint(4, 90, (1,), generator=generator).tolist()
            rows.append(row)
        longest = max(map(len, rows))
        ids, mask = [], []
        for row in rows:
            gap = longest - len(row)
            left, right = (gap, 0) if side == "left" else (0, gap)
            ids.append([3] * left + row + [3] * right)
            mask.append([0] * left + [1] * len(row) + [0] * right)
        pictures = sum(layout.count("I") for layout in layouts)
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        if pictures:
            torch.manual_seed(seed)
            inputs |= self.pixels(pictures)
        if self.name.startswith("qwen") and NEWEST:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    @staticmethod
    def joined(prompts: list[dict[str, torch.Tensor]], side: str = "left") -> dict[str, torch.Tensor]:
        """Prompts that were made one by one, as one batch padded on ``side``."""
        longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
        found: dict[str, list[torch.Tensor]] = {}
        for prompt in prompts:
            gap = longest - prompt["input_ids"].shape[1]
            for name, tensor in prompt.items():
                if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                    pad = (gap, 0) if side == "left" else (0, gap)
                    tensor = torch.nn.functional.pad(tensor, pad, value=3 if name == "input_ids" else 0)
                found.setdefault(name, []).append(tensor)
        return {name: torch.cat(tensors) for name, tensors in found.items()}

    def _picture(self) -> list[int]:
        """Its image tokens; Qwen2-VL counts pictures by the tokens around them."""
        tokens = [IMAGE] * self.per_image
        return [97, *tokens, 96] if self.name.startswith("qwen") else tokens


def key_values(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(keys, values) of every block, in the newer and the older layout of transformers' caches."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))


def _square(size: int = 24) -> Callable[[int], dict[str, torch.Tensor]]:
    return lambda n: {"pixel_values": torch.randn(n, 3, size, size)}


def _llava() -> TinyModel:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION), text_config=tf.LlamaConfig(**TEXT), **_TOKEN,
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=16,
    )  # fmt: skip
    return TinyModel("llava", tf.LlavaForConditionalGeneration(config), 16, _square())


def _llava_mistral() -> TinyModel:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION), text_config=tf.MistralConfig(**TEXT, sliding_window=None),
        **_TOKEN, vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=16,
    )  # fmt: skip
    return TinyModel("llava_mistral", tf.LlavaForConditionalGeneration(config), 16, _square())


def _llava_next() -> TinyModel:
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**VISION), text_config=tf.LlamaConfig(**TEXT), **_TOKEN,
        image_grid_pinpoints=[[24, 24], [24, 48]], vision_feature_layer=-2, image_seq_length=16,
    )  # fmt: skip

    def pixels(n: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(n, 2, 3, 24, 24), "image_sizes": torch.tensor([[24, 24]] * n)}

    return TinyModel("llava_next", tf.LlavaNextForConditionalGeneration(config), 16 + 16 + 4, pixels)


def _llava_onevision() -> TinyModel:
    vision = tf.SiglipVisionConfig(**VISION, vision_use_head=False)
    config = tf.LlavaOnevisionConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**TEXT), **_TOKEN,
        image_grid_pinpoints=[[24, 24], [24, 48]], vision_feature_layer=-1,
    )  # fmt: skip

    def pixels(n: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(n, 2, 3, 24, 24), "image_sizes": torch.tensor([[24, 24]] * n)}

    return TinyModel("llava_onevision", tf.LlavaOnevisionForConditionalGeneration(config), 16 + 16 + 4, pixels)


def _grid(n: int, width: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(16 * n, width), "image_grid_thw": torch.tensor([[1, 4, 4]] * n)}


_SECTIONS = {"mrope_section": [1, 1, 2]}
_NEW_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0} | _SECTIONS}
_QWEN_TEXT = TEXT | (_NEW_ROPE if NEWEST else {"rope_scaling": {"type": "mrope"} | _SECTIONS})
_NESTED = "text_config" in inspect.signature(tf.Qwen2VLConfig.__init__).parameters or NEWEST
_QWEN_CONFIG = {"text_config": _QWEN_TEXT} if _NESTED else _QWEN_TEXT
_QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}


def _qwen2_vl() -> TinyModel:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = tf.Qwen2VLConfig(vision_config=vision, **_QWEN_CONFIG, **_QWEN_IDS)
    return TinyModel("qwen2_vl", tf.Qwen2VLForConditionalGeneration(config), 4, lambda n: _grid(n, 3 * 2 * 16))


def _qwen2_5_vl() -> TinyModel:
    vision = {
        "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24, "patch_size": 4,
        "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = tf.Qwen2_5_VLConfig(vision_config=vision, **_QWEN_CONFIG, **_QWEN_IDS)
    return TinyModel("qwen2_5_vl", tf.Qwen2_5_VLForConditionalGeneration(config), 4, lambda n: _grid(n, 3 * 2 * 16))


def _internvl() -> TinyModel:
    vision = VISION | {"image_size": [24, 24], "patch_size": [6, 6]}
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(**vision), text_config=tf.Qwen2Config(**TEXT), image_token_id=IMAGE,
        image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    return TinyModel("internvl", tf.InternVLForConditionalGeneration(config), 4, _square())


def _qwen3_vl(experts: bool = False) -> TinyModel:
    vision = {
        "depth": 4, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1, 2],
    }  # fmt: skip
    text = TEXT | {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0} | _SECTIONS}
    kind, config = (tf.Qwen3VLForConditionalGeneration, tf.Qwen3VLConfig)
    if experts:
        text |= {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
        kind, config = (tf.Qwen3VLMoeForConditionalGeneration, tf.Qwen3VLMoeConfig)
    made = kind(config(vision_config=vision, text_config=text, **_QWEN_IDS))
    return TinyModel("qwen3_vl", made, 4, lambda n: _grid(n, 3 * 2 * 16))


def _gemma3() -> TinyModel:
    vision = tf.SiglipVisionConfig(**VISION, vision_use_head=False)
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    text = tf.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=256, layer_types=kinds)
    config = tf.Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=4, image_token_index=IMAGE, image_token_id=IMAGE,
        boi_token_index=97, eoi_token_index=96,
    )  # fmt: skip
    model = tf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zeros otherwise: no picture
    return TinyModel("gemma3", model, 4, _square())


FAMILIES: dict[str, Callable[[], TinyModel]] = {
    "llava": _llava, "llava_mistral": _llava_mistral, "llava_next": _llava_next, "llava_onevision": _llava_onevision,
}  # fmt: skip
# older releases lack InternVL, and Qwen2-VL does not attend through the attention interface there
if hasattr(modeling_qwen2_vl, "ALL_ATTENTION_FUNCTIONS"):
    FAMILIES |= {"qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl}
if hasattr(tf, "Qwen3VLConfig") and NEWEST:
    FAMILIES["qwen3_vl"] = _qwen3_vl
if hasattr(tf, "Gemma3Config") and NEWEST:
    FAMILIES["gemma3"] = _gemma3
if hasattr(tf, "InternVLConfig"):
    FAMILIES["internvl"] = _internvl
# not asked everything that the families are: they are like one of them
OTHERS: dict[str, Callable[[], TinyModel]] = {"qwen3_vl_moe": lambda: _qwen3_vl(experts=True)}


def build(name: str, kernel: str = "sdpa", dtype: torch.dtype = torch.float32) -> TinyModel:
    """A family's random model (always the same), greedy by default, never stopping early."""
    torch.manual_seed(1234)
    tiny = (FAMILIES | OTHERS)[name]()
    tiny.model = tiny.model.to(DEVICE, dtype).eval()
    set_kernel(tiny.model, kernel)
    tiny.model.generation_config.eos_token_id = None
    tiny.model.generation_config.pad_token_id = 3
    tiny.model.generation_config.suppress_tokens = [96, 97, 98, IMAGE]  # random models would utter it
    if dtype != torch.float32:
        made = tiny.pixels
        tiny.pixels = lambda n: {k: v.to(dtype) if v.is_floating_point() else v for k, v in made(n).items()}
    return tiny
