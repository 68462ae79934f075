"""The report holds what the results hold: every cell, the tests beside it, the flips, and nothing that is not so."""

from __future__ import annotations

import base64
import json
import os
import random
from pathlib import Path

import host_files as host
import numpy as np
import pytest
import report_box as box
from typer.testing import CliRunner

from redrel_vlmeval.cli import app
from redrel_vlmeval.results import comparisons
from redrel_vlmeval.results.flips import flips
from redrel_vlmeval.results.reading import ResultsError, read
from redrel_vlmeval.sheets.page import assemble, changes

BASE = box.BASE
VARIANT = f"{BASE}_trunc_l2_k8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return box.write(tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def data(folder: Path) -> dict:
    return box.data_of(assemble.html(read(folder), most_pictures=5))


def row(data: dict, model: str) -> dict:
    (found,) = [entry for entry in data["rows"] if entry["model"] == model]
    return found


def test_every_cell_has_a_row_with_its_state(folder: Path, data: dict) -> None:
    results = read(folder)
    assert {entry["model"] for entry in data["rows"]} == set(results.scores["model"])
    states = {model.rpartition("_trunc_")[2]: row(data, model)["status"] for model in results.scores["model"]}
    assert (states["l4_k8"], states["l4_k32"], states["l1_k8"]) == ("failed", "partial", "running")
    assert data["meta"]["states"] == {"failed": 1, "running": 1, "partial": 1}
    assert "boom" in row(data, f"{BASE}_trunc_l4_k8")["note"] and row(data, f"{BASE}_trunc_l4_k8")["value"] is None


def test_the_title_names_bases_and_day_and_notes_both_ends_and_ways(folder: Path, data: dict) -> None:
    assert data["meta"]["title"] == f"{BASE} · 2026-01-01" and data["meta"]["folder"] == folder.name
    assert f"<title>{BASE} · 2026-01-01: redrel report</title>" in assemble.html(read(folder))
    assert "from the lower to the upper end" in data["notes"]["interval"]
    assert "▲ up: questions that the base gets wrong" in data["notes"]["flips"] and "▼ down: " in data["notes"]["flips"]


def test_rows_are_those_of_the_paired_test(folder: Path, data: dict) -> None:
    results = read(folder)
    compared = results.scores.join(comparisons.compare(results)).query("headline").set_index("model")
    for model in (BASE, VARIANT, f"{BASE}_trunc_l6_k32"):
        ours, theirs = row(data, model), compared.loc[model]
        assert ours["value"] == pytest.approx(theirs["value"]) and ours["verdict"] == theirs["verdict"]
    ours, theirs = row(data, VARIANT), compared.loc[VARIANT]
    for name, column in {"delta": "delta", "low": "CI low", "high": "CI high", "up": "up", "holm": "p (Holm)"}.items():
        assert ours[name] == pytest.approx(theirs[column])
    assert (row(data, BASE)["kind"], ours["kind"]) == ("base", "worse")
    assert row(data, f"{BASE}_trunc_l6_k32")["kind"] == "same" and row(data, f"{BASE}_trunc_l4_k8")["kind"] == "none"
    assert (ours["L"], ours["K"], ours["average_image_tokens"]) == (2, 8, 22)


def test_a_glance_says_how_many_questions_it_takes(data: dict) -> None:
    (card,) = data["glance"]
    assert card["best"] is None, "40 questions cannot show 2 points"
    assert "lose less than 2 points with 40 questions; it takes about " in card["why"]
    assert card["worse"] == sum(entry["kind"] == "worse" for entry in data["rows"])


def test_a_glance_names_the_cheapest_variant_shown_to_be_not_worse_with_its_interval(tmp_path: Path) -> None:
    box.write_many(tmp_path)
    found = box.data_of(assemble.html(read(tmp_path)))
    best = found["glance"][0]["best"]
    assert best["model"] == f"{BASE}_trunc_l6_k8"
    own = row(found, best["model"])
    assert [best[name] for name in ("delta", "low", "high")] == [own[name] for name in ("delta", "low", "high")]
    assert own["low"] < own["delta"] < own["high"]


def test_grids_and_curves_hold_each_point_and_its_interval(data: dict) -> None:
    grid = next(entry for entry in data["grids"] if entry["rule"] == "attention")
    assert (grid["layers"], grid["keeps"]) == ([2, 6], [8, 32])
    assert grid["values"][0][0] == pytest.approx(row(data, VARIANT)["value"])
    curve = next(entry for entry in data["curves"] if not entry["category"])
    point = next(p for p in curve["points"] if p[:3] == [2, 8, "attention"])
    own = row(data, VARIANT)
    assert point[3] == pytest.approx(own["value"])
    assert point[4] == pytest.approx(curve["baseline"] + own["low"])
    assert point[5] == pytest.approx(curve["baseline"] + own["high"])


def test_flips_carry_question_answers_and_kept_tokens(folder: Path, data: dict) -> None:
    found = data["changes"]
    cell = next(entry for entry in found["cells"] if entry["model"] == VARIANT)
    frame = flips(read(folder), VARIANT, "X")
    assert (cell["total"], len(cell["flips"])) == (len(frame), len(frame))
    question, change, hit, base_hit, answer, base_answer, kept, letter, base_letter = cell["flips"][0]
    benchmark, index, text, options, right, category, pictures = found["questions"][question]
    assert (benchmark, index, change) == ("X", frame["index"].iloc[0], 1)
    assert (hit, base_hit, found["texts"][answer], found["texts"][base_answer]) == (0, 1, "B", "A")
    assert (letter, base_letter, found["texts"][right]) == ("B", "A", "A")
    assert found["texts"][text] == f"What color is it? ({index})"
    assert [(name, found["texts"][text]) for name, text in options] == [("A", "red"), ("B", "blue"), ("C", "green")]
    tokens, count, side, mask, why, stages = kept
    assert (tokens, count, side, why, stages) == (64, 8, 8, None, [[2, 8]])
    assert np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(mask), np.uint8))).tolist() == list(range(8))
    assert len(found["pictures"]) == 2 and pictures[0] in (0, 1)


def test_a_base_that_cannot_be_compared_leaves_rows_and_no_flips(tmp_path: Path) -> None:
    box.answered(tmp_path, VARIANT, [1, 0] * 5)
    found = box.data_of(assemble.html(read(tmp_path)))
    assert len(found["rows"]) == 1 and "is not in this folder" in found["rows"][0]["note"]
    assert found["changes"]["cells"] == [] and found["glance"] == []


def test_texts_and_flips_are_cut_to_what_a_page_can_hold(
    folder: Path, data: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = read(folder)
    monkeypatch.setattr(changes, "MOST_FLIPS", 20)
    monkeypatch.setattr(changes, "MOST_CHARACTERS", 10)
    found = box.data_of(assemble.html(results))["changes"]
    whole = {entry["model"]: entry["total"] for entry in data["changes"]["cells"]}
    assert {entry["model"]: entry["total"] for entry in found["cells"]} == whole
    shown = [len(entry["flips"]) for entry in found["cells"]]
    assert sum(shown) <= 20 < sum(whole.values()) and min(shown) >= min(3, *whole.values())
    assert found["cut"] == changes.CUTS[-1]


def test_of_many_variants_the_first_of_each_base_are_read_and_the_others_counted(
    folder: Path, data: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data["changes"]["unread"] == 0
    paired = sum(row["model"] != row["base"] and row["delta"] is not None for row in data["rows"])
    monkeypatch.setattr(changes, "MOST_CELLS", 2)
    found = box.data_of(assemble.html(read(folder)))
    assert found["changes"]["unread"] == paired - 2 > 0
    assert [row["model"] for row in found["rows"]] == [row["model"] for row in data["rows"]], "all are on the board"


def test_long_answers_are_cut_visibly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box.answered(tmp_path, BASE, [1] * 10)
    box.answered(tmp_path, VARIANT, [0] * 10, prediction=["B " + "because " * 90] * 10)
    monkeypatch.setattr(changes, "MOST_CHARACTERS", 600)
    found = box.data_of(assemble.html(read(tmp_path)))["changes"]
    text = next(text for text in found["texts"] if text.startswith("B because"))
    assert found["cut"] == 250 and len(text) == 252 and text.endswith(" …")


@pytest.mark.parametrize("name", ["page.xlsx", "page", "folder.html"])
def test_a_place_that_cannot_be_written_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(assemble.ReportError, match=r"\.html|folder"):
        assemble.write(read(folder), tmp_path / name)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_missing_folder_is_made(folder: Path, tmp_path: Path) -> None:
    assert assemble.write(read(folder), tmp_path / "new" / "deep" / "page.html").stat().st_size > 1000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_keeps_what_was_there(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(assemble.ReportError, match="Permission denied"):
        assemble.write(read(folder), tmp_path / "page.html")
    tmp_path.chmod(0o700)


def test_the_command_writes_the_page_and_tells_of_failed_cells(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(folder), "-o", str(path), "--pictures", "3"])
    assert done.exit_code == 1 and f"open this: {path}" in done.output and "l4_k8 on X: boom" in done.output
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(ResultsError, match="nothing found"):
        CliRunner().invoke(app, ["report", str(tmp_path), "-o", str(path)], catch_exceptions=False)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def big(folder: Path, models: int, count: int) -> None:
    """Every third question of every variant flips, and each has its own kept tokens among 576."""
    draw = random.Random(3)
    words = " ".join(draw.choice(["colour", "shape", "the", "picture", "above", "seven"]) for _ in range(30))
    facts = {"weights": "llava-hf/llava-1.5-7b-hf", "backend": "transformers LlavaForConditionalGeneration"}
    for number in range(models):
        model = f"llava_v1.5_7b_trunc_l{number}_k128" if number else "llava_v1.5_7b"
        own = folder / model
        record = json.loads(host.records(own, model, "X", [0], image_tokens=576, **facts).read_text().split("\n")[0])
        kept = [{str(number): sorted(draw.sample(range(576), 128))} if number else {} for _ in range(count)]
        lines = [json.dumps(record | {"index": index, "kept": places}) for index, places in enumerate(kept)]
        (own / f"{model}_X_redrel.jsonl").write_text("\n".join(lines) + "\n")
        hits = [int(not number or draw.random() < 0.67) for _ in range(count)]
        table = box.questions(count, words).assign(prediction=["A" if hit else "B" for hit in hits])
        table.to_csv(own / f"{model}_X.tsv", sep="\t", index=False)
        table.assign(hit=hits).to_csv(own / f"{model}_X_exact_matching_result.tsv", sep="\t", index=False)
        (own / f"{model}_X_acc.csv").write_text(f'"split","Overall"\n"none","{sum(hits) / count}"\n')


def test_two_thousand_questions_and_ten_models_fit_into_five_megabytes(tmp_path: Path) -> None:
    big(tmp_path, 10, 2000)
    path = assemble.write(read(tmp_path), tmp_path / "page.html")
    found = box.data_of(path.read_text(encoding="utf-8"))["changes"]
    assert sum(len(entry["flips"]) for entry in found["cells"]) > 5000 and found["cut"] == 0
    assert all(len(flip[6][3]) == 96 for flip in found["cells"][0]["flips"])  # 576 bits, all of them
    assert path.stat().st_size < 5e6


def test_a_benchmark_without_a_rule_shows_its_numbers_as_they_stand(tmp_path: Path) -> None:
    box.answered(tmp_path, BASE, [1, 0] * 5)
    (tmp_path / BASE / f"{BASE}_X_acc.csv").write_text('"who","what"\n"a","0.5"\n"b","0.25"\n')
    found = row(box.data_of(assemble.html(read(tmp_path))), BASE)
    assert (found["status"], found["value"]) == ("no rule", None) and found["note"]
    assert sorted(value for _, value in found["raw"]) == [0.25, 0.5]
