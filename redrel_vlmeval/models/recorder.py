"""One efficiency record per benchmark question, in a file of its own beside the predictions."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

import redrel_vlmeval
from redrel_vlmeval import hostfacts
from redrel_vlmeval.efficiency import Meter, RecordFile, costs, now
from redrel_vlmeval.models.question import asked_by_host
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.truncation import Trace

logger = logging.getLogger("redrel_vlmeval")
DISTRIBUTIONS = ("torch", "transformers")


def versions() -> dict[str, str]:
    """Version of this package and of what the numbers depend on, ``?`` where it cannot be told."""
    found = {"redrel_vlmeval": redrel_vlmeval.__version__}
    for name in DISTRIBUTIONS:
        found[name] = f"{name} {importlib.metadata.version(name)}"
    running = hostfacts.host()
    host = {"ms": hostfacts.MS, "upstream": hostfacts.UPSTREAM}.get(running["host"] or "")
    return found | {"vlmeval": f"{host} {running['host_version'] or '?'}" if host else "?"}


class Recorder:
    """Measures each answer of a model and writes the record when the host is asking.

    Args:
        model: the torch model whose forward calls are timed.
        spec: base and setting; an empty setting for an untouched base.
        facts: what else every record says: backend, weights, revision.
    """

    def __init__(self, model: nn.Module, spec: VariantSpec, facts: dict[str, Any]) -> None:
        self.model, self.spec = model, spec
        self.facts = facts | {"versions": versions()}
        self._files: dict[Path, RecordFile] = {}

    @contextmanager
    def question(self, trace: Trace | None = None) -> Iterator[None]:
        """Around the answer to one question; ``trace`` is that of the truncated model, None when untouched."""
        asked = asked_by_host()
        file = None if asked is None else self._open(asked.record_path)
        with Meter(self.model) as meter:
            yield
        if asked is None or file is None:
            return
        prompt = trace.prompts[-1] if trace is not None and trace.prompts else None
        head = {
            "version": 1,
            "index": asked.index,
            "model": asked.model,
            "dataset": asked.dataset,
            "base": self.spec.base or (None if self.spec.is_variant else asked.model),
            "setting": self.spec.setting,
        }
        file.append(head | costs(meter, prompt, self.spec) | self.facts | {"time": now()})

    def _open(self, path: Path) -> RecordFile:
        """The file for ``path``, opened and locked before the first answer: a second run stops before it starts."""
        if path not in self._files:
            for other in self._files.values():
                other.close()
            self._files = {path: RecordFile(path)}
            # What is the same for all questions stands once, before them; readers of old pass over it.
            run = hostfacts.host() | {"arguments": hostfacts.arguments(sys.argv[1:]), "started": now()}
            self._files[path].append({"version": 1, "run": run})
        return self._files[path]
