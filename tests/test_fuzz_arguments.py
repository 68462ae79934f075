"""Arguments of any kind: what they mean, or one refusal that names the option, at once."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

from redrel_vlmeval.console import numbers
from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.results import Budget
from redrel_vlmeval.sweep.plan import read_plan
from redrel_vlmeval.sweep.run import read_memory

MANY = int(os.environ.get("FUZZ", "100"))
PARTS = [*"1-,2٣²５%.GMxk0 \n", "999999", "9" * 40, "e9", "inf", "nan"]
TEXTS = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PARTS), max_size=8).map("".join))
READERS: dict[str, Callable[[str], object]] = {
    "--layers": lambda text: read_plan("redrel_tiny", "X", text, "0,8"),
    "--keep": lambda text: read_plan("redrel_tiny", "X", "2", text),
    "--rules": lambda text: read_plan("redrel_tiny", "X", "2", "8", text),
    "--model": lambda text: read_plan(text, "X", "2", "8"),
    "--memory": read_memory,
    "--budget": Budget.read,
    "numbers": lambda text: numbers("--layers", text, 9999),
}


@pytest.mark.parametrize("option", READERS)
def test_any_text_means_something_or_is_refused_by_name(option: str) -> None:
    @settings(deadline=2000, max_examples=MANY)
    @given(TEXTS)
    def read(text: str) -> None:
        try:
            READERS[option](text)
        except RedrelError as error:
            assert len(str(error)) < 3000

    read()
