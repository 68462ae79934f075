"""Are the maps right? Asked of RedRelShapes, whose every question says which cells it is about.

``python -m tools.tiny.evidence --folder FOLDER`` measures and writes tables; tests hold fewer questions to
the same bars. In ``redrel_tiny`` an image token is made of its cell and of those around it, and its answers are so sure
that plain gradients are flat; so maps are measured with and without SmoothGrad, on the tokens and carried to the cells
they are made of. How many noisy copies the mean needs is measured on questions that are not the benchmark's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from redrel_vlmeval.bases import TINY
from redrel_vlmeval.explain.ask.asking import Asked, ask_model
from redrel_vlmeval.explain.explanation import option_tokens
from redrel_vlmeval.explain.maps.bands import flat_from
from redrel_vlmeval.explain.maps.flow import causal_curve
from redrel_vlmeval.explain.maps.gradcam import Request, explain
from redrel_vlmeval.explain.maps.grid import through
from redrel_vlmeval.explain.maps.passes import run
from redrel_vlmeval.explain.maps.taken import Wanted
from redrel_vlmeval.explain.trust import faithfulness
from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.tiny import benchmark, scenes

SMOOTH = Request(("elementwise", "attn_grad", "gradcam", "attn"), smooth=64, noise=0.1, tower=True)
PLAIN = replace(SMOOTH, smooth=0)
COPIES = (4, 8, 16, 32, 64, 128)
FINDS = 0.5  # of the best layer's hits: where maps still find the object


@dataclass(frozen=True)
class Case:
    """A question about a scene: its line in the benchmark, its objects, the cells it is about."""

    line: dict[str, Any]
    things: tuple[scenes.Thing, ...]

    @property
    def cells(self) -> set[int]:
        return {int(cell) for cell in str(self.line["cells"]).split(",") if cell}

    @property
    def others(self) -> set[int]:
        """Cells of the objects that the question is not about."""
        return {thing.cell for thing in self.things} - self.cells


def cases(category: str, count: int, name: str = "RedRelShapes") -> list[Case]:
    """The first ``count`` questions of a category of the benchmark."""
    table = benchmark.make(name)
    number = scenes.CATEGORIES.index(category)
    found = []
    for item, (_, row) in enumerate(table[table["category"] == category].head(count).iterrows()):
        things, _ = benchmark.question_for(category, np.random.default_rng([benchmark.SEED, number, item]))
        found.append(Case({str(key): value for key, value in row.items()}, tuple(things)))
    return found


def fresh(count: int) -> list[Case]:
    """Questions of one hop, drawn like the benchmark's and none of them: for choosing settings."""
    drawn = [(number, np.random.default_rng(number)) for number in range(count)]
    return [_case(*benchmark.question_for("one-hop", rng), rng, {"index": number}) for number, rng in drawn]


def _case(
    things: Sequence[scenes.Thing], question: scenes.Question, rng: np.random.Generator, line: dict[str, Any]
) -> Case:
    """``line`` with the question, options drawn for it, answer and cells."""
    choices = scenes.options(question, rng)
    asked = {"category": question.category, "question": question.text, **dict(zip("ABCD", choices, strict=True))}
    asked |= {"answer": "ABCD"[choices.index(question.answer)], "cells": ",".join(map(str, question.cells))}
    return Case(line | asked, tuple(things))


def put(core: LlavaCore, case: Case, folder: Path) -> Asked:
    """The question asked of a core, its picture in ``folder``."""
    path = folder / "picture.png"
    scenes.render(list(case.things)).save(path)
    message = [{"type": "image", "value": str(path)}]
    message.append({"type": "text", "value": input.question_text(case.line)})
    return ask_model(core.model, lambda: core.reply(message), core.tokenizer, pictures=[str(path)])


def drawn(asked: Asked, request: Request) -> Iterator[tuple[str, str, int, np.ndarray, str]]:
    """(method, on, layer, map [64], status) of every map, on ``tokens`` and carried to ``cells``."""
    found = explain(asked, request)
    for maps in found.maps:
        laid = {"tokens": maps.values[0]}
        if found.attention is not None:
            laid["cells"] = through(maps.values[0], found.attention)
        for on, values in laid.items():
            for place, layer in enumerate(maps.layers):
                yield maps.method, on, layer, values[place], maps.status[0][place]


def pointing(core: LlavaCore, questions: Sequence[Case], request: Request) -> pd.DataFrame:
    """The pointing game: one row per question, method, ``on`` and layer, with what the map points at."""
    rows = []
    with TemporaryDirectory() as folder:
        for case in questions:
            asked = put(core, case, Path(folder))
            for method, on, layer, values, _ in drawn(asked, request):
                found = faithfulness.point(values, case.cells, case.others)
                rows.append(
                    {"index": case.line["index"], "category": case.line["category"], "smooth": request.smooth}
                    | {"method": method, "on": on, "layer": layer, "points_at": found}
                )
    return pd.DataFrame(rows)


def shares(points: pd.DataFrame) -> pd.DataFrame:
    """Percent of questions by what maps point at: one row per category, smoothing, method, ``on`` and layer."""
    keys = ["category", "smooth", "method", "on", "layer"]
    counts = points.groupby(keys)["points_at"].value_counts(normalize=True).unstack(fill_value=0)
    wanted = ["asked", "other", "background", "none"]
    return (100 * counts.reindex(columns=wanted, fill_value=0.0)).reset_index()


def by_copies(core: LlavaCore, questions: Sequence[Case], request: Request) -> pd.DataFrame:
    """How :func:`shares` of the elementwise map settle with the number of SmoothGrad's copies."""
    counts = [replace(request, methods=("elementwise",), smooth=copies) for copies in COPIES]
    return pd.concat([shares(pointing(core, questions, one)) for one in counts], ignore_index=True)


def best_layer(found: pd.DataFrame, method: str = "elementwise", on: str = "cells") -> dict[str, Any]:
    """The row of :func:`shares` with most hits."""
    rows = found[(found["method"] == method) & (found["on"] == on)]
    best = rows.sort_values("asked", ascending=False, kind="stable").to_dict("records")[0]
    return {str(name): value for name, value in best.items()}


def stops_finding(found: pd.DataFrame, method: str = "elementwise", on: str = "cells") -> int:
    """The first layer from which on a method's hits stay under half of the best layer's; one past the last if none."""
    hits = found[(found["method"] == method) & (found["on"] == on)].sort_values("layer")["asked"].to_numpy()
    finds = np.flatnonzero(hits >= FINDS * hits.max())
    return int(finds.max()) + 2


def causal(core: LlavaCore, questions: Sequence[Case]) -> np.ndarray:
    """Margins over the other options with the picture cut after each block: [questions, l + 1]."""
    curves = []
    with TemporaryDirectory() as folder:
        for case in questions:
            asked = put(core, case, Path(folder))
            others = option_tokens(asked, [letter for letter in "ABCD" if letter != case.line["answer"]])
            curves.append(causal_curve(asked, others))
    return np.stack(curves)


def deletions(core: LlavaCore, questions: Sequence[Case], request: Request, layer: int) -> pd.DataFrame:
    """Deletion and insertion AUC of the elementwise map on cells, of random orders and of the oracle: a row each."""
    rows = []
    one = replace(request, methods=("elementwise",), layers=(layer,))
    with TemporaryDirectory() as folder:
        for case in questions:
            asked = put(core, case, Path(folder))
            values = next(v for _, on, _, v, _ in drawn(asked, one) if on == "cells")
            for name in ("deletion", "insertion"):
                insertion = name == "insertion"
                test = faithfulness.delete_test(asked, values, sorted(case.cells), insertion=insertion, orders=4)
                rows.append({"index": case.line["index"], "test": name, "own": test.own, "random": test.random})
                rows[-1] |= {"oracle": test.oracle, "gain": -test.gain if insertion else test.gain}
    return pd.DataFrame(rows)


def swaps(core: LlavaCore, questions: Sequence[Case], request: Request, layer: int) -> pd.DataFrame:
    """Each picture under its own question and under another about another object: how alike the maps are."""
    rows = []
    one = replace(request, methods=("elementwise",), layers=(layer,))
    with TemporaryDirectory() as folder:
        for case in questions:
            other = other_question(case)
            if other is None:
                continue
            maps = [
                next(v for _, on, _, v, _ in drawn(put(core, which, Path(folder)), one) if on == "cells")
                for which in (case, other)
            ]
            points = [faithfulness.point(values, other.cells, other.others) for values in maps]
            rows.append({"index": case.line["index"], **faithfulness.compare(*maps), "before": points[0]})
            rows[-1] |= {"after": points[1]}
    return pd.DataFrame(rows)


def other_question(case: Case) -> Case | None:
    """A question of one hop about another object of the same picture; None if there is none."""
    asked = scenes.visual_questions(list(case.things))["one-hop"]
    for question in asked:
        if not set(question.cells) & case.cells:
            return _case(case.things, question, np.random.default_rng(int(case.line["index"])), case.line)
    return None


def own_share(core: LlavaCore, questions: Sequence[Case]) -> float:
    """How much of the change that erasing the asked glyph makes in the image tokens is in its own token: 0 to 1."""
    shares = []
    with TemporaryDirectory() as folder:
        for case in questions:
            asked = put(core, case, Path(folder))
            masks = np.zeros((2, scenes.GRID, scenes.GRID), bool)
            masks.reshape(2, -1)[1, list(case.cells)] = True
            wanted = Wanted([("projector", 0)])
            with run(asked, wanted, copies=2, edit=faithfulness.eraser(masks), grad=False) as taken:
                whole, erased = taken.nodes[("projector", 0)]
                change = (whole - erased).norm(dim=-1)
                shares.append(float(change[list(case.cells)].sum() / change.sum()))
    return float(np.mean(shares))


def shifts(core: LlavaCore, questions: Sequence[Case], request: Request, layer: int) -> pd.DataFrame:
    """The asked object moved by one cell, away from others: where the peak was, should go, and went."""
    rows = []
    one = replace(request, methods=("elementwise",), layers=(layer,))
    with TemporaryDirectory() as folder:
        for case in questions:
            (cell,) = case.cells
            step = free_step(case, cell)
            if step is None:
                continue
            moved = Case(
                case.line | {"cells": str(step)},
                tuple(replace(thing, cell=step) if thing.cell == cell else thing for thing in case.things),
            )
            peaks = []
            for which in (case, moved):
                values = next(v for _, on, _, v, _ in drawn(put(core, which, Path(folder)), one) if on == "cells")
                peaks.append(int(np.nanargmax(values)))
            rows.append({"index": case.line["index"], "cell": cell, "moved_to": step})
            rows[-1] |= {"peak": peaks[0], "peak_after": peaks[1]}
    return pd.DataFrame(rows)


def free_step(case: Case, cell: int) -> int | None:
    """An empty cell beside ``cell`` that touches no other object; None if there is none."""
    taken = {thing.cell for thing in case.things} - {cell}
    for direction in scenes.DIRECTIONS:
        step = scenes.neighbour(cell, direction)
        if step is not None and not {step, *(scenes.neighbour(step, side) for side in scenes.DIRECTIONS)} & taken:
            return step
    return None


def measure(folder: Path, count: int = 200, tests: int = 60, copies: int = SMOOTH.smooth) -> list[str]:
    """All of it, tables into ``folder``; returns what was found, a line each.

    The pointing game takes ``count`` questions of one hop; all else, two and three hops too, takes ``tests``.
    """
    smooth = replace(SMOOTH, smooth=copies)
    folder.mkdir(parents=True, exist_ok=True)
    core = LlavaCore(TINY, device="cpu", max_new_tokens=8)
    tables = []
    for category in scenes.CATEGORIES[:3]:
        for request in (PLAIN, smooth):
            size = count if category == "one-hop" else tests
            tables.append(shares(pointing(core, cases(category, size), request)))
    table = pd.concat(tables, ignore_index=True)
    table.round(1).to_csv(folder / "pointing.csv", index=False)
    ours = table[(table["category"] == "one-hop") & (table["smooth"] == copies)]
    best = best_layer(ours)
    layer = int(best["layer"])
    by_copies(core, fresh(tests), SMOOTH).round(1).to_csv(folder / "copies.csv", index=False)
    found = [f"pointing: block {layer}, asked {best['asked']:.1f} %, other {best['other']:.1f} %"]
    curve = causal(core, cases("one-hop", count)).mean(0)
    found.append(f"causal curve flat from {flat_from(curve)} on, maps stop finding at {stops_finding(ours)}")
    some = cases("one-hop", tests)
    found.append(f"erasing the asked glyph: {100 * own_share(core, some):.1f} % of the change is in its own token")
    for name, frame in (("deletion", deletions(core, some, smooth, layer)), ("swap", swaps(core, some, smooth, layer)),
                        ("shift", shifts(core, some, smooth, layer))):  # fmt: skip
        frame.to_csv(folder / f"{name}.csv", index=False)
        numbers = frame.drop(columns="index").groupby("test") if name == "deletion" else frame
        found.append(f"{name}: {numbers.mean(numeric_only=True).round(3).to_dict()}")
        if name == "swap":
            found.append(f"swap: {frame['after'].value_counts(normalize=True).round(3).to_dict()} after")
        if name == "shift":
            on = frame[frame["peak"] == frame["cell"]]
            found.append(f"shift: {(on['peak_after'] == on['moved_to']).mean():.3f} of {len(on)} peaks went along")
    (folder / "summary.txt").write_text("\n".join(found) + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure on RedRelShapes whether maps are right.")
    parser.add_argument("--folder", type=Path, default=Path("outputs/evidence"))
    parser.add_argument("--questions", type=int, default=200, help="of one hop, for the pointing game")
    parser.add_argument("--tests", type=int, default=60, help="questions of every other test")
    parser.add_argument("--copies", type=int, default=SMOOTH.smooth, help="noisy copies of SmoothGrad")
    args = parser.parse_args()
    print("\n".join(measure(args.folder, args.questions, args.tests, args.copies)))


if __name__ == "__main__":
    main()
