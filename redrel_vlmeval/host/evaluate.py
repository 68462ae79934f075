"""``python -m redrel_vlmeval.host.evaluate REQUEST``: the host's runner over answers that a sweep has laid ready.

The runner is the host's own. Before it starts, its benchmarks are cut to the sweep's first questions (upstream has no
``--limit``) and loaded once for all models, and the run folder is the one in which the answers lie.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from typing import Any

from redrel_vlmeval.host import runner


def run(request: dict[str, Any]) -> None:
    """``request``: args of the runner, eval_id (its run folder), limit (None for all questions)."""
    import _redrel_vlmeval_hook as hook

    hook.install(strict=True)
    dataset, smp = importlib.import_module("vlmeval.dataset"), importlib.import_module("vlmeval.smp")
    build = dataset.build_dataset
    built: dict[str, Any] = {}

    def build_once(name: str, **kwargs: Any) -> Any:
        if name not in built:
            built[name] = build(name, **kwargs)
        if built[name] is None:
            return None
        # The host takes columns out of a benchmark's table while it writes predictions.
        fresh = copy.copy(built[name])
        fresh.data = built[name].data.iloc[: request["limit"]].copy()
        return fresh

    setattr(dataset, "build_dataset", build_once)  # noqa: B010 (a module of the host, known by name only)
    setattr(smp, "build_eval_id", lambda: request["eval_id"])  # noqa: B010
    runner.run(request["args"])


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
