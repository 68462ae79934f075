"""A host of a few lines with the real one's import order: what the hook sees of it, without seconds of imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The benchmarks' classes need the real host's base class; here only their being found is of interest.
STUB_BENCHMARK = """
import sys, types
def _named(name):
    return type(name, (), {"supported_datasets": classmethod(lambda cls: [cls.__name__])})
_shapes = types.ModuleType("redrel_vlmeval.models.tiny.benchmark")
_shapes.dataset_classes = lambda: (_named("RedRelShapes"),)
_pairs = types.ModuleType("redrel_vlmeval.models.smol.benchmark")
_pairs.dataset_class = lambda: _named("RedRelPairs")
sys.modules |= {stub.__name__: stub for stub in (_shapes, _pairs)}
"""

FILES = {
    # the real package imports its tools, and they the config, before anything else
    "__init__.py": "from .tools import cli\n",
    "__main__.py": (
        "import sys\nfrom vlmeval.config import supported_VLM\nprint(sys.argv[1], sys.argv[1] in supported_VLM)\n"
    ),
    "tools.py": "from vlmeval.config import supported_VLM\ncli = lambda: supported_VLM\n",
    "config.py": (
        "from functools import partial\nimport vlmeval.vlm as vlm\n"
        "supported_VLM = {}\nsupported_VLM.update({'host_7b': partial(dict, path='p', verbose=False)})\n"
    ),
    "vlm/__init__.py": "import vlmeval.dataset\n",
    "dataset/__init__.py": "DATASET_CLASSES = []\nSUPPORTED_DATASETS = []\n",
}


def make_host(folder: Path, **changed: str) -> Path:
    """Write the package ``vlmeval`` below ``folder``; ``changed`` replaces files (``config=...`` is ``config.py``)."""
    for name, text in (FILES | {f"{stem}.py": text for stem, text in changed.items()}).items():
        path = folder / "vlmeval" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


Done = subprocess.CompletedProcess[str]


def run(*args: str, host: Path | None, python: str = sys.executable, **variables: str) -> Done:
    """Start an interpreter with the fake host on its path and nothing of ours beyond what is installed."""
    unset = ("PYTHONPATH", "REDREL_DISABLE", "PYTHONSTARTUP")
    env = {name: value for name, value in os.environ.items() if name not in unset} | variables
    if host is not None:
        env["PYTHONPATH"] = str(host)
    place = host or ROOT.parent
    return subprocess.run([python, *args], env=env, cwd=place, capture_output=True, text=True, timeout=120)


def output(code: str, host: Path | None, **kwargs: str) -> str:
    """What ``code`` prints; it has to end well and say nothing on stderr."""
    done = run("-c", STUB_BENCHMARK + code, host=host, **kwargs)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()
