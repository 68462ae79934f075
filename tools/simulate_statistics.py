"""How often the statistics are wrong, by simulation: ``python -m tools.simulate_statistics``, some minutes.

Prints the table of docs/sheets.md. Every draw follows from the seed; se of a rate of .05 over 1000 draws is .007.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import norm

from redrel_vlmeval.results import choosing, grid, noninferiority

SEED = 20240617
MARGIN = 2.0
PICTURES = ((140, 1), (700, 1), (40, 4), (100, 4), (500, 4), (40, 18), (200, 18), (500, 18))
# Shares of questions won and lost, 2 points apart: as the margin is, so that each "not worse" is an error.
FLIPS = ((0.0, 0.02), (0.01, 0.03), (0.04, 0.06))
ALIKE = {"each question its own": 0.0, "half of them the picture's": 0.5, "all questions of a picture alike": 1.0}
RISING, LEVEL = np.linspace(0.5, 20, 16), np.full(16, MARGIN)  # points that 16 settings lose, the dearest first
STEEP, SMOOTH = (5.0, 5.0, 0.0, 0.0, 0.0), (5.0, 3.0, 1.0, 0.5, 0.0)  # points lost after layers 1 to 5


def change(
    rng: np.random.Generator, pictures: int, questions: int, won: float, lost: float, alike: float
) -> np.ndarray:
    """Summed change of each picture, [pictures]; with chance ``alike`` a question does what its whole picture does."""
    shape = (pictures, questions)
    own, whole = (rng.choice([1, -1, 0], p=[won, lost, 1 - won - lost], size=s) for s in (shape, (pictures, 1)))
    return np.where(rng.random(shape) < alike, whole, own).sum(axis=1).astype(float)


def level(pictures: int, questions: int, won: float, lost: float, alike: float, draws: int, seed: int = SEED) -> float:
    """How often a variant that loses the margin exactly is shown to be not worse."""
    rng, size, bar = np.random.default_rng(seed), np.full(pictures, float(questions)), float(norm.isf(0.05))
    drawn = (change(rng, pictures, questions, won, lost, alike) for _ in range(draws))
    return float(np.mean([noninferiority.score(one, size, MARGIN / 100) > bar for one in drawn]))


def verdicts(rng: np.random.Generator, lost: np.ndarray, n: int, flips: float) -> tuple[np.ndarray, np.ndarray]:
    """Base [n] and variants [settings, n], right or wrong; each loses ``lost`` points, by flips of at least as many."""
    base = rng.random(n) < 0.7
    down = np.maximum(flips, lost / 100) / 2 + lost / 200
    up = down - lost / 100
    drawn = rng.random((len(lost), n))
    return base.astype(float), np.where(base, drawn >= down[:, None] / 0.7, drawn < up[:, None] / 0.3).astype(float)


def cliff_ends(
    curve: tuple[float, ...], n: int, flips: float, draws: int, seed: int = SEED
) -> tuple[float, float, float]:
    """(share of ends 'at most' below the true cliff, of 'at least' above it, of both ends on it)."""
    rng, layers = np.random.default_rng(seed), list(range(1, len(curve) + 1))
    truth = next(layer for layer, lost in zip(layers, curve, strict=True) if lost < MARGIN)
    ends = []
    for _ in range(draws):
        base, after = verdicts(rng, np.array(curve), n, flips)
        found = noninferiority.cliff(noninferiority.Paired.of(base, after), layers, MARGIN)
        ends.append((found.at_most < truth, found.at_least > truth, found.at_most == found.at_least == truth))
    low, high, exact = np.mean(ends, axis=0)
    return float(low), float(high), float(exact)


def picks(
    n: int, draws: int, keeps: int = 1, lost: np.ndarray = RISING, seed: int = SEED
) -> tuple[float, float, float]:
    """Of settings of so many K that lose these points, dearest first: how often the cheapest "shown not worse" loses
    the margin or more, how often none is named, and the median of the true loss of those named."""
    rng, settings = np.random.default_rng(seed), len(lost)
    places = [(settings - number, 8 * (number % keeps)) for number in range(settings)]
    cells = pd.DataFrame(places, columns=["L", "K"])
    cells = cells.assign(model=[f"x_trunc_l{layer}_k{keep}" for layer, keep in places], rule="attention")
    cells = cells.assign(tokens=1.0, flops=np.linspace(0.9, 0.1, settings))
    truth: list[float] = []
    for _ in range(draws):
        base, after = verdicts(rng, lost, n, 0.02)
        found = choosing.cheapest(grid.Scores("x", "X", cells, base, after, list(range(n))), MARGIN).model
        truth += [float(lost[cells.index[cells["model"] == found][0]])] if found else []
    worse = sum(one >= MARGIN for one in truth) / draws
    return worse, 1 - len(truth) / draws, float(np.median(truth)) if truth else float("nan")


def winner(n: int, draws: int, settings: int = 60, seed: int = SEED) -> tuple[float, float]:
    """Of equal settings: points by which the best looks better than it is, on all questions and on the other half."""
    rng, flattered, honest = np.random.default_rng(seed), [], []
    names = [f"x_trunc_l{1 + number}_k8" for number in range(settings)]
    cells = pd.DataFrame({"model": names, "rule": "attention", "L": 1, "K": 8, "tokens": 1.0, "flops": 0.5})
    for _ in range(draws):
        after = (rng.random((settings, n)) < 0.6).astype(float)
        found = choosing.best(grid.Scores("x", "X", cells, np.ones(n), after, list(range(n))))
        assert found is not None
        flattered.append(100 * after.mean(axis=1).max() - 60)
        honest.append(found.score - 60)
    return float(np.mean(flattered)), float(np.mean(honest))


def table(draws: int) -> Iterator[tuple[str, str, str]]:
    """(claim, setting, what was found) of every simulation."""
    for pictures, questions in PICTURES:
        alikes = ALIKE.values() if questions > 1 else (0.0,)
        rates = [[level(pictures, questions, *flips, alike, draws) for alike in alikes] for flips in FLIPS]
        found = "; ".join(", ".join(_rate(rate) for rate in row) for row in rates)
        yield "not worse", f"{pictures} x {questions}", found
    for name, curve in {"steep": STEEP, "smooth": SMOOTH}.items():
        for n in (140, 700, 2017):
            low, high, exact = cliff_ends(curve, n, 0.06, draws)
            yield "cliff layer", f"{name}, n = {n}", f"{_rate(low)} / {_rate(high)}, both ends on it {_rate(exact)}"
    for keeps, n in ((1, 140), (1, 700), (1, 2017), (4, 140), (4, 700), (4, 2017)):
        for name, lost in {".5 to 20": RISING, "all 2": LEVEL}.items():
            worse, none, loss = picks(n, draws, keeps, lost)
            found = f"{_rate(worse)}, none named {_rate(none)}" + (f", median loss {loss:.1f}" if loss == loss else "")
            yield "cheapest", f"{name}, {keeps} K, n = {n}", found
    for n in (300, 2017):
        flattered, honest = winner(n, max(draws // 10, 10))
        yield "best of 60", f"n = {n}", f"{flattered:+.1f} on all, {honest:+.1f} on the other half"


def _rate(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def main(draws: int = 1000) -> None:
    print("| claim | setting | found |\n|---|---|---|")
    for row in table(draws):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
