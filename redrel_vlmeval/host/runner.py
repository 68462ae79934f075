"""``redrel run``: the host's own runner in this process, registered explicitly, for those who want no import hook."""

from __future__ import annotations

import ast
import importlib.util
import logging
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.host import child, question

HOW_TO_GET = (
    'get a host with `pip install "redrel-vlmeval[ms]"` (ms-vlmeval, run as `python -m vlmeval`), or '
    "`git clone https://github.com/open-compass/VLMEvalKit && pip install -e VLMEvalKit` (run as `python run.py`)"
)


class HostMissing(RedrelError, RuntimeError):
    """No VLMEvalKit can be found; the message says how to get either one."""


def run(args: list[str], runner: str | None = None) -> None:
    """Run ``python -m vlmeval ARGS``, or ``python RUNNER ARGS`` for a checkout's ``run.py`` (or its folder).

    The runner's own ``SystemExit`` and errors pass through; what it has started ends with this process. Spawned workers
    of the host start new interpreters, which only the hook reaches. Exit code 1 where a question failed alone.

    Raises:
        HostMissing: no vlmeval, or nothing at ``runner``.
    """
    script = _script(runner) if runner else _installed_script()
    import _redrel_vlmeval_hook as hook

    child.take_along()
    with _command_line([str(script or "vlmeval"), *args], script):
        hook.install(strict=True)
        if script:
            runpy.run_path(str(script), run_name="__main__")
        else:
            runpy.run_module("vlmeval", run_name="__main__", alter_sys=True)
    if question.failures:
        print(f"redrel run: {len(question.failures)} questions could not be asked; records say error", file=sys.stderr)
        raise SystemExit(1)


def is_of_use(record: logging.LogRecord) -> bool:
    """Not the host's ERROR, its first word when imported, that it has no ``.env``: that file holds keys of APIs."""
    return "Did not detect the .env file" not in str(record.msg)


def command(runner: Path | None) -> list[str]:
    """The command line by which a user starts the host, whose import hook makes it know our names.

    Args:
        runner: a checkout's ``run.py`` (or its folder) in place of the installed host.

    Raises:
        HostMissing: no vlmeval, or nothing at ``runner``.
    """
    script = _script(str(runner)) if runner is not None else _installed_script()
    if os.environ.get("REDREL_DISABLE"):  # without the hook
        return [sys.executable, "-m", "redrel_vlmeval", "run", *(["--runner", str(script)] if script else [])]
    return [sys.executable, *([str(script)] if script else ["-m", "vlmeval"])]


def host_folder() -> Path:
    """The folder of the importable ``vlmeval`` package, which is not imported for it.

    Raises:
        HostMissing: there is none.
    """
    spec = importlib.util.find_spec("vlmeval")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if spec is None or spec.origin is None or not places:
        raise HostMissing(f"no package 'vlmeval' in {sys.prefix}: {HOW_TO_GET}")
    return Path(places[0])


@dataclass(frozen=True)
class Entry:
    """A model in the host's table as its text has it: ``vlm`` or ``api``, the class, keywords that are constants."""

    module: str
    kind: str
    keywords: Mapping[str, object]


@cache
def entries() -> Mapping[str, Entry]:
    """The model tables of the host's ``config.py``, read from its text in a fraction of a second.

    Raises:
        HostMissing: there is no host.
    """
    try:
        tree = ast.parse((host_folder() / "config.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):  # of another layout, or for another Python
        return {}
    found: dict[str, Entry] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(value, ast.Call) and isinstance(name := getattr(key, "value", None), str):
                    found[name] = _entry(value)
    return found


def _entry(call: ast.Call) -> Entry:
    """``partial(vlm.Class, key=constant, ...)``."""
    kind = call.args[0] if call.args else call.func
    module = getattr(getattr(kind, "value", None), "id", "")
    constants = {one.arg: one.value.value for one in call.keywords if one.arg and isinstance(one.value, ast.Constant)}
    return Entry(module, getattr(kind, "attr", ""), constants)


def model_names() -> frozenset[str]:
    """Names in the model tables of the host.

    Raises:
        HostMissing: there is no host.
    """
    return frozenset(entries())


def _installed_script() -> Path | None:
    """None where ``python -m vlmeval`` works; an editable checkout has its ``run.py`` beside the package instead."""
    folder = host_folder()
    if (folder / "__main__.py").is_file():
        return None
    script = folder.parent / "run.py"
    if not script.is_file():
        raise HostMissing(f"{folder} has no __main__.py, and no run.py is beside it: use --runner, or {HOW_TO_GET}")
    return script


def _script(runner: str) -> Path:
    path = Path(runner).expanduser().absolute()
    script = path / "run.py" if path.is_dir() else path
    if not script.is_file():
        raise HostMissing(f"--runner {runner}: no such file; name the run.py of a checkout, or {HOW_TO_GET}")
    return script


@contextmanager
def _command_line(argv: list[str], script: Path | None) -> Iterator[None]:
    """``sys.argv`` and the front of ``sys.path`` as ``python SCRIPT`` sets them, put back afterwards."""
    before = sys.argv, sys.path[:]
    sys.argv = argv
    if script:
        sys.path.insert(0, str(script.parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before
