"""One efficiency record per benchmark question, in a file of its own beside the predictions."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import redrel_vlmeval
from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.host import HostQuestion, asked_by_host, facts as hostfacts, failures
from redrel_vlmeval.models.efficiency import Meter, RecordFile, Share, costs, now
from redrel_vlmeval.models.places import recorded
from redrel_vlmeval.names import VariantSpec, parse
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


def facts_of(host_model: Any, model: nn.Module) -> dict[str, Any]:
    """What every record says of a model of the host: backend, weights and revision, by its own recorder if it has one.

    Args:
        host_model: as the host built it.
        model: the torch model that it holds.
    """
    if (own := getattr(host_model, "recorder", None)) is not None:
        return dict(own.facts)
    kind, config = type(host_model), getattr(model, "config", None)
    return {
        "backend": f"{kind.__module__}.{kind.__name__}",
        "weights": getattr(config, "_name_or_path", None) or getattr(host_model, "model_path", None),
        "revision": getattr(config, "_commit_hash", None),
    }


def check_name(name: str, spec: VariantSpec) -> None:
    """Refuse a name under which a sheet would take a model for another: in a ``--config`` names are chosen freely.

    Only the setting has to agree: ``mine_trunc_l5_k128`` may be any base, and is compared with the run ``mine``.

    Raises:
        ValueError: names what to write instead.
    """
    try:
        named = parse(name)
    except KeyError:  # a host's own name that looks like one of ours; sheets take it for a base
        named = VariantSpec()
    if named.setting != spec.setting:
        better = replace(spec, base=named.base or spec.base or "mine")
        raise InvalidValue(
            f"run {name!r}: sheets read from this name {named.setting or 'an untouched model'!r}, but the model is "
            f"{spec.setting or 'untouched'!r}; call the run {str(better)!r} in the --config"
        )


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
        self.silent = False  # True while questions are prepared that the host has not asked
        self.share: Share | None = None  # of the batch in which the answer at hand was made before
        self._files: dict[Path, RecordFile] = {}
        self._warned: set[str] = set()

    @contextmanager
    def question(self, trace: Trace | None = None, pictures: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Around the answer to one question; ``trace`` is that of the truncated model, None when untouched.

        ``pictures``: paths of the question's, on which the tokens that a truncation kept are placed.

        Yields:
            Whatever else the record is to say, empty at first; ``new_tokens`` overrides the number of forward calls.

        Raises:
            ValueError: the host's name for this model says another setting than the model's own.
        """
        asked = None if self.silent else asked_by_host()
        if asked is not None:
            check_name(asked.model, self.spec)
        file = None if asked is None else self._open(asked.record_path)
        more: dict[str, Any] = {}
        self.share = None
        with Meter(self.model) as meter:
            yield more
        share, self.share = self.share, None
        if asked is None or file is None:
            return
        if wrong := asked.stale_pictures:
            more["stale_pictures"] = wrong
            self._warn_once(asked.dataset, wrong[0])
        source: Share | Meter
        if share is not None:
            source, prompt = share, share.own
            measured = costs(share.longer(meter.total), prompt, self.spec) | {"batch": share.batch}
        else:
            source, prompt = meter, trace.prompts[-1] if trace is not None and trace.prompts else None
            measured = costs(meter, prompt, self.spec, more.pop("new_tokens", None))
        if prompt is not None and prompt.kept and source.decoder is not None:
            measured |= recorded(source.decoder, source.given, measured["image_tokens"], pictures)
        file.append(self._head(asked) | measured | more | self.facts | {"time": now()})

    def failed(self, error: str) -> None:
        """The record of the question that the host is asking, where it cannot be asked: ``error`` says why."""
        asked = asked_by_host()
        if asked is not None:
            self._open(asked.record_path).append(self._head(asked) | {"error": error} | self.facts | {"time": now()})
            failures.add((asked.model, asked.dataset, str(asked.index)))
            logger.error("%s on %s: %s", asked.model, asked.dataset, error)

    def _head(self, asked: HostQuestion) -> dict[str, Any]:
        return {
            "version": 1,
            "index": asked.index,
            "model": asked.model,
            "dataset": asked.dataset,
            "base": self.spec.base or (None if self.spec.is_variant else asked.model),
            "setting": self.spec.setting,
        }

    def _warn_once(self, dataset: str, name: str) -> None:
        if dataset not in self._warned:
            self._warned.add(dataset)
            logger.warning(
                "%s: the host shows pictures that are not those of its table (first: %s); delete LMUData/images/%s and "
                "run again. Records, sheet and page say so", dataset, name, dataset,
            )  # fmt: skip

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
