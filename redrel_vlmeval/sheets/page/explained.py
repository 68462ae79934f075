"""Which flips have a page of ``redrel explain``, and where it lies seen from the report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote


def links(found: Iterable[dict[str, Any]], folder: Path | None, report: Path) -> dict[str, str]:
    """``model/benchmark/index`` of a flip, or of its base, to the address of its page, for those that exist.

    Args:
        found: of :func:`changes.collect`. folder: of ``redrel explain cam --data``; the manifest beside a page says
            what it is of. report: where the report will lie, which addresses start from.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise NotADirectoryError(f"--explain {folder}: no such folder; give that of redrel explain cam --data")
    pages = {(str(m.get("model")), str(m.get("benchmark")), str(m.get("index"))): path for path, m in _pages(folder)}
    way = Path(os.path.relpath(folder.absolute(), report.absolute().parent)).as_posix()
    made = {}
    for entry in found:
        for model in (entry["model"], entry["base"]):
            for index in entry["frame"]["index"]:
                page = pages.get((model, entry["benchmark"], str(index)))
                if page is not None:
                    made[f"{model}/{entry['benchmark']}/{index}"] = quote(f"{way}/{page.name}")
    return made


def _pages(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every page of a folder and the manifest beside it, empty where it has none that can be read."""
    for page in sorted(folder.glob("*.html")):
        try:
            manifest = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            manifest = {}
        yield page, manifest if isinstance(manifest, dict) else {}


def coverage(found: Iterable[dict[str, Any]], made: Mapping[str, str], folder: Path) -> str:
    """How many flips have a page in ``folder``, their own or their base's, and if none, what is there instead."""
    flips = [
        {f"{model}/{entry['benchmark']}/{index}" for model in (entry["model"], entry["base"])}
        for entry in found
        for index in entry["frame"]["index"]
    ]
    linked = sum(bool(keys & made.keys()) for keys in flips)
    text = f"--explain {folder}: {linked} of {len(flips)} flips have a page there"
    return text if linked else f"{text}; it holds {_held(folder)}"


def _held(folder: Path) -> str:
    """The benchmarks that a folder of ``redrel explain`` has pages of, or that it has none."""
    pages = list(_pages(folder))
    names = dict.fromkeys(str(manifest["benchmark"]) for _, manifest in pages if manifest.get("benchmark"))
    return ", ".join(names) or (f"{len(pages)} pages, none known to be of a benchmark" if pages else "no page")
