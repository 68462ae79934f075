"""What a malformed name most likely meant: its layers, amounts and words, put in the order that means something."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import replace

from redrel_vlmeval import rules
from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.names.spec import LONGEST, MARK, MISSING, MOST, PROMPTS, ROWS, Stage, VariantSpec


def guesses(name: object) -> Iterator[str]:
    """Names that a malformed one may have meant."""
    if not isinstance(name, str) or len(name) > LONGEST or not name.isascii():
        return
    base, _, suffix = name.partition(MARK) if MARK in name else (name.removesuffix("_trunc"), "", "")
    fields = _nearest_words(suffix, name)
    rule = rules.known().get(str(fields.get("rule", rules.DEFAULT)))
    stages = _nearest_stages(suffix, rule is not None and rule.before_block_1)
    if MARK.strip("_") in name and not stages:
        stages = (Stage(5, keep=MISSING),)
    if rule is not None and rule.before_block_1_only:
        stages = tuple(replace(stage, layer=0) for stage in stages[:1])
    if rule is not None and not rule.by_row:
        fields.pop("row", None)
    base = re.sub(r"_(p-[a-z0-9-]*|ppl|beam[a-z0-9-]*)(?=_|$)", "", base)
    base = re.sub(r"[^A-Za-z0-9._-]", "_", base)
    try:
        yield str(VariantSpec(base, stages, **fields))  # type: ignore[arg-type]
    except RedrelError:
        return


def _nearest_words(suffix: str, name: str) -> dict[str, object]:
    """Fields that misspelt words of a suffix come close to."""
    words: dict[str, tuple[str, object]] = {word: ("rule", word) for word in rules.known() if word != rules.DEFAULT}
    words |= {row: ("row", row) for row in list(ROWS)[1:]} | {"official": ("official", True), "ppl": ("ppl", True)}
    fields: dict[str, object] = {}
    for word in re.findall(r"[a-z][a-z-]+", suffix):
        fields |= dict([words[close] for close in difflib.get_close_matches(word, words, n=1, cutoff=0.7)])
    prompt = difflib.get_close_matches((re.findall(r"p-([a-z0-9-]+)", name) or [""])[0], PROMPTS[1:], n=1, cutoff=0.5)
    fields |= {"prompt": prompt[0]} if prompt else {}
    return fields | ({"ppl": True} if re.search(r"_ppl(_|$)", name) else {})


def _nearest_stages(suffix: str, unranked: bool) -> tuple[Stage, ...]:
    """Every layer and every amount in a suffix, in the order that means something: layers rise, amounts fall."""
    suffix = re.sub(r"\b([kr]\d+)_(l\d+)(?=_|$)", r"\2_\1", suffix.lower())  # k8_l2
    found = re.findall(r"l_?([0-9]{1,6})(?:_?([kr])(?![a-z]))?_?([0-9]{1,6})?", suffix)
    layers = {int(layer): kind or "k" for layer, kind, _ in found}
    most = {"k": MOST, "r": 100}
    stages: list[Stage] = []
    for kind, name in (("k", "keep"), ("r", "percent")):
        own = sorted(layer for layer in layers if layers[layer] == kind)
        last = {int(layer): min(int(number or MISSING), most[kind]) for layer, k, number in found if (k or "k") == kind}
        amounts = sorted((last[layer] for layer in own), reverse=True)
        for layer, amount in zip(own, amounts, strict=True):
            stages.append(Stage(layer if unranked or not amount else max(layer, 1), **{name: amount}))  # type: ignore[arg-type]
    return tuple(sorted(stages, key=lambda stage: stage.layer))
