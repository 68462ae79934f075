"""How a rule looks, in every figure and on the page: the same marker and dashes wherever it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redrel_vlmeval.rules import DEFAULT as DEFAULT, known

# Okabe and Ito's colours, told apart by every kind of colour vision; markers differ too, for print in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # of the lines of one figure, in their order
# Of the rules, in the order of the registry: none of the lines' own, which the default has. `charts.js` does alike.
RULE_MARKERS = ("", "x", "+", "*", "d", "1", "h", "p", "<", ">", "2", "8")
RULE_DASHES: tuple[Any, ...] = ("-", (0, (1, 1.5)), (0, (5, 2)), (0, (3, 1, 1, 1)), ":", "-.", (0, (8, 2, 2, 2)))


def in_order(names: Iterable[str]) -> list[str]:
    """Rules as figures and pages list them: those of the registry in its order, then others by name."""
    found, registered = set(names), known()
    return [name for name in registered if name in found] + sorted(found - registered.keys())


def numbers(names: Iterable[str]) -> dict[str, int]:
    """The number of each rule's look: its place in the registry; others, as with another row, come behind."""
    places = {name: number for number, name in enumerate(known())}
    found = in_order(names)
    others = [name for name in found if name not in places]
    return {name: places[name] if name in places else len(places) + others.index(name) for name in found}


def marker(number: int) -> str:
    """The marker of a rule's number; beyond the last they start again behind the default's."""
    return RULE_MARKERS[_turn(number, RULE_MARKERS)]


def dashes(number: int) -> Any:
    """The dashes of a rule's number."""
    return RULE_DASHES[_turn(number, RULE_DASHES)]


def _turn(number: int, looks: Sequence[Any]) -> int:
    return number if number < len(looks) else 1 + (number - 1) % (len(looks) - 1)


def look(number: int) -> tuple[str, str]:
    """Colour and marker of a figure's line of this number: both repeat, no two of 49 lines have both alike."""
    turns, place = divmod(number, len(COLORS))
    return COLORS[place], MARKERS[(place + turns) % len(MARKERS)]
