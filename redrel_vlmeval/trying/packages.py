"""Tiny checkpoints of the packages that some of the host's classes import, made by those packages' own classes.

They are no dependencies of ours: where one is not installed, its classes cannot be tried (``llava``: on a stand-in).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from redrel_vlmeval.errors import UnknownName
from redrel_vlmeval.trying import native, tokens

# The host's class -> the package that it imports.
NEEDS = {
    "LLaVA": "llava", "LLaVA_Next2": "llava", "LLaVA_OneVision": "llava", "Eagle": "eagle", "DeepSeekVL": "deepseek_vl",
    "Janus": "janus", **dict.fromkeys(("Ovis", "Ovis1_6", "Ovis2"), "ovis"),
}  # fmt: skip
# What configs of LLaVA and of packages made from it say of pictures, beside their tower.
PICTURES = {
    "mm_hidden_size": 16, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "use_mm_proj": True,
    "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "mm_projector_type": "mlp2x_gelu",
    "image_aspect_ratio": "pad",
}  # fmt: skip
TILES = {
    "image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad", "mm_newline_position": "grid",
    "mm_spatial_pool_mode": "bilinear", "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "image_grid_pinpoints": [[native.SIDE, native.SIDE], *native.GRID],
}  # fmt: skip
TOWER = "siglip_large_patch16_384"  # of DeepSeek-VL and Janus, whose size their code knows by this name


def there(kind: str) -> bool:
    """Whether the package that the host's class ``kind`` imports is installed, or it imports none."""
    if kind not in NEEDS:
        return True
    with suppress(ValueError):  # in sys.modules without a spec
        spec = importlib.util.find_spec(NEEDS[kind])
        return spec is not None and spec.loader is not None  # a stand-in has none
    return False


def check(kind: str, name: str) -> None:
    """Raise UnknownName where ``name`` cannot be tried without a package that is missing."""
    if not there(kind):
        raise UnknownName(f"{name!r}: its class {kind!r} imports the package {NEEDS[kind]!r}, which is not installed")


def _tower(folder: Path) -> str:
    import transformers as tf

    folder.mkdir(parents=True)
    pictures = tf.CLIPImageProcessor(size={"shortest_edge": native.SIDE}, crop_size=native.SIZE)
    tokens.save(folder, tf.CLIPVisionModel(tf.CLIPVisionConfig(**native.VISION)), pictures)
    return str(folder)


def llava(folder: Path, name: str) -> dict[str, Any]:
    """The package ``llava``: of LLaVA-NeXT over Qwen2, with tiles, or of LLaVA over LLaMA, where ``name`` says v1."""
    import torch

    first = name == "llava_v1_7b"
    kind = importlib.import_module(f"llava.model.language_model.llava_{'llama' if first else 'qwen'}")
    words = tokens.tokenizer(["<|im_start|>", "<|im_end|>"])
    config = (kind.LlavaConfig if first else kind.LlavaQwenConfig)(
        **tokens.text_config(words), mm_vision_tower=_tower(folder / "tower"), **(PICTURES | ({} if first else TILES))
    )
    model = (kind.LlavaLlamaForCausalLM if first else kind.LlavaQwenForCausalLM)(config)
    if not first:
        torch.nn.init.normal_(model.model.image_newline)  # left as it was allocated
    tokens.save(folder, model, words)
    return {}


def eagle(folder: Path, _name: str) -> dict[str, Any]:
    """Eagle-X, with the one of its towers that needs no weights of others: CLIP, by a path that says openai."""
    kind = importlib.import_module("eagle.model.language_model.eagle_llama")
    words = tokens.sentences(folder)
    os.chdir(folder)
    _tower(Path("openai", "clip"))
    config = kind.EagleConfig(**tokens.text_config(words), mm_vision_tower="openai/clip", **PICTURES)
    tokens.save(folder, kind.EagleLlamaForCausalLM(config), words)
    return {}


def ovis(folder: Path, name: str) -> dict[str, Any]:
    """Ovis2 over Qwen2, or one before it over LLaMA, by the branch v2.0, v1.6 or v1.5 of its repository.

    Four visual tokens a tile of Ovis2, marks around each.
    """
    import transformers as tf

    models = importlib.import_module("ovis.model")
    kind = importlib.import_module("ovis.model.modeling_ovis")
    words = tokens.tokenizer(["<|im_start|>", "<|im_end|>"])
    words.save_pretrained(folder)
    given = {"vocab_size": 64, "hidden_stride": 2}
    if name.startswith("Ovis2"):
        words = tf.Qwen2TokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token=tokens.PAD)
        words.save_pretrained(folder)
        pictures = tf.CLIPImageProcessor(size=native.SIZE, crop_size=native.SIZE, do_center_crop=False)
        tower = models.AIMv2Config(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=native.SIDE,
            patch_size=native.SIDE // 4,
        )  # fmt: skip
        seeing = models.Aimv2VisualTokenizerConfig(backbone_config=tower, **given)
        decoder, asking = tf.Qwen2Config(**tokens.text_config(words)), "Qwen"
    else:
        pictures = tf.SiglipImageProcessor(size=native.SIZE)
        seeing = models.SiglipVisualTokenizerConfig(backbone_config=tf.SiglipVisionConfig(**native.VISION), **given)
        decoder, asking = tf.LlamaConfig(**tokens.text_config(words)), "Llama3"
    pictures.save_pretrained(folder)
    config = kind.OvisConfig(
        llm_config=decoder, visual_tokenizer_config=seeing, hidden_size=decoder.hidden_size,
        conversation_formatter_class=f"{asking}ConversationFormatter", disable_tie_weight=True,
    )  # fmt: skip
    config.name_or_path = str(folder)
    tokens.save(folder, kind.Ovis(config))
    return {}


@contextmanager
def sized() -> Iterator[None]:
    """Within the context the host's class Ovis2, which knows its models by their size, knows a small one."""
    known = importlib.import_module("vlmeval.vlm").Ovis2.SIZE_DICT
    with patch.dict(known, {(5, 32): "1B"}):
        yield


@contextmanager
def staying() -> Iterator[None]:
    """Within the context the working directory may change."""
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def small(package: str) -> Iterator[None]:
    """Within the context the tower that ``package`` has a size for is small."""
    known = importlib.import_module(f"{package}.models.siglip_vit").SigLIP_MODEL_CONFIG
    with patch.dict(known, {TOWER: known[TOWER] | {"width": 16, "layers": 2, "heads": 2}}):
        yield


def _mlp(width: int) -> dict[str, Any]:
    given = {"input_dim": width, "n_embed": 32, "depth": 2, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "params": given}


def deepseek_vl(folder: Path, _name: str) -> dict[str, Any]:
    return _placeholders(folder, "deepseek_vl", ["<image_placeholder>"])


def janus(folder: Path, _name: str) -> dict[str, Any]:
    marks = ["<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<｜▁pad▁｜>"]
    head = {"n_embed": 32, "image_token_embed": 32, "image_token_size": 64}
    return _placeholders(
        folder, "janus", marks, gen_aligner_config=_mlp(8), gen_head_config={"cls": "vision_head", "params": head},
        gen_vision_config={"cls": "VQ-16", "params": {"image_token_size": 64, "n_embed": 8}},
    )  # fmt: skip


def _placeholders(folder: Path, package: str, marks: Sequence[str], **more: Any) -> dict[str, Any]:
    """DeepSeek-VL or Janus, 16 visual tokens a picture."""
    models = importlib.import_module(f"{package}.models")
    kind = importlib.import_module(f"{package}.models.modeling_vlm")
    side = 64
    words = tokens.sentences(folder, marks, fast=True)
    given = {"model_name": TOWER, "image_size": side, "select_feature": "same", "select_layer": -1}
    config = kind.MultiModalityConfig(
        language_config=tokens.text_config(words), aligner_config=_mlp(16),
        vision_config={"cls": "CLIPVisionTower", "params": given}, **more,
    )  # fmt: skip
    model = kind.MultiModalityCausalLM(config)
    half = (0.5, 0.5, 0.5)
    pictures = models.VLMImageProcessor(image_size=side, image_mean=half, image_std=half)
    processor = models.VLChatProcessor(image_processor=pictures, tokenizer=words, num_image_tokens=16)
    tokens.save(folder, model, words, processor)
    return {}
