"""Tiny checkpoints of random weights, each in the format that a host's class loads, five decoder blocks deep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from redrel_vlmeval.checking import verdict
from redrel_vlmeval.errors import UnknownName
from redrel_vlmeval.trying import native, packages, tokens

Keywords = dict[str, Any]
Maker = Callable[[Path, str], Keywords]  # (folder, name of the host) -> more keywords of the host's entry


def internvl(folder: Path, name: str) -> Keywords:
    """InternVL's remote code, in a stand-in for it, over Qwen2: tiles of 448 pixels are 16 visual tokens each.

    Over InternLM2, likewise in a stand-in, where ``name`` is known to be.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel

    made = tokens.slow(folder, ["<img>", "</img>", "<IMG_CONTEXT>"])
    made.save_pretrained(folder)
    inner = "InternLM2ForCausalLM" if "InternLM2" in verdict(name).why else "Qwen2ForCausalLM"
    for code in (Path(__file__).parent / "internvl").glob("*_intern*.py"):
        shutil.copyfile(code, folder / code.name)
    config = {
        "model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "force_image_size": 448,
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
        "vision_config": {"hidden_size": 16, "patch_size": 56, "image_size": 448},
        "llm_config": tokens.text_config(made) | {"architectures": [inner]},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True)
    weights = {name: tensor.to(torch.float32).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return {}


LLAVA = ("LLaVA_OneVision", "LLaVA_Next2")  # of the package llava
QWEN2 = (
    "Qwen2VLChat", "Qwen2VLChatAguvis", "CoVTChat", "QTuneVL", "Thyme", "TreeVGR", "VLAAThinkerChat", "VLMR1Chat",
    "WeThinkVL",
)  # fmt: skip


def llava(folder: Path, name: str) -> Keywords:
    """The package ``llava``, in a stand-in for it where it is not installed."""
    from redrel_vlmeval.trying import llava_package

    return packages.llava(folder, name) if packages.there("LLaVA") else llava_package.make(folder, name)


def lent() -> AbstractContextManager[None]:
    from redrel_vlmeval.trying import llava_package

    return nullcontext() if packages.there("LLaVA") else llava_package.lent()


# The host's class -> the checkpoint that stands for those of its names.
MAKERS: dict[str, Maker] = {
    **dict.fromkeys(
        ("InternVLChat", "SailVL", "VinternChat", "QTuneVLChat", "NVLM", "Qianfan_VL", "MMAlaya2"), internvl
    ),
    **dict.fromkeys(QWEN2, native.qwen2_vl),
    "Qwen3VLChat": native.qwen3_vl,
    "LLaVA_OneVision_HF": native.llava_onevision,
    **dict.fromkeys(("LLaVANext", "LLaVA15", "GraniteVision3"), native.llava),
    **dict.fromkeys(("SmolVLM", "SmolVLM2"), native.smolvlm),
    "Gemma3": native.gemma3,
    "PaliGemma": native.paligemma,
    **dict.fromkeys(LLAVA, llava),
    "LLaVA": packages.llava,
    "Eagle": packages.eagle,
    "DeepSeekVL": packages.deepseek_vl,
    "Janus": packages.janus,
    **dict.fromkeys(("Ovis", "Ovis1_6", "Ovis2"), packages.ovis),
}
# What holds while a class is tried: a stand-in for a package that is not installed, or a smaller tower in one that is.
PACKAGES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    **dict.fromkeys(LLAVA, lent),
    "Eagle": packages.staying,
    "Ovis2": packages.sized,
    **{kind: partial(packages.small, packages.NEEDS[kind]) for kind in ("DeepSeekVL", "Janus")},
}


def able(kind: str) -> bool:
    """Whether names of the host's class ``kind`` can be tried here."""
    return kind in MAKERS and (kind in LLAVA or packages.there(kind))


def make(kind: str, name: str, folder: Path) -> Keywords:
    """Write the checkpoint for ``name``, of the host's class ``kind``; what its entry is to be called with.

    Raises:
        UnknownName: none is made for that class.
    """
    import torch

    if kind not in MAKERS:
        raise UnknownName(f"{name!r}: no tiny checkpoint is made for its class {kind!r}; for {', '.join(MAKERS)}")
    torch.manual_seed(0)
    return {"model_path": str(folder)} | MAKERS[kind](folder, name)
