"""A checkpoint found by hub name or local folder and loaded, or one clear error."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from redrel_vlmeval.errors import InvalidValue, RedrelError

SMALL = 2 * 2**30  # bytes of weights up to which a CPU runs in float32


class CheckpointError(RedrelError, RuntimeError):
    """A checkpoint that cannot be used: names it, what is wrong, and the fix."""


@dataclass(frozen=True)
class Placement:
    """Where and in which precision a model runs."""

    device: str
    dtype: torch.dtype


def choose_placement(
    device: str | None, dtype: str | None, weight_bytes: int, gpu_dtype: torch.dtype = torch.float16
) -> Placement:
    """CUDA with ``gpu_dtype`` where there is a GPU; else the CPU with float32, or bfloat16 for weights above 2 GiB.

    Keywords win over the environment (``REDREL_DEVICE``, ``REDREL_DTYPE``), which wins over the choice.

    Raises:
        ValueError: an unknown dtype, or a device that is not there.
    """
    device = device or os.environ.get("REDREL_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(device)
    except RuntimeError as error:
        where = "keyword device or REDREL_DEVICE"
        raise InvalidValue(f"device {device!r} ({where}): torch knows none such; use 'cpu' or 'cuda'") from error
    name = dtype or os.environ.get("REDREL_DTYPE")
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if name is not None and name not in known:
        raise InvalidValue(f"dtype {name!r} (keyword dtype or REDREL_DTYPE): choose one of {', '.join(known)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidValue(f"device {device!r} (keyword device or REDREL_DEVICE): torch sees no CUDA GPU; use 'cpu'")
    if name is not None:
        return Placement(device, known[name])
    if device.startswith("cuda"):
        return Placement(device, gpu_dtype)
    return Placement(device, torch.float32 if weight_bytes <= SMALL else torch.bfloat16)


def open_config(path: str, revision: str | None, known: str) -> dict[str, Any]:
    """config.json of any checkpoint; ``known`` are the hub names that an error recommends.

    Raises:
        CheckpointError: not there, no network, or not JSON.
    """
    local = Path(path)
    if local.is_dir():
        file = local / "config.json"
        if not file.is_file():
            raise CheckpointError(
                f"{path}: the folder holds no config.json; give a folder saved with save_pretrained, or one of {known}"
            )
    elif path.startswith(("/", "./", "../", "~")) or path.count("/") != 1:
        raise CheckpointError(f"{path}: no such folder, and not a hub name like {known}")
    else:
        file = Path(from_hub(path, "config.json", revision, known))
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON ({error}); the download is broken, fetch it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: not a JSON object; the download is broken, fetch it again")
    return config


def from_hub(path: str, name: str | list[str], revision: str | None, known: str) -> str:
    """One file of a hub repository, or with patterns its folder with all files that fit: the local path.

    Raises:
        CheckpointError: neither in the cache nor reachable, or no name of a repository.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        if isinstance(name, list):
            return str(snapshot_download(path, revision=revision, allow_patterns=name))
        return str(hf_hub_download(path, name, revision=revision))
    except HFValidationError as error:
        raise CheckpointError(f"{path}: no such folder, and not a hub name like {known}") from error
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        what = name if isinstance(name, str) else "the checkpoint"
        raise CheckpointError(
            f"{path}: {what} is neither in the local cache nor reachable ({type(error).__name__}). With a network: "
            f"`hf download {path}{f' --revision {revision}' if revision else ''}`; "
            "without one: copy the folder here and pass it as model_path"
        ) from error


def weight_files(path: str, revision: str | None, known: str = "") -> tuple[int, str]:
    """(bytes of weights, revision): the hub's commit, or a digest of a folder's weight files (content or sizes)."""
    local = Path(path)
    if not local.is_dir():
        index = Path(from_hub(path, "config.json", revision, known))
        return sum(f.stat().st_size for f in index.parent.glob("*.safetensors")) or SMALL + 1, index.parent.name
    return folder_weights(path)


def folder_weights(path: str) -> tuple[int, str]:
    """(bytes, digest) of the weight files in a folder.

    Raises:
        CheckpointError: there are none.
    """
    local = Path(path)
    files = sorted([*local.glob("*.safetensors"), *local.glob("*.bin")])
    if not files:
        raise CheckpointError(
            f"{path}: no weights (*.safetensors or *.bin) beside config.json; the checkpoint is incomplete"
        )
    total = sum(f.stat().st_size for f in files)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes() if total < 2**28 else f"{file.name}:{file.stat().st_size}".encode())
    return total, f"{'sha256' if total < 2**28 else 'sizes'}:{digest.hexdigest()[:12]}"


def load_model(path: str, revision: str | None, placement: Placement, kernel: str, architecture: str) -> Any:
    """A model of transformers' class ``architecture`` in eval mode.

    Raises:
        CheckpointError: weights are missing from the checkpoint, or do not fit its config, or cannot be read.
    """
    settings = {"torch_dtype": placement.dtype, "attn_implementation": kernel, "output_loading_info": True}
    model, report = load_part(architecture, path, revision, **settings)
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{path}: the checkpoint lacks {len(missing)} weights, first {missing[0]!r}; "
            "it is incomplete or of another model"
        )
    return model.to(placement.device).eval()


def load_part(kind: str, path: str, revision: str | None, **settings: Any) -> Any:
    """What ``from_pretrained`` of transformers' class ``kind`` gives: a tokenizer, a processor, a model.

    Raises:
        CheckpointError: it cannot be read.
    """
    import transformers
    from safetensors import SafetensorError

    try:
        return getattr(transformers, kind).from_pretrained(path, revision=revision, **settings)
    except (ImportError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be loaded: {reason}. Fetch it again or check model_path") from error
