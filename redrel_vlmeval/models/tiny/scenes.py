"""Pictures of coloured glyphs on an 8 x 8 grid, and questions about them of one, two and three hops.

Every glyph fills one cell and every cell is one patch of the vision tower, so the cells a question depends on
are exactly the image tokens it depends on. A *hop* is one look at the picture that has to finish before the next
can start: ``three-hop`` asks for the neighbour of the object that shares the colour of a named shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

GRID, CELL = 8, 12  # cells per side, pixels per cell
SIZE = GRID * CELL
COLORS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (60, 90, 255),
    "yellow": (240, 220, 50),
    "white": (245, 245, 245),
}
SHAPES = ("square", "frame", "cross", "triangle", "bar")
DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
CATEGORIES = ("one-hop", "two-hop", "three-hop", "text")
BACKGROUND = (24, 24, 24)

FACTS = {"grass": "green", "blood": "red", "snow": "white", "the sky": "blue", "a banana": "yellow"}
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix")


@dataclass(frozen=True)
class Thing:
    """One glyph: its cell (row * 8 + column), shape and colour."""

    cell: int
    shape: str
    color: str


@dataclass(frozen=True)
class Question:
    """A question with its answer and ``cells``, the cells whose content decides the answer (empty for ``text``)."""

    category: str
    text: str
    answer: str
    cells: tuple[int, ...] = ()
    hint: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """Every word that could be the answer: all colours or all shapes."""
        return tuple(COLORS) if self.answer in COLORS else SHAPES


def glyph(shape: str) -> np.ndarray:
    """Mask of a shape, bool [12, 12]; the five overlap little, so that one patch is enough to tell them apart."""
    y, x = np.mgrid[0:CELL, 0:CELL]
    inside = (x >= 1) & (x <= 10) & (y >= 1) & (y <= 10)
    masks = {
        "square": inside,
        "frame": inside & ((x <= 2) | (x >= 9) | (y <= 2) | (y >= 9)),
        "cross": inside & ((np.abs(x - y) <= 1) | (np.abs(x + y - 11) <= 1)),
        "triangle": inside & (np.abs(x - 5.5) <= (y - 0.5) / 2),
        "bar": inside & (y >= 4) & (y <= 7),
    }
    return masks[shape]


GLYPHS = {shape: glyph(shape) for shape in SHAPES}


def render(things: list[Thing]) -> Image.Image:
    """RGB picture of 96 x 96 pixels."""
    pixels = np.full((SIZE, SIZE, 3), BACKGROUND, np.uint8)
    for thing in things:
        row, column = divmod(thing.cell, GRID)
        block = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        block[GLYPHS[thing.shape]] = COLORS[thing.color]
    return Image.fromarray(pixels)


def neighbour(cell: int, direction: str) -> int | None:
    """The cell next to ``cell``, or None where the grid ends."""
    row, column = divmod(cell, GRID)
    down, right = DIRECTIONS[direction]
    row, column = row + down, column + right
    return row * GRID + column if 0 <= row < GRID and 0 <= column < GRID else None


def make_scene(rng: np.random.Generator) -> list[Thing]:
    """A random scene of 6 to 9 glyphs in which at least one three-hop question has an answer.

    One shape (the key) and its colour are planted: the key's shape is unique and exactly one other glyph has its
    colour; that one has a neighbour. The rest is filled at random, half of it next to glyphs already there.
    """
    key_shape, key_color = rng.choice(SHAPES), rng.choice(list(COLORS))
    shapes = [s for s in SHAPES if s != key_shape]
    colors = [c for c in COLORS if c != key_color]
    cells = rng.permutation(GRID * GRID).tolist()
    key, mate = cells[0], cells[1]
    placed = {
        key: Thing(key, str(key_shape), str(key_color)),
        mate: Thing(mate, str(rng.choice(shapes)), str(key_color)),
    }

    def fill(cell: int) -> None:
        placed[cell] = Thing(cell, str(rng.choice(shapes)), str(rng.choice(colors)))

    for anchor in (mate, key):
        around = [n for d in DIRECTIONS if (n := neighbour(anchor, d)) is not None and n not in placed]
        if around:
            fill(int(rng.choice(around)))
    total = int(rng.integers(6, 10))
    for cell in cells:
        if len(placed) >= total:
            break
        if cell not in placed:
            fill(cell)
            around = [n for d in DIRECTIONS if (n := neighbour(cell, d)) is not None and n not in placed]
            if around and len(placed) < total:
                fill(int(rng.choice(around)))
    return list(placed.values())


def _only(things: list[Thing], attribute: str) -> list[Thing]:
    """Things whose value of ``attribute`` occurs once."""
    values = [getattr(t, attribute) for t in things]
    return [t for t in things if values.count(getattr(t, attribute)) == 1]


def _named(thing: Thing, attribute: str) -> str:
    return f"the {thing.shape}" if attribute == "shape" else f"the {thing.color} one"


def _beside(at: dict[int, Thing], cell: int, direction: str) -> Thing | None:
    next_cell = neighbour(cell, direction)
    return None if next_cell is None else at.get(next_cell)


def visual_questions(things: list[Thing]) -> dict[str, list[Question]]:
    """Every question with exactly one answer in the scene, by category."""
    at = {t.cell: t for t in things}
    found: dict[str, list[Question]] = {"one-hop": [], "two-hop": [], "three-hop": []}
    for thing in _only(things, "shape"):
        found["one-hop"].append(Question("one-hop", f"What color is the {thing.shape}?", thing.color, (thing.cell,)))
    for thing in _only(things, "color"):
        found["one-hop"].append(
            Question("one-hop", f"What shape is the {thing.color} one?", thing.shape, (thing.cell,))
        )
    for attribute in ("shape", "color"):
        for thing in _only(things, attribute):
            for direction in DIRECTIONS:
                other = _beside(at, thing.cell, direction)
                if other is None:
                    continue
                place = f"{direction} {_named(thing, attribute)}?"
                cells: tuple[int, ...] = (thing.cell, other.cell)
                found["two-hop"].append(Question("two-hop", f"What shape is {place}", other.shape, cells))
                found["two-hop"].append(Question("two-hop", f"What color is the shape {place}", other.color, cells))
    for thing in _only(things, "shape"):
        mates = [t for t in things if t.color == thing.color and t is not thing]
        if len(mates) != 1:
            continue
        mate = mates[0]
        cells = (thing.cell, mate.cell)
        found["two-hop"].append(Question("two-hop", f"What shape has the {thing.shape}'s color?", mate.shape, cells))
        for direction in DIRECTIONS:
            other = _beside(at, mate.cell, direction)
            if other is None or other is thing:
                continue
            place = f"{direction} the one that has the {thing.shape}'s color?"
            cells = (thing.cell, mate.cell, other.cell)
            found["three-hop"].append(Question("three-hop", f"What shape is {place}", other.shape, cells))
            found["three-hop"].append(Question("three-hop", f"What color is the shape {place}", other.color, cells))
    return found


def text_question(rng: np.random.Generator) -> Question:
    """A question that the words alone answer: common knowledge, or a fact that the context sentence states."""
    if rng.random() < 0.5:
        subject = str(rng.choice(list(FACTS)))
        return Question("text", f"What color is {subject}?", FACTS[subject])
    person, color = str(rng.choice(PEOPLE)), str(rng.choice(list(COLORS)))
    return Question("text", f"What color does {person} like?", color, hint=f"{person} likes the color {color}.")


def context_sentence(rng: np.random.Generator) -> str:
    """A context sentence that decides nothing about the picture."""
    return f"{rng.choice(PEOPLE)} likes the color {rng.choice(list(COLORS))}."


def options(question: Question, rng: np.random.Generator, count: int = 4) -> list[str]:
    """``count`` different choices in random order, the answer among them."""
    wrong = [c for c in question.choices if c != question.answer]
    picked = [question.answer, *rng.choice(wrong, count - 1, replace=False).tolist()]
    return [str(picked[i]) for i in rng.permutation(count)]
