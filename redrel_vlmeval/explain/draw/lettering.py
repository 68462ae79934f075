"""Text of figures: wrapped by its measured width, in fonts that have its signs, else as the sign's code, [U+4E2D]."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import TextToPath

# Tried in this order for each sign; those that a machine lacks are never asked for, which would print a warning.
FAMILIES = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Arial Unicode MS", "Microsoft YaHei", "PingFang SC",
)  # fmt: skip
INCH = 72  # points
DOTS = 300  # of an inch, in the figures that are made of pixels; hinting moves the pen by whole ones


@cache
def families() -> tuple[str, ...]:
    """Those of :data:`FAMILIES` that are installed; the first comes with matplotlib."""
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FAMILIES if name in installed)


@cache
def _signs(weight: str) -> frozenset[int]:
    """Codes of all signs that one of the installed families has."""
    paths = [findfont(FontProperties(family=[name], weight=weight)) for name in families()]
    return frozenset(code for path in paths for code in get_font(path).get_charmap())


def readable(text: str, weight: str = "normal") -> str:
    """The text with the code of every sign that no installed font has; line ends stay."""
    known = _signs(weight)
    return "".join(sign if ord(sign) in known or sign == "\n" else f"[U+{ord(sign):04X}]" for sign in text)


@cache
def _advance(sign: str, weight: str) -> float:
    """How far a sign moves the pen, in parts of the font's size. Between two others: a space alone has no width."""
    font = FontProperties(family=list(families()), weight=weight, size=100)
    both, bare = (TextToPath().get_text_width_height_descent(text, font, False)[0] for text in (f"|{sign}|", "||"))
    return float(both - bare) / 100


def inches(text: str, size: float, weight: str = "normal") -> float:
    """Width of one line of readable text at ``size`` points, in a .pdf or, where pixels make it wider, a .png."""
    exact = [_advance(sign, weight) * size / INCH for sign in text]
    return max(sum(exact), sum(round(DOTS * part) for part in exact) / DOTS)


def wrapped(text: str, width: float, size: float, most: int, weight: str = "normal") -> list[str]:
    """Lines of at most ``width`` inches, each line of the text by itself; at most ``most``, dots where more is cut.

    Lines break at spaces and beside Chinese, Japanese and Korean signs, elsewhere only in a word that fills a line.
    """
    whole = (readable(" ".join(line.split()), weight) for line in text.splitlines())
    broken = (part for line in whole for part in _broken(line, width, size, weight))
    lines = list(islice(broken, most + 1))  # no more than it takes to know that something is cut: texts can be long
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and inches(f"{last} …", size, weight) > width:
        last = last[:-1].rstrip()
    return [*lines[: most - 1], f"{last} …"]


def _broken(line: str, width: float, size: float, weight: str) -> Iterator[str]:
    while (end := _fitting(line, width, size, weight)) < len(line):
        places = [n for n in range(1, end + 1) if line[n] == " " or _wide(line[n]) or _wide(line[n - 1])]
        end = max(places, default=max(end, 1))
        yield line[:end].rstrip()
        line = line[end:].lstrip()
    yield line


def _fitting(line: str, width: float, size: float, weight: str) -> int:
    """How many signs of a line fit into ``width``: all of them, or as many as stand before the first that does not."""
    return next((n for n in range(1, len(line) + 1) if inches(line[:n], size, weight) > width), len(line) + 1) - 1


def _wide(sign: str) -> bool:
    return unicodedata.east_asian_width(sign) in "WF"


def put(figure: Figure, left: float, top: float, lines: list[str], size: float, **look: Any) -> None:
    """Lines whose upper left corner is at ``left``, ``top``, in inches from the lower left of the figure."""
    width, height = figure.get_size_inches()
    whole: dict[str, Any] = {"fontsize": size, "va": "top", "linespacing": 1.2, "fontfamily": list(families())} | look
    figure.text(left / width, top / height, "\n".join(lines), parse_math=False, **whole)
