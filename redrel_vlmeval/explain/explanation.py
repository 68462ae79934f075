"""Everything about one answer put together: maps, flow, grids, pictures and provenance, ready for the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked, answer_ids
from redrel_vlmeval.explain.maps import Explained, Flow, Request, locality, log_likelihood, pixels, shown, through
from redrel_vlmeval.explain.store import SIDE, Stored
from redrel_vlmeval.models import now, versions


def compose(
    asked: Asked, explained: Explained | None = None, flow: Flow | None = None, request: Request | None = None, *,
    model: str = "", question: str = "", cards: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> Stored:  # fmt: skip
    """Arrays and manifest of one answer as :mod:`store` describes them.

    Args:
        request: what the maps were asked for with; its settings go into the manifest.
        model, question: names for people. facts: more provenance (backend, weights, revision).
        cards: of :mod:`faithfulness`, one per map that was tested.
    """
    request = request or Request()
    arrays: dict[str, np.ndarray] = {}
    manifest: dict[str, Any] = {"model": model, "variant": str(asked.spec) if asked.spec else None}
    manifest |= {"question": question, "reply": asked.reply, "own": asked.own, "rows": "predict"}
    manifest["answer"] = [
        {"id": token, "text": text} for token, text in zip(asked.answer, asked.words(asked.answer), strict=True)
    ]
    manifest |= {"groups": asked.spans().sizes(), "tokens": _tokens(asked), "cards": list(cards)}
    if explained is not None:
        _add_maps(arrays, manifest, asked, explained)
        if explained.row:
            ids = asked.inputs["input_ids"][0, list(explained.row)].tolist()
            manifest["row"] = {"tokens": "".join(asked.words(ids)), "positions": list(explained.row)}
        manifest |= {"objective": request.objective, "z": explained.z.tolist(), "kept": explained.kept}
    if flow is not None:
        fields = {"attention": flow.attention, "rows": flow.rows, "gradient": flow.gradient, "saliency": flow.saliency}
        arrays |= {f"flow/{name}": array for name, array in fields.items() if array is not None}
        if flow.causal is not None:
            arrays["flow/causal"] = flow.causal
        manifest["flat_from"] = flow.flat_from
    manifest["pictures"] = []
    for number, path in enumerate(asked.pictures):
        arrays[f"picture/{number}"] = shown(path, SIDE)
        manifest["pictures"].append({"path": path, "size": _size(asked, number)})
    manifest["provenance"] = provenance(asked, request) | dict(facts or {})
    return Stored(arrays, manifest)


def _add_maps(arrays: dict[str, np.ndarray], manifest: dict[str, Any], asked: Asked, explained: Explained) -> None:
    manifest["maps"], manifest["grids"] = {}, {}
    for found in explained.maps:
        name = f"{found.where}/{found.method}"
        arrays[f"maps/{name}"] = found.values
        manifest["maps"][name] = {"layers": list(found.layers), "status": [list(row) for row in found.status]}
        if explained.attention is not None and found.where != "vision":
            arrays[f"pixels/{name}"] = through(found.values, explained.attention)
    places = {found.where for found in explained.maps} | ({"pixels"} if explained.attention is not None else set())
    for where in sorted(places):
        manifest["grids"][where] = [grid.to_json() for grid in pixels.grids(asked, where)]
    if explained.attention is not None:
        manifest["locality"] = locality(explained.attention)


def _tokens(asked: Asked) -> list[str | None]:
    """Text of every position of the prompt and the answer; None at image tokens."""
    image = set(asked.spans().image.tolist())
    ids = [*asked.inputs["input_ids"][0].tolist(), *asked.answer]
    text = [token for place, token in enumerate(ids) if place not in image]
    words = iter(asked.words(text))
    return [None if place in image else next(words) for place in range(len(ids))]


def _size(asked: Asked, number: int) -> list[int]:
    return list(pixels.picture_sizes(asked, len(asked.pictures))[number])


def provenance(asked: Asked, request: Request) -> dict[str, Any]:
    """Versions, precision, device, kernel, and every setting that a number depends on."""
    parameter = next(asked.decoder.text.parameters())
    found: dict[str, Any] = {"versions": versions(), "class": type(asked.model).__name__, "time": now()}
    found |= {"dtype": str(parameter.dtype).removeprefix("torch."), "device": str(parameter.device)}
    return found | {"kernel": asked.decoder.kernel, "request": asdict(request)}


def choose_answer(asked: Asked, answer: str | Sequence[int] | None) -> Asked:
    """``asked`` with another answer than the model's own: its words, or its token ids; None leaves it.

    Raises:
        ExplainError: see :func:`asking.answer_ids`.
    """
    if answer is None or (isinstance(answer, str) and answer.strip() == asked.reply.strip()):
        return asked
    return asked.with_answer(answer_ids(asked, answer, log_likelihood) if isinstance(answer, str) else list(answer))


def option_tokens(asked: Asked, options: Sequence[str]) -> list[int]:
    """First tokens of the other options (letters or words), for the ``contrast`` objective.

    Raises:
        ExplainError: no option is left beside the answer.
    """
    found = {answer_ids(asked, option, log_likelihood)[0] for option in options} - {asked.answer[0]}
    if not found:
        raise ExplainError(f"options {', '.join(options)}: none begins with another token than the answer")
    return sorted(found)
