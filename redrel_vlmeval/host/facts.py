"""Which VLMEvalKit is running and how it was called: facts that a run writes down before its first result.

Imports no host: what is running is in ``sys.modules`` already, and the rest is read from files.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MS, UPSTREAM = "ms-vlmeval", "vlmeval"  # the two distributions; both install a top-level module vlmeval
# Values of these options of the host are secrets, which no record and no sheet may show.
_SECRET = re.compile(r"--[\w-]*(?:key|token|password)\b", re.IGNORECASE)


def arguments(argv: Sequence[str]) -> str:
    """A command line as text, with the values of keys and tokens left out."""
    shown: list[str] = []
    for word in map(str, argv):
        name, equals, _ = word.partition("=")
        if shown and _SECRET.fullmatch(shown[-1]):
            shown.append("...")
        else:
            shown.append(f"{name}=..." if equals and _SECRET.fullmatch(name) else word)
    return shlex.join(shown)


def noted(error: object) -> str:
    """What a host's note of an error says; it notes the text alone, which some kinds of errors hardly have.

    A failed assert has none, and a missing key or column has its own name.
    """
    text = " ".join(str(error).split())[:300]
    where = "the traceback is in the runner's output"
    if not text:
        return f"the host stopped at an error without a text, such as a failed check; {where}"
    if re.fullmatch(r"(['\"])[^'\"]*\1", text):
        return f"the host stopped at a missing column or key {text}; {where}"
    return text


def host() -> dict[str, str | None]:
    """``host`` (ms, upstream), ``host_version`` and ``commit`` of the imported vlmeval; None what cannot be told.

    Both distributions may be installed at once, so the module's own file decides.
    """
    module = sys.modules.get("vlmeval")
    file = getattr(module, "__file__", None)
    if not file:
        return {"host": None, "host_version": None, "commit": None}
    folder = Path(file).resolve().parent
    if (ms := _distribution(MS, folder)) is not None:
        return {"host": "ms", "host_version": ms.version, "commit": None}
    installed = _distribution(UPSTREAM, folder)
    version = getattr(module, "__version__", None) or (installed.version if installed else None)
    found = _installed_commit(installed) or commit(folder.parent)
    return {"host": "upstream", "host_version": version, "commit": found}


def _distribution(name: str, folder: Path) -> Any:
    """The installed distribution whose package lies in ``folder``."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if Path(str(found.locate_file("vlmeval"))).resolve() == folder else None


def _installed_commit(installed: Any) -> str | None:
    """pip notes the commit of what it installed from a repository."""
    text = installed.read_text("direct_url.json") if installed else None
    return json.loads(text).get("vcs_info", {}).get("commit_id") if text else None


def commit(checkout: Path) -> str | None:
    """The commit that is checked out in a git work tree, without asking git; None where this is none."""
    try:
        git = checkout / ".git"
        if git.is_file():  # a linked work tree or a submodule
            git = checkout / git.read_text(encoding="utf-8").partition("gitdir: ")[2].strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head or None
        name = head.removeprefix("ref: ")
        shared = git / "commondir"
        common = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
        loose = common / name
        if loose.is_file():
            return loose.read_text(encoding="utf-8").strip() or None
        packed = (common / "packed-refs").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.split()[0] for line in packed.splitlines() if line.endswith(f" {name}")), None)
