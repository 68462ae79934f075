"""A name of the host tried: its checkpoint made, its class built, two pictures asked about."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from redrel_vlmeval.bases import row
from redrel_vlmeval.checking import verdict
from redrel_vlmeval.host import runner
from redrel_vlmeval.plugin import register
from redrel_vlmeval.trying import packages
from redrel_vlmeval.trying.checkpoints import LLAVA, PACKAGES, make
from redrel_vlmeval.trying.checks import Tried, attempt
from redrel_vlmeval.trying.cpu import on_cpu

QUESTION = "What is in the picture?"
SIZE = (300, 200)


def draw(folder: Path) -> list[str]:
    """Paths of two pictures of one size; as JPEG, because the libpng that hosts load may not be torchvision's."""
    from PIL import Image

    for number, color in enumerate(("red", "blue")):
        picture = Image.new("RGB", SIZE, "white")
        picture.paste(Image.radial_gradient("L").resize((180, 180)), (100 * number, 10))
        picture.paste(color, (0, 0, 100, 90))
        picture.save(folder / f"{number}.jpg")
    return [str(folder / f"{number}.jpg") for number in (0, 1)]


def kind_of(name: str) -> str:
    """The class that answers under ``name``: one of ours, or the host's."""
    base = row(name)
    return base.ours if base is not None and base.ours else runner.entries()[name].kind


def try_name(name: str) -> Tried:
    """Whether ``name`` of the host here truncates right on a tiny checkpoint.

    Raises:
        UnknownName: no such name, or no checkpoint is made for its class. Whatever its class raises.
    """
    verdict(name)  # names are known before the host is imported
    table = register(importlib.import_module("vlmeval.config").supported_VLM)
    kind = kind_of(name)
    if kind not in LLAVA:
        packages.check(kind, name)
    with TemporaryDirectory() as place, on_cpu(), PACKAGES.get(kind, nullcontext)():
        weights = str(table[name].keywords.get("model_path", name))
        own = "llava-v1-7b" if kind == "LLaVA" else Path(weights).name  # its entry says: set a path
        model = Path(place, own)  # some classes choose by the name of the folder
        model.mkdir()
        given = make(kind, name, model)
        return attempt(table, name, draw(Path(place)), QUESTION, **given)


def report(name: str) -> int:
    """:func:`try_name` on the terminal; 1 where something is wrong."""
    tried = try_name(name)
    print(f"{name}: {kind_of(name)}, {tried}")
    return int(bool(tried.wrong))
