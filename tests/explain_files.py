"""Stored explanations made by hand, for figures, pages and comparisons: every number is known, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from redrel_vlmeval.explain.store import Stored, save
from redrel_vlmeval.models.llava.input import square_box

SIZE = (60, 40)  # of the picture: its square has padding above and below


def stored(
    path: Path | None = None, *, layers: int = 4, side: int = 6, tokens: int = 1, model: str = "a_model",
    methods: tuple[str, ...] = ("elementwise", "attn"), size: tuple[int, int] = SIZE, **manifest: Any,
) -> Stored:  # fmt: skip
    """Maps of ``layers`` decoder blocks on a padded picture: block l's value at token n is ``l * (n + 1)``, times the
    answer token's number; the last block has no gradient for ``elementwise``."""
    values = np.arange(1, layers + 1)[:, None] * np.arange(1, side**2 + 1)[None]
    values = np.arange(1, tokens + 1)[:, None, None] * values[None].astype(np.float32)
    arrays: dict[str, np.ndarray] = {}
    entry: dict[str, Any] = {}
    for method in methods:
        own, status = values.copy(), [["ok"] * layers for _ in range(tokens)]
        if method == "elementwise":
            own[:, -1] = np.nan
            for row in status:
                row[-1] = "no_gradient"
        arrays[f"maps/decoder/{method}"] = own
        entry[f"decoder/{method}"] = {"layers": list(range(1, layers + 1)), "status": status}
    light = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3).astype(np.uint8)
    arrays["picture/0"] = light
    grid = {"index": np.arange(side**2).reshape(side, side).tolist(), "box": square_box(*size), "size": list(size)}
    found: dict[str, Any] = {"model": model, "variant": None, "question": "What is it?", "reply": "ab", "own": True}
    found |= {"answer": [{"id": n, "text": "abcdefgh"[n % 8]} for n in range(tokens)], "objective": "logit", "z": [1.0]}
    found |= {"groups": {"bos": 1, "sys": 3, "img": side**2, "user": 4, "out": tokens}, "maps": entry, "cards": []}
    found |= {"tokens": ["<s>", "a", "b", "c", *[None] * side**2, "d", "e", "f", "g", *"x" * tokens]}
    found |= {"grids": {"decoder": [grid]}, "pictures": [{"path": "p.png", "size": list(size)}], "kept": {}}
    found |= {"provenance": {"versions": {"torch": "torch 0"}, "dtype": "float32"}} | manifest
    made = Stored(arrays, found)
    if path is not None:
        save(made, path)
    return made


def truncated(path: Path | None = None, keep: tuple[int, ...] = (13, 20), **options: Any) -> Stored:
    """The same under ``l2_k<keep>``: blocks after 2 hold the kept tokens only."""
    made = stored(None, model="a_model_trunc_l2_k2", variant="a_model_trunc_l2_k2", kept={"2": list(keep)}, **options)
    for name, values in made.arrays.items():
        if name.startswith("maps/"):
            gone = np.setdiff1d(np.arange(values.shape[-1]), keep)
            values[:, 2:, gone] = np.nan
    if path is not None:
        save(made, path)
    return made


def flow(path: Path | None = None, layers: int = 4, **manifest: Any) -> Stored:
    """A flow whose image share falls from 0.8 to 0.2, and whose margin rises to 3 after block 2."""
    image = np.linspace(0.8, 0.2, layers)
    shares = np.stack([0 * image, (1 - image) / 2, image, (1 - image) / 2, 0 * image], -1).astype(np.float32)
    made = stored(None, layers=layers, **({"flat_from": 2} | manifest))
    made.arrays = {"picture/0": made.arrays["picture/0"], "flow/attention": np.repeat(shares[:, None, None], 2, 1)}
    positions = len(made.manifest["tokens"])
    made.arrays["flow/rows"] = np.full((layers, 1, positions), 1 / positions, np.float32)
    made.arrays |= {"flow/gradient": shares, "flow/causal": np.array([0, 0.5, *[3] * (layers - 1)], np.float32)}
    made.manifest["maps"] = {}
    if path is not None:
        save(made, path)
    return made
