"""What ``redrel bench`` times: random LLaVA-1.5s, Qwen2.5-VLs and Qwen-VLs, or real weights; a prompt for each."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from redrel_vlmeval.bases import row
from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.truncation import image_token, truncated

SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 1024, "blocks": 16, "heads": 16, "ffn": 2816, "vocab": 4000, "vision": (256, 4, 4, 1024)},
    "7b": {"width": 4096, "blocks": 32, "heads": 32, "ffn": 11008, "vocab": 32064, "vision": (1024, 24, 16, 4096)},
}
QWEN_VISION = {"small": (256, 4, 4, 1024), "7b": (1664, 48, 16, 8192)}  # width, layers, heads, hidden of the FFN
QWEN_VOCABULARY = {"small": 4000, "7b": 151936}
# of Qwen2.5-VL: text width, blocks, heads, key heads, FFN, vocabulary; vision width, layers, heads, FFN
QWEN2_5_SIZES = {
    "small": ((1024, 16, 16, 4, 2816, 4000), (256, 4, 4, 1024)),
    "7b": ((3584, 28, 28, 4, 18944, 152064), (1280, 32, 16, 3420)),
}
SIDE, TEXT_BEFORE, TEXT_AFTER = 24, 35, 60  # a picture of 24 x 24 tokens between text


@dataclass
class Subject:
    """A loaded model, one prompt for it, and how the published code runs it: a context and keywords of ``generate``.

    ``bars``: setting -> largest prefill ratio allowed, in units of the FLOPs ratio. ``race``: the published way and
    idle hooks have bars, too.
    """

    model: Any
    inputs: dict[str, torch.Tensor]
    published: Callable[[Any, str], AbstractContextManager[Any]]
    bars: dict[str, float] = field(default_factory=dict)
    race: bool = True


FAMILIES = ("llava", "qwen", "qwen2_5_vl")
# setting -> largest prefill ratio, in units of the FLOPs ratio
LLAVA_BARS = {"l5_k128": 1.04, "l2_k144": 1.04, "l12_k0": 1.10, "l1_k0": 1.12}
QWEN_BARS = {"l3_k64": 1.15, "l5_k128": 1.15}


def random_subject(
    family: str, size: str, device: str, dtype: torch.dtype, code: str | None = None, side: int = SIDE
) -> Subject:
    """A random model of ``size`` and its prompt with a picture of ``side`` x ``side`` tokens; Qwen-VL's has 16 x 16.

    ``code``: the folder with Qwen-VL's own code.

    Raises:
        ValueError: unknown family or size.
        CheckpointError: Qwen-VL's code cannot be had.
    """
    if family not in FAMILIES:
        raise InvalidValue(f"--family {family!r}: choose one of {', '.join(FAMILIES)}")
    if size not in SIZES:
        raise InvalidValue(f"--size {size!r}: choose one of {', '.join(SIZES)}")
    if family == "llava":
        return llava_subject(random_llava(size, device, dtype, side), LLAVA_BARS)
    if family == "qwen2_5_vl":
        model = random_qwen2_5_vl(size, device, dtype)
        return Subject(model, qwen2_5_vl_prompt(model, side), eager_and_masked)
    return qwen_subject(random_qwen(size, device, dtype, code), QWEN_BARS)


def loaded_subject(family: str, name: str, device: str | None, dtype: str | None) -> Subject:
    """Real weights, by a name of the host, hub name or folder; no bars, they are for sizes.

    Raises:
        InvalidValue: a name of the host whose model is neither a LLaVA-1.5 nor a Qwen-VL, or ``family`` is another.
    """
    if family not in ("llava", "qwen"):
        raise InvalidValue(f"--family {family!r}: real weights are timed of llava and qwen; leave --model out")
    known = row(name)
    if known is not None:
        name, kinds = known.weights, {"LLaVA15": "llava", "RedrelQwenVL": "qwen", "RedrelQwenVLChat": "qwen"}
        if known.ours not in kinds:
            raise InvalidValue(f"--model {known.name}: redrel bench times LLaVA-1.5 and Qwen-VL alone")
        family = kinds[known.ours]
    if family == "qwen":
        from redrel_vlmeval.models import QwenCore

        return qwen_subject(QwenCore(name, device=device, dtype=dtype).model, {})
    from redrel_vlmeval.models import LlavaCore

    return llava_subject(LlavaCore(name, device=device, dtype=dtype).model, {})


def llava_subject(model: Any, bars: dict[str, float]) -> Subject:
    """A LLaVA and a prompt with one picture."""
    return Subject(model, random_prompt(model), eager_and_masked, bars)


def qwen_subject(model: Any, bars: dict[str, float]) -> Subject:
    """A Qwen-VL and a prompt with one picture. Asked for its attention it runs its own eager code, as published."""
    return Subject(
        model, qwen_prompt(model), lambda model, setting: truncated(model, f"{setting}_official"), bars, False
    )


def random_llava(size: str, device: str, dtype: torch.dtype, side: int = SIDE) -> Any:
    """A LLaVA-1.5-shaped model with random weights, ``side`` x ``side`` image tokens a picture."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    shape = SIZES[size]
    width, layers, heads, ffn = shape["vision"]
    vision = CLIPVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        image_size=14 * side,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=shape["width"],
        num_hidden_layers=shape["blocks"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["ffn"],
        vocab_size=shape["vocab"],
        max_position_embeddings=4096,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=1,
        vision_feature_layer=-2,
        image_seq_length=side * side,
    )
    return _random(LlavaForConditionalGeneration, config, device, dtype)


def _random(kind: Any, config: Any, device: str, dtype: torch.dtype) -> Any:
    """A model of that class and config, always with the same weights; its answers have no end of their own."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kind(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    return model.to(device, dtype).eval()


def random_qwen2_5_vl(size: str, device: str, dtype: torch.dtype) -> Any:
    """A Qwen2.5-VL-shaped model with random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    (width, blocks, heads, key_heads, ffn, vocabulary), vision = QWEN2_5_SIZES[size]
    names = ("hidden_size", "depth", "num_heads", "intermediate_size")
    tower = dict(zip(names, vision, strict=True))
    every = max(1, tower["depth"] // 4)  # the last of so many blocks sees the whole picture, the others a window
    text = {
        "hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "intermediate_size": ffn, "vocab_size": vocabulary, "bos_token_id": 1,
        "eos_token_id": None, "pad_token_id": 0, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": _axes(width // heads)},
    }  # fmt: skip
    last = vocabulary - 1
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=tower
        | {"out_hidden_size": width, "fullatt_block_indexes": list(range(every - 1, tower["depth"], every))},
        image_token_id=last,
        video_token_id=last - 1,
        vision_start_token_id=last - 2,
        vision_end_token_id=last - 3,
    )
    return _random(Qwen2_5_VLForConditionalGeneration, config, device, dtype)


def _axes(head_dim: int) -> list[int]:
    """How the rotary angles are shared by time, row and column: 16, 24, 24 of a head of 128."""
    half = head_dim // 2
    return [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]


def qwen2_5_vl_prompt(model: Any, side: int = SIDE) -> dict[str, torch.Tensor]:
    """One picture of ``side`` x ``side`` tokens between text, 35 before it and 60 behind, as :func:`random_prompt`."""
    config, parameter = model.config, next(model.parameters())
    vision = config.vision_config
    rows = side * vision.spatial_merge_size  # of patches
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(5, 2000, (TEXT_BEFORE + TEXT_AFTER - 2,), generator=generator)
    picture = [config.vision_start_token_id, *[config.image_token_id] * side**2, config.vision_end_token_id]
    ids = torch.cat([text[: TEXT_BEFORE - 1], torch.tensor(picture), text[TEXT_BEFORE - 1 :]])[None]
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(rows * rows, width, generator=generator)
    found = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "image_grid_thw": torch.tensor([[1, rows, rows]]),
        "mm_token_type_ids": (ids == config.image_token_id).int(), "pixel_values": pixels.to(parameter.dtype),
    }  # fmt: skip
    return {name: value.to(parameter.device) for name, value in found.items()}


def random_prompt(model: Any) -> dict[str, torch.Tensor]:
    """One picture between text, as a ScienceQA prompt of LLaVA-1.5 has it: 35 + 576 + 60 tokens."""
    generator = torch.Generator().manual_seed(0)
    token = image_token(model)
    text = torch.randint(
        5, min(2000, model.config.text_config.vocab_size), (TEXT_BEFORE + TEXT_AFTER,), generator=generator
    )
    text[text == token] = 4 if token != 4 else 5
    images = torch.full(((model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2,), token)
    ids = torch.cat([text[:TEXT_BEFORE], images, text[TEXT_BEFORE:]])[None]
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=generator)
    parameter = next(model.parameters())
    on = {"input_ids": ids.to(parameter.device), "pixel_values": pixels.to(parameter.device, parameter.dtype)}
    return on | {"attention_mask": torch.ones_like(on["input_ids"])}


@contextmanager
def eager_and_masked(model: Any, setting: str) -> Iterator[None]:
    """The published way: eager attention with all matrices returned, image keys masked, nothing dropped."""
    before = model.config._attn_implementation
    set_kernel(model, "eager")
    try:
        with truncated(model, f"{setting}_official"):
            yield
    finally:
        set_kernel(model, before)


def set_kernel(model: Any, name: str) -> None:
    """Switch every part of a loaded model to attention kernel ``name``; older releases have no method for it."""
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(name)
        return
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = name


def random_qwen(size: str, device: str, dtype: torch.dtype, code: str | None) -> Any:
    """Qwen-VL's own code with random weights, 256 image tokens a picture."""
    from redrel_vlmeval.models import untrained_qwen

    shape = SIZES[size]
    width, layers, heads, ffn = QWEN_VISION[size]
    sizes = {
        "hidden_size": shape["width"],
        "num_hidden_layers": shape["blocks"],
        "num_attention_heads": shape["width"] // 128,
        "kv_channels": 128,
        "intermediate_size": 2 * shape["ffn"],
        "vocab_size": QWEN_VOCABULARY[size],
        "visual": {"width": width, "layers": layers, "heads": heads, "mlp_ratio": ffn / width}
        | {"image_start_id": QWEN_VOCABULARY[size] - 79},  # as in the real vocabulary
    }
    torch.manual_seed(0)
    return untrained_qwen(code or os.environ.get("REDREL_QWEN_VL"), sizes, device, dtype)


def qwen_prompt(model: Any) -> dict[str, torch.Tensor]:
    """One picture and 80 tokens of text behind it, as a ScienceQA prompt has them."""
    start = model.config.visual["image_start_id"]
    path = Path(tempfile.mkdtemp(prefix="redrel-")) / "noise.png"
    Image.effect_noise((448, 448), 64).save(path)
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    name = list(str(path).encode())
    picture = [start, *name, *[start + 2] * (256 - len(name)), start + 1]
    text = torch.randint(256, min(2000, start), (80,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([picture + text], device=next(model.parameters()).device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
