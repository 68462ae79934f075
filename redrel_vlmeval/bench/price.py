"""``redrel check NAME --data D --gpu 24GB``: memory and FLOPs of a run before it starts, from the base's row alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from redrel_vlmeval import bases, names
from redrel_vlmeval.bases import Base
from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.host import benchmark
from redrel_vlmeval.models import batch_size, kv_bytes, prefill_flops
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.sweep import Sizes, plan, preview

NEW = 32  # tokens of an answer that memory is kept for
BESIDE = 0.1  # of the blocks' weights: vision tower, embedding and output layer, which no row knows
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GIB|G)", re.I | re.A)


@dataclass(frozen=True)
class Price:
    """What one question of a run takes: multiply-adds of the decoder at prefill, and bytes in float16."""

    flops: int
    flops_untouched: int
    weights: int
    kv: int
    active: int

    @property
    def bytes(self) -> int:
        return self.weights + self.kv + self.active


def gigabytes(text: str) -> int:
    """``24GB`` -> bytes, a GB as makers of GPUs count it: 2**30.

    Raises:
        InvalidValue: no size.
    """
    found = SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise InvalidValue(f"--gpu {text}: give the GPU's memory, such as 24GB")
    return int(float(found[1]) * 2**30)


def price(spec: VariantSpec, base: Base, prompt: plan.Prompt, batch: int = 1) -> Price:
    """What a question of ``prompt`` costs under a setting, ``batch`` of them at once."""
    whole, blocks = prompt.kept(prompt.images), base.blocks
    tokens, images = [whole] * blocks, [prompt.images] * blocks
    for stage in spec.stages:
        kept = min(stage.count(prompt.images, blocks), images[-1])
        images[stage.layer :] = [kept] * (blocks - stage.layer)
        tokens[stage.layer :] = [prompt.kept(kept)] * (blocks - stage.layer)
    ranked = [(stage.layer, spec.rule_of(stage)) for stage in spec.stages if 0 < images[stage.layer] < prompt.images]
    rows = batch * spec.beam
    return Price(
        prefill_flops(tokens, base.shape, ranked, images),
        prefill_flops([whole] * blocks, base.shape),
        int(preview.decoder_bytes(base) * (1 + BESIDE)),
        rows * kv_bytes([n + NEW for n in tokens], base.shape, 2),
        batch * whole * Sizes(base.shape, blocks, 2, 0).active,
    )


def text(name: str, data: str | None, gpu: str | None) -> str:
    """Memory and FLOPs of a run of ``name`` on ``data``, and whether it fits into a GPU of ``gpu``; a line each.

    Raises:
        InvalidValue: no such benchmark, no size. UnknownName: a base whose sizes are not known before it is loaded.
        HostMissing: a benchmark, and no host that knows it.
    """
    room = None if gpu is None else gigabytes(gpu)
    spec = names.parse(name)
    base = bases.known(spec.base or name)
    if base.tokens is None:
        raise InvalidValue(f"{name}: no price: a picture's tokens depend on the picture's size in {base.name}")
    count, batch = questions(data), batch_size()
    prompt = preview.typical_prompt(base.tokens)
    found, whole = price(spec, base, prompt, batch), prompt.kept(prompt.images)
    size, unit = preview.unit_of(found.flops)
    lines = [
        f"a prompt of {whole} tokens, {prompt.images} of a picture (text assumed), {batch} at once",
        f"prefill: {found.flops / size:.3g} {unit} a question, {found.flops / found.flops_untouched:.3f} of the base's",
        f"memory in float16: weights {_gib(found.weights)} (a tenth assumed beside the blocks), KV cache "
        f"{_gib(found.kv)} with {NEW} new tokens, activations {_gib(found.active)}: {_gib(found.bytes)} in all",
    ]
    if count is not None:
        lines.append(
            f"{data}: {count:,} questions, {preview.hours(found.flops, count):.2g} hours of prefill at 100 TFLOP/s"
        )
    if room is not None:
        fits = "fits into" if found.bytes <= room else "does not fit into"
        spare = max(room - found.weights, 0) // max((found.kv + found.active) // batch, 1)
        lines.append(f"{fits} {gpu}; {spare} questions at once would" if spare else f"{fits} {gpu}")
    return "\n".join(f"  {line}" for line in lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def questions(data: str | None) -> int | None:
    """Questions of a benchmark whose table lies in ``LMUData``; None where it does not, or none is asked for.

    Raises:
        InvalidValue: the host does not know it. HostMissing: there is no host to ask.
    """
    if data is None:
        return None
    benchmark.check(data)
    table = benchmark.own_table(data)
    return len(pd.read_csv(table, sep="\t", usecols=["index"])) if table.is_file() else None
