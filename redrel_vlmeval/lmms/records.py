"""One efficiency record per question, of a batch that was answered at once; in the words of VLMEvalKit's records."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch

from redrel_vlmeval.models import Meter, costs, now, versions
from redrel_vlmeval.truncation import PromptTrace

Question = tuple[str, str, int]  # task, split, document
# of a batch, each of its questions has the same share
_SHARED = ("prefill_ms", "decode_ms_per_token", "seconds", "kv_bytes_measured")
_MEANS = ("image_tokens", "average_image_tokens", "prefill_ms", "decode_ms_per_token")
_RATIOS = {"flops_ratio": "prefill_flops", "kv_ratio": "kv_bytes"}


def record(
    meter: Meter, holder: Any, ids: torch.Tensor, given: dict[str, Any], traces: Sequence[PromptTrace], output: Any
) -> list[dict[str, Any]]:
    """The records of a batch, in its order.

    Args:
        meter: around its ``generate``. holder: the harness's model. ids: prompts [b, s]. given: keywords of generate.
        traces: the truncated prompts', one per row and beam; empty for an untouched model. output: ids [b, t].
    """
    rows, wholes = len(ids), _whole(meter, ids, given.get("attention_mask"))
    beams = len(traces) // rows
    made = []
    for row in range(rows):
        meter.prompt = wholes[row]
        own = traces[row * beams] if beams else None
        found = costs(meter, own, holder.spec, answer_length(ids[row], output[row], ends(holder, given)))
        found |= {name: found[name] / rows for name in _SHARED if found[name] is not None}
        made.append(found | {"batch": rows} | facts(holder) | {"time": now()})
    return made


def _whole(meter: Meter, ids: torch.Tensor, mask: torch.Tensor | None) -> list[PromptTrace | None]:
    """Tokens and visual tokens of each prompt as it came, padding left out; None where they cannot be found."""
    decoder = meter.decoder
    if decoder is None or meter.prompt is None:
        return [None] * len(ids)
    real = torch.ones_like(ids) if mask is None else mask
    images, blocks = decoder.image_mask(ids).sum(1).tolist(), len(decoder.blocks)
    counts = real.sum(1).tolist()
    return [PromptTrace([n] * blocks, [seen] * blocks) for n, seen in zip(counts, images, strict=True)]


def ends(holder: Any, given: dict[str, Any]) -> set[int]:
    """Ids that end an answer."""
    found = given.get("eos_token_id")
    if found is None:
        found = holder.model.generation_config.eos_token_id
    return set(found if isinstance(found, (list, tuple)) else [found]) - {None}


def answer_length(prompt: torch.Tensor, output: torch.Tensor, stops: set[int]) -> int:
    """Tokens of an answer up to its end; behind it a batch is padded."""
    begun = len(prompt) if torch.equal(output[: len(prompt)], prompt) else 0
    answer = output[begun:].tolist()
    return next((number for number, token in enumerate(answer, 1) if token in stops), len(answer))


def facts(holder: Any) -> dict[str, Any]:
    """What each record of a run says: the harness's class, the weights, and the releases."""
    door, config = holder.door, holder.model.config
    known = {name: number for name, number in versions().items() if name != "vlmeval"}
    return {
        "backend": f"{door.source}.{door.name}",
        "weights": holder.weights,
        "revision": getattr(config, "_commit_hash", None),
        "versions": known | {"lmms_eval": f"lmms_eval {importlib.metadata.version('lmms_eval')}"},
    }


def means(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Numbers for the harness's summary of a run, over all its questions."""
    columns = {name: [one.get(name) for one in records] for name in _MEANS}
    columns["kept"] = [one["images_per_block"][-1] for one in records if "images_per_block" in one]
    known = {name: [value for value in column if value is not None] for name, column in columns.items()}
    found = {name: sum(values) / len(values) for name, values in known.items() if values}
    for name, part in _RATIOS.items():
        both = [(one[part], one[f"{part}_untouched"]) for one in records if one.get(part)]
        found |= {name: sum(a for a, _ in both) / sum(b for _, b in both)} if both else {}
    return {f"redrel_{name}": value for name, value in found.items()}
