"""``RedRelPairs``: open questions of one hop about pictures of pairs, in the host's TSV format, from a fixed seed.

Columns beside the host's own are those of RedRelShapes: ``category``, and ``cells``, the image tokens that the answer
depends on. Scored as RedRelShapes_VQA: right is the one word asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from redrel_vlmeval.models import tiny
from redrel_vlmeval.models.smol import pairs
from redrel_vlmeval.models.tiny import benchmark, scenes

SEED = 20261  # training draws from other streams: see tools/smol/lessons.py
SIZES = {"RedRelPairs": 300, "RedRelPairs_MINI": 60}


def question_for(item: int) -> tuple[list[scenes.Thing], scenes.Question]:
    """Picture and question number ``item``."""
    rng = np.random.default_rng([SEED, item])
    things = pairs.make_scene(rng)
    found = pairs.visual_questions(things)["one-hop"]
    return things, found[int(rng.integers(len(found)))]


@cache
def make(name: str = "RedRelPairs") -> pd.DataFrame:
    """The benchmark as a table; the MINI one is the first questions of the whole."""
    rows = []
    for item in range(SIZES[name]):
        things, question = question_for(item)
        rows.append(
            {
                "index": item,
                "image": benchmark.base64_of(pairs.render(things)),
                "question": question.text,
                "answer": question.answer,
                "category": question.category,
                "cells": ",".join(map(str, question.cells)),
            }
        )
    return pd.DataFrame(rows)


@cache
def dataset_class() -> Any:
    """The host's dataset class for these names, with the host's own evaluation; imports the host."""
    _, asked_openly = tiny.dataset_classes()

    class RedRelPairs(asked_openly):  # type: ignore[misc, valid-type]
        """Open questions in their own words alone, as the model was trained."""

        NAMES = SIZES
        DATASET_URL = dict.fromkeys(SIZES, "")

        def load_data(self, dataset: str) -> pd.DataFrame:
            return pd.read_csv(benchmark.written(make(dataset), dataset), sep="\t", keep_default_na=True)

        def build_prompt(self, line: Any) -> list[dict[str, str]]:
            *pictures, _ = super().build_prompt(line)
            line = self.data.iloc[line] if isinstance(line, int) else line
            return [*pictures, {"type": "text", "value": line["question"]}]

        def regions(self, line: Any) -> tuple[tuple[benchmark.Box, ...], tuple[benchmark.Box, ...]]:
            things, question = question_for(int(line["index"]))
            others = {patch for thing in things for patch in (thing.cell, thing.cell + 1)} - set(question.cells)
            return tuple(map(benchmark.box_of, question.cells)), tuple(map(benchmark.box_of, sorted(others)))

    return RedRelPairs
