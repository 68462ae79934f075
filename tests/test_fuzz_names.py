"""Names of any kind: a spec that is written the same way, or one refusal with a reason, at once."""

from __future__ import annotations

import os
import time

from hypothesis import given, settings, strategies as st

from redrel_vlmeval.names import looks_like_variant, nearest, parse
from redrel_vlmeval.rules import known

MANY = int(os.environ.get("FUZZ", "200"))
WORDS = [
    *("l", "k", "r", "a", "_", "-", "0", "5", "128", "999999", "1" * 30, "٣", "５", "𝟓", "²", "trunc", "official"),
    *("rowmean", "pos-new", "seed3", "p-cqm", "ppl", "beam3", "l5_k8", "l2_r50", "l1_a9", "x", "é", " ", "/", "\n"),
    *known(),
]
NAMES = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=14).map("".join))


@settings(deadline=None, max_examples=MANY)
@given(st.sampled_from(["", "x_trunc_", "l5_k8", "x_trunc_l5_k8_", "x_trunc_l0_k8-random_"]), NAMES)
def test_any_text_is_a_name_or_is_refused_with_a_reason(begin: str, text: str) -> None:
    name, begun = begin + text, time.process_time()
    looks_like_variant(name)
    try:
        spec = parse(name)
    except KeyError as error:
        assert "no variant" in str(error) and "\n" not in str(error) and len(str(error)) < 1500
        near = nearest(name)
        assert near is None or str(parse(near)) == near
    else:
        assert str(spec) == name and parse(str(spec)) == spec
    assert time.process_time() - begun < 5
