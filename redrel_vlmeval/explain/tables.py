"""Whole benchmarks: parquet tables of maps, flows and changes, and the flow's means with bootstrap bands."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import as_paper
from redrel_vlmeval.explain.draw import drawing, view
from redrel_vlmeval.explain.job import Job
from redrel_vlmeval.explain.maps import flow
from redrel_vlmeval.explain.store import Stored, own_name, own_place, save
from redrel_vlmeval.explain.trust import Change, comparing
from redrel_vlmeval.files import atomically


def write_maps(found: list[Stored], job: Job) -> Path:
    """One row per question, method and layer: state, sum, highest cell, and where it points if that is known."""
    rows = [row for stored in found for row in _map_rows(stored)]
    return _parquet(pd.DataFrame(rows), job.output / f"{own_name(job.model)}_{own_name(str(job.data))}_cam.parquet")


def _map_rows(stored: Stored) -> list[dict[str, Any]]:
    manifest = stored.manifest
    head = {name: manifest.get(name) for name in ("index", "model", "reply", "own")}
    cards = {(card["where"], card["method"], card["layer"]): card for card in manifest.get("cards", [])}
    rows = []
    for where, method in view.pairs(stored):
        sheet = view.sheet(stored, where, method)
        for place, layer in enumerate(sheet.layers):
            values = sheet.values[place]
            card = cards.get((where, method, layer), {})
            row = {"where": where, "method": method, "layer": layer, "status": sheet.status[place]}
            row |= {"sum": float(np.nansum(values)), "x": None, "y": None, "points_at": card.get("points_at")}
            if np.nanmax(values, initial=0) > 0:
                row |= dict(zip(("x", "y"), sheet.middle(int(np.nanargmax(values))), strict=True))
            deletion = card.get("deletion") or {}
            row |= {"deletion_auc": deletion.get("auc"), "deletion_auc_random": deletion.get("random")}
            rows.append(head | row)
    return rows


def write_changes(changes: list[Change], job: Job, console: Console) -> Path:
    """The comparison of every question, and in words the flips and mean shares."""
    console.print(comparing.summary(changes), highlight=False)
    name = f"{own_name(job.model)}_vs_{own_name(str(job.compare))}_{own_name(str(job.data))}.parquet"
    return _parquet(comparing.frame(changes), job.output / name)


def write_flows(found: list[Stored], job: Job) -> list[Path]:
    """Every question's shares and margins as a table; their means with 95 % bootstrap bands as npz and figures."""
    flows = [_flow(stored) for stored in found]
    rows = [
        row
        for one, stored in zip(flows, found, strict=True)
        for row in flow.records(one, str(stored.manifest["index"]))
    ]
    stem = job.output / f"{own_name(job.model)}_{own_name(str(job.data))}_flow"
    written = [_parquet(pd.DataFrame(rows), drawing.ended(stem, ".parquet"))]
    means = benchmark(flows, found, job)
    mine = (means.manifest["model"], means.manifest["benchmark"])
    path, _ = own_place(drawing.ended(stem, ".npz"), lambda old: "questions" in old and mine == _of(old))
    written.append(save(means, path))
    return written + drawing.draw_flow(means, drawing.stem(means), job.groups)


def benchmark(flows: list[flow.Flow], found: list[Stored], job: Job) -> Stored:
    """The means of many answers' flow, as a file that the same figures are drawn from."""
    if job.groups == "paper":  # regrouped question by question: an interval of sums is no sum of intervals
        flows = [_regrouped(one) for one in flows]
    drawn = flow.curves(flows, [_picture(stored) for stored in found], job.request.seed)
    arrays: dict[str, np.ndarray] = {}
    for name in ("attention", "gradient", "causal"):
        band = getattr(drawn, name)
        if band is not None:
            parts = {"mean": band.mean, "low": band.low, "high": band.high}
            arrays |= {f"flow/{part}/{name}": values for part, values in parts.items() if values is not None}
    groups = {name: round(float(np.mean([one.sizes[name] for one in flows]))) for name in flows[0].sizes}
    first = found[0].manifest
    manifest: dict[str, Any] = {"model": job.model, "benchmark": job.data, "questions": len(found), "groups": groups}
    manifest |= {"grouping": job.groups, "flat_from": drawn.flat_from, "answer": [], "maps": {}, "pictures": []}
    manifest |= {name: first[name] for name in ("objective", "provenance")}
    return Stored(arrays, manifest)


def _regrouped(one: flow.Flow) -> flow.Flow:
    gradient = None if one.gradient is None else as_paper(one.gradient)
    return replace(one, attention=as_paper(one.attention), gradient=gradient)


def _of(manifest: dict[str, Any]) -> tuple[Any, Any]:
    return manifest.get("model"), manifest.get("benchmark")


def _picture(stored: Stored) -> tuple[object, ...]:
    """What stands for a question's pictures where questions may share them: what the pictures show."""
    shown = [stored.arrays[name] for name in sorted(stored.arrays) if name.startswith("picture/")]
    return tuple((one.shape, sha256(one.tobytes()).digest()) for one in shown) or (stored.manifest.get("index"),)


def _flow(stored: Stored) -> flow.Flow:
    """A stored answer's flow again.

    Raises:
        ExplainError: its file holds none.
    """
    if "flow/attention" not in stored.arrays:
        raise ExplainError(f"{stored.path}: no information flow in it; delete it, or give another --output")
    gradient, saliency, causal = (stored.arrays.get(f"flow/{name}") for name in ("gradient", "saliency", "causal"))
    attention, rows = stored.arrays["flow/attention"], stored.arrays["flow/rows"]
    return flow.Flow(attention, rows, gradient, saliency, causal, stored.manifest["groups"])


def _parquet(frame: pd.DataFrame, path: Path) -> Path:
    return atomically(path, lambda stream: frame.to_parquet(stream, index=False))
