"""One HTML file that needs nothing else: style, scripts and data inside, no address outside, every text escaped.

A page is a template that extends ``base.html.j2`` and fills its blocks; it reads its data from the element ``#data``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

HERE = Path(__file__).resolve().parent
# What could end the data's element, or a line of script, if a text held it.
_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def render(folder: Path, template: str, title: str, data: Mapping[str, Any], **context: Any) -> str:
    """The page of ``template`` in ``folder``, with every .css and .js of the base and then of the folder, by name.

    Args:
        data: what the page's scripts show, as plain JSON values; numbers that are none (nan) become null.
        context: values for the template, escaped wherever it prints them.
    """
    loader = jinja2.FileSystemLoader([folder, HERE])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    scripts = _sources(folder, "js")
    context |= {"title": title, "data": embedded(data), "scripts": scripts, "policy": _policy(scripts)}
    return environment.get_template(template).render(styles=_sources(folder, "css"), **context)


def _sources(folder: Path, kind: str) -> list[Markup]:
    """The package's own files, which are trusted and go in as they are."""
    files = [*sorted(HERE.glob(f"*.{kind}")), *sorted(folder.glob(f"*.{kind}"))]
    return [Markup(path.read_text(encoding="utf-8")) for path in files]


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts and no other, pictures only from the page itself, no connection."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'"


def embedded(data: Any) -> Markup:
    """JSON that can stand inside a script element, whatever its texts hold."""
    text = json.dumps(_plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_UNSAFE))


def encoded(page: str) -> bytes:
    """UTF-8; half of a surrogate pair, which only broken texts hold, as its escape."""
    return page.encode("utf-8", "backslashreplace")


def _plain(value: Any) -> Any:
    """Python's own numbers for numpy's, null for what is no number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
