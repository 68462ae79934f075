"""The models of ours by name: where the checkpoint of each lies; and the tables of the benchmarks drawn for them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from redrel_vlmeval.bases import SMOL, TINY

TINY_FOLDER = Path(__file__).resolve().parent / "tiny" / "checkpoint"


def checkpoint_path(model_path: str) -> str:
    """Folder of a model of ours; any other path or hub name as it is.

    Raises:
        CheckpointError: ``redrel_smol`` before `redrel smol` has made it.
    """
    if model_path == TINY:
        return str(TINY_FOLDER)
    if model_path == SMOL:
        from redrel_vlmeval.models.smol import making

        return str(making.folder())
    return model_path


def table(name: str) -> pd.DataFrame:
    """A benchmark of ours as a table."""
    from redrel_vlmeval.models import smol, tiny

    drawn = smol.benchmark if name in smol.benchmark.SIZES else tiny.benchmark
    return drawn.make(name)
