"""Tiny checkpoints of transformers' own classes: model, processor and chat template, as the hub's are laid out."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from redrel_vlmeval.trying.tokens import of_qwen, save, text_config, tokenizer

MARKS = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>"]
MARKS += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<video>"]
MARKS += ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "<|begin_of_image|>", "<|end_of_image|>"]
MARKS += ["<|image|>", "<|video|>", "<|begin_of_video|>", "<|end_of_video|>", "<racm3:break>", "<eoss>"]
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}PICTURE{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIDE, PATCH = 48, 6  # of a picture, or of a tile of one: 64 patches
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip
SIZE = {"height": SIDE, "width": SIDE}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
GRID = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def words(picture: str = "", **more: Any) -> tuple[Any, dict[str, int]]:
    """The tokenizer, whose template puts ``picture`` for one, and the ids of its marks."""
    made = tokenizer(MARKS, TURNS.replace("PICTURE", picture) if picture else None, **more)
    return made, {mark: made.convert_tokens_to_ids(mark) for mark in MARKS}


def _grids(ids: dict[str, int]) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip


QWEN = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen2_vl(folder: Path, name: str) -> dict[str, Any]:
    """Qwen2-VL, or Qwen2.5-VL where the name says so."""
    import transformers as tf

    made, ids = words(QWEN, kind=of_qwen())
    old = "Qwen2-VL" in name or "aguvis" in name
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14}
    if old:
        vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
        kind, config = tf.Qwen2VLForConditionalGeneration, tf.Qwen2VLConfig
    else:
        vision |= {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "window_size": 56}
        vision |= {"fullatt_block_indexes": [1]}  # type: ignore[dict-item]
        kind, config = tf.Qwen2_5_VLForConditionalGeneration, tf.Qwen2_5_VLConfig
    processor = (tf.Qwen2VLProcessor if old else tf.Qwen2_5_VLProcessor)(
        tf.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=224 * 224), made,
        tf.Qwen2VLVideoProcessor(), chat_template=made.chat_template,
    )  # fmt: skip
    text = text_config(made) | {"rope_scaling" if of_qwen() else "rope_parameters": ROPE}
    save(folder, kind(config(vision_config=vision, text_config=text, **_grids(ids))), made, processor)
    return {}


def qwen3_vl(folder: Path, name: str) -> dict[str, Any]:
    """Qwen3-VL, of experts where the name says so."""
    import transformers as tf

    made, ids = words(QWEN, kind=of_qwen())
    vision = {
        "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24, "patch_size": 16,
        "deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64,
    }  # fmt: skip
    text = text_config(made) | {"rope_scaling" if of_qwen() else "rope_parameters": ROPE} | {"head_dim": 8}
    kind, config = tf.Qwen3VLForConditionalGeneration, tf.Qwen3VLConfig
    if "-A" in name:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        kind, config = tf.Qwen3VLMoeForConditionalGeneration, tf.Qwen3VLMoeConfig
    pictures = tf.Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 224 * 224})
    processor = tf.Qwen3VLProcessor(pictures, made, tf.Qwen3VLVideoProcessor(), chat_template=made.chat_template)
    save(folder, kind(config(vision_config=vision, text_config=text, **_grids(ids))), made, processor)
    return {"use_vllm": False}


def llava_onevision(folder: Path, _name: str) -> dict[str, Any]:
    import transformers as tf

    made, ids = words("<image>")
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=tf.Qwen2Config(**text_config(made)), image_token_index=ids["<image>"], image_grid_pinpoints=GRID,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessor(size=SIZE, image_grid_pinpoints=GRID), made,
        tf.LlavaOnevisionVideoProcessor(size=SIZE), num_image_tokens=64, vision_feature_select_strategy="full",
        image_token="<image>", chat_template=made.chat_template, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    save(folder, tf.LlavaOnevisionForConditionalGeneration(config), made, processor)
    return {}


def _clip_pictures(tiles: bool) -> Any:
    import transformers as tf

    size, crop = {"shortest_edge": SIDE}, SIZE
    if tiles:
        return tf.LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=GRID)
    return tf.CLIPImageProcessor(size=size, crop_size=crop)


def llava(folder: Path, name: str) -> dict[str, Any]:
    """LLaVA-NeXT, or the one whose pictures are one tile."""
    import transformers as tf

    made, ids = words("<image>\n")
    tiles = "interleave" not in name and "v1.5" not in name
    shared: dict[str, Any] = {"patch_size": PATCH, "vision_feature_select_strategy": "default"}
    kind = tf.LlavaNextProcessor if tiles else tf.LlavaProcessor
    if "num_additional_image_tokens" in inspect.signature(kind.__init__).parameters:
        shared["num_additional_image_tokens"] = 1
    processor = kind(_clip_pictures(tiles), made, image_token="<image>", chat_template=made.chat_template, **shared)
    text = tf.LlamaConfig(**text_config(made))
    common = {
        "vision_config": tf.CLIPVisionConfig(**VISION), "text_config": text, "image_token_index": ids["<image>"],
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    }  # fmt: skip
    if tiles:
        model: Any = tf.LlavaNextForConditionalGeneration(tf.LlavaNextConfig(**common, image_grid_pinpoints=GRID))
    else:
        model = tf.LlavaForConditionalGeneration(tf.LlavaConfig(**common, image_seq_length=64))
    save(folder, model, made, processor)
    return {}


def smolvlm(folder: Path, name: str) -> dict[str, Any]:
    """Idefics 3, or SmolVLM 2 where the name says so."""
    import transformers as tf

    made, ids = words("<image>")
    vision = VISION | {"image_size": SIDE}
    new = "SmolVLM2" in name
    config = (tf.SmolVLMConfig if new else tf.Idefics3Config)(
        vision_config=vision, text_config=tf.LlamaConfig(**text_config(made)), image_token_id=ids["<image>"],
        scale_factor=2,
    )  # fmt: skip
    size, tile = {"longest_edge": 2 * SIDE}, {"longest_edge": SIDE}
    if new:
        pictures: Any = tf.SmolVLMImageProcessor(size=size, max_image_size=tile)
        video = tf.SmolVLMVideoProcessor(size=size, max_image_size=tile)
        processor: Any = tf.SmolVLMProcessor(pictures, made, video, image_seq_len=16)
        model: Any = tf.SmolVLMForConditionalGeneration(config)
    else:
        pictures = tf.Idefics3ImageProcessor(size=size, max_image_size=tile)
        processor = tf.Idefics3Processor(pictures, made, image_seq_len=16)
        model = tf.Idefics3ForConditionalGeneration(config)
    save(folder, model, made, processor)
    return {}


def gemma3(folder: Path, _name: str) -> dict[str, Any]:
    import torch
    import transformers as tf

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    made, ids = words("<start_of_image>", extra_special_tokens=named)
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=tf.Gemma3TextConfig(**text_config(made), head_dim=8, sliding_window=512, layer_types=kinds),
        mm_tokens_per_image=16, image_token_id=ids["<image_soft_token>"], image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"], eoi_token_index=ids["<end_of_image>"],
    )  # fmt: skip
    model = tf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zeros: it would see nothing
    pictures = tf.Gemma3ImageProcessor(size=SIZE)
    processor = tf.Gemma3Processor(pictures, made, chat_template=made.chat_template, image_seq_length=16)
    save(folder, model, made, processor)
    return {}


def paligemma(folder: Path, name: str) -> dict[str, Any]:
    """PaliGemma, or PaliGemma 2 where the name says so."""
    import transformers as tf

    made, ids = words()
    text = text_config(made) | {"model_type": "gemma2" if "paligemma2" in name else "gemma", "head_dim": 8}
    config = tf.PaliGemmaConfig(
        vision_config=tf.SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=32).to_dict(),
        text_config=text, image_token_index=ids["<image>"], projection_dim=32, hidden_size=32,
    )  # fmt: skip
    pictures = tf.SiglipImageProcessor(size=SIZE)
    pictures.image_seq_length = 64
    save(folder, tf.PaliGemmaForConditionalGeneration(config), made, tf.PaliGemmaProcessor(pictures, made))
    return {}
