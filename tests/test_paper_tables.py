"""Table 1 and Table 2 of the paper from a folder of runs: which rows, in which words, and why there are none."""

from __future__ import annotations

import random
import re
from pathlib import Path

import host_files as host
import pandas as pd
import sheet_files

from redrel_vlmeval.results.reading import read
from redrel_vlmeval.sheets.tables import paper
from redrel_vlmeval.sheets.tables.leaders import leaderboard

BASE = "llava_v1.5_7b"


def test_table_1_is_each_base_and_its_best_variant(tmp_path: Path) -> None:
    sheet_files.clear(tmp_path, BASE, "Shapes")
    sheet_files.answered(tmp_path, f"{BASE}_trunc_l2_k8_random", [1] * 39 + [0], "Shapes")
    frame = paper.table_1(read(tmp_path)).frame
    assert frame["model"].tolist() == [BASE, f"{BASE}_trunc_l2_k8"], "a control is no method"
    best = frame.iloc[1]
    assert best[["setting", "Shapes", "Shapes delta", "Shapes verdict"]].tolist() == ["l2_k8", 87.5, 37.5, "better"]
    said = r"3 on Shapes \(l2_k8 chosen on one half: ([\d.]+) on the other, base ([\d.]+)\)"
    other = re.fullmatch(said, best["best of"])
    assert other and float(other[1]) > float(other[2]), "chosen after the fact, out of so many"
    assert frame["language model"].tolist() == ["Vicuna-7B"] * 2 and frame["resolution"].tolist() == [336] * 2


def test_each_benchmark_has_its_own_best_and_a_tie_goes_to_the_cheaper(tmp_path: Path) -> None:
    hits = {"": ([1, 0], [1, 0]), "_trunc_l1_k8": ([1, 1], [1, 0]), "_trunc_l2_k8": ([1, 1], [0, 0]),
            "_trunc_l4_k8": ([0, 0], [1, 1])}  # fmt: skip
    for tail, (one, two) in hits.items():
        tokens = {"": 64.0, "_trunc_l1_k8": 20.0, "_trunc_l2_k8": 10.0, "_trunc_l4_k8": 30.0}[tail]
        for benchmark, found in (("A", one), ("B", two)):
            sheet_files.answered(tmp_path, f"m{tail}", found, benchmark)
            host.records(tmp_path / f"m{tail}", f"m{tail}", benchmark, average_image_tokens=tokens)
    table = paper.table_1(read(tmp_path))
    told = {row["model"]: str(row["best of"]).partition(" (")[0] for row in table.frame.to_dict("records")}
    assert told == {"m": told["m"], "m_trunc_l2_k8": "3 on A", "m_trunc_l4_k8": "3 on B"}
    assert table.bold == {(1, "A"), (2, "B")}


def test_the_best_of_many_equal_variants_is_shown_with_what_it_scores_where_it_was_not_chosen(tmp_path: Path) -> None:
    """Coin tosses: the best of 20 is far above 50 on the questions that chose it, and near 50 on the others."""
    draw = random.Random(1)
    for tail in ("", *(f"_trunc_l{layer}_k{keep}" for layer in range(1, 5) for keep in range(1, 6)), "_trunc_l0_k0"):
        hits = [1] * 300 if tail.endswith("l0_k0") else [draw.randint(0, 1) for _ in range(300)]
        sheet_files.answered(tmp_path, f"m{tail}", hits, "Shapes")
    table = paper.table_1(read(tmp_path))
    (row,) = table.frame[table.frame["best of"].notna()].to_dict("records")
    other = float(re.search(r"half: ([\d.]+) on", row["best of"])[1])
    assert row["best of"].startswith("20 on Shapes (l"), "the blind run is no method"
    assert row["Shapes"] > other + 3
    assert "looks better than it is" in " ".join(table.remarks)


def test_table_2_is_prompts_and_decoding_in_the_papers_words(tmp_path: Path) -> None:
    for tail in ("", "_p-cqm", "_p-qcm", "_p-cqm-p1", "_p-cqm_beam3", "_trunc_l5_k128_p-cqm", "_trunc_l5_k128"):
        sheet_files.answered(tmp_path, f"{BASE}{tail}", [1, 0, 1, 1], "ScienceQA_TEST")
    sheet_files.answered(tmp_path, "other", [1, 0, 1, 1], "ScienceQA_TEST")
    table = paper.table_2(read(tmp_path))
    mine = table.frame.drop(index=sorted(table.grey))
    rows = {(row["prompt"], row["decoding"], row["truncation"]) for row in mine.fillna("").to_dict("records")}
    assert rows == {
        ("stock", "greedy search", ""), ("CQM-A", "greedy search", ""), ("QCM-A", "greedy search", ""),
        ("CQM-P1-A", "greedy search", ""), ("CQM-A", "beam search (n=3)", ""), ("CQM-A", "greedy search", "l5_k128"),
    }  # fmt: skip
    grey = table.frame.iloc[sorted(table.grey)]
    printed = {(row["prompt"], row["decoding"]): row["ScienceQA_TEST"] for row in grey.to_dict("records")}
    assert len(printed) == 10
    assert printed["CQM-A", "beam search (n=5)"] == 58.54 and printed["QCM-A", "greedy search"] == 46.06


def test_ranked_options_are_a_decoding_of_their_own(tmp_path: Path) -> None:
    for tail in ("", "_ppl", "_trunc_l5_k128_ppl", "_p-qwen_ppl", "_trunc_l5_k128"):
        sheet_files.answered(tmp_path, f"{BASE}{tail}", [1, 0, 1, 1], "Shapes")
    results = read(tmp_path)
    two = paper.table_2(results).frame.set_index("model")
    ranked = "options ranked by likelihood"
    assert two["decoding"].to_dict() == {
        BASE: "greedy search", f"{BASE}_ppl": ranked, f"{BASE}_trunc_l5_k128_ppl": ranked, f"{BASE}_p-qwen_ppl": ranked,
    }  # fmt: skip
    assert two.loc[f"{BASE}_trunc_l5_k128_ppl", "base"] == f"{BASE}_ppl"
    assert paper.table_1(results).frame["model"].tolist() == [BASE, f"{BASE}_trunc_l5_k128"]


def test_tables_without_rows_of_this_folder_say_so(tmp_path: Path) -> None:
    sheet_files.answered(tmp_path, BASE, [1, 0], "ScienceQA_TEST")
    results = read(tmp_path)
    two = paper.table_2(results)
    assert "no model ran under another prompt" in two.remarks[0] and len(two.frame) == len(two.grey) == 10
    assert "bases only" in paper.table_1(results).remarks[0]


def test_only_prompts_leaves_table_1_to_the_printed_rows(tmp_path: Path) -> None:
    sheet_files.answered(tmp_path, f"{BASE}_p-cqm", [1, 0], "ScienceQA_TEST")
    table = paper.table_1(read(tmp_path))
    assert "no model ran with its stock prompt" in table.remarks[0]
    assert len(table.frame) == len(table.grey) > 20


def test_mean_needs_every_benchmark_and_leaves_out_what_is_no_percentage(tmp_path: Path) -> None:
    for model, benchmarks in (("a", "XYZ"), ("b", "XZ")):
        for benchmark in benchmarks:
            sheet_files.answered(tmp_path, model, [1, 0, 1, 1], benchmark)
    host.predictions(tmp_path / "a", "a", "MME", host.choices("A,B,A,B"))
    (tmp_path / "a" / "a_MME_score.csv").write_text('"perception","reasoning"\n"60","30"\n')
    results = read(tmp_path)
    rows = leaderboard(results).set_index("model")
    assert rows.loc["a", "mean"] == 75 and pd.isna(rows.loc["b", "mean"])
    assert "mean: over X, Y, Z, measured rows only; not in it: MME" in paper.board(results).remarks


def test_one_benchmark_has_no_mean(tmp_path: Path) -> None:
    sheet_files.answered(tmp_path, "a", [1, 0])
    assert "mean" not in leaderboard(read(tmp_path))


def test_replaced_runs_are_rows_of_the_leaderboard_and_not_of_table_1(tmp_path: Path) -> None:
    for run, hits in (("T20260101-000000", [1, 1, 1, 1]), ("T20260102-000000", [1, 0, 0, 0])):
        frame = host.choices("A,B,A,B").assign(hit=hits)
        host.predictions(tmp_path / "m" / run, "m", "X", frame.drop(columns="hit"))
        host.predictions(tmp_path / "m" / run, "m", "X_exact_matching_result", frame)
        (tmp_path / "m" / run / "m_X_acc.csv").write_text(f'"split","Overall"\n"none","{sum(hits) / 4}"\n')
    results = read(tmp_path, all_runs=True)
    assert set(paper.board(results).frame["X"]) == {25, 100}
    assert paper.table_1(results).frame["X"].tolist() == [25]
