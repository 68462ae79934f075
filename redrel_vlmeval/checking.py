"""``redrel check``: what a model name means in words, or why no model here answers to it; imports no host."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from redrel_vlmeval import names
from redrel_vlmeval.bases import API, BASES, ENGINES, Base, cannot, host_class, row
from redrel_vlmeval.errors import UnknownName
from redrel_vlmeval.host import runner
from redrel_vlmeval.names import Stage, VariantSpec


def check(name: str) -> str:
    """Name, base, setting and what they mean, as one line.

    Raises:
        KeyError: no variant name, deeper than its base, more image tokens than a picture has, or a base that neither
            this package nor the host here knows.
    """
    spec = names.parse(name)
    _check_size(name, spec)
    note = ""
    if spec.base and spec.base not in _ours():
        _check_base(name, spec)
        found = verdict(spec.base)
        if spec.is_variant and found.verdict == "refused":
            raise UnknownName(cannot(name, spec.base, found.why))
        note = f" ({found.why})" if spec.is_variant and found.why else ""
    setting = f"setting {spec.setting}" if spec.is_variant else "no setting"
    return f"{name}: base {spec.base or '(any)'}, {setting}: {meaning(spec)}{note}"


@dataclass(frozen=True)
class Verdict:
    """Whether a name of the host here can be truncated: ``works``, ``note``, ``refused`` or ``unknown``, and why."""

    name: str
    kind: str
    verdict: str
    why: str
    evidence: str


def verdict(name: str) -> Verdict:
    """What is known of truncating a base before it is loaded, from the class that its entry names.

    Raises:
        HostMissing: there is no host. KeyError: it has no such name.
    """
    base, entry = row(name), runner.entries().get(name)
    if base is not None and base.ours:
        return Verdict(name, base.ours, "works", "on a class of ours", "measured")
    if entry is None:
        raise UnknownName(f"{name!r}: no such name in the host here")
    if entry.module == "api":
        return Verdict(name, entry.kind, API.verdict, API.why, API.evidence)
    found = host_class(entry.kind, name)
    why = [found.why] if found.why else []
    if found.verdict != "refused":
        asked = [engine for flag, engine in ENGINES.items() if entry.keywords.get(flag)]
        why += [f"on transformers, not {engine}, base and variants" for engine in asked]
    kind = "note" if found.verdict == "works" and why else found.verdict
    return Verdict(name, entry.kind, kind, "; ".join(why), found.evidence)


def verdicts(family: str = "") -> list[Verdict]:
    """Every name of the host here and of ours whose name or class holds ``family``, in the host's order.

    Raises:
        HostMissing: there is no host.
    """
    names_here = dict.fromkeys([*(name for name, base in _ours().items() if not base.alias), *runner.entries()])
    found = (verdict(name) for name in names_here)
    return [one for one in found if family.lower() in f"{one.name} {one.kind}".lower()]


def listing(family: str = "") -> list[str]:
    """:func:`verdicts` as lines, and how many there are of each."""
    found = verdicts(family)
    wide = [max((len(getattr(one, part)) for one in found), default=0) for part in ("name", "kind")]
    lines = []
    for one in found:
        why = f"  {one.why}" if one.why else ""
        lines.append(f"{one.name:{wide[0]}}  {one.kind:{wide[1]}}  {one.verdict:7}  {one.evidence:8}{why}".rstrip())
    counts = Counter(one.verdict for one in found)
    return [*lines, f"{len(found)} names: {', '.join(f'{count} {kind}' for kind, count in counts.most_common())}"]


def _ours() -> dict[str, Base]:
    """Bases that need no host's entry."""
    return {name: base for name, base in BASES.items() if base.ours}


def _check_size(name: str, spec: VariantSpec) -> None:
    """Layers and K against what the base has, where that is known beforehand."""
    base = row(spec.base)
    blocks, tokens = (base.blocks, base.tokens) if base else (None, None)
    for stage in spec.stages:
        if blocks is not None and stage.layer >= blocks:
            raise UnknownName(
                f"{name!r}: layer {stage.layer}, but {spec.base} has {blocks} blocks: L is 0 to {blocks - 1}"
            )
        if tokens is not None and (stage.keep or stage.average or 0) > tokens:
            letter = stage.amount[0].upper()
            number = f"{letter} = {stage.amount[1:]}"
            text = f"{number}, but a picture has {tokens} image tokens in {spec.base}: {letter} is 0 to {tokens}"
            raise UnknownName(f"{name!r}: {text}")
        if tokens is not None and blocks is not None and stage.average is not None:
            stage.count(tokens, blocks)


def _check_base(name: str, spec: VariantSpec) -> None:
    try:
        hosts, where = runner.model_names(), f"no such name in the host here ({runner.host_folder()})"
    except runner.HostMissing:
        hosts, where = frozenset(), "no such name without a host, and there is none here"
    if spec.base in hosts:
        return
    text = f"{name!r}: base {spec.base!r}: {where}"
    if near := nearest(name, spec.base, [*_ours(), *hosts]):
        raise UnknownName(f"{text}; did you mean {' or '.join(map(repr, near))}?")
    known = f"{text}; known are {', '.join(_ours())}" + (f" and {len(hosts)} of the host" if hosts else "")
    raise UnknownName(f"{known}. Where a host has it: {meaning(spec)}")


def nearest(name: str, base: str, known: Collection[str]) -> list[str]:
    """Names that may be meant: ``_trunc_`` spelt right behind a known base, else known bases like this one."""
    # The longest base first: the rest behind it must be the setting alone.
    for begin in sorted((one for one in known if name.startswith(f"{one}_")), key=len, reverse=True):
        match = re.fullmatch(r"_[A-Za-z]*?_?([lL]\d.*)", name.removeprefix(begin))
        guess = f"{begin}{names.MARK}{match[1]}" if match else ""
        if guess and (right := guess if _is_name(guess) else names.nearest(guess)):
            return [right]
    return [name.replace(base, near, 1) for near in difflib.get_close_matches(base, dict.fromkeys(known), n=3)]


def _is_name(name: str) -> bool:
    try:
        return bool(names.parse(name))
    except KeyError:
        return False


def meaning(spec: VariantSpec) -> str:
    """What is truncated, by which rule, and how an answer is reached, in words."""
    parts = [_seen(spec) if spec.stages else "nothing is truncated"]
    if spec.official:
        parts.append("as published code does it, keys masked instead of dropped and ranked again at every step")
    if spec.positions == "new":
        parts.append("positions of the tokens that stay are counted anew")
    parts += [f"asked with the prompt {spec.prompt}"] * (spec.prompt != "stock")
    parts += [spec.decoding] * (spec.ppl or spec.beam > 1)
    return "; ".join(parts)


def _seen(spec: VariantSpec) -> str:
    """Which decoder blocks see how many image tokens: ``decoder blocks 1-5 see all 576 image tokens, 6-32 the 128``."""
    base = row(spec.base)
    blocks, tokens = (base.blocks, base.tokens) if base else (None, None)
    if spec.stages[0] == Stage(0, 0):
        return "no decoder block sees an image token: the blind control"
    every = f"all {tokens}" if tokens else "all"
    first, parts = spec.stages[0].layer, []
    if first:
        parts.append(f"decoder {_blocks(1, first)} {'sees' if first == 1 else 'see'} {every} image tokens")
    ends = [*(stage.layer for stage in spec.stages[1:]), blocks]
    for number, (stage, end) in enumerate(zip(spec.stages, ends, strict=True)):
        kept = every if tokens and stage.keep == tokens else _kept(spec, stage, number)
        where = _blocks(stage.layer + 1, end).removeprefix("blocks ").removeprefix("block ")
        parts.append(f"{where} {kept}" if parts else f"decoder blocks {where} see {kept}")
    return ", ".join(parts)


def _blocks(first: int, last: int | None) -> str:
    if last is None:
        return f"blocks {first} and on"
    return f"block {first}" if first == last else f"blocks {first}-{last}"


def _kept(spec: VariantSpec, stage: Stage, number: int) -> str:
    """``the 128 that the last query row attends to most``."""
    if stage.empty:
        return "none"
    count = {
        "k": f"{stage.keep}",
        "r": f"{stage.percent} %",
        "a": f"as many as make {stage.average} the average",
    }
    rule, amount = spec.rule_of(stage), count[stage.amount[0]]
    words = rule.says.replace("{row}", names.ROWS[spec.row])
    chosen = (
        f"the {amount} {'of these ' * bool(number)}{words}"
        if words.startswith(("that ", "whose "))
        else f"{amount} {words}"
    )
    return chosen + f", draw {spec.seed}" * (rule.draws and bool(spec.seed))
