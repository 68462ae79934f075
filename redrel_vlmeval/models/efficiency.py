"""What a variant costs: FLOPs and KV bytes from a trace, prefill and decode time from a clock on the model.

One multiply-add counts as one FLOP, as in FastV, PyramidDrop and SparseVLM; numbers are those of the decoder blocks
(no vision tower, no embedding, no output layer). Per block with n tokens, width d, FFN width m, g key heads of h:
``2 n d^2 (1 + g/h) + 2 n^2 d + 3 n d m``, and one row (n d) more in a block that ranks. Of experts m is the width of
all that a token is sent to together; the layer that sends it is not counted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.bases import BlockShape
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.files import lock
from redrel_vlmeval.models import gpus
from redrel_vlmeval.models.places import told
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.rules import Rule
from redrel_vlmeval.truncation import Decoder, PromptTrace, find_decoder


def block_flops(tokens: int, shape: BlockShape) -> int:
    """Multiply-adds of one decoder block over ``tokens`` tokens at prefill (full, not causal, attention)."""
    inner, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = 2 * tokens * shape.width * (inner + keys)
    return projections + 2 * tokens**2 * inner + 3 * tokens * shape.width * shape.ffn


def prefill_flops(
    tokens: Sequence[int], shape: BlockShape, ranked: Sequence[tuple[int, Rule]] = (), images: Sequence[int] = ()
) -> int:
    """Multiply-adds of a prefill: ``tokens[i]`` tokens, ``images[i]`` of them visual, in block i.

    ``ranked``: after which layers L (0 to N - 1) a rule chose, and which.
    """
    before = [(max(layer - 1, 0), rule) for layer, rule in ranked]
    choosing = sum(rule.flops(tokens[block], images[block], shape) for block, rule in before)
    return sum(block_flops(n, shape) for n in tokens) + choosing


def kv_bytes(tokens: Sequence[int], shape: BlockShape, bytes_each: int) -> int:
    """Bytes of keys and values when block i holds ``tokens[i]`` tokens."""
    return sum(2 * n * shape.kv_heads * shape.head_dim * bytes_each for n in tokens)


class Meter:
    """``with Meter(model) as meter: model.generate(...)`` — times of the first (prefill) and the later forward calls.

    ``prefill_ms`` includes the vision tower; ``decode_ms`` is the mean per later call, None without one. ``total`` is
    the wall time in seconds of everything inside, ``kv_bytes`` what the real cache held after the last call (with
    beams: of all of them) and ``peak_bytes`` the most memory allocated on a GPU above what was there before, which is
    the weights; on a CPU None, where the allocator gives back too little to tell.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float] = time.perf_counter) -> None:
        self.model, self.clock = model, clock
        self.decoder: Decoder | None
        try:
            self.decoder = find_decoder(model)
        except TruncationError:
            self.decoder = None
        self.seconds: list[float] = []
        self.given: dict[str, Any] = {}  # what the first call says of how its pictures were cut
        self.prompt: PromptTrace | None = None
        self.total: float | None = None
        self.kv_bytes: int | None = None
        self.peak_bytes: int | None = None
        self._cache: Any = None

    def __enter__(self) -> Meter:
        called = self.model if self.decoder is None else self.decoder.heard(self.model)
        self._undo = ExitStack()
        self._undo.callback(called.register_forward_pre_hook(self._start, with_kwargs=True).remove)
        self._undo.callback(called.register_forward_hook(self._stop).remove)
        if self.decoder is not None:
            self._undo.enter_context(self.decoder.entered(self.clock))
        self._gpus = gpus.gpus(self.model)
        gpus.wait(self._gpus)
        self._before = gpus.start_peak(self._gpus)
        self._entered = self.clock()
        return self

    def __exit__(self, *_exc: object) -> None:
        gpus.wait(self._gpus)
        self.total = self.clock() - self._entered
        self.peak_bytes = gpus.peak(self._gpus, self._before)
        if self.decoder is not None and self._cache is not None:
            self.kv_bytes = self.decoder.held_bytes(self._cache)
        self._cache = None
        self._undo.close()

    def _start(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.seconds and self.decoder is not None:
            call = self.decoder.read_call(args, kwargs)
            if call.input_ids is not None and not call.past:
                self.given = told(self.decoder, kwargs, call.input_ids[0])
                images = int(self.decoder.image_mask(call.input_ids[:1]).sum())
                blocks = len(self.decoder.blocks)
                self.prompt = PromptTrace([call.input_ids.shape[1]] * blocks, [images] * blocks)
        gpus.wait(self._gpus)
        entrance = self.decoder.entrance if self.decoder is not None and not self.seconds else None
        self._began = self.clock() if entrance is None else entrance.began

    def _stop(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        gpus.wait(self._gpus)
        self.seconds.append(self.clock() - self._began)
        if self.decoder is not None:
            self._cache = self.decoder.cache_after(output, getattr(output, "past_key_values", None))

    @property
    def new_tokens(self) -> int:
        return len(self.seconds)

    @property
    def prefill_ms(self) -> float | None:
        return self.seconds[0] * 1e3 if self.seconds else None

    @property
    def decode_ms(self) -> float | None:
        later = self.seconds[1:]
        return sum(later) / len(later) * 1e3 if later else None


@dataclass(frozen=True)
class Share:
    """What one prompt of a batch cost, in the place of the :class:`Meter` of a prompt that was alone.

    ``prefill_ms`` is shared by the prompts' tokens, decoding by the answers', what is left of ``total`` evenly. A row
    of the cache is as long as the longest prompt; ``peak_bytes`` is the whole batch's: the machine had to have it.
    ``given``: how its pictures were cut, of its own call.
    """

    batch: int
    new_tokens: int
    prompt: PromptTrace | None
    own: PromptTrace | None
    decoder: Decoder | None
    prefill_ms: float | None
    decode_ms: float | None
    total: float | None
    kv_bytes: int | None
    peak_bytes: int | None
    given: dict[str, Any]

    def longer(self, seconds: float | None) -> Share:
        """With what the class's own code took before and behind the batch's call, for this prompt alone."""
        return replace(self, total=None if self.total is None else self.total + (seconds or 0.0))


def shares(
    meter: Meter,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: Sequence[int],
    traces: Sequence[PromptTrace],
    tensors: Sequence[Mapping[str, Any]] = (),
) -> list[Share]:
    """What each prompt of a measured batch cost.

    Args:
        meter: around the batch's ``generate``.
        ids, mask: padded prompts, long [b, s].
        lengths: tokens of each answer.
        traces: the truncated prompts', of one or, with beams, several rows each; empty for an untouched model.
        tensors: what each prompt's own call was given.
    """
    count = len(ids)
    real = torch.ones_like(ids) if mask is None else mask
    tokens = real.sum(1).tolist()
    wholes: list[PromptTrace | None] = [None] * count
    if meter.decoder is not None and meter.prompt is not None:
        images, blocks = (meter.decoder.image_mask(ids) & real.bool()).sum(1).tolist(), len(meter.decoder.blocks)
        wholes = [PromptTrace([n] * blocks, [seen] * blocks) for n, seen in zip(tokens, images, strict=True)]
    firsts = traces[:: len(traces) // count or 1]
    owns = [_shorter(trace, max(lengths) - length) for trace, length in zip(firsts, lengths, strict=bool(firsts))]
    steps = sum(length - 1 for length in lengths)
    each = sum(meter.seconds[1:]) * 1e3 / steps if steps else None
    rest = None if meter.total is None else (meter.total - sum(meter.seconds)) / count
    found = []
    for row, length in enumerate(lengths):
        prefill = None if meter.prefill_ms is None else meter.prefill_ms * tokens[row] / sum(tokens)
        total = None if rest is None else rest + ((prefill or 0.0) + (each or 0.0) * (length - 1)) / 1e3
        found.append(
            Share(
                count, length, wholes[row], owns[row] if owns else None, meter.decoder, prefill,
                each if length > 1 else None, total, None if meter.kv_bytes is None else meter.kv_bytes // count,
                meter.peak_bytes, _told(meter.decoder, tensors[row], ids[row][real[row].bool()]) if tensors else {},
            )
        )  # fmt: skip
    return found


def _told(decoder: Decoder | None, given: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    return {} if decoder is None else told(decoder, given, ids)


def _shorter(trace: PromptTrace, steps: int) -> PromptTrace:
    """The trace without the last ``steps`` tokens, which a row of a batch makes behind the end of its answer."""
    return replace(trace, kv=[held - steps for held in trace.kv])


# Of a record's entries, those that a clock or the machine's memory gives, and no arithmetic.
MEASURED = ("prefill_ms", "decode_ms_per_token", "seconds", "kv_bytes_measured", "peak_bytes")


def costs(
    meter: Meter | Share, trace: PromptTrace | None, spec: VariantSpec, new_tokens: int | None = None
) -> dict[str, Any]:
    """The measured and computed part of an efficiency record for one prompt; ``trace`` None for an untouched model.

    ``new_tokens`` is the answer's length where it is not the number of forward calls: several options were tried.
    """
    new_tokens = meter.new_tokens if new_tokens is None else new_tokens
    found: dict[str, Any] = {
        "prefill_ms": meter.prefill_ms,
        "decode_ms_per_token": meter.decode_ms,
        "new_tokens": new_tokens,
        "seconds": meter.total,
        "kv_bytes_measured": meter.kv_bytes,
        "peak_bytes": meter.peak_bytes,
    }
    whole, decoder = meter.prompt, meter.decoder
    if whole is None or decoder is None:
        return found
    return found | computed(decoder, whole, trace or whole, spec, new_tokens)


def computed(
    decoder: Decoder, whole: PromptTrace, own: PromptTrace, spec: VariantSpec, new_tokens: int
) -> dict[str, Any]:
    """The part of a record that needs no clock; ``whole``: the untouched prompt, ``own``: the variant's."""
    size = next(decoder.text.parameters()).element_size()
    ranked = [(stage.layer, spec.rule_of(stage)) for stage in spec.stages if own.kept.get(stage.layer)]
    steps = new_tokens - 1
    end, end_whole = [n + steps for n in own.tokens], [n + steps for n in whole.tokens]
    return {
        "mode": own.mode,
        "image_tokens": whole.images[0],
        "prompt_tokens": whole.tokens[0],
        "tokens": own.tokens,
        "images_per_block": own.images,
        "kept": {str(layer): kept for layer, kept in own.kept.items()},
        "kv_tokens": own.kv or end,
        "average_image_tokens": own.average_image_tokens,
        "prefill_flops": prefill_flops(own.tokens, decoder.shape, ranked, own.images),
        "prefill_flops_untouched": prefill_flops(whole.tokens, decoder.shape),
        "kv_bytes": kv_bytes(own.kv or end, decoder.shape, size),
        "kv_bytes_untouched": kv_bytes(end_whole, decoder.shape, size),
        "rules": {rule.name: rule.digest for rule in spec.chosen_by if not rule.built_in},
        "kernel": decoder.kernel,
        "dtype": str(next(decoder.text.parameters()).dtype).removeprefix("torch."),
        "device": str(next(decoder.text.parameters()).device),
    }


def now() -> str:
    """The time of day in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class RecordFile:
    """An append-only file of JSON lines with one writer at a time.

    Raises:
        Busy: another process writes to it: two runs share one folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab+")  # noqa: SIM115 (held open and locked for the life of the run)
        lock(self._file, str(path))
        self._file.seek(0, os.SEEK_END)
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":  # the last writer was killed inside a line
                self._file.write(b"\n")

    def append(self, record: dict[str, Any]) -> None:
        """Write one record as one line, at once."""
        self._file.write(json.dumps(record, default=_plain).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    """Numbers of numpy and the like as Python's own; anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)
