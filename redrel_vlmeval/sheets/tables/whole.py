"""All tables of a folder of results, in the order of the workbook."""

from __future__ import annotations

import pandas as pd

from redrel_vlmeval.results import Results, published
from redrel_vlmeval.sheets.tables import details, paper
from redrel_vlmeval.sheets.tables.field import field
from redrel_vlmeval.sheets.tables.table import Table

# What a reader of one page wants; the others have a row per question, per cell or per metric.
SUMMARY = ("Methods", "Downsampling", "Leaderboard", "Table 1", "Table 2", "Grid", "Efficiency", "Blind", "Turns")


def every(results: Results, names: tuple[str, ...] = ()) -> list[Table]:
    """The tables of these names, or all; one without rows is there and says why.

    Those of ``redrel table`` are there in its folders alone, and first; that of turns, last, where there are dialogues.
    """
    makers = {
        "Leaderboard": paper.board, "Table 1": paper.table_1, "Table 2": paper.table_2, "Grid": details.grid,
        "Categories": details.categories, "Efficiency": details.efficiency, "Blind": details.blind_rate,
        "Blind questions": details.blind_questions, "Flips": details.flips, "Provenance": details.provenance,
        "Scores": details.scores,
    }  # fmt: skip
    first = [table for table in field(results) if not names or table.name in names]
    tables = first + [make(results) for name, make in makers.items() if not names or name in names]
    turns = None if names and "Turns" not in names else details.turns(results)
    return [*tables, *([turns] if turns else [])]


def printed(results: Results) -> pd.DataFrame:
    """Printed numbers on the benchmarks of this folder, as ``published.csv`` has them."""
    return published.on(set(results.scores["benchmark"]), results.scores["base"])
