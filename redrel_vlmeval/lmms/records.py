"""One efficiency record per question, of a batch that was answered at once; in the words of VLMEvalKit's records."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models import Meter, answer_length, costs, ends, now, shares, versions
from redrel_vlmeval.truncation import PromptTrace

Question = tuple[str, str, int]  # task, split, document
_MEANS = ("image_tokens", "average_image_tokens", "prefill_ms", "decode_ms_per_token")
_RATIOS = {"flops_ratio": "prefill_flops", "kv_ratio": "kv_bytes"}


def record(
    meter: Meter, holder: Any, ids: torch.Tensor, given: dict[str, Any], traces: Sequence[PromptTrace], output: Any
) -> list[dict[str, Any]]:
    """The records of a batch, in its order.

    Args:
        meter: around its ``generate``. holder: the harness's model. ids: prompts [b, s]. given: keywords of generate.
        traces: the truncated prompts', one per row and beam; empty for an untouched model. output: ids [b, t].

    Raises:
        TruncationError: several prompts whose decoder was given embeddings: their ids do not say how long each was.
    """
    stops = ends(holder.model, given)
    begun = ids.shape[1] if torch.equal(output[: len(ids), : ids.shape[1]], ids) else 0
    lengths = [answer_length(row[begun:].tolist(), stops) for row in output]
    more = {"batch": len(ids)} | facts(holder) | {"time": now()}
    if meter.decoder is not None and meter.decoder.entrance is not None:
        if len(ids) > 1:
            raise TruncationError(
                f"{type(holder.model).__name__}.generate() hands its decoder embeddings, and gives answers alone: "
                f"--batch_size 1, not {len(ids)}"
            )
        return [costs(meter, next(iter(traces), None), holder.spec, lengths[0]) | more]
    found = shares(meter, ids, given.get("attention_mask"), lengths, traces)
    return [costs(share, share.own, holder.spec) | more for share in found]


def facts(holder: Any) -> dict[str, Any]:
    """What each record of a run says: the harness's class, the weights, and the releases."""
    door, config = holder.door, holder.model.config
    known = {name: number for name, number in versions().items() if name != "vlmeval"}
    return {
        "backend": f"{door.source}.{door.name}",
        "setting": holder.spec.setting,
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
