"""Rules side by side on one benchmark, pair by pair: ``python -m tools.smol.rules OUTPUTS``, a folder of runs.

The accuracy of attention over L and K; under every rule at those (L, K) that have several, with Wilson's 95 % interval
and, behind the slash, the questions (%) all of whose needed tokens were kept; then, on the same questions, rankings by
attention against the controls and every other rule against ``random``: exact McNemar tests, Holm's correction over all
of them. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pandas as pd

from redrel_vlmeval import results
from redrel_vlmeval.demo.kept import needed_cells_kept
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import paired_tests

ATTENTION, CONTROLS = ("attention", "rowmean"), ("random", "uniform", "lowest")
Key = tuple[int, int, str]  # L, K, rule
Hits = Mapping[Key, pd.Series]  # one number per question, 1 where the answer is right


def key(spec: VariantSpec) -> Key:
    """L, K, and the rule, or the row where attention ranks by another than the last one."""
    (stage,) = spec.stages
    return stage.layer, stage.keep, spec.row if spec.row != "last" else spec.rule


def shown(hit: pd.Series) -> str:
    """Accuracy in points, with its interval."""
    low, high = paired_tests.interval(hit.tolist())
    return f"{100 * hit.mean():.1f} ({low:.0f}..{high:.0f})"


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def grid(by: Hits) -> list[str]:
    """Attention over L and K."""
    places = {place[:2] for place in by if place[2] == "attention"}
    layers, budgets = (sorted(set(numbers)) for numbers in zip(*places, strict=True))
    rows = []
    for layer in layers:
        hits = [by.get((layer, keep, "attention")) for keep in budgets]
        rows.append([str(layer), *("-" if hit is None else shown(hit) for hit in hits)])
    return markdown(["after block", *(f"K = {keep}" for keep in budgets)], rows)


def several(by: Hits) -> list[tuple[int, int]]:
    """The (L, K) at which rules can be compared."""
    places = [place[:2] for place in by]
    return sorted(place for place in set(places) if places.count(place) > 1)


def table(by: Hits, kept: Mapping[Key, float]) -> list[str]:
    """Every rule at every budget that has several, the best in the mean first."""
    places = several(by)
    found = {rule: [by.get((*place, rule)) for place in places] for rule in {place[2] for place in by}}
    rules = {rule: hits for rule, hits in found.items() if any(hit is not None for hit in hits)}

    def mean(rule: str) -> tuple[float, str]:
        scores = [hit.mean() for hit in rules[rule] if hit is not None]
        return -sum(scores) / len(scores), rule

    def cell(place: tuple[int, int], rule: str, hit: pd.Series | None) -> str:
        share = kept.get((*place, rule))
        return "-" if hit is None else shown(hit) + ("" if share is None else f" / {share:.0f}")

    rows = [
        [f"`{rule}`", *(cell(place, rule, hit) for place, hit in zip(places, rules[rule], strict=True))]
        for rule in sorted(rules, key=mean)
    ]
    return markdown(["rule", *(f"l{layer}_k{keep}" for layer, keep in places)], rows)


def tests(by: Hits) -> list[str]:
    """Every comparison that there is, with p after Holm's correction."""
    rules = sorted({place[2] for place in by} - {*ATTENTION, *CONTROLS})
    found = []
    for layer, keep in several(by):
        for one, other in [*product(ATTENTION, CONTROLS), *((rule, "random") for rule in rules)]:
            pair = by.get((layer, keep, other)), by.get((layer, keep, one))
            if pair[0] is not None and pair[1] is not None:
                compared = paired_tests.compare(pair[0].tolist(), pair[1].tolist())
                found.append((f"l{layer}_k{keep}: {one} over {other}", compared))
    corrected = paired_tests.holm([compared.p for _, compared in found])
    rows = []
    for (name, compared), p in zip(found, corrected, strict=True):
        span = f"{compared.difference:+.1f} ({compared.low:+.1f}..{compared.high:+.1f})"
        rows.append([name, span, paired_tests.p_text(p)])
    return markdown(["comparison", "points (95 % CI)", "p (Holm)"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path, help="work dir of the runs of one base on one benchmark")
    found = results.read(parser.parse_args().outputs)
    frame = found.questions.pivot(index="index", columns="model", values="hit").astype(float)
    specs = {name: parse(str(name)) for name in frame}
    by = {key(spec): frame[name] for name, spec in specs.items() if spec.is_variant}
    cells = needed_cells_kept(found, str(found.questions["benchmark"].iloc[0]))
    kept = {key(parse(line.model)): line.all for line in cells.itertuples()}
    base = next(name for name, spec in specs.items() if not spec.is_variant)
    print(f"{len(frame)} questions; {base}: {shown(frame[base])}\n")
    print("\n".join([*grid(by), "", *table(by, kept), "", *tests(by)]))


if __name__ == "__main__":
    main()
