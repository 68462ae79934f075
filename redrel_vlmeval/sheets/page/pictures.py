"""Pictures of a benchmark's questions as thumbnails that stand in the page itself, each distinct picture once.

One that cannot be shown costs its own question's picture and no more: the page says which, and why.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from redrel_vlmeval.errors import RedrelError, one_line

SIDE = 320  # pixels of a thumbnail's longer edge
# The host takes a shorter value in the column image for the index of the row that holds the picture.
REFERENCE = 64
TOLD = 5  # pictures that cannot be shown and are named one by one
COLUMNS = ("index", "image", "image_path")


class PictureError(RedrelError, RuntimeError):
    """Pictures were asked for and cannot be had; the text says where they were looked for."""


@dataclass(eq=False)
class Shown:
    """The pictures of a page, and what became of each question's.

    Attributes:
        pictures: {src, w, h}: a data address, and the original's size in pixels.
        where: (benchmark, index) -> the numbers of its pictures; empty where the question has none. A question whose
            pictures are beyond the number asked for, or cannot be shown, is not named.
        unseen: a line on each that cannot be shown.
    """

    pictures: list[dict[str, Any]] = field(default_factory=list)
    where: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)

    def told(self) -> list[str]:
        """The first lines of ``unseen``, and how many more there are."""
        rest = len(self.unseen) - TOLD
        return [*self.unseen[:TOLD], *([f"and {rest} more questions"] if rest > 0 else [])]


def folders(results: Path, given: Path | None) -> list[Path]:
    """Where benchmarks' TSV files may lie, in order: the folder given alone, else as the host and ``redrel demo`` do.

    Raises:
        PictureError: the folder given does not exist.
    """
    if given is not None:
        if not given.is_dir():
            raise PictureError(f"--data-folder {str(given)!r}: no such folder; give the one that holds <benchmark>.tsv")
        return [given]
    named = os.environ.get("LMUData")
    return [*([Path(named)] if named else []), results / "LMUData", Path.home() / "LMUData"]


def find_tables(benchmarks: Iterable[str], places: Sequence[Path]) -> dict[str, Path]:
    """Benchmark -> its TSV, of those that have one.

    Raises:
        PictureError: none has one.
    """
    names = list(benchmarks)
    found = {}
    for name in names:
        path = next((place / f"{name}.tsv" for place in places if (place / f"{name}.tsv").is_file()), None)
        if path is not None:
            found[name] = path
    if names and not found:
        files, where = (", ".join(map(str, of)) for of in ([f"{name}.tsv" for name in names], places))
        raise PictureError(
            f"--pictures: found no {files} in {where}; name the folder with --data-folder. These are tables of "
            "VLMEvalKit; lmms-eval leaves no pictures"
        )
    return found


def thumbnails(wanted: Sequence[tuple[str, str]], tables: dict[str, Path], most: int) -> Shown:
    """At most ``most`` distinct pictures of the (benchmark, index) wanted, in their order; tables that cannot be read,
    and what is no picture, are told in ``unseen``."""
    found = Shown()
    known: dict[bytes, int] = {}
    loaded: dict[str, dict[str, list[str | Path]]] = {}
    for name, path in tables.items():
        try:
            loaded[name] = _sources(path, {index for benchmark, index in wanted if benchmark == name})
        except PictureError as error:
            found.unseen.append(str(error))
    for benchmark, index in wanted:
        if index not in (own := loaded.get(benchmark, {})):
            continue
        try:
            files = {hashlib.sha256(data).digest(): data for data in map(_data, own[index])}
            new = {key: data for key, data in files.items() if key not in known}
            if len(known) + len(new) > most:
                continue
            made = [_thumbnail(data) for data in new.values()]
        except PictureError as error:
            found.unseen.append(f"{tables[benchmark].name}, index {index}: {error}")
            continue
        known |= {key: len(known) + number for number, key in enumerate(new)}
        found.pictures += made
        found.where[benchmark, index] = [known[hashlib.sha256(_data(source)).digest()] for source in own[index]]
    return found


def _sources(path: Path, wanted: set[str]) -> dict[str, list[str | Path]]:
    """Index -> its pictures, of the wanted rows: base64, or the file where only ``image_path`` is given."""
    rows = _rows(path, wanted)
    links = {image for image, _ in rows.values() if len(image) <= REFERENCE} - {""}
    targets = _rows(path, links) if links else {}
    found: dict[str, list[str | Path]] = {}
    for index, (image, named) in rows.items():
        if image in links:
            # a target that holds no picture itself is kept as it is, and fails as one
            image = targets.get(image, ("", ""))[0] or image
        found[index] = list(_several(image)) if image else [_file(path, name) for name in _several(named)]
    return found


def _rows(path: Path, wanted: set[str]) -> dict[str, tuple[str, str]]:
    """Index -> (image, image_path) as text; files of gigabytes are read piece by piece."""
    found: dict[str, tuple[str, str]] = {}
    try:
        names = pd.read_csv(path, sep="\t", nrows=0).columns
        if "index" not in names or not {"image", "image_path"} & set(names):
            raise PictureError(f"{path.name} has no columns 'index' and 'image' or 'image_path': no pictures in it")
        used = [name for name in COLUMNS if name in names]
        parts = pd.read_csv(path, sep="\t", usecols=used, dtype=str, keep_default_na=False, chunksize=500)
        for part in parts:
            own = part[part["index"].isin(wanted)].reindex(columns=list(COLUMNS), fill_value="")
            found |= {index: (image, named) for index, image, named in own.itertuples(index=False, name=None)}
    except (OSError, ValueError) as error:
        raise PictureError(f"{str(path)!r} cannot be read: {one_line(error)}") from error
    return found


def _several(value: str) -> list[str]:
    """A cell holds one picture, or a list of them as Python prints it; an empty one holds none."""
    if not value.startswith("["):
        return [value] if value else []
    try:
        listed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return [value]
    return [str(item) for item in listed]


def _file(table: Path, name: str) -> Path:
    """Where a picture lies that a table names: as it stands, beside the table, or in the host's folder of pictures."""
    places = (Path(name), table.parent / name, table.parent / "images" / table.stem / name)
    return next((place for place in places if place.is_file()), places[0])


def _data(source: str | Path) -> bytes:
    try:
        return source.read_bytes() if isinstance(source, Path) else base64.b64decode(source, validate=False)
    except OSError as error:
        raise PictureError(f"the file {str(source)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PictureError(f"the column image holds no picture: {one_line(error)}") from error


def _thumbnail(data: bytes) -> dict[str, Any]:
    """The picture, not larger than ``SIDE``, as WebP: without loss where that is smaller, as for drawings."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            picture = opened.convert("RGB")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    except Exception as error:  # because decoders of damaged pictures raise whatever they like
        raise PictureError(f"the column image holds no picture that can be shown: {one_line(error)}") from error
    files = [_saved(picture, lossless=True, quality=80), _saved(picture, quality=72)]
    code = base64.b64encode(min(files, key=len)).decode()
    return {"src": f"data:image/webp;base64,{code}", "w": width, "h": height}


def _saved(picture: Image.Image, **settings: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "WEBP", **settings)
    return stream.getvalue()
