"""Looking ahead runs a class's and a benchmark's own code for questions that are not asked yet: it leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

Undo = dict[int, tuple[Any, Callable[[], Any]]]  # of a thing, by its address


@contextmanager
def as_before(*owners: Any) -> Iterator[None]:
    """Afterwards the attributes of ``owners`` are those of before, and what is drawn next is what would have been.

    So is what lists, dicts, sets and generators among the attributes hold; other objects keep what was done to them.
    """
    undo: Undo = {}
    held = [(vars(one), dict(vars(one))) for one in owners if hasattr(one, "__dict__")]
    for _, attributes in held:
        _note(attributes, undo)
    draws = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        for _, back in undo.values():
            back()
        for own, attributes in held:
            for name in own.keys() - attributes.keys():
                del own[name]
            own.update(attributes)
        random.setstate(draws[0])
        np.random.set_state(draws[1])
        torch.set_rng_state(draws[2])


def _note(content: Any, undo: Undo) -> None:
    """How everything within ``content`` that can be put back is."""
    for value in content.values() if isinstance(content, dict) else content:
        if id(value) not in undo and (back := _back(value)) is not None:
            undo[id(value)] = value, back
            if type(value) in (list, dict, set):
                _note(value, undo)


def _back(value: Any) -> Callable[[], Any] | None:
    """What makes it again what it is now; None where that is not known."""
    if type(value) in (list, dict, set):
        return partial(_refill, value, value.copy())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, (np.random.RandomState, torch.Generator)):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)
