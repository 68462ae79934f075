"""The leaderboard's rows, columns and states, and its text for a terminal, on small output folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import host_files as host
import pandas as pd
import pytest
import sheet_files

from redrel_vlmeval import sheets
from redrel_vlmeval.results.paired_tests import newcombe
from redrel_vlmeval.results.reading import Results, read
from redrel_vlmeval.sheets import terminal
from redrel_vlmeval.sheets.tables.details import efficiency

BASE = sheet_files.BASE


@pytest.fixture
def board(results: Results) -> pd.DataFrame:
    return sheets.leaderboard(results)


def test_base_comes_first_then_variants_by_number(board: pd.DataFrame) -> None:
    tails = [name.removeprefix(BASE) for name in board["model"]]
    assert tails == ["", "_trunc_l2_k16", "_trunc_l4_k16", "_trunc_l10_k8", "_trunc_l2_k16_random"]


def test_scores_deltas_and_costs(board: pd.DataFrame) -> None:
    row = board.set_index("model").loc[f"{BASE}_trunc_l2_k16"]
    assert (row["Shapes"], row["Shapes delta"], row["L"], row["K"], row["rule"]) == (100, 25, 2, 16, "attention")
    assert (row["kept"], row["image tokens"], row["average tokens"]) == (16, 64, 40)
    assert row["prefill GFLOPs"] == pytest.approx(1.2) and row["FLOPs ratio"] == pytest.approx(0.6)
    assert row["KV MB"] == pytest.approx(0.25) and row["KV ratio"] == pytest.approx(0.625)
    assert (row["status"], row["note"]) == ("ok", "") and not [name for name in row.index if " ms" in name]


def test_states_stand_where_scores_would(board: pd.DataFrame) -> None:
    rows = board.set_index("model")
    bad, far = rows.loc[f"{BASE}_trunc_l4_k16"], rows.loc[f"{BASE}_trunc_l2_k16_random"]
    assert (bad["Shapes"], bad["Words"], bad["status"]) == ("failed", "failed", "failed")
    assert (far["Shapes"], far["Words"], far["status"]) == (50, "running", "running")
    assert pd.isna(far["Shapes delta"]) and "device differs (cuda; base cpu)" in far["note"]


def test_each_prompt_is_a_group_with_its_own_base(tmp_path: Path) -> None:
    tails = ["", "_trunc_l2_k16", "_beam3", "_p-cqm", "_trunc_l2_k16_p-cqm"]
    for tail in reversed(tails):
        host.scored(tmp_path / f"{BASE}{tail}", f"{BASE}{tail}", "X", 0.5)
    board = sheets.leaderboard(read(tmp_path))
    assert board["model"].tolist() == [f"{BASE}{tail}" for tail in tails]
    assert board["base"].tolist() == [f"{BASE}{tail}" for tail in ("", "", "_beam3", "_p-cqm", "_p-cqm")]
    assert board["X delta"].fillna(-1).tolist() == [-1, 0, -1, -1, 0]


def test_units_follow_the_size(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    host.records(tmp_path / "m", "m", "X", prefill_flops=8.4e12, kv_bytes=330e6)
    row = sheets.leaderboard(read(tmp_path)).iloc[0]
    assert row["prefill TFLOPs"] == pytest.approx(8.4) and row["KV MB"] == pytest.approx(330)


def test_a_benchmark_with_two_headlines_has_two_columns(tmp_path: Path) -> None:
    host.predictions(tmp_path / "m", "m", "POPE", host.choices("A,B,A,B"))
    text = '"split","Overall","acc","precision","recall"\n"random","1","2","3","4"\n"Overall","80.5","81","90","70"\n'
    (tmp_path / "m" / "m_POPE_score.csv").write_text(text)
    row = sheets.leaderboard(read(tmp_path)).iloc[0]
    assert (row["POPE F1"], row["POPE acc"]) == (80.5, 81)


def test_costs_of_several_benchmarks_are_weighted_by_questions(tmp_path: Path) -> None:
    for name, count, tokens in (("X", 30, 10.0), ("Y", 10, 50.0)):
        host.scored(tmp_path / "m", "m", name, 0.5)
        host.records(tmp_path / "m", "m", name, indices=range(count), average_image_tokens=tokens)
    assert sheets.leaderboard(read(tmp_path)).iloc[0]["average tokens"] == 20


def test_no_records_at_all_still_gives_a_table(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    text = sheets.to_text(sheets.measured(read(tmp_path)))
    assert "50.0" in text and "nan" not in text.lower() and "prefill" not in text


def test_every_column_has_a_meaning(results: Results, board: pd.DataFrame) -> None:
    told = sheets.measured(results).notes
    assert list(told) == list(board.columns)
    assert "1e9" in told["prefill GFLOPs"] and "1e6" in told["KV MB"] and "2 n d^2" in told["prefill GFLOPs"]
    assert all("host's own evaluation" in told[name] for name in ("Shapes", "Words"))
    for column, words in (
        ("CI low", "Newcombe"),
        ("p", "McNemar"),
        ("p (Holm)", "corrected"),
        ("up", "base gets wrong"),
    ):
        assert words in told[f"Words {column}"]


def test_text_is_a_table_with_the_notes_below(results: Results, board: pd.DataFrame) -> None:
    lines = sheets.to_text(sheets.measured(results)).splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
    table = lines[rule + 1 : rule + 6]
    assert [line.split()[0] for line in table] == list(board["model"]), "a line break in a cell would tear the table"
    assert "+25.0" in table[1] and "nan" not in "".join(table).lower()
    assert lines[rule + 6 : rule + 8] == ["", "backend: transformers"]
    assert any(line.startswith(f"{BASE}_trunc_l4_k16: ") and "such" in line for line in lines[rule + 8 :])


def test_statistics_stand_beside_every_score(board: pd.DataFrame) -> None:
    names = list(board.columns)
    at = names.index("Shapes delta")
    beside = ["delta", "CI low", "CI high", "up", "down", "p", "p (Holm)", "verdict"]
    assert names[at - 1 : at + 8] == ["Shapes", *(f"Shapes {name}" for name in beside)]
    row = board.set_index("model").loc[f"{BASE}_trunc_l2_k16"]
    assert (row["Shapes up"], row["Shapes down"], row["Shapes p (Holm)"]) == (1, 0, 1)
    assert row["Shapes verdict"].endswith("(Holm 1.00 over 2), 1 up / 0 down: not separable from the base")
    verdicts = board["Shapes verdict"].tolist()
    assert verdicts[0] == "base" and verdicts[2] == "no test: failed" and verdicts[4].endswith("(cuda; base cpu)")


def test_on_a_narrow_terminal_costs_go_and_names_lose_their_base(results: Results) -> None:
    board = sheets.measured(results)
    whole = sheets.to_text(board)
    assert sheets.to_text(board, terminal.wide(whole)) == whole
    narrow = sheets.to_text(board, 80).splitlines()
    rule = next(number for number, line in enumerate(narrow) if line.startswith("---"))
    table = narrow[: rule + 6]
    assert max(map(len, table)) <= 80 < terminal.wide("\n".join(whole.splitlines()[: rule + 6]))
    heads = [line.rstrip()[:24].rstrip() for line in narrow[rule + 1 : rule + 6]]
    assert heads[0].startswith(BASE) and [head.split()[0] for head in heads[1:4]] == ["l2_k16", "l4_k16", "l10_k8"]
    assert all(head.startswith("  l") for head in heads[1:]) and "ratio" not in "".join(narrow[:rule])
    left_out = next(line for line in narrow if line.endswith(" more columns in the files: -o x.xlsx"))
    wider = sheets.to_text(board, 120).splitlines()
    assert int(left_out.split()[0]) > int(next(line for line in wider if " more columns" in line).split()[0]) > 0


def test_a_variant_without_its_base_keeps_its_whole_name() -> None:
    frame = pd.DataFrame({"model": ["a", "a_trunc_l1_k1 [T2026]", "b_trunc_l1_k1"], "base": ["a", "a", "b"]})
    assert [name.replace(terminal.INDENT, " ") for name in terminal.short_names(frame)] == [
        "a",
        "  l1_k1 [T2026]",
        "b_trunc_l1_k1",
    ]


def test_the_width_counts_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.terminal_width() is None
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("COLUMNS", "57")
    assert terminal.terminal_width() == 57


def test_text_shows_delta_interval_p_and_two_words(clear: Results) -> None:
    lines = sheets.to_text(sheets.measured(clear)).splitlines()
    rows = {line.split()[0]: line.split()[5:] for line in lines if line.startswith(f"{BASE}_")}
    low, high = (100 * end for end in newcombe(5, 0, 15, 20))
    assert rows[f"{BASE}_trunc_l1_k8"] == ["-37.5", f"{low:.1f}..{high:.1f}", "<", ".001", "worse"]
    low, high = (100 * end for end in newcombe(20, 15, 0, 5))
    assert rows[f"{BASE}_trunc_l2_k8"] == ["+37.5", f"+{low:.1f}..+{high:.1f}", "<", ".001", "better"]
    assert rows[f"{BASE}_trunc_l4_k8"][0] == "+0.0" and rows[f"{BASE}_trunc_l4_k8"][2:] == ["1.00", "not", "separable"]
    assert f"base: {BASE}" in lines and "status: ok" in lines, "what all rows share is told once"
    assert lines[-1].startswith("verdict: paired test")


def test_a_benchmark_may_be_called_like_a_column(tmp_path: Path) -> None:
    """Nothing is read from names that end like a statistic's or begin like a cost's."""
    for benchmark in ("KV verdict", "prefill p", "FLOPs ratio of L"):
        for name, value in {BASE: 0.5, f"{BASE}_trunc_l2_k8": 0.75}.items():
            host.scored(tmp_path / name, name, benchmark, value)
    board = sheets.measured(read(tmp_path))
    columns = {column.name: column for column in board.layout}
    for benchmark in ("KV verdict", "prefill p", "FLOPs ratio of L"):
        assert columns[benchmark].score and columns[benchmark].form == ".1f" and not columns[benchmark].cost
        assert (columns[f"{benchmark} p"].form, columns[f"{benchmark} up"].form) == ("p", "d")
        assert columns[f"{benchmark} p"].of == benchmark and columns[f"{benchmark} delta"].title == "delta"
    lines = sheets.to_text(board).splitlines()
    assert "75.0" in " ".join(lines) and ".750" not in " ".join(lines)


def test_times_are_compared_only_where_the_base_repeats_itself(tmp_path: Path) -> None:
    for model, milliseconds in (("m", [10, 11, 12]), ("m_trunc_l2_k16", [6, 6.5, 7]), ("m_trunc_l3_k16", [10, 10, 12])):
        host.scored(tmp_path / model, model, "X", 0.5)
        path = host.records(tmp_path / model, model, "X", indices=(1, 2, 3), batch=8)
        lines = [json.loads(line) for line in path.read_text().splitlines()[:3]]
        told = zip(lines, milliseconds, strict=True)
        path.write_text("".join(json.dumps(line | {"base": "m", "prefill_ms": ms}) + "\n" for line, ms in told))
    frame = efficiency(read(tmp_path)).frame.set_index("model")
    assert frame["prefill over base"].tolist() == [None, pytest.approx(6.5 / 11), "use redrel bench"]
    times = frame.loc["m", ["prefill ms from", "prefill ms", "prefill ms to"]]
    assert times.tolist() == [10.5, 11, 11.5] and set(frame["batch"].astype(str)) == {"8"}
