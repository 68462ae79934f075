"""How a command ends: what it wrote, and of all that the one file to open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

# what shows most comes first
_SHOWN = (".html", ".xlsx", ".png", ".pdf", ".md", ".tex", ".csv")
_NAMED = 3  # so many files are named; of more, their number


def ending(written: Iterable[Path | str]) -> list[str]:
    """``written:`` lines of all files but one, then ``open this:`` and that one; no path twice, no file no line."""
    paths = list(dict.fromkeys(map(Path, written)))
    if not paths:
        return []
    ranks = {path: _SHOWN.index(path.suffix) if path.suffix in _SHOWN else len(_SHOWN) for path in paths}
    best = min(paths, key=ranks.__getitem__)
    others = [path for path in paths if path != best]
    lines = [f"written: {path}" for path in others]
    if len(others) > _NAMED:
        folders = Counter(path.parent for path in others)
        lines = [f"written: {count} file{'s' * (count > 1)} in {folder}" for folder, count in folders.items()]
    return [*lines, f"open this: {best}"]
