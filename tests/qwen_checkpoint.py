"""A tiny Qwen-VL checkpoint of random weights in the hub's own format: remote code, tokenizer and weight files.

The code is that of the folder in ``REDREL_QWEN_VL`` (a copy of the hub's files), else the stand-in beside this file.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

STAND_IN = Path(__file__).parent / "qwen_standin"
CODE = ["configuration_qwen", "modeling_qwen", "qwen_generation_utils", "tokenization_qwen", "visual"]
ENDOFTEXT, IMAGE_START = 256, 256 + 3 + 205 + 6  # 256 bytes; endoftext, im_start, im_end; extras; ref, box, quad; img
KNOWN = IMAGE_START + 3  # img, /img, imgpad are the tokenizer's last
VOCABULARY = IMAGE_START + 10
AUTO_MAP = {
    "AutoConfig": "configuration_qwen.QWenConfig",
    "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
}
VISUAL = {"heads": 2, "image_size": 56, "image_start_id": IMAGE_START, "layers": 2, "mlp_ratio": 2.0, "patch_size": 14}
SAMPLING = {"do_sample": True, "max_new_tokens": 512, "max_window_size": 6144, "top_k": 0}


def code_folder() -> Path:
    """Where the remote code is read from."""
    return Path(os.environ.get("REDREL_QWEN_VL") or STAND_IN)


def write_checkpoint(
    folder: Path, code: Path | None = None, *, blocks: int = 3, hidden: int = 128, heads: int = 4,
    seq_length: int = 2048, chat: bool = False, weights: str = "safetensors", seed: int = 0,
    dtype: torch.dtype = torch.float32, **more: Any,
) -> Path:  # fmt: skip
    """Write a checkpoint and return its folder.

    Args:
        code: folder with the five ``.py`` files.
        hidden: a multiple of 128: the picture's resampler has one head per 128.
        chat: the generation settings of ``Qwen-VL-Chat``; else those of ``Qwen-VL``.
        weights: ``safetensors``, or ``bin``: the hub's shards and index.
        more: further keys of ``config.json``; those of ``visual`` are merged into the tiny ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        shutil.copyfile((code or code_folder()) / f"{name}.py", folder / f"{name}.py")
    config = tiny_config(blocks, hidden, heads, seq_length, dtype, **more)
    settings = SAMPLING | {"eos_token_id": ENDOFTEXT, "pad_token_id": ENDOFTEXT, "transformers_version": "4.31.0"}
    settings |= {"chat_format": "chatml", "top_p": 0.3} if chat else {"chat_format": "raw", "top_p": 0.5}
    tokenizer = {
        "model_max_length": 8192,
        "tokenizer_class": "QWenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
    }
    files = {"config": config, "generation_config": settings, "tokenizer_config": tokenizer}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))
    (folder / "qwen.tiktoken").write_bytes(tiny_vocabulary())
    save_weights(folder, random_weights(config, seed, dtype), weights)
    return folder


def tiny_config(
    blocks: int, hidden: int, heads: int, seq_length: int, dtype: torch.dtype, **more: Any
) -> dict[str, Any]:
    """``config.json`` with the hub's keys and small sizes."""
    visual = VISUAL | {"output_dim": hidden, "width": 32} | more.pop("visual", {})
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "kv_channels": hidden // heads}
    sizes |= {"intermediate_size": 4 * hidden, "num_hidden_layers": blocks, "vocab_size": VOCABULARY}
    fixed = {
        "architectures": ["QWenLMHeadModel"], "auto_map": AUTO_MAP, "model_type": "qwen",
        "tokenizer_type": "QWenTokenizer", "transformers_version": "4.31.0",
        "attn_dropout_prob": 0.0, "emb_dropout_prob": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 8192, "no_bias": True, "onnx_safe": None, "rotary_emb_base": 10000,
        "rotary_pct": 1.0, "scale_attn_weights": True, "seq_length": seq_length, "tie_word_embeddings": False,
        "use_cache": True, "use_dynamic_ntk": True, "use_flash_attn": False, "use_logn_attn": True,
        "bf16": False, "fp16": False, "fp32": False, "torch_dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    return fixed | sizes | {"visual": visual} | more


def tiny_vocabulary() -> bytes:
    """``qwen.tiktoken`` of the 256 bytes, printable ones first as in the real one: a rank is not its byte's value."""
    first = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = first + [byte for byte in range(256) if byte not in first]
    return b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % rank for rank, byte in enumerate(order))


def weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the hub's checkpoint, for the sizes in ``config``."""
    hidden, half, vocabulary = config["hidden_size"], config["intermediate_size"] // 2, config["vocab_size"]
    inner = config["kv_channels"] * config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocabulary, hidden)}
    for number in range(config["num_hidden_layers"]):
        block = {
            "ln_1.weight": (hidden,),
            "attn.c_attn.weight": (3 * inner, hidden),
            "attn.c_attn.bias": (3 * inner,),
            "attn.c_proj.weight": (inner, hidden),
            "ln_2.weight": (hidden,),
            "mlp.w1.weight": (half, hidden),
            "mlp.w2.weight": (half, hidden),
            "mlp.c_proj.weight": (hidden, half),
        }
        shapes |= {f"transformer.h.{number}.{name}": shape for name, shape in block.items()}
    shapes |= {"transformer.ln_f.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    return shapes | {f"transformer.visual.{name}": shape for name, shape in visual_shapes(config["visual"]).items()}


def visual_shapes(visual: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The picture's tower, without prefix; 256 positions and queries whatever the picture's size."""
    width, out, patch = visual["width"], visual["output_dim"], visual["patch_size"]
    mlp = int(width * visual["mlp_ratio"])
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (256, width),
        "proj": (out, out),
        "conv1.weight": (width, 3, patch, patch),
        **_layer("ln_pre", width),
        **_layer("ln_post", out),
    }
    for number in range(visual["layers"]):
        block = _layer("ln_1", width) | _layer("ln_2", width)
        block |= _layer("attn.in_proj", 3 * width, width) | _layer("attn.out_proj", width, width)
        block |= _layer("mlp.c_fc", mlp, width) | _layer("mlp.c_proj", width, mlp)
        shapes |= {f"transformer.resblocks.{number}.{name}": shape for name, shape in block.items()}
    pool = {"pos_embed": (256, out), "query": (256, out), **_layer("ln_q", out), **_layer("ln_kv", out)}
    pool |= {
        "attn.in_proj_weight": (3 * out, out),
        "attn.in_proj_bias": (3 * out,),
        **_layer("attn.out_proj", out, out),
    }
    if width != out:
        pool["kv_proj.weight"] = (out, width)
    return shapes | {f"attn_pool.{name}": shape for name, shape in pool.items()}


def _layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def random_weights(config: dict[str, Any], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Values that keep activations near one, so that pictures, positions and every block show in the logits."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("bias"):
            noise *= 0.1
        elif len(shape) == 1:
            noise = 1 + 0.1 * noise
        elif "wte" not in name and "pos" not in name and "query" not in name:
            noise *= (prod(shape[1:])) ** -0.5
        weights[name] = noise.to(dtype)
    # because no trained head answers with an id that its tokenizer cannot decode
    weights["lm_head.weight"][KNOWN:] = 0
    return weights


def save_weights(folder: Path, weights: dict[str, torch.Tensor], kind: str, shards: int = 3) -> None:
    """``model.safetensors``, or ``shards`` files of ``torch.save`` with their index."""
    if kind == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, index = list(weights), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = names[number::shards]
        torch.save({name: weights[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in weights.values())
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content, indent=2))
