"""What is kept of a base: the host's own scores, cell by cell, and intervals that pair questions and whole pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from redrel_vlmeval.host.ratings import f1, mme, ratios
from redrel_vlmeval.results import kept
from redrel_vlmeval.results.asked import Asked, Line, read, write
from redrel_vlmeval.results.reading import Results, ResultsError

BASE = "base"


def results(cells: dict[tuple[str, str], list[float]], pictures: int | None = None, **more: object) -> Results:
    """Accuracies of models on benchmarks, a verdict per question, so many questions on a picture."""
    rows, judged = [], {}
    for (model, benchmark), hits in cells.items():
        row = {"model": model, "base": BASE, "benchmark": benchmark, "metric": "Overall", "headline": True}
        delta = None if model == BASE else 0.0
        row |= {"value": 100 * float(np.mean(hits)), "status": "ok", "reason": "", "note": "", "delta": delta}
        rows.append(row | more.get(model, {}))
        shown = [None if pictures is None else f"p{i // pictures}" for i in range(len(hits))]
        index = [str(i) for i in range(len(hits))]
        judged[model, benchmark] = pd.DataFrame({"index": index, "hit": hits, "picture": np.array(shown, dtype=object)})
    return Results(Path(), pd.DataFrame(rows), pd.DataFrame(), (), judged)


def test_kept_is_the_ratio_and_the_base_keeps_all() -> None:
    rng = np.random.default_rng(0)
    before = (rng.random(400) < 0.8).astype(float)
    after = np.where(rng.random(400) < 0.1, 0, before)
    found = kept.kept(results({(BASE, "X"): list(before), ("m", "X"): list(after)}), BASE, "X", ["m", "gone"])
    assert found["m"].value == pytest.approx(100 * after.mean() / before.mean())
    low, high = found["m"].interval
    assert low < found["m"].value < high
    assert found[BASE].value == 100 and set(found[BASE].draws) == {100.0}, "the same questions above and below"
    assert (found["gone"].why, np.isnan(found["gone"].value)) == ("not run", True)


def test_the_interval_is_that_of_the_delta_method_on_paired_questions() -> None:
    rng = np.random.default_rng(1)
    before = (rng.random(2000) < 0.7).astype(float)
    after = np.where(rng.random(2000) < 0.15, 1 - before, before)
    found = kept.kept(results({(BASE, "X"): list(before), ("m", "X"): list(after)}), BASE, "X", ["m"])["m"]
    ratio = after.mean() / before.mean()
    spread = 196 * np.std(after - ratio * before) / before.mean() / np.sqrt(2000)
    assert found.interval == pytest.approx((100 * ratio - spread, 100 * ratio + spread), abs=0.25 * spread)


def test_questions_of_one_picture_are_drawn_together() -> None:
    rng = np.random.default_rng(2)
    lost = np.repeat(rng.random(100) < 0.2, 4)  # all four of a picture, or none
    after = list(1.0 - lost)
    spans = []
    for pictures in (None, 4):
        found = kept.kept(results({(BASE, "X"): [1.0] * 400, ("m", "X"): after}, pictures), BASE, "X", ["m"])["m"]
        spans.append(np.diff(found.interval)[0])
    assert spans[1] == pytest.approx(2 * spans[0], rel=0.15)


def test_fewer_than_ten_pictures_have_no_interval() -> None:
    found = kept.kept(results({(BASE, "X"): [1.0] * 36, ("m", "X"): [1.0, 0.0] * 18}, 4), BASE, "X", ["m"])["m"]
    assert found.value == 50 and np.isnan(found.interval).all() and found.draws is None


def test_what_cannot_be_compared_has_no_number_and_says_why() -> None:
    cells = {(BASE, "X"): [1.0] * 20, ("m", "X"): [1.0] * 20, ("other", "X"): [1.0] * 19}
    refused = {"m": {"delta": None, "note": "another prompt"}}
    found = kept.kept(results(cells, **refused), BASE, "X", ["m", "other"])
    assert found["m"].why == "another prompt" and found["other"].why == "has answered other questions than its base"
    found = kept.kept(results({(BASE, "X"): [0.0] * 20, ("m", "X"): [1.0] * 20}), BASE, "X", ["m"])
    assert found["m"].why == "base: the base's score is 0" and np.isnan(found["m"].value)


def test_the_mean_is_over_benchmarks_and_narrower() -> None:
    rng = np.random.default_rng(3)
    cells = {(model, data): list((rng.random(300) < share).astype(float))
             for data in "XYZ" for model, share in ((BASE, 0.9), ("m", 0.7))}  # fmt: skip
    own = [kept.kept(results(cells), BASE, data, ["m"])["m"] for data in "XYZ"]
    value, draws = kept.mean(own)
    assert value == pytest.approx(np.mean([one.value for one in own]))
    low, high = kept.interval(draws)
    assert low < value < high and high - low < min(np.diff(one.interval)[0] for one in own)
    assert np.isnan(kept.mean([*own, kept.Kept("m", "W", why="not run")])[0])


def test_f1_and_perception_are_sums_that_can_be_drawn_again() -> None:
    rng = np.random.default_rng(4)
    answer, said = (np.where(rng.random(60) < 0.5, "Yes", "No") for _ in range(2))
    category = ["adversarial,popular"] * 20 + ["random"] * 40
    table = {"index": list(range(60)), "answer": list(answer), "extracted": list(said), "category": category}
    hits = (answer == said).astype(float)
    ((over, under),) = ratios(table, hits, "F1")
    assert 100 * over.sum() / under.sum() == pytest.approx(f1(table, hits))
    table = {"category": ["OCR"] * 20 + ["color"] * 40, "image_path": [f"p{i // 2}" for i in range(60)]}
    parts = ratios(table, hits, "perception")
    assert sum(100 * over.sum() / under.sum() for over, under in parts) == pytest.approx(mme(table, hits))
    assert ratios({"index": [1]}, hits[:1], "F1") is None


def test_what_was_asked_is_read_again(tmp_path: Path) -> None:
    asked = Asked("b", ("X",), (Line("FastV", "24", ("l2_a24",)), Line("random", "24", ("l0_k24_random", "l0_k24"))))
    assert read(tmp_path) is None
    write(tmp_path, asked)
    assert read(tmp_path) == asked and asked.model("l2_a24") == "b_trunc_l2_a24" and asked.model("") == "b"
    (tmp_path / "table.json").write_text('{"base": "b"}')
    with pytest.raises(ResultsError, match="not written by redrel table"):
        read(tmp_path)
