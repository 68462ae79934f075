"""What a variant name says: stages, a rule, a row and the rest, and how that is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from redrel_vlmeval import rules
from redrel_vlmeval.errors import InvalidValue, UnknownName
from redrel_vlmeval.rules import Rule

# Query rows that a rule ranks by, in words that a rule's own go on from: "that {row} most".
ROWS = {
    "last": "the last query row attends to",
    "rowimg": "the query row of the last image token attends to",
    "rowmean": "the query rows from the last image token on attend to, on average,",
    "rowtext": "the query rows of the text after the image attend to, on average,",
}
PROMPTS = ("stock", "qcm", "cqm", "p1-cqm", "cqm-p1", "cqm-p2", "cqm-p3", "qwen")
POSITIONS = ("kept", "new")
MARK = "_trunc_"
MISSING = 128  # the K that is proposed where a name has none
LONGEST = 250  # characters; a name is a file name, and the hosts add to it
MOST = 10**6 - 1  # of layers and tokens

# Suffixes that a base may carry without a stage.
SUFFIX = re.compile(r"_(p-[a-z0-9-]+|ppl|beam[0-9]+)$")
_SAFE = re.compile(r"[A-Za-z0-9._-]+")


def shortened(value: object, most: int = 80) -> str:
    """A value as messages repeat it: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"


@dataclass(frozen=True, order=True)
class Stage:
    """Blocks after ``layer`` see ``keep`` visual tokens, ``percent`` % of the prompt's, or as many as make ``average``
    the mean over all blocks; exactly one of the three is set.

    ``rule`` is set where the stages of a name have different rules.

    Raises:
        ValueError: negative numbers, a percentage above 100, none or several given.
    """

    layer: int
    keep: int | None = None
    percent: int | None = None
    average: int | None = None
    rule: str | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.keep, self.percent, self.average) if value is not None]
        if len(given) != 1:
            raise InvalidValue(
                f"stage l{self.layer}: give exactly one of keep (k), percent (r) and average (a), got "
                f"{self.keep}, {self.percent} and {self.average}"
            )
        for name in ("layer", "keep", "percent", "average"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST):
                raise InvalidValue(f"stage {name} must be a whole number from 0 to {MOST}, got {value!r}")
        if self.percent is not None and self.percent > 100:
            raise InvalidValue(f"r{self.percent}: a percentage is at most 100")

    def count(self, tokens: int, blocks: int | None = None) -> int:
        """Visual tokens that stay of a prompt's ``tokens``; fractions are rounded half up.

        ``a<A>`` needs the number of ``blocks``, N: ``K = (A N - L n) / (N - L)`` of n tokens.

        Raises:
            ValueError: an average that blocks 1..L exceed by themselves, or ``blocks`` is not given.
        """
        if self.keep is not None:
            return min(self.keep, tokens)
        if self.percent is not None:
            return (2 * tokens * self.percent + 100) // 200
        average = self.average or 0
        if blocks is None or blocks <= self.layer:
            raise InvalidValue(f"{self}: an average is over all decoder blocks, and their number is not known")
        over, rest = average * blocks - self.layer * tokens, blocks - self.layer
        if over < 0 and average < tokens:
            least = -(-self.layer * tokens // blocks)
            raise InvalidValue(
                f"{self}: {self.layer} of {blocks} blocks with all {tokens} visual tokens are more than {average} on "
                f"average already; A is at least {least} there"
            )
        return min((2 * over + rest) // (2 * rest), tokens)

    @property
    def empty(self) -> bool:
        """True if no visual token outlives it, so that no rule has anything to choose."""
        return not (self.keep or self.percent or self.average)

    @property
    def amount(self) -> str:
        """``k128``, ``r50`` or ``a192``."""
        if self.keep is not None:
            return f"k{self.keep}"
        return f"r{self.percent}" if self.percent is not None else f"a{self.average}"

    def __str__(self) -> str:
        return f"l{self.layer}_{self.amount}" + (f"-{self.rule}" if self.rule else "")


@dataclass(frozen=True)
class VariantSpec:
    """What a variant name says: no ``stages``, nothing is truncated; no ``base``, a bare setting (``l5_k128``).

    ``rule`` is that of all stages that name none of their own. ``positions``: of the tokens that stay, ``kept`` as they
    were or counted ``new``. ``seed``: another draw of a rule that draws. ``ppl``: the options of multiple choice are
    ranked by likelihood, nothing is generated.

    Raises:
        ValueError: a combination that DESIGN section 3 gives no meaning; the message says why.
    """

    base: str = ""
    stages: tuple[Stage, ...] = ()
    rule: str = rules.DEFAULT
    row: str = "last"
    official: bool = False
    prompt: str = "stock"
    beam: int = 1
    ppl: bool = False
    positions: str = "kept"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        for value, choices, what in (
            (self.row, tuple(ROWS), "row"),
            (self.prompt, PROMPTS, "prompt"),
            (self.positions, POSITIONS, "positions"),
        ):
            if value not in choices:
                raise InvalidValue(f"unknown {what} {value!r}: choose one of {', '.join(choices)}")
        for what, count, least, most in (("beam", self.beam, 1, 99), ("seed", self.seed, 0, MOST)):
            if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= most:
                raise InvalidValue(f"{what}{count}: a whole number from {least} to {most}")
        if self.ppl and self.beam > 1:
            raise InvalidValue(
                f"'ppl' ranks the options and generates nothing that beam{self.beam} could search: use one of the two"
            )
        self._check_base()
        self._settle_rules()
        self._check_stages()

    def _check_base(self) -> None:
        if self.base and not _SAFE.fullmatch(self.base):
            raise InvalidValue(f"base {shortened(self.base)}: names are file names, only A-Z a-z 0-9 . _ - are allowed")
        if MARK in self.base or self.base.endswith("_trunc"):
            raise InvalidValue(f"base {self.base!r} is a truncated variant already")
        if SUFFIX.search(self.base):
            raise InvalidValue(
                f"base {self.base!r} ends in a suffix already; their order is _p-<prompt>, _ppl, _beam<n>"
            )

    def _settle_rules(self) -> None:
        """One form for one meaning: a rule of all stages is the spec's, and the default is not written at a stage."""
        used = [stage.rule or self.rule for stage in self.stages]
        for name in dict.fromkeys([self.rule, *used]):
            try:
                rules.find(name)
            except UnknownName as error:
                raise InvalidValue(str(error)) from error
        if len(set(used)) == 1:
            object.__setattr__(self, "rule", used[0])
            used = [rules.DEFAULT]
        elif used:
            object.__setattr__(self, "rule", rules.DEFAULT)
        own = [None if name == rules.DEFAULT else name for name in (used if len(used) > 1 else used * len(self.stages))]
        settled = (replace(stage, rule=name) for stage, name in zip(self.stages, own, strict=True))
        object.__setattr__(self, "stages", tuple(settled))

    def _check_stages(self) -> None:
        found = self.chosen_by
        if not self.stages:
            plain = VariantSpec.__dataclass_fields__
            chosen = [
                n for n in ("rule", "row", "official", "positions", "seed") if getattr(self, n) != plain[n].default
            ]
            if chosen:
                raise InvalidValue(f"{chosen[0]} needs at least one stage l<L>_k<K>")
            return
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if after.layer <= before.layer:
                raise InvalidValue(f"stages {before}_{after}: layers must rise")
            if "a" in before.amount + after.amount:
                raise InvalidValue(f"stages {before}_{after}: an average a<A> is one stage's; give k or r at each")
        for kind in ("keep", "percent"):
            amounts = [(stage, getattr(stage, kind)) for stage in self.stages if getattr(stage, kind) is not None]
            for (before, most), (after, more) in zip(amounts, amounts[1:], strict=False):
                if more > most:
                    raise InvalidValue(f"stages {before}_{after}: a later stage cannot keep more")
        first = self.stages[0]
        if first.layer == 0 and not first.empty and not found[0].before_block_1:
            able = ", ".join(name for name, one in rules.known().items() if one.before_block_1)
            raise InvalidValue(
                f"{first}: before block 1 there is no attention to rank by, as rule {found[0].name!r} does; use k0, or "
                f"one of {able}"
            )
        paired = zip(self.stages, found, strict=True)
        if late := [stage for stage, one in paired if stage.layer and one.before_block_1_only]:
            raise InvalidValue(
                f"{late[0]}: rule {self.rule_of(late[0]).name!r} changes what enters block 1, so it is for l0 alone"
            )
        if self.row != "last" and not any(one.by_row for one in found):
            raise InvalidValue(f"row {self.row!r} ranks by attention and has no meaning with rule {found[0].name!r}")
        if self.seed and not any(one.draws for one in found):
            raise InvalidValue(f"seed{self.seed}: rule {found[0].name!r} draws nothing, so there is no other draw")
        if self.official:
            self._check_official()

    def _check_official(self) -> None:
        if self.positions != "kept":
            raise InvalidValue("pos-new counts the tokens that stay anew, and official drops none: use one of the two")
        wrong = [one for one in self.chosen_by if not one.needs <= {"attention", "generator"}]
        if wrong:
            raise InvalidValue(
                f"official ranks again at every step, where only attention is seen; rule {wrong[0].name!r} needs "
                f"{', '.join(sorted(wrong[0].needs - {'attention'}))}"
            )

    @property
    def chosen_by(self) -> tuple[Rule, ...]:
        """The rule of each stage."""
        return tuple(map(self.rule_of, self.stages))

    def rule_of(self, stage: Stage) -> Rule:
        """The rule of one of the stages."""
        return rules.find(stage.rule or self.rule)

    @property
    def ruling(self) -> str:
        """The rules in one word, for columns and legends: ``random``, or ``cls+next`` where stages differ."""
        return "+".join(dict.fromkeys(one.name for one in self.chosen_by)) or self.rule

    @property
    def setting(self) -> str:
        """The name without its base: ``l5_k128_random``."""
        parts = [str(stage) for stage in self.stages]
        parts += [part for part, default in ((self.rule, rules.DEFAULT), (self.row, "last")) if part != default]
        parts += self.words
        parts += [f"p-{self.prompt}"] * (self.prompt != "stock")
        parts += ["ppl"] * self.ppl + [f"beam{self.beam}"] * (self.beam > 1)
        return "_".join(parts)

    @property
    def words(self) -> list[str]:
        """What the name says of truncation beside stages, rule and row: ``pos-new``, ``seed1``, ``official``."""
        words = [f"pos-{self.positions}"] * (self.positions != "kept") + [f"seed{self.seed}"] * bool(self.seed)
        return words + ["official"] * self.official

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


def stage_before(stages: Sequence[Stage], block: int) -> Stage | None:
    """The last of ``stages`` whose tokens are gone when block number ``block`` (0-based) begins."""
    return next((stage for stage in reversed(stages) if stage.layer <= block), None)
