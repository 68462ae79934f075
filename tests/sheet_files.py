"""Small output folders of which sheets are made in several tests."""

from __future__ import annotations

from pathlib import Path

import host_files as host

BASE = "redrel_tiny"
REASON = "=1+1 | no\n<b>such</b>\x07 layer"


def mixed(out: Path) -> None:
    """A base and four variants over two benchmarks; one cell failed, one is unfinished, one ran on another device."""
    cut = host.TRUNCATED
    done = ((BASE, 0.75, {}), (f"{BASE}_trunc_l10_k8", 0.5, cut), (f"{BASE}_trunc_l2_k16", 1, cut))
    for name, value, changes in done:
        for benchmark in ("Shapes", "Words"):
            host.scored(out / name, name, benchmark, value)
            host.records(out / name, name, benchmark, **changes)
    far = f"{BASE}_trunc_l2_k16_random"
    host.scored(out / far, far, "Shapes", 0.5)
    host.records(out / far, far, "Shapes", **(host.TRUNCATED | {"device": "cuda"}))
    host.status(out / far, far, Shapes={"status": "done"}, Words={"status": "infer"})
    bad = f"{BASE}_trunc_l4_k16"
    host.status(out / bad, bad, Shapes={"status": "done", "error_message": REASON}, Words={"status": "done"})


def clear(out: Path, base: str = BASE, benchmark: str = "X") -> None:
    """Forty questions: one variant loses most of what the base gets right, one wins as much, one changes nothing."""
    for tail, hits in (
        ("", [20, 20]),
        ("_trunc_l1_k8", [5, 35]),
        ("_trunc_l2_k8", [35, 5]),
        ("_trunc_l4_k8", [20, 20]),
    ):
        answered(out, f"{base}{tail}", [1] * hits[0] + [0] * hits[1], benchmark)


def answered(out: Path, model: str, hits: list, benchmark: str = "X", **columns: object) -> None:
    """A finished cell of multiple choice with question, options and two categories."""
    count = len(hits)
    asked = {"question": [f"Which is {i}?" for i in range(count)], "A": "red", "B": "blue"}
    category = [("even", "odd")[i % 2] for i in range(count)]
    host.answered(out / model, model, benchmark, hits, **(asked | {"category": category} | columns))
