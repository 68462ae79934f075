"""Hook of ``mkdocs.yml``: pages that stand elsewhere, and the commands' help, become pages of the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from redrel_vlmeval.cli import app

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the repository's root, and one with the help of every command."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links between the root and ``docs/`` as the site has them."""
    for source, name in PAGES.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(source)}", f"]({name}", markdown)
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", markdown)  # files of the repository are no pages


def commands() -> str:
    """What ``--help`` says of every command."""
    parts = ["# Commands\n\nAs `redrel COMMAND --help` says it.\n"]
    for name, found, context in _each(typer.main.get_command(app), "redrel", None):
        lines = [f"## {name}\n", f"{found.help or ''}\n"]
        for one in found.get_params(context):
            names = ", ".join(f"`{option}`" for option in [*one.opts, *one.secondary_opts])
            if getattr(one, "help", None) and "--help" not in one.opts:
                lines.append(f"* {names}: {one.help}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _each(found: Any, name: str, parent: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, command, its context) of all commands, those with commands of their own left out."""
    context = found.make_context(name, [], parent=parent, resilient_parsing=True)
    if not hasattr(found, "commands"):
        yield name, found, context
    for word, inner in getattr(found, "commands", {}).items():
        yield from _each(inner, f"{name} {word}", context)
