"""Explanations on disk: ``<stem>.npz`` with every array, raw, and the same manifest inside it and as ``<stem>.json``.

Needs numpy only: figures and pages are drawn from the npz alone, without torch and without the model.

Arrays of the npz (float32 unless said otherwise; t answer tokens, l layers, n image tokens, g groups, h heads):

=============================== ======================================================================================
``maps/<where>/<method>``       [t or 1, l, n] raw maps; NaN where a token was dropped or nothing is defined
``pixels/<where>/<method>``     [t or 1, l, cells], the same carried to the patches of the picture (:mod:`grid`)
``flow/attention``              [l, h, t, g] attention of each answer row by group (eqs. 4-6); sums to 1 over g
``flow/rows``                   [l, t, s] attention of each answer row, mean over heads (eq. 7), at all s positions
``flow/gradient``               [l, g] share of gradient times activation by group; sums to 1
``flow/saliency``               [l, t, g] sum of |a dz/da| over heads and the group's columns
``flow/causal``                 [l + 1] margin with the picture cut before block 1, after block 1, ..., not at all
``picture/<i>``                 uint8 [h, w, 3], the question's pictures, at most :data:`SIDE` pixels a side
``manifest``                    the manifest's text, a 0-d string
=============================== ======================================================================================

The manifest (``version`` 1): ``model``, ``variant`` (None or the setting), ``question``, ``reply``, ``answer`` (list of
{id, text}), ``own`` (the model's own answer), ``objective``, ``rows``, ``groups`` (name -> tokens), ``tokens`` (text of
every position but image tokens, which are None), ``maps`` (``<where>/<method>`` -> {layers, status [t][l]}), ``grids``
(``<where>`` -> list of a picture's grid, see :class:`grid.Grid`), ``pictures`` (list of {path, size}), ``flat_from``,
``kept`` (layer -> image tokens kept), ``z`` (objective of each token), ``cards`` (see :mod:`faithfulness`) and
``provenance`` (versions, weights, revision, dtype, device, kernel, seed, smooth, noise, time).
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain import schema
from redrel_vlmeval.explain.schema import STATUS as STATUS
from redrel_vlmeval.files import atomically, write_whole

VERSION = 1
SIDE = 768
LARGEST = 2**31  # bytes of an array
METHODS = ("elementwise", "gradcam", "attn", "attn_grad", "gradcam_official")
ROW = "attn_row"  # where a row of the prompt looks that was asked for by name; no method of its own
WHERE = ("vision", "projector", "decoder")


@dataclass
class Stored:
    """Arrays by the names above, and the manifest."""

    arrays: dict[str, np.ndarray]
    manifest: dict[str, Any]
    path: Path | None = field(default=None, compare=False)

    def maps(self, where: str, method: str) -> np.ndarray:
        """[t or 1, l, n] raw maps.

        Raises:
            ExplainError: not in the file; says what is.
        """
        key = f"maps/{where}/{method}"
        if key not in self.arrays:
            known = ", ".join(sorted(name[5:] for name in self.arrays if name.startswith("maps/"))) or "none"
            raise ExplainError(f"{self.path or 'explanation'}: no maps {where}/{method}; it holds {known}")
        return self.arrays[key]

    def layers(self, where: str, method: str) -> list[int]:
        """Layer numbers of :meth:`maps`, from 1."""
        return [int(layer) for layer in self.manifest["maps"][f"{where}/{method}"]["layers"]]

    def status(self, where: str, method: str) -> list[list[str]]:
        """[t or 1][l] of ``ok``, ``no_gradient``, ``blank``, ``pruned``."""
        return [list(row) for row in self.manifest["maps"][f"{where}/{method}"]["status"]]

    @property
    def tokens(self) -> list[str]:
        """Text of each answer token."""
        return [str(token["text"]) for token in self.manifest["answer"]]


def plain(name: str) -> str:
    """A name that is a file name anywhere; two may come out alike."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:80] or "picture"


def own_name(text: str) -> str:
    """:func:`plain`, and no two alike: a text that had to change ends in ``~`` and its digest."""
    short = plain(text)
    return short if short == text else f"{short}~{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def question_name(benchmark: str, index: str) -> str:
    """What the files of a benchmark's question are called after the model's name; no two questions' are alike.

    ``RedRelShapes_0``. An index that is no number in digits gets its digest, so that ``_flow`` or ``1_2`` is none.
    """
    end = index if re.fullmatch("[0-9]{1,40}", index) else f"{plain(index)}~{_digest(index)}"
    return f"{own_name(benchmark)}_{end}"


def own_place(path: Path, mine: Callable[[dict[str, Any]], bool]) -> tuple[Path, dict[str, Any]]:
    """The first of ``path``, ``path_2``, ... that is free, or whose manifest is ``mine``; and that manifest."""
    for number in count(1):
        here = path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")
        try:
            old = load(here).manifest if here.exists() else {}
        except ExplainError:  # half a file, or another program's; it is made anew
            old = {}
        if not old or mine(old):
            break
    return here, old


def save(stored: Stored, path: Path) -> Path:
    """Write ``path`` (.npz) and the manifest beside it (.json); neither is ever half-written.

    Raises:
        ExplainError: a name or a type that the format has not.
    """
    path = path.with_suffix(".npz")
    text = json.dumps(stored.manifest | {"version": VERSION}, indent=1, ensure_ascii=False, default=_plain)
    arrays: dict[str, Any] = {name: _checked(name, array) for name, array in stored.arrays.items()}
    arrays["manifest"] = np.array(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomically(path, lambda file: np.savez_compressed(file, **arrays))
    write_whole(path.with_suffix(".json"), f"{text}\n".encode())
    stored.path = path
    return path


def load(path: Path) -> Stored:
    """What :func:`save` wrote, from the npz alone; every field that anything reads is there and of its kind.

    Raises:
        ExplainError: no such file, no file of this kind, of a later version, or damaged: names the file and the field.
    """
    try:
        arrays = _read(path)
        manifest = json.loads(str(arrays.pop("manifest")), parse_constant=schema.constant)
    except FileNotFoundError as error:
        raise ExplainError(f"{path}: no such file") from error
    except schema.Wrong as error:
        raise ExplainError(f"{path}: damaged: {error}") from error
    except Exception as error:  # zipfile, zlib, numpy and json have some twenty ways to say that bytes are damaged
        raise ExplainError(
            f"{path}: no explanation (those are .npz files that redrel explain wrote), or a damaged one"
        ) from error
    try:
        schema.check_version(manifest, VERSION)
        schema.check(arrays, manifest)
    except schema.Wrong as error:
        raise ExplainError(f"{path}: {error}") from error
    return Stored(arrays, manifest, Path(path))


def _read(path: Path) -> dict[str, np.ndarray]:
    """Every array of the zip; one that says it is larger than any of ours is not unpacked."""
    arrays = {}
    with zipfile.ZipFile(path) as file:
        for entry in file.infolist():
            name = entry.filename.removesuffix(".npy")
            if entry.file_size > LARGEST:
                raise schema.Wrong(f"array {name}: {entry.file_size} bytes; at most {LARGEST}")
            with file.open(entry) as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _checked(name: str, array: Any) -> np.ndarray:
    array = np.asarray(array)
    known = ("maps/", "pixels/", "flow/", "picture/")
    if not name.startswith(known):
        raise ExplainError(f"array {name!r}: names begin with {', '.join(known)}")
    if array.dtype == np.uint8 and name.startswith("picture/"):
        return array
    if array.dtype.kind not in "fiu":
        raise ExplainError(f"array {name!r} of type {array.dtype}: numbers only")
    return array.astype(np.float32)


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's own, paths and the like as text."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return value.item() if hasattr(value, "item") else str(value)
