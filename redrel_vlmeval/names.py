"""Variant names, read and written: a name such as ``<base>_trunc_l5_k128`` <-> :class:`VariantSpec`.

Pure text; the whole form is :data:`GRAMMAR`. One variant has one name: what is the default (attention ranking, last
row, stock prompt, greedy) is not written, so that two runs with equal settings can be told by their names alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from redrel_vlmeval.errors import InvalidValue, UnknownName

RULES = ("attention", "random", "uniform", "lowest")
ROWS = ("last", "rowimg", "rowmean")
PROMPTS = ("stock", "qcm", "cqm", "p1-cqm", "cqm-p1", "cqm-p2", "cqm-p3", "qwen")
MARK = "_trunc_"
MISSING = 128  # the K that is proposed where a name has none
GRAMMAR = (
    "<base>_trunc_l<L>_k<K>|r<P>[_l.._k..][_random|_uniform|_lowest][_rowimg|_rowmean][_official]"
    "[_p-<prompt>][_ppl][_beam<n>]"
)

_NUMBER = r"(?:0|[1-9]\d{0,5})"
_STAGES = re.compile(rf"l({_NUMBER})_([kr])({_NUMBER})(?=_|$)")
_DECODING = re.compile(r"(?:_p-(?P<prompt>[a-z0-9-]+))?(?P<ppl>_ppl)?(?:_beam(?P<beam>\d+))?")
_SUFFIX = re.compile(r"_(p-[a-z0-9-]+|ppl|beam\d+)$")
_SAFE = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, order=True)
class Stage:
    """Blocks after ``layer`` see ``keep`` image tokens, or ``percent`` % of the prompt's; exactly one is set.

    Raises:
        ValueError: negative numbers, a percentage above 100, both or neither given.
    """

    layer: int
    keep: int | None = None
    percent: int | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.percent is None):
            raise InvalidValue(
                f"stage l{self.layer}: give either keep (k) or percent (r), got {self.keep} and {self.percent}"
            )
        for name, value in (("layer", self.layer), ("keep", self.keep), ("percent", self.percent)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**6):
                raise InvalidValue(f"stage {name} must be a whole number from 0 to 999999, got {value!r}")
        if self.percent is not None and self.percent > 100:
            raise InvalidValue(f"r{self.percent}: a percentage is at most 100")

    def count(self, tokens: int) -> int:
        """Image tokens that stay of a prompt's ``tokens``; a percentage is rounded half up."""
        if self.keep is not None:
            return min(self.keep, tokens)
        return (2 * tokens * (self.percent or 0) + 100) // 200

    def __str__(self) -> str:
        return f"l{self.layer}_k{self.keep}" if self.percent is None else f"l{self.layer}_r{self.percent}"


@dataclass(frozen=True)
class VariantSpec:
    """What a variant name says: no ``stages``, nothing is truncated; no ``base``, a bare setting (``l5_k128``).

    ``ppl``: the options of multiple choice are ranked by likelihood, nothing is generated.

    Raises:
        ValueError: a combination that DESIGN section 2 gives no meaning; the message says why.
    """

    base: str = ""
    stages: tuple[Stage, ...] = ()
    rule: str = "attention"
    row: str = "last"
    official: bool = False
    prompt: str = "stock"
    beam: int = 1
    ppl: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        for value, choices, what in (
            (self.rule, RULES, "rule"),
            (self.row, ROWS, "row"),
            (self.prompt, PROMPTS, "prompt"),
        ):
            if value not in choices:
                raise InvalidValue(f"unknown {what} {value!r}: choose one of {', '.join(choices)}")
        if not isinstance(self.beam, int) or not 1 <= self.beam <= 99:
            raise InvalidValue(f"beam{self.beam}: the number of beams is 1 to 99")
        if self.ppl and self.beam > 1:
            raise InvalidValue(
                f"'ppl' ranks the options and generates nothing that beam{self.beam} could search: use one of the two"
            )
        if self.base and not _SAFE.fullmatch(self.base):
            raise InvalidValue(f"base {self.base!r}: names are file names, only A-Z a-z 0-9 . _ - are allowed")
        if MARK in self.base or self.base.endswith("_trunc"):
            raise InvalidValue(f"base {self.base!r} is a truncated variant already")
        if _SUFFIX.search(self.base):
            raise InvalidValue(
                f"base {self.base!r} ends in a suffix already; their order is _p-<prompt>, _ppl, _beam<n>"
            )
        self._check_stages()

    def _check_stages(self) -> None:
        if not self.stages:
            if (self.rule, self.row, self.official) != ("attention", "last", False):
                raise InvalidValue("a rule, row or 'official' needs at least one stage l<L>_k<K>")
            return
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if after.layer <= before.layer:
                raise InvalidValue(f"stages {before}_{after}: layers must rise")
            same = (before.keep is None) == (after.keep is None)
            if same and (after.keep or after.percent or 0) > (before.keep or before.percent or 0):
                raise InvalidValue(f"stages {before}_{after}: a later stage cannot keep more")
        first = self.stages[0]
        keeps = first.keep or first.percent
        if first.layer == 0 and keeps and self.rule not in ("random", "uniform"):
            raise InvalidValue(
                f"{first}: before block 1 there is no attention to rank by; use k0, or the rule random or uniform"
            )
        if self.row != "last" and self.rule not in ("attention", "lowest"):
            raise InvalidValue(f"row {self.row!r} ranks by attention and has no meaning with rule {self.rule!r}")

    @property
    def setting(self) -> str:
        """The name without its base: ``l5_k128_random``."""
        parts = [str(stage) for stage in self.stages]
        parts += [part for part, default in ((self.rule, "attention"), (self.row, "last")) if part != default]
        parts += ["official"] * self.official
        parts += [f"p-{self.prompt}"] * (self.prompt != "stock")
        parts += ["ppl"] * self.ppl + [f"beam{self.beam}"] * (self.beam > 1)
        return "_".join(parts)

    @property
    def decoding(self) -> str:
        """How an answer is reached, in the words of the paper's Table 2."""
        if self.ppl:
            return "options ranked by likelihood"
        return "greedy search" if self.beam == 1 else f"beam search (n={self.beam})"

    @property
    def baseline(self) -> str:
        """Name of the run to compare with: the same base, prompt and way to answer, nothing truncated."""
        return str(VariantSpec(self.base, prompt=self.prompt, beam=self.beam, ppl=self.ppl))

    @property
    def is_variant(self) -> bool:
        """True when the name says more than its base."""
        return bool(self.setting)

    def __str__(self) -> str:
        if not self.base:
            return self.setting
        if not self.setting:
            return self.base
        return f"{self.base}{MARK if self.stages else '_'}{self.setting}"


def looks_like_variant(name: str) -> bool:
    """True for names that carry our suffixes, well-formed or not."""
    return bool(MARK in name or name.endswith("_trunc") or _SUFFIX.search(name))


def parse(name: str) -> VariantSpec:
    """Variant name -> spec; a name without our suffixes is a base. ``parse(str(spec)) == spec`` for every spec.

    Raises:
        KeyError: the name looks like a variant but cannot be one; says why, and the nearest valid name.
    """
    try:
        return _parse(name)
    except ValueError as reason:
        near = nearest(name)
        hint = f"; did you mean {near!r}?" if near else ""
        raise UnknownName(f"{name!r} is no variant: {reason}{hint} (form: {GRAMMAR})") from None


def _parse(name: str) -> VariantSpec:
    if not isinstance(name, str) or not name:
        raise InvalidValue("a name is a non-empty string")
    if MARK in name:
        base, _, suffix = name.partition(MARK)
        if not base:
            raise InvalidValue("the base model's name is missing")
    elif _STAGES.match(name):
        base, suffix = "", name
    else:
        return _parse_decoding_only(name)
    stages, rest = _read_stages(suffix)
    fields: dict[str, object] = {}
    for word, field, value in _words():
        if rest == f"_{word}" or rest.startswith(f"_{word}_"):
            fields[field] = value
            rest = rest[len(word) + 1 :]
    fields |= _read_decoding(rest)
    return VariantSpec(base, stages, **fields)  # type: ignore[arg-type]


def _words() -> Iterable[tuple[str, str, object]]:
    """Optional words in the order the grammar wants them."""
    yield from ((rule, "rule", rule) for rule in RULES[1:])
    yield from ((row, "row", row) for row in ROWS[1:])
    yield "official", "official", True


def _read_stages(suffix: str) -> tuple[tuple[Stage, ...], str]:
    stages: list[Stage] = []
    rest = suffix
    while match := _STAGES.match(rest if not stages else rest[1:]):
        layer, kind, number = int(match[1]), match[2], int(match[3])
        stages.append(Stage(layer, keep=number) if kind == "k" else Stage(layer, percent=number))
        rest = rest[match.end() + (len(stages) > 1) :]
        if not rest.startswith("_"):
            break
    if match := re.match(rf"_?(l{_NUMBER})(?=$|_(?![kr]\d))", rest):
        raise InvalidValue(f"{match[1]!r}: K is missing, the image tokens that go on from there: {match[1]}_k<K>")
    if not stages:
        raise InvalidValue(f"{suffix!r} does not begin with a stage l<L>_k<K> or l<L>_r<P>")
    return tuple(stages), rest


def _read_decoding(rest: str) -> dict[str, object]:
    match = _DECODING.fullmatch(rest)
    if match is None:
        raise InvalidValue(f"cannot read {rest!r}")
    fields: dict[str, object] = {"ppl": True} if match["ppl"] else {}
    if match["prompt"] is not None:
        if match["prompt"] == "stock":
            raise InvalidValue("'_p-stock' is the default and is not written")
        fields["prompt"] = match["prompt"]
    if match["beam"] is not None:
        if match["beam"] == "1" or match["beam"].startswith("0"):
            raise InvalidValue(
                f"'_beam{match['beam']}': one beam is the default, more are written without zeros in front"
            )
        fields["beam"] = int(match["beam"])
    return fields


def _parse_decoding_only(name: str) -> VariantSpec:
    if name.endswith("_trunc"):
        raise InvalidValue("no stage after '_trunc'")
    match = re.search(r"(?:_p-[a-z0-9-]+)?(?:_ppl)?(?:_beam\d+)?$", name)
    start = match.start() if match else len(name)
    base, rest = name[:start], name[start:]
    if not base or re.fullmatch(r"p-[a-z0-9-]+|ppl|beam\d+", base):
        base, rest = "", f"_{name}"
    return VariantSpec(base, **_read_decoding(rest))  # type: ignore[arg-type]


def nearest(name: str) -> str | None:
    """The valid name that a malformed one most likely meant, or None."""
    if not isinstance(name, str):
        return None
    base, _, suffix = name.partition(MARK) if MARK in name else (name.removesuffix("_trunc"), "", "")
    fields: dict[str, object] = {}
    words = [*_words(), ("ppl", "ppl", True)]
    for word in re.findall(r"[a-z][a-z-]+", suffix):
        close = difflib.get_close_matches(word, [w for w, _, _ in words], n=1, cutoff=0.7)
        fields |= {field: value for w, field, value in words if close == [w]}
    prompt = difflib.get_close_matches((re.findall(r"p-([a-z0-9-]+)", name) or [""])[0], PROMPTS[1:], n=1, cutoff=0.5)
    fields |= {"prompt": prompt[0]} if prompt else {}
    fields |= {"ppl": True} if re.search(r"_ppl(_|$)", name) else {}
    stages = _nearest_stages(suffix, fields.get("rule") in ("random", "uniform"))
    if MARK.strip("_") in name and not stages:
        stages = (Stage(5, keep=MISSING),)
    if fields.get("rule") in ("random", "uniform"):
        fields.pop("row", None)
    base = re.sub(r"_(p-[a-z0-9-]*|ppl|beam[a-z0-9-]*)(?=_|$)", "", base)
    base = re.sub(r"[^A-Za-z0-9._-]", "_", base)
    try:
        guess = str(VariantSpec(base, stages, **fields))  # type: ignore[arg-type]
        return guess if guess != name and _parse(guess) else None
    except ValueError:
        return None


def _nearest_stages(suffix: str, unranked: bool) -> tuple[Stage, ...]:
    """Every layer and every amount in a suffix, in the order that means something: layers rise, amounts fall."""
    suffix = re.sub(r"\b([kr]\d+)_(l\d+)(?=_|$)", r"\2_\1", suffix.lower())  # k8_l2
    found = re.findall(r"l_?(\d+)(?:_?([kr])(?![a-z]))?_?(\d+)?", suffix)
    layers = {int(layer): kind or "k" for layer, kind, _ in found}
    most = {"k": 10**6 - 1, "r": 100}
    stages: list[Stage] = []
    for kind, name in (("k", "keep"), ("r", "percent")):
        own = sorted(layer for layer in layers if layers[layer] == kind)
        last = {int(layer): min(int(number or MISSING), most[kind]) for layer, k, number in found if (k or "k") == kind}
        amounts = sorted((last[layer] for layer in own), reverse=True)
        for layer, amount in zip(own, amounts, strict=True):
            stages.append(Stage(layer if unranked or not amount else max(layer, 1), **{name: amount}))
    return tuple(sorted(stages))
