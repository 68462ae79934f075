"""What ``redrel_smol`` was never trained on: ``python -m tools.smol.others``, once `redrel smol` has fetched it.

Two hops, one hop in multiple choice, and photographs of scikit-image, each asked with the picture and without
(``l0_k0``). Prints Markdown: right answers of n with Wilson's 95 % interval, and how many answers are a word, or a
letter, that could be one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from redrel_vlmeval.bases import SMOL
from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.llava.input import question_text
from redrel_vlmeval.models.smol import pairs
from redrel_vlmeval.models.tiny import scenes
from redrel_vlmeval.results import paired_tests
from redrel_vlmeval.truncation import truncated

FRESH = 6  # first number of the stream; training and benchmark draw from others
# file of scikit-image, what is asked of, its colour
COLOURED = (
    ("astronaut.png", "space shuttle", "white"),
    ("chelsea.png", "cat's eye", "green"),
    ("coffee.png", "cup", "red"),
    ("coffee.png", "inside of the cup", "white"),
    ("horse.png", "background behind the horse", "white"),
    ("ihc.png", "nucleus", "blue"),
    ("motorcycle_left.png", "motorcycle", "red"),
    ("retina.jpg", "retina", "red"),
    ("rocket.jpg", "rocket", "white"),
    ("rocket.jpg", "sky", "blue"),
)
NAMED = {
    "astronaut.png": ("astronaut", "woman"),
    "brick.png": ("bricks", "brick", "wall"),
    "camera.png": ("man", "photographer", "camera"),
    "chelsea.png": ("cat",),
    "coffee.png": ("coffee", "cup"),
    "coins.png": ("coins", "coin"),
    "grass.png": ("grass",),
    "horse.png": ("horse",),
    "motorcycle_left.png": ("motorcycle", "motorbike"),
    "rocket.jpg": ("rocket",),
}


@dataclass(frozen=True)
class Asked:
    """A picture, a question, the words that are right, and those that could be (none: any word)."""

    picture: Image.Image
    text: str
    right: tuple[str, ...]
    choices: tuple[str, ...] = ()


def drawn(category: str, number: int) -> tuple[Image.Image, scenes.Question, np.random.Generator]:
    """Picture and question ``number`` of a category."""
    rng = np.random.default_rng([FRESH, pairs.CATEGORIES.index(category), number])
    while True:
        things = pairs.make_scene(rng)
        if found := pairs.visual_questions(things)[category]:
            return pairs.render(things), found[int(rng.integers(len(found)))], rng


def two_hops(count: int) -> Iterator[Asked]:
    """``What shape has the triangle's color?``, open."""
    for number in range(count):
        picture, question, _ = drawn("two-hop", number)
        yield Asked(picture, question.text, (question.answer,), question.choices)


def multiple_choice(count: int) -> Iterator[Asked]:
    """One hop, with four options in the host's words; right is the letter or the word behind it."""
    for number in range(count):
        picture, question, rng = drawn("one-hop", number)
        options = dict(zip("ABCD", scenes.options(question, rng), strict=True))
        letter = next(letter for letter, word in options.items() if word == question.answer)
        text = question_text({"question": question.text, **options})
        yield Asked(picture, text, (letter, question.answer), (*options, *options.values()))


def photograph(name: str) -> Image.Image:
    """A picture of scikit-image's own package."""
    with Image.open(Path(skimage.data.__file__).with_name(name)) as picture:
        return picture.convert("RGB")


def colours() -> Iterator[Asked]:
    """The trained question, of a photograph; every answer is one of the five trained colours."""
    for name, what, color in COLOURED:
        yield Asked(photograph(name), f"What color is the {what}?", (color,), tuple(scenes.COLORS))


def names() -> Iterator[Asked]:
    """``What is in the picture?``, of a photograph."""
    for name, words in NAMED.items():
        yield Asked(photograph(name), "What is in the picture?", words)


def row(name: str, asked: list[Asked], answers: list[str]) -> str:
    """One line of the table."""
    said = [answer.lower().strip(" .") for answer in answers]
    hits = [float(answer in map(str.lower, one.right)) for one, answer in zip(asked, said, strict=True)]
    known = [answer in map(str.lower, one.choices) for one, answer in zip(asked, said, strict=True) if one.choices]
    low, high = paired_tests.interval(hits)
    right = f"{sum(hits):.0f} of {len(hits)}: {100 * np.mean(hits):.1f} ({low:.0f}..{high:.0f})"
    return f"| {name} | {right} | {f'{sum(known)} of {len(known)}' if known else '-'} |"


def replies(core: LlavaCore, asked: list[Asked]) -> list[str]:
    """The model's answers."""
    said = []
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(asked):
            path = Path(folder) / f"{number}.png"
            one.picture.save(path)
            said.append(core.reply([{"type": "image", "value": str(path)}, {"type": "text", "value": one.text}]))
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="questions about drawn pictures, of each kind")
    count = parser.parse_args().count
    core = LlavaCore(SMOL, device="cpu", max_new_tokens=6)
    kinds: dict[str, Callable[[], Iterator[Asked]]] = {
        "two hops, open": lambda: two_hops(count),
        "one hop, four options": lambda: multiple_choice(count),
        "photographs: what color": colours,
        "photographs: what is in the picture": names,
    }
    print("| questions | right of n (%, 95 % CI) | answers that could be |\n|---|---|---|", flush=True)
    for name, kind in kinds.items():
        asked = list(kind())
        for setting in ("", "l0_k0"):
            with truncated(core.model, setting) if setting else nullcontext():
                answers = replies(core, asked)
            print(row(f"{name}{', without the picture' if setting else ''}", asked, answers), flush=True)
            common = sorted(set(answers), key=answers.count, reverse=True)[:6]
            print(f"<!-- {', '.join(f'{answer!r} {answers.count(answer)}' for answer in common)} -->", flush=True)


if __name__ == "__main__":
    main()
