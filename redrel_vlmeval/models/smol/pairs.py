"""Pictures in which every glyph lies astride two patches, and questions of one and two hops about them.

A pretrained decoder reads such a picture as words: the left patch of a glyph says its colour, the right one its shape
(``red triangle``), every other patch nothing. Glyphs, colours and questions are those of RedRelShapes.

    patch     0   1   2   3   4   5   6   7      a slot is two patches beside one another, 4 a row, 32 in all;
    row 0   |  [glyph]  |       |       |        a glyph is one patch wide, in the middle of its slot
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from redrel_vlmeval.models.tiny import scenes

CATEGORIES = ("one-hop", "two-hop")
SLOTS = scenes.GRID * scenes.GRID // 2


def make_scene(rng: np.random.Generator) -> list[scenes.Thing]:
    """5 to 8 random glyphs, with four questions of one hop or more; ``cell`` is the left patch of a glyph's slot."""
    while True:
        slots = rng.permutation(SLOTS)[: int(rng.integers(5, 9))]
        things = [
            scenes.Thing(2 * int(slot), str(rng.choice(scenes.SHAPES)), str(rng.choice(list(scenes.COLORS))))
            for slot in slots
        ]
        if len(visual_questions(things)["one-hop"]) >= 4:
            return things


def render(things: list[scenes.Thing]) -> Image.Image:
    """RGB picture of 96 x 96 pixels."""
    pixels = np.full((scenes.SIZE, scenes.SIZE, 3), scenes.BACKGROUND, np.uint8)
    for thing in things:
        row, column = divmod(thing.cell, scenes.GRID)
        left = column * scenes.CELL + scenes.CELL // 2
        pixels[row * scenes.CELL : (row + 1) * scenes.CELL, left : left + scenes.CELL][scenes.GLYPHS[thing.shape]] = (
            scenes.COLORS[thing.color]
        )
    return Image.fromarray(pixels)


def words(things: list[scenes.Thing]) -> list[str]:
    """What every patch says, 64 words: a glyph's colour, its shape, or "" for an empty one."""
    said = [""] * scenes.GRID**2
    for thing in things:
        said[thing.cell : thing.cell + 2] = thing.color, thing.shape
    return said


def vocabulary() -> list[str]:
    """Every word of :func:`words` but ""."""
    return [*scenes.COLORS, *scenes.SHAPES]


def visual_questions(things: list[scenes.Thing]) -> dict[str, list[scenes.Question]]:
    """Every question with exactly one answer in the scene, by category; ``cells`` are both patches of each glyph.

    Two hops are those by colour (``What shape has the triangle's color?``): glyphs here have no neighbours.
    """
    found = scenes.visual_questions(things)
    by_color = [question for question in found["two-hop"] if question.text.endswith("'s color?")]
    return {"one-hop": list(map(_of_patches, found["one-hop"])), "two-hop": list(map(_of_patches, by_color))}


def _of_patches(question: scenes.Question) -> scenes.Question:
    return replace(question, cells=tuple(patch for cell in question.cells for patch in (cell, cell + 1)))
