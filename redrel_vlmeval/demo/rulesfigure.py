"""The demo's first figure: rules at one budget, on RedRelShapes as multiple choice and in open form."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from redrel_vlmeval.names import MARK
from redrel_vlmeval.results import Results, paired_tests
from redrel_vlmeval.sheets import rules_at_one_budget

# setting -> what it is called, best known first
BUDGET = {
    "": "all 64 tokens",
    "l2_k8_rowmean": "8 tokens: attention,\nmean over all rows",
    "l2_k8": "8 tokens: attention,\nlast row (the paper's)",
    "l2_k8_uniform": "8 tokens: evenly spaced",
    "l2_k8_random": "8 tokens: random",
    "l2_k8_lowest": "8 tokens: lowest attention",
    "l2_k0": "no token after block 2",
    "l0_k0": "no picture at all",
}
HOPS = {"one-hop": "one hop", "two-hop": "two hops"}


def draw(found: Results, base: str, forms: dict[str, str], path: Path) -> Path | None:
    """``forms``: benchmark -> title of its panel. None where no rule ran on any."""
    lines = []
    for data, title in forms.items():
        judged = found.questions[found.questions["benchmark"] == data]
        for setting, row in BUDGET.items():
            own = judged[judged["model"] == (f"{base}{MARK}{setting}" if setting else base)]
            for hop, series in HOPS.items():
                hits = own.loc[own["category"] == hop, "hit"].astype(float)
                if len(hits):
                    low, high = paired_tests.wilson(int(hits.sum()), len(hits))
                    numbers = {"value": 100 * hits.mean(), "low": 100 * low, "high": 100 * high}
                    panel = f"{title} ({len(hits)} questions of each)"
                    lines.append({"panel": panel, "series": series, "row": row, "setting": setting, **numbers})
    if not any(line["setting"] for line in lines):
        return None
    order = list(BUDGET)
    lines.sort(key=lambda line: order.index(str(line["setting"])))  # stable: of a setting, the forms as they were given
    return rules_at_one_budget(pd.DataFrame(lines), path, f"{base}: who chooses 8 of 64 image tokens after block 2")
