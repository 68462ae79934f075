"""The weights of a Qwen-VL checkpoint: in which files they lie, and whether a loaded model holds them unchanged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.models.checkpoint import CheckpointError

NO_WEIGHTS = re.compile(r"(masked_bias|inv_freq|logn_tensor)$")  # tables that some checkpoints carry along
ROWS = 3  # of each weight matrix, compared after loading
Row = tuple[int | None, torch.Tensor]


def weight_map(folder: Path) -> dict[str, str]:
    """Name of each weight -> file that holds it; ``{"": file}`` where there is but one file.

    Raises:
        CheckpointError: no weights, or an index that is no index.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):  # in the order in which transformers looks
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return {"": single}
        if index.is_file():
            try:
                return dict(json.loads(index.read_text())["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{index}: no index of weights ({error!r}); fetch it again") from error
    raise CheckpointError(
        f"{folder}: no weights (*.safetensors or *.bin) beside config.json; the checkpoint is incomplete"
    )


def check_names(path: str, report: dict[str, Any]) -> None:
    """Raise CheckpointError where weights are missing, or are there that the model has no place for."""
    missing = sorted(report["missing_keys"])
    extra = sorted(name for name in report["unexpected_keys"] if not NO_WEIGHTS.search(name))
    if missing:
        other = f", and holds {len(extra)} of other names, first {extra[0]!r}" if extra else ""
        raise CheckpointError(
            f"{path}: the checkpoint lacks {len(missing)} weights, first {missing[0]!r}{other}; "
            "it is incomplete or of another model"
        )
    if extra:
        raise CheckpointError(
            f"{path}: {len(extra)} weights have no place in the model, first {extra[0]!r}; "
            "merge adapters into the weights, or use the checkpoint's original"
        )


def check_weights(path: str, folder: Path, model: nn.Module) -> None:
    """Compare some rows of every weight with the checkpoint's file, read lazily.

    Some releases of transformers make weights anew after loading them, without a word.

    Raises:
        CheckpointError: names the first weight that differs.
    """
    import transformers

    unseen = {name: weight for name, weight in model.state_dict().items() if not NO_WEIGHTS.search(name)}
    for name, rows in stored_rows(folder):
        if name not in unseen:
            continue
        weight = unseen.pop(name)
        for row, stored in rows:
            held = weight if row is None else weight[row]
            if held.shape != stored.shape or not torch.equal(held, stored.to(held.dtype)):
                raise CheckpointError(
                    f"{path}: after loading, {name} differs from the checkpoint's file: transformers "
                    f"{transformers.__version__} changes weights as it loads this model; use another release"
                )
    if unseen:
        raise CheckpointError(
            f"{path}: {next(iter(unseen))} was loaded from no file under its own name; fetch it again"
        )


def stored_rows(folder: Path) -> Iterator[tuple[str, list[Row]]]:
    """(name, [(row number, row)]) of each weight on disk; vectors whole, under the row number None."""
    for file in sorted(set(weight_map(folder).values())):
        with _opened(folder / file) as (names, get):
            for name in names:
                tensor = get(name)
                shape = tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape
                if len(shape) < 2:
                    yield name, [(None, tensor[:] if len(shape) else tensor)]
                else:
                    picked = sorted({i * (shape[0] - 1) // (ROWS - 1) for i in range(ROWS)})
                    yield name, [(row, tensor[row : row + 1][0]) for row in picked]


@contextmanager
def _opened(file: Path) -> Iterator[tuple[list[str], Callable[[str], Any]]]:
    """Names in a weight file, and a function from name to what can be sliced without reading the rest."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            yield list(opened.keys()), opened.get_slice
        return
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        content = torch.load(file, map_location="cpu", weights_only=True)
    yield list(content), content.__getitem__
