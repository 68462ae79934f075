"""Numbers that others printed, each with its source, to stand beside measured ones: never averaged, ranked or tested.

``published.csv`` has one row per number, with the source where it was read; ``disputed`` are those that another source
contradicts: for the same model, method, tokens and benchmark it has a number more than a point away (MME: 20).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from redrel_vlmeval.bases import BASES
from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.names import parse

FILE = Path(__file__).with_name("published.csv")
COLUMNS = ["model", "method", "setting", "benchmark", "metric", "value", "source", "disputed", "note"]
# The hosts' names of the metrics in the file.
METRICS = {
    "accuracy": ("Overall", "acc"),
    "F1": ("F1",),
    "perception": ("perception",),
    "perception+reasoning": ("perception + reasoning",),
}
PAPER = "From Redundancy to Relevance"
_KEY = ["model", "method", "setting", "benchmark", "metric", "source"]


@dataclass(frozen=True)
class Facts:
    """What the paper's Table 1 says of a model beside its score, and the hosts' names of its weights."""

    title: str
    backbone: str = ""
    resolution: int | None = None
    names: tuple[str, ...] = ()


# Models of that table that are no base here; those that are have their facts in `bases`.
OTHERS = (
    Facts("InstructBLIP (Vicuna-7B)", "Vicuna-7B", 224, ("instructblip_7b",)),
    Facts("InstructBLIP (Vicuna-13B)", "Vicuna-13B", 224, ("instructblip_13b",)),
    Facts("BLIP-2 (Vicuna-13B)", "Vicuna-13B", 224),
    Facts("Shikra (Vicuna-13B)", "Vicuna-13B", 224),
    Facts("DDCoT (GPT-3.5)", "175B"),
    Facts("DDCoT (MiniGPT-4)", "Vicuna-13B"),
    Facts("Ying-VLM"),
    Facts("Otter"),
    Facts("MiniGPT-4 (Vicuna-13B)", "Vicuna-13B", 336, ("MiniGPT-4-v1-13B",)),
    Facts("MobileVLM", "MobileLLaMA", 336),
)


class PublishedError(RedrelError, ValueError):
    """A row of ``published.csv`` that cannot be shown; the text names the line."""


@lru_cache(maxsize=1)
def published() -> pd.DataFrame:
    """The rows of ``published.csv`` with ``COLUMNS``: ``value`` a number, ``disputed`` a bool, other fields text.

    Raises:
        PublishedError: a column is missing, a value is no number, a row has no source or stands twice.
    """
    return load(FILE)


def load(path: Path) -> pd.DataFrame:
    """The same of any file of this form."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(frame.columns) != COLUMNS:
        raise PublishedError(f"{path.name}: columns {', '.join(frame.columns)}; expected {', '.join(COLUMNS)}")
    values = pd.to_numeric(frame["value"], errors="coerce")
    for line, row in enumerate(frame.to_dict("records"), start=2):
        where = f"{path.name}, line {line}"
        if pd.isna(values[line - 2]):
            raise PublishedError(f"{where}: value {row['value']!r} is not a number")
        for name in ("model", "method", "benchmark", "source"):
            if not row[name].strip():
                raise PublishedError(f"{where}: no {name}")
        if row["metric"] not in METRICS:
            raise PublishedError(f"{where}: metric {row['metric']!r}, choose one of {', '.join(METRICS)}")
        if row["disputed"] not in ("", "yes"):
            raise PublishedError(f"{where}: disputed is {row['disputed']!r}, expected 'yes' or nothing")
    if (twice := frame.duplicated(_KEY)).any():
        line = int(twice.to_numpy().argmax()) + 2
        raise PublishedError(f"{path.name}, line {line}: stands twice: the same {', '.join(_KEY)}")
    return frame.assign(value=values.astype(float), disputed=frame["disputed"] == "yes")


def facts(name: str) -> Facts:
    """What is known of a base (the host's name) or of a published model; its own name where nothing is."""
    base = next((base for base in BASES.values() if name in (base.name, base.title)), None)
    if base is not None:
        names = tuple(other.name for other in BASES.values() if other.title == base.title)
        return Facts(base.title, base.backbone, base.resolution, names)
    return next((model for model in OTHERS if name in (model.title, *model.names)), Facts(name))


def on(benchmarks: set[str], bases: Iterable[str] = ()) -> pd.DataFrame:
    """Published rows on these benchmarks, by the hosts' names of them: the paper's own, and those of ``bases``."""
    frame, titles = published(), {facts(_plain(base)).title for base in dict.fromkeys(bases)}
    own = frame["model"].isin(titles) | frame["source"].str.startswith(PAPER)
    return frame[frame["benchmark"].isin(benchmarks) & own].reset_index(drop=True)


def _plain(base: str) -> str:
    """A base without the prompt and decoding that it was asked with."""
    try:
        return parse(base).base or base
    except KeyError:
        return base
