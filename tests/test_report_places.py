"""Kept tokens are drawn on a picture only where the record tells that they are places in it."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from redrel_vlmeval.sheets.page.places import SQUARE, kept_of

LLAVA = {"backend": SQUARE, "weights": "llava-hf/llava-1.5-7b-hf", "base": "llava_v1.5_7b", "mode": "dropped"}
TINY = LLAVA | {"weights": "redrel_tiny", "base": "redrel_tiny"}


def record(tokens: int = 576, **changes: object) -> dict:
    return LLAVA | {"image_tokens": tokens, "kept": {"2": [0, 25, 575]}} | changes


def places(mask: str) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(mask), np.uint8))).tolist()


def test_one_picture_of_llava_is_a_grid_of_rows() -> None:
    kept = kept_of(record(), None)
    assert (kept.tokens, kept.count, kept.side, kept.why, kept.stages) == (576, 3, 24, "", ((2, 3),))
    assert places(kept.mask) == [0, 25, 575]
    tiny = kept_of(TINY | {"image_tokens": 64, "kept": {"2": [63]}}, 1)
    assert (tiny.side, places(tiny.mask)) == (8, [63])


def test_the_last_of_several_stages_counts() -> None:
    kept = kept_of(record(kept={"10": [1], "2": [1, 2, 3]}), 1)
    assert (kept.count, kept.stages, places(kept.mask)) == (1, ((2, 3), (10, 1)), [1])


def test_hosts_own_llava_pads_in_the_same_way() -> None:
    assert kept_of(record(backend="vlmeval.vlm.llava.llava.LLaVA", weights="liuhaotian/llava-v1.5-7b"), None).side == 24
    other = kept_of(record(backend="vlmeval.vlm.llava.llava.LLaVA", base="llava_next_7b"), 1)
    assert other.side == 0 and "not known" in other.why


@pytest.mark.parametrize(
    "changes, pictures, why",
    [
        ({"tokens": 2304}, None, "several pictures"),  # 48 x 48, but of four pictures
        ({"tokens": 2304, "weights": "/my/llava"}, 4, "several pictures"),
        ({"tokens": 576, "weights": "/my/llava"}, None, "--pictures"),
        ({"tokens": 500, "weights": "/my/llava"}, 1, "no square"),
        ({"tokens": 576, "kept": {"2": [576]}}, 1, "does not have"),
        ({"tokens": 256, "backend": "its own QWenLMHeadModel, greedy"}, 1, "resampler"),
        ({"tokens": 1225, "backend": "vlmeval.vlm.qwen2_vl.model.Qwen2VLChat", "base": "q"}, 1, "not known"),
        ({"tokens": 0, "kept": {}}, 0, "no image tokens"),
        ({"tokens": 576, "kept": {}}, 1, "Nothing was dropped"),
    ],
)
def test_what_is_no_place_says_why(changes: dict, pictures: int | None, why: str) -> None:
    kept = kept_of(record(**changes), pictures)
    assert kept.side == 0 and kept.mask == "" and why in kept.why


def test_weights_of_ones_own_have_places_once_the_benchmark_tells_of_one_picture() -> None:
    assert kept_of(record(weights="/my/llava"), 1).side == 24


def test_no_record_no_claim() -> None:
    assert kept_of(None, 1) is None
    assert kept_of({"index": 3, "prefill_ms": 2.0}, 1) is None


def test_places_that_the_record_tells_are_taken_and_why_there_are_none_is_said() -> None:
    views = [[0, "whole", 0, 24, 24, 24, 0, 0, 1, 1], [0, "tiles", 576, 10, 12, 13, 0, 0, 1, 1]]
    other = {"backend": "a.Class", "base": "llava_next_vicuna_7b", "kept": {"2": [0, 600]}}
    kept = kept_of(record(706, **other, views=views), 2)
    assert (kept.side, kept.why, kept.views) == (0, "", tuple(map(tuple, views)))
    assert places(kept.mask) == [0, 600]
    kept = kept_of(record(706, **other, unplaced="the tiles of several pictures are not told apart"), 2)
    assert kept.views == () and kept.why == "The tiles of several pictures are not told apart."


def test_official_mode_is_said() -> None:
    kept = kept_of(record(mode="official"), 1)
    assert kept.side == 24 and "every step" in kept.why
