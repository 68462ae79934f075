"""Rules side by side on one benchmark, pair by pair: ``python -m tools.smol.rules OUTPUTS``, a folder of runs.

For each (L, K) the accuracy under every rule with Wilson's 95 % interval; then, on the same questions, rankings by
attention against the controls: exact McNemar tests, Holm's correction over all of them. Prints Markdown.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import pandas as pd

from redrel_vlmeval import results
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import paired_tests

ATTENTION, CONTROLS = ("attention", "rowmean"), ("random", "uniform", "lowest")


def hits(outputs: Path) -> pd.DataFrame:
    """One row per question, one column per model: 1 where the answer is right."""
    questions = results.read(outputs).questions
    return questions.pivot(index="index", columns="model", values="hit").astype(float)


def key(spec: VariantSpec) -> tuple[int, int, str]:
    """L, K, and the rule, or the row where attention ranks by another than the last one."""
    (stage,) = spec.stages
    return stage.layer, stage.keep, spec.row if spec.row != "last" else spec.rule


def table(by: dict[tuple[int, int, str], pd.Series]) -> list[str]:
    """Accuracy in points, with its interval."""
    rules = (*ATTENTION, *CONTROLS)
    lines = ["| setting | " + " | ".join(rules) + " |", "|---" * (len(rules) + 1) + "|"]
    for layer, keep in sorted({place[:2] for place in by}):
        cells = [by.get((layer, keep, rule)) for rule in rules]
        told = [" - " if hit is None else shown(hit) for hit in cells]
        lines.append(f"| l{layer}_k{keep} | " + " | ".join(told) + " |")
    return lines


def shown(hit: pd.Series) -> str:
    low, high = paired_tests.interval(hit.tolist())
    return f"{100 * hit.mean():.1f} ({low:.0f}..{high:.0f})"


def tests(by: dict[tuple[int, int, str], pd.Series]) -> list[str]:
    """Every comparison that there is, with p after Holm's correction."""
    found = []
    for layer, keep in sorted({place[:2] for place in by}):
        for one, other in product(ATTENTION, CONTROLS):
            pair = by.get((layer, keep, other)), by.get((layer, keep, one))
            if pair[0] is not None and pair[1] is not None:
                compared = paired_tests.compare(pair[0].tolist(), pair[1].tolist())
                found.append((f"l{layer}_k{keep}: {one} over {other}", compared))
    corrected = paired_tests.holm([compared.p for _, compared in found])
    lines = ["| comparison | points (95 % CI) | p (Holm) |", "|---|---|---|"]
    for (name, compared), p in zip(found, corrected, strict=True):
        span = f"{compared.difference:+.1f} ({compared.low:+.1f}..{compared.high:+.1f})"
        lines.append(f"| {name} | {span} | {paired_tests.p_text(p)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path, help="work dir of the runs of one base on one benchmark")
    frame = hits(parser.parse_args().outputs)
    specs = {name: parse(str(name)) for name in frame}
    by = {key(spec): frame[name] for name, spec in specs.items() if spec.is_variant}
    base = next(name for name, spec in specs.items() if not spec.is_variant)
    print(f"{len(frame)} questions; {base}: {shown(frame[base])}\n")
    print("\n".join([*table(by), "", *tests(by)]))


if __name__ == "__main__":
    main()
