"""A Qwen-VL checkpoint in the hub's format, loaded by its own code with the weights it holds, or one clear error."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch

from redrel_vlmeval.models.checkpoint import CheckpointError, Placement, choose_placement, from_hub, open_config
from redrel_vlmeval.models.qwen import compat, kernel
from redrel_vlmeval.models.qwen.weights import check_names, check_weights, weight_map

logger = logging.getLogger("redrel_vlmeval")
# The commits whose code and weights were read when this was written: what runs here was seen by someone.
PINNED = {
    "Qwen/Qwen-VL": "0547ed36a86561e2e42fecec8fd0c4f6953e33c4",
    "Qwen/Qwen-VL-Chat": "f57cfbd358cb56b710d963669ad1bcfb44cdcdd8",
}
KNOWN = ", ".join(PINNED)
FILES = ["*.json", "*.py", "*.tiktoken", "*.safetensors", "*.bin"]
CODE = ["configuration_qwen.py", "modeling_qwen.py", "qwen_generation_utils.py", "tokenization_qwen.py", "visual.py"]
VISUAL = {"heads": 16, "image_size": 448, "image_start_id": 151857, "layers": 48, "mlp_ratio": 4.9231,
          "patch_size": 14, "width": 1664}  # fmt: skip
PACKAGES = ("tiktoken", "einops", "torchvision", "matplotlib", "requests")


def choose_revision(path: str, revision: str | None) -> str | None:
    """The commit to load: as asked, or the pinned one of a hub name; None for a folder.

    Raises:
        CheckpointError: another hub name without a revision, whose code would run unseen.
    """
    if revision is not None or Path(path).is_dir():
        return revision
    if path not in PINNED and path.count("/") == 1 and not path.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{path}: its own code runs when it is loaded, so say which: pass revision=<commit>; "
            f"pinned are {KNOWN}; a local folder needs none"
        )
    return PINNED.get(path)


def check_environment(path: str) -> None:
    """Raise CheckpointError for a transformers, or a lack of packages, with which the remote code cannot run right."""
    import transformers

    if re.match(r"5\.0(\D|$)", transformers.__version__):
        raise CheckpointError(
            f"{path}: transformers {transformers.__version__} loads Qwen-VL with wrong weights and cannot be mended; "
            "pip install 'transformers!=5.0.*'"
        )
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CheckpointError(
            f'{path}: Qwen-VL\'s own code needs {", ".join(missing)}; pip install "redrel-vlmeval[qwen]"'
        )


def find_folder(path: str, revision: str | None) -> Path:
    """The checkpoint's folder, downloaded if need be, with everything that loading takes.

    Raises:
        CheckpointError: not there, no network, another architecture, Int4, or incomplete.
    """
    config = open_config(path, revision, KNOWN)
    what = config.get("architectures") or config.get("model_type")
    if config.get("model_type") != "qwen" or "visual" not in config:
        raise CheckpointError(f"{path}: architecture {what!r}, expected Qwen-VL's QWenLMHeadModel, such as {KNOWN}")
    if quantized := config.get("quantization_config"):
        kind = quantized.get("quant_method", "quantised") if isinstance(quantized, dict) else quantized
        raise CheckpointError(
            f"{path}: a {kind} (Int4) checkpoint; its kernels are not supported, use Qwen/Qwen-VL-Chat"
        )
    folder = Path(path) if Path(path).is_dir() else Path(from_hub(path, FILES, revision, KNOWN))
    for name in [*CODE, "qwen.tiktoken", "generation_config.json"]:
        if not (folder / name).is_file():
            raise CheckpointError(f"{path}: {name} is missing; the checkpoint is incomplete, fetch it again")
    try:
        json.loads((folder / "generation_config.json").read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{path}: generation_config.json is not JSON ({error}); the checkpoint is broken, fetch it again"
        ) from error
    for shard in set(weight_map(folder).values()):
        if not (folder / shard).is_file():
            raise CheckpointError(
                f"{path}: weight file {shard} is missing; the checkpoint is incomplete, fetch it again"
            )
    return folder


def place(device: str | None, dtype: str | None, weight_bytes: int) -> Placement:
    """As for LLaVA (:func:`choose_placement`), but in bfloat16 on a GPU that has it."""
    return choose_placement(device, dtype, weight_bytes, torch.bfloat16 if _brain_floats() else torch.float16)


def _brain_floats() -> bool:
    """Whether the GPU computes in bfloat16 itself: torch says yes to an emulation of it, too."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8


def load(path: str, revision: str, folder: Path, placement: Placement, attention: str) -> tuple[Any, Any]:
    """-> (model in eval mode, tokenizer), every weight compared with the checkpoint's files.

    ``attention``: see :func:`qwen_kernel.install`.

    Raises:
        CheckpointError: code or weights cannot be loaded, do not fit each other, or were changed on the way.
    """
    logger.warning("%s@%s: its own code runs, because this model was asked for", path, revision)
    try:
        with compat.importable():
            code = compat.remote_code(str(folder))
            config = code.config.from_pretrained(str(folder))
            _set_precision(config, placement.dtype)
            model, report = code.model.from_pretrained(
                str(folder), config=config, torch_dtype=placement.dtype, output_loading_info=True
            )
            tokenizer = code.tokenizer.from_pretrained(str(folder))
        compat.restore_tables(model)
    except Exception as error:  # code of others, on releases to come: whatever it raises, the checkpoint is unusable
        reason = str(error).splitlines()[0] if str(error) else ""
        raise CheckpointError(
            f"{path}: cannot be loaded: {type(error).__name__}: {reason}. Fetch it again or check model_path"
        ) from error
    check_names(path, report)
    check_weights(path, folder, model)
    check_tokenizer(path, tokenizer)
    return _finish(model, placement, attention), tokenizer


def untrained_qwen(code: str | None, sizes: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A model with random weights, for timing, with the logits of the real one's vocabulary.

    Args:
        code: folder with the code of ``Qwen/Qwen-VL``; None takes it from the hub.
        sizes: keys of its ``config.json`` that differ; those of ``visual`` are merged.

    Raises:
        CheckpointError: the code cannot be had or run.
    """
    check_environment(code or "Qwen/Qwen-VL")
    folder = code or _code_from_hub()
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder}: no such folder; give one that holds {', '.join(CODE)}")
    visual = VISUAL | {"output_dim": sizes.get("hidden_size", 4096)} | sizes.get("visual", {})
    before = torch.get_default_dtype()
    try:
        with compat.importable():
            classes = compat.remote_code(folder)
        config = classes.config(**{"seq_length": 2048, **sizes, "visual": visual})
        _set_precision(config, dtype)
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model = classes.model(config)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise CheckpointError(f"{folder}: Qwen-VL's own code cannot be run: {error}") from error
    finally:
        torch.set_default_dtype(before)
    model.generation_config.update(eos_token_id=None, pad_token_id=0)
    return _finish(model, Placement(device, dtype), "sdpa")


def _code_from_hub() -> str:
    """The folder of Qwen-VL's code, without its weights."""
    try:
        return from_hub("Qwen/Qwen-VL", CODE, PINNED["Qwen/Qwen-VL"], KNOWN)
    except CheckpointError as error:
        raise CheckpointError(
            f"Qwen-VL's own code is neither in the local cache nor reachable; give a folder that holds "
            f"{', '.join(CODE)} with --code or in REDREL_QWEN_VL"
        ) from error


def _set_precision(config: Any, dtype: torch.dtype) -> None:
    """The code's own switches: with none of them set, it chooses by the GPU it sees."""
    for name, flag in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        setattr(config, flag, name == dtype)


def _finish(model: Any, placement: Placement, attention: str) -> Any:
    model.to(placement.device, placement.dtype).eval()
    rotary = model.transformer.rotary_emb
    rotary.inv_freq = rotary.inv_freq.to(placement.device)  # no weight: it stays behind where the model moves
    kernel.install(model, attention)
    return model


def check_tokenizer(path: str, tokenizer: Any) -> None:
    """Raise CheckpointError where transformers does not let the code's own tokenizer do its work (5.1 does not)."""
    import transformers

    start, letters = tokenizer.img_start_id, [ord(letter) for letter in "a.png"]
    pads = [start + 2] * (256 - len(letters))
    try:
        picture, text = tokenizer.encode("<img>a.png</img>"), tokenizer.encode("<img>", allowed_special=set())
    except (ValueError, TypeError):
        picture, text = [], []
    if picture != [start, *letters, *pads, start + 1] or not text or start in text:
        raise CheckpointError(
            f"{path}: its tokenizer does not work with transformers {transformers.__version__}; use another release"
        )
