"""Speed, measured side by side in one process: untouched, truncated, and the way published code does it.

Every claim is a ratio of medians over rounds in which all arms run one after the other. The limit is the FLOPs ratio,
counted by torch over the whole model, vision tower included.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from redrel_vlmeval.efficiency import Meter, kv_bytes
from redrel_vlmeval.truncation import truncated
from redrel_vlmeval.truncation.native import image_token

SETTINGS = ("l5_k128", "l2_k144", "l12_k0", "l1_k0")
PREFILL_BARS = {"l5_k128": 1.05, "l2_k144": 1.05, "l12_k0": 1.10, "l1_k0": 1.25}  # x the FLOPs ratio
PUBLISHED_BAR, IDLE_BAR = 0.95, 1.03
ALL, GONE = "K = all", "untouched, hooks gone"
SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 1024, "blocks": 16, "heads": 16, "ffn": 2816, "vocab": 4000, "vision": (256, 4, 4, 1024)},
    "7b": {"width": 4096, "blocks": 32, "heads": 32, "ffn": 11008, "vocab": 32064, "vision": (1024, 24, 16, 4096)},
}
IMAGE_TOKENS, TEXT_BEFORE, TEXT_AFTER = 576, 35, 60


@dataclass
class Arm:
    """One way to run the model, and what was measured: milliseconds per round, FLOPs, bytes."""

    name: str
    setting: str | None
    context: Callable[[], Any]
    forward: dict[str, Any] = field(default_factory=dict)
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    flops: int = 0
    kv: int = 0
    peak: int | None = None

    @property
    def prefill_ms(self) -> float:
        return statistics.median(self.prefill)

    @property
    def decode_ms(self) -> float:
        return statistics.median(self.decode)


@dataclass(frozen=True)
class Check:
    """One bar: what was measured, the bound, and whether it holds."""

    what: str
    value: float
    bound: str
    holds: bool


def random_model(size: str, device: str, dtype: torch.dtype) -> Any:
    """A LLaVA-1.5-shaped model with random weights, 576 image tokens a picture."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    shape = SIZES[size]
    width, layers, heads, ffn = shape["vision"]
    vision = CLIPVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        image_size=336,
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
        image_seq_length=IMAGE_TOKENS,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    return model.to(device, dtype).eval()


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
def published(model: Any, setting: str) -> Iterator[None]:
    """The published way: eager attention with all matrices returned, image keys masked, nothing dropped."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with truncated(model, f"{setting}_official"):
            yield
    finally:
        model.set_attn_implementation(before)


def make_arms(model: Any, settings: tuple[str, ...]) -> list[Arm]:
    """Untouched first and once more when all hooks are gone; the variants and the published way in between."""
    images = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    arms = [Arm("untouched", None, nullcontext)]
    everything = f"l{min(5, model.config.text_config.num_hidden_layers - 1)}_k{images}"
    for setting in settings:
        arms.append(Arm(setting, setting, partial(truncated, model, setting)))
    arms.append(Arm(ALL, everything, partial(truncated, model, everything)))
    for setting in settings[:2]:
        way = {"output_attentions": True}
        arms.append(Arm(f"published {setting}", setting, partial(published, model, setting), way))
    return [*arms, Arm(GONE, None, nullcontext)]


@torch.inference_mode()
def run_once(model: Any, arm: Arm, inputs: dict[str, torch.Tensor], new_tokens: int, keep: bool = True) -> None:
    """Prefill and greedy decoding of one prompt in one arm."""
    with arm.context(), Meter(model) as meter:
        out = model.generate(
            **inputs,
            **arm.forward,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
        )
    if keep and meter.decoder is not None and meter.prefill_ms is not None:
        arm.prefill.append(meter.prefill_ms)
        arm.decode.append(meter.decode_ms or 0.0)
        cache = out.past_key_values
        held = [layer.keys.shape[-2] for layer in cache.layers]
        arm.kv = kv_bytes(held, meter.decoder.shape, cache.layers[0].keys.element_size())


@torch.inference_mode()
def count_flops(model: Any, arm: Arm, inputs: dict[str, torch.Tensor]) -> int:
    """FLOPs of one prefill of the whole model by torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with arm.context(), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    return int(counter.get_total_flops())


@torch.inference_mode()
def measure_peak(model: Any, arm: Arm, inputs: dict[str, torch.Tensor]) -> int | None:
    """Bytes at the peak of one prefill: allocated on a GPU; above the resident set before it on Linux; else None."""
    if next(model.parameters()).is_cuda:
        torch.cuda.reset_peak_memory_stats()
        with arm.context():
            model(**inputs, **arm.forward, logits_to_keep=1)
        return int(torch.cuda.max_memory_allocated())
    try:
        _return_free_memory()
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        with arm.context():
            model(**inputs, **arm.forward, logits_to_keep=1)
        return _status("VmHWM") - before
    except OSError:
        return None


def _return_free_memory() -> None:
    """Give freed heap back to the system, so that the resident set starts from what is in use."""
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def bench(
    model: Any,
    settings: tuple[str, ...] = SETTINGS,
    rounds: int = 5,
    new_tokens: int = 5,
    tick: Callable[[str], None] = lambda _: None,
) -> list[Arm]:
    """All arms, ``rounds`` times in turn after one warm-up round, on one random prompt."""
    inputs = random_prompt(model)
    arms = make_arms(model, settings)
    for arm in arms:
        tick(f"counting and warming up: {arm.name}")
        if not arm.forward:
            arm.flops = count_flops(model, arm, inputs)
        arm.peak = measure_peak(model, arm, inputs)
        run_once(model, arm, inputs, new_tokens, keep=False)
    for number in range(rounds):
        for arm in arms:
            tick(f"round {number + 1} of {rounds}: {arm.name}")
            run_once(model, arm, inputs, new_tokens)
    return arms


def table(arms: list[Arm]) -> list[dict[str, Any]]:
    """One row per arm: medians, ratios to the untouched model, the FLOPs ratio as the limit, memory."""
    base = arms[0]
    rows = []
    for arm in arms:
        limit = arm.flops / base.flops if arm.flops else None
        ratio = arm.prefill_ms / base.prefill_ms
        total = (arm.prefill_ms + 10 * arm.decode_ms) / 1e3
        rows.append(
            {
                "arm": arm.name,
                "prefill ms": arm.prefill_ms,
                "prefill ratio": ratio,
                "FLOPs ratio": limit,
                "ratio / limit": ratio / limit if limit else None,
                "decode ms/token": arm.decode_ms,
                "KV MB": arm.kv / 1e6,
                "peak MB": arm.peak / 1e6 if arm.peak is not None else None,
                "questions/s (10 tokens)": 1 / total,
            }
        )
    return rows


def checks(arms: list[Arm]) -> list[Check]:
    """The bars: prefill against the FLOPs ratio, against the published way, and what idle or removed hooks cost."""
    by = {arm.name: arm for arm in arms}
    base = by["untouched"]
    found = []
    for setting, bar in PREFILL_BARS.items():
        if setting in by:
            limit = by[setting].flops / base.flops
            value = by[setting].prefill_ms / base.prefill_ms / limit
            found.append(Check(f"{setting}: prefill over untouched / FLOPs ratio", value, f"<= {bar}", value <= bar))
    for name, arm in by.items():
        if name.startswith("published ") and arm.setting in by:
            variant = by[arm.setting]
            value, bound = arm.prefill_ms / variant.prefill_ms, PUBLISHED_BAR * base.flops / variant.flops
            found.append(
                Check(f"{arm.setting}: times faster than the published way", value, f">= {bound:.2f}", value >= bound)
            )
        if name in (ALL, GONE):
            value = arm.prefill_ms / base.prefill_ms
            found.append(Check(f"{name}: prefill over untouched", value, f"<= {IDLE_BAR}", value <= IDLE_BAR))
    return found
