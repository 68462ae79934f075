"""What no code of ours can make faster, measured on the small random LLaVA: ``python -m tools.limits``.

```
prefill   prompts one by one | all in one call                               CPU ms
room      keys concatenated at each token | written behind those there       CPU ms a token
```
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from redrel_vlmeval.bench import prefill, subjects
from redrel_vlmeval.models import Meter
from redrel_vlmeval.truncation import truncated

ROOM = 64  # tokens

Arms = dict[str, Callable[[], float]]


def rounds_of(arms: Arms, rounds: int) -> dict[str, float]:
    """Median of each arm; arms in turn, there and back, after a round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in list(arms)[:: 1 if number % 2 else -1]:
            value = arms[name]()
            if number:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def prefill_ms(subject: subjects.Subject, setting: str | None, new_tokens: int = 1, decoding: bool = False) -> float:
    """CPU milliseconds of one prefill, or of a later token."""
    meter = Meter(subject.model, prefill.clock_of(subject.model))
    with truncated(subject.model, setting) if setting else nullcontext(), meter:
        prefill.answer(subject, prefill.Arm("", setting, nullcontext), new_tokens)
    found = meter.decode_ms if decoding else meter.prefill_ms
    assert found is not None
    return found


def prompts(subject: subjects.Subject, rounds: int, count: int = 4) -> dict[str, float]:
    """CPU milliseconds of the prefill of ``count`` prompts."""
    inputs = {name: torch.cat([value] * count) for name, value in subject.inputs.items()}
    together = subjects.Subject(subject.model, inputs, subject.published)
    found = {}
    for setting in (None, "l5_k128"):
        arms: Arms = {
            "one by one": lambda setting=setting: sum(prefill_ms(subject, setting) for _ in range(count)),
            "in one call": partial(prefill_ms, together, setting),
        }
        took = rounds_of(arms, rounds)
        found |= {f"{setting or 'base'}, {count} {name}, ms": value for name, value in took.items()}
        found[f"{setting or 'base'}, one by one over one call"] = took["one by one"] / took["in one call"]
    return found


def room(subject: subjects.Subject, rounds: int) -> dict[str, float]:
    """CPU milliseconds a token when new keys are concatenated, as they are, or written into room behind the others."""

    def written(layer: Any, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> Any:
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
        held = layer.keys.shape[-2] if layer.keys.numel() else 0
        length = held + keys.shape[-2]
        if not held:
            layer.room = [new.new_empty(*new.shape[:2], length + ROOM, new.shape[-1]) for new in (keys, values)]
        for part, new in zip(layer.room, (keys, values), strict=True):
            part[:, :, held:length] = new
        layer.keys, layer.values = (part[:, :, :length] for part in layer.room)
        return layer.keys, layer.values

    def with_room(setting: str | None) -> float:
        own = DynamicLayer.update
        DynamicLayer.update = written
        try:
            return decoding(setting)
        finally:
            DynamicLayer.update = own

    def decoding(setting: str | None) -> float:
        return prefill_ms(subject, setting, 12, decoding=True)

    found = {}
    for setting in (None, "l2_k144"):
        arms: Arms = {"concatenated": partial(decoding, setting), "into room": partial(with_room, setting)}
        took = rounds_of(arms, rounds)
        found |= {f"{setting or 'base'}, {name}, ms a token": value for name, value in took.items()}
    return found


PARTS: dict[str, Callable[[subjects.Subject, int], dict[str, float]]] = {"prefill": prompts, "room": room}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    subject = subjects.random_subject("llava", "small", "cpu", torch.float32)
    for part in given.parts or PARTS:
        for name, value in PARTS[part](subject, given.rounds).items():
            print(f"{part}: {name}: {value:.3f}", flush=True)


if __name__ == "__main__":
    main()
