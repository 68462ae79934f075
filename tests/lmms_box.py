"""Tiny random checkpoints in the hub's format for lmms-eval's classes: weights, processor, chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tiny_models import TEXT

from redrel_vlmeval import trying
from tools.tiny.blank import make_tokenizer

_MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_MARKS += ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
# by these names the processor of InternVL asks its tokenizer
_NAMED = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
_NAMED |= {"video_token": "<video>"}
_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}PICTURE{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> tf.PreTrainedTokenizerFast:
    """The box's words and every family's marks."""
    made = make_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<image>", *_MARKS]})
    return made


def save(folder: Path, family: str) -> Path:
    """A checkpoint of ``family``, always the same; answers of random words, text of six blocks (or five)."""
    if family == "llava_package":
        trying.make("LLaVA_OneVision", family, folder)
        return folder
    words = tokenizer()
    words._set_model_specific_special_tokens(_NAMED)
    ids = {mark: words.convert_tokens_to_ids(mark) for mark in _MARKS}
    torch.manual_seed(7)
    model, processor = _FAMILIES[family](words, ids)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _text(words: Any) -> dict[str, Any]:
    return TEXT | {"vocab_size": len(words), "num_hidden_layers": 6, "max_position_embeddings": 2048}


def _qwen(ids: dict[str, int]) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _template(mark: str) -> str:
    return _TURNS.replace("PICTURE", mark)


_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def _qwen2_5_vl(words: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    vision = {
        "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24, "patch_size": 14,
        "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = tf.Qwen2_5_VLConfig(vision_config=vision, text_config=_text(words) | _ROPE, **_qwen(ids))
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = tf.Qwen2_5_VLProcessor(
        tf.Qwen2VLImageProcessor(size=size), words, tf.Qwen2VLVideoProcessor(), chat_template=_template(_PICTURE)
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(words: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    vision = {
        "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24, "patch_size": 16,
        "deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64,
    }  # fmt: skip
    text = _text(words) | _ROPE | {"head_dim": 8}
    config = tf.Qwen3VLConfig(vision_config=vision, text_config=text, **_qwen(ids))
    pictures = tf.Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 128 * 128})
    processor = tf.Qwen3VLProcessor(pictures, words, tf.Qwen3VLVideoProcessor(), chat_template=_template(_PICTURE))
    return tf.Qwen3VLForConditionalGeneration(config), processor


def _internvl(words: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    vision = tf.InternVLVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=[24, 24],
        patch_size=[6, 6],
    )  # fmt: skip
    config = tf.InternVLConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**_text(words)), image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    pictures = tf.GotOcr2ImageProcessor(size={"height": 24, "width": 24}, crop_to_patches=True, max_patches=2)
    videos = tf.InternVLVideoProcessor(size={"height": 24, "width": 24})
    template = _template("<IMG_CONTEXT>\n")
    processor = tf.InternVLProcessor(pictures, words, videos, image_seq_length=4, chat_template=template)
    return tf.InternVLForConditionalGeneration(config), processor


def _llava(words: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    vision = tf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=6
    )
    config = tf.LlavaConfig(
        vision_config=vision, text_config=tf.LlamaConfig(**_text(words)), image_token_id=4, vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=16,
    )  # fmt: skip
    pictures = tf.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor = tf.LlavaProcessor(
        pictures, words, patch_size=6, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>", chat_template=_template("<image>"),
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config), processor


def _llava_onevision(words: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    vision = tf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=6,
        vision_use_head=False,
    )  # fmt: skip
    grid = [[24, 24], [24, 48], [48, 24]]
    config = tf.LlavaOnevisionConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**_text(words)), image_token_id=4, image_grid_pinpoints=grid,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    pictures = tf.LlavaOnevisionImageProcessor(size={"height": 24, "width": 24}, image_grid_pinpoints=grid)
    processor = tf.LlavaOnevisionProcessor(
        pictures, words, tf.LlavaOnevisionVideoProcessor(size={"height": 24, "width": 24}), num_image_tokens=16,
        vision_feature_select_strategy="full", image_token="<image>", chat_template=_template("<image>"),
        vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


_FAMILIES: dict[str, Callable[[Any, dict[str, int]], tuple[Any, Any]]] = {
    "llava": _llava, "llava_onevision": _llava_onevision, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
}  # fmt: skip
