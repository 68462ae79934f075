"""A page holds everything it shows, runs only its own scripts, and takes no text for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from report_box import HOSTILE

from redrel_vlmeval.sheets.offline.html import embedded, encoded, render

TEMPLATE = '{% extends "base.html.j2" %}{% block main %}<p id="told">{{ told }}</p>{% endblock %}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one.html.j2").write_text(TEMPLATE)
    (tmp_path / "one.js").write_text('redrel.byId("told").dataset.seen = redrel.data.text;')
    (tmp_path / "one.css").write_text("#told { color: red; }")
    return tmp_path


def test_texts_are_escaped_in_the_template_and_in_the_data(folder: Path) -> None:
    page = render(folder, "one.html.j2", HOSTILE, {"text": HOSTILE}, told=HOSTILE)
    assert "alert(1)</script>" not in page and "<img" not in page and "{{ 7*7 }}" in page
    block = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(block) == {"text": HOSTILE}
    assert not set("<>&\u2028\u2029") & set(block)


def test_style_and_scripts_are_inside_and_allowed_by_their_hash(folder: Path) -> None:
    page = render(folder, "one.html.j2", "t", {}, told="")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy and "http" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 3 and "dataset.seen" in scripts[-1]
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "#told { color: red; }" in page and page.count("<style>") == 2


def test_pages_name_no_address_outside(folder: Path) -> None:
    page = render(folder, "one.html.j2", "t", {}, told="")
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a format, fetched by no one
    assert not re.search(r"<(?:link|script|img)[^>]+(?:src|href)=\"(?!data:)", page)


def test_numbers_that_are_none_become_null() -> None:
    found = json.loads(embedded({"a": [math.nan, np.float64("inf"), np.int64(3), np.bool_(True), None], 1: Path("x")}))
    assert found == {"a": [None, None, 3, True, None], "1": "x"}


def test_half_a_surrogate_pair_stays_a_character_of_its_text() -> None:
    page = encoded(f"<script>{embedded({'a': 'x' + chr(0xD83D)})}</script>").decode("utf-8")
    assert json.loads(page[8:-9])["a"] == "x\ud83d"


def test_a_value_that_the_template_lacks_is_an_error(folder: Path) -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="told"):
        render(folder, "one.html.j2", "t", {})
