"""Lists that are typed: ``attention,random`` and ``1,2,5-8``."""

from __future__ import annotations

from redrel_vlmeval.errors import InvalidValue

MOST = 999_999


def words(text: str) -> tuple[str, ...]:
    """The parts between commas, without blanks and without empty ones."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(option: str, text: str, most: int = MOST) -> list[int]:
    """``8,1-3`` -> 8, 1, 2, 3: as they were typed, what was typed twice twice.

    Args:
        option: what the user calls it, for errors. most: the largest number that makes sense.

    Raises:
        InvalidValue: names the part that is neither a number nor a range.
    """
    found: list[int] = []
    for part in words(text):
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first]
        # ASCII digits alone, because int() reads those of every script; and few, because a range becomes a list
        known = all(end.isascii() and end.isdecimal() and len(end) <= len(str(most)) for end in ends)
        begin, end = (int(ends[0]), int(ends[-1])) if known else (1, 0)
        if not begin <= end <= most:
            raise InvalidValue(
                f"{option} {part[:30]!r} is neither a number to {most} nor a range from small to large, such as 5-8"
            )
        found += range(begin, end + 1)
    return found
