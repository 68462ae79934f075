"""Names read: text -> :class:`VariantSpec`, or the reason why not."""

from __future__ import annotations

import re

from redrel_vlmeval import rules
from redrel_vlmeval.errors import InvalidValue, RedrelError, UnknownName
from redrel_vlmeval.names.guessing import guesses
from redrel_vlmeval.names.spec import LONGEST, MARK, ROWS, SUFFIX, Stage, VariantSpec, shortened

_NUMBER = r"(?:0|[1-9][0-9]{0,5})"
_RULE = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"
_STAGE = re.compile(rf"l({_NUMBER})_([kra])({_NUMBER})(?:-({_RULE}))?(?=_|$)")
_DECODING = re.compile(r"(?:_p-(?P<prompt>[a-z0-9-]+))?(?P<ppl>_ppl)?(?:_beam(?P<beam>[0-9]+))?")


def grammar() -> str:
    """The form of a name, in one line."""
    first, *others = (name for name in rules.known() if name != rules.DEFAULT)
    listed = "|".join(f"_{name}" for name in [first, *others])
    rows = "|".join(f"_{row}" for row in list(ROWS)[1:])
    return (
        f"<base>_trunc_l<L>_k<K>|r<P>|a<A>[-<rule>][_l.._k..][{listed}][{rows}][_pos-new][_seed<n>][_official]"
        "[_p-<prompt>][_ppl][_beam<n>]"
    )


def looks_like_variant(name: str) -> bool:
    """True for names that carry our suffixes, well-formed or not."""
    return bool(MARK in name or name.endswith("_trunc") or SUFFIX.search(name))


def parse(name: str) -> VariantSpec:
    """Variant name -> spec; a name without our suffixes is a base. ``parse(str(spec)) == spec`` for every spec.

    Raises:
        KeyError: the name looks like a variant but cannot be one; says why, and the nearest valid name.
    """
    try:
        if isinstance(name, str) and len(name) > LONGEST:
            raise InvalidValue(f"{len(name)} characters, a name has at most {LONGEST}")
        return _parse(name)
    except RedrelError as reason:
        near = nearest(name)
        hint = f"; did you mean {near!r}?" if near else ""
        raise UnknownName(f"{shortened(name)} is no variant: {reason}{hint} (form: {grammar()})") from None


def _parse(name: str) -> VariantSpec:
    if not isinstance(name, str) or not name:
        raise InvalidValue("a name is a non-empty string")
    if MARK in name:
        base, _, suffix = name.partition(MARK)
        if not base:
            raise InvalidValue("the base model's name is missing")
    elif _STAGE.match(name):
        base, suffix = "", name
    else:
        return _parse_decoding_only(name)
    stages, rest = _read_stages(suffix)
    fields, rest = _read_words(rest)
    spec = VariantSpec(base, stages, **fields, **_read_decoding(rest))  # type: ignore[arg-type]
    if str(spec) != name:
        raise InvalidValue(f"it is written {str(spec)!r}")
    return spec


def _read_words(rest: str) -> tuple[dict[str, object], str]:
    """The words between stages and prompt, in the order of the grammar, and what follows them."""
    fields: dict[str, object] = {}
    match = re.match(rf"_({_RULE})(?=_|$)", rest)
    if match and not rules.reserved(match[1]):
        fields["rule"], rest = rules.find(match[1]).name, rest[match.end() :]
    forms = {"row": "|".join(list(ROWS)[1:]), "positions": "pos-new", "seed": rf"seed{_NUMBER}", "official": "official"}
    for field, form in forms.items():
        if match := re.match(rf"_({form})(?=_|$)", rest):
            word, rest = match[1], rest[match.end() :]
            values = {"positions": "new", "official": True, "seed": int(word[4:]) if field == "seed" else 0}
            fields[field] = values.get(field, word)
    return fields, rest


def _read_stages(suffix: str) -> tuple[tuple[Stage, ...], str]:
    stages: list[Stage] = []
    rest = suffix
    fields = {"k": "keep", "r": "percent", "a": "average"}
    while match := _STAGE.match(rest if not stages else rest[1:]):
        rule = rules.find(match[4]).name if match[4] else None
        stages.append(Stage(int(match[1]), rule=rule, **{fields[match[2]]: int(match[3])}))
        rest = rest[match.end() + (len(stages) > 1) :]
        if not rest.startswith("_"):
            break
    if match := re.match(rf"_?(l{_NUMBER})(?=$|_(?![kra][0-9]))", rest):
        raise InvalidValue(f"{match[1]!r}: K is missing, the image tokens that go on from there: {match[1]}_k<K>")
    if not stages:
        raise InvalidValue(f"{shortened(suffix)} does not begin with a stage l<L>_k<K>, l<L>_r<P> or l<L>_a<A>")
    return tuple(stages), rest


def _read_decoding(rest: str) -> dict[str, object]:
    match = _DECODING.fullmatch(rest)
    if match is None:
        raise InvalidValue(f"cannot read {shortened(rest)}")
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
    match = re.search(r"(?:_p-[a-z0-9-]+)?(?:_ppl)?(?:_beam[0-9]+)?$", name)
    start = match.start() if match else len(name)
    base, rest = name[:start], name[start:]
    if not base or re.fullmatch(r"p-[a-z0-9-]+|ppl|beam[0-9]+", base):
        base, rest = "", f"_{name}"
    return VariantSpec(base, **_read_decoding(rest))  # type: ignore[arg-type]


def nearest(name: str) -> str | None:
    """The valid name that a malformed one most likely meant, or None."""
    for guess in guesses(name):
        try:
            if guess != name and _parse(guess):
                return guess
        except RedrelError:
            continue
    return None
