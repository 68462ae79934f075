"""``redrel demo`` goes on from its own answers only: the host reuses whatever lies in the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from redrel_vlmeval.demo import show
from redrel_vlmeval.models.checkpoint import weight_files
from redrel_vlmeval.models.llava_core import TINY_FOLDER

DATA, MODELS = "RedRelShapes_MINI", show.variants(True)


def leave(folder: Path, revision: str) -> None:
    """The record of one answered question."""
    path = folder / MODELS[1] / f"{MODELS[1]}_{DATA}_redrel.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"version": 1, "index": 3, "revision": revision}) + "\n")


def test_answers_of_other_weights_stop_the_demo(tmp_path: Path) -> None:
    leave(tmp_path, "sha256:0ld")
    with pytest.raises(show.DemoError, match="other weights .sha256:0ld; redrel_tiny is sha256:.*--work-dir"):
        show.check_weights(tmp_path, MODELS, DATA)


def test_its_own_answers_are_gone_on_from(tmp_path: Path) -> None:
    show.check_weights(tmp_path, MODELS, DATA)
    leave(tmp_path, weight_files(str(TINY_FOLDER), None)[1])
    show.check_weights(tmp_path, MODELS, DATA)
    assert show.answered(tmp_path, MODELS, DATA) == 1


def test_scores_of_the_figure_have_wilsons_intervals() -> None:
    """The example of Newcombe's first paper of 1998: 81 of 263, .2553 to .3662."""
    row = show.with_intervals(pd.DataFrame({"value": [8100 / 263], "n": [263.0]})).iloc[0]
    assert (round(row["low"], 2), round(row["high"], 2)) == (25.53, 36.62)
