"""Which rules there are: the only list of them. Knows no tensor, so that names are read without importing torch.

A rule is a function ``rule(seen, budget) -> indices`` made known by :func:`rule`. Three places are looked at:

1. the built-in files of this folder, always;
2. the files that ``REDREL_RULES`` names, separated as in PATH, when a name needs one of theirs;
3. the entry-point group ``redrel_vlmeval.rules`` of installed packages, likewise.

A file that breaks, or names a rule that exists, is an error for the names that it could have answered to, and for no
others.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from redrel_vlmeval.errors import InvalidValue, RedrelError, TruncationError, UnknownName
from redrel_vlmeval.rules.seen import AFTER_A_BLOCK, BEFORE_BLOCK_1, FIELDS

VARIABLE = "REDREL_RULES"
GROUP = "redrel_vlmeval.rules"
BUILT_IN = ("decoder", "diversity", "tower", "text", "controls")  # files of this folder
DEFAULT = "attention"

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# Words that a variant name uses otherwise: a rule called so could not be told from them.
_TAKEN = re.compile(r"row.*|last|official|ppl|p|p-.*|pos-.*|beam\d*|seed\d*|[lkra]\d+|trunc")


class RuleError(TruncationError):
    """A rule that cannot be registered, or that did not do what it promised; names the rule and its file."""


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    Attributes:
        name: as variant names write it. choose: the function.
        needs: fields of :class:`~redrel_vlmeval.rules.Seen` that it reads; the engine attaches probes for these alone.
        says: what it keeps, in words that follow "the K visual tokens": "whose keys are shortest".
        where: file and line, or package, that it comes from. digest: of that file's text.
        control: it is no method but what methods are compared with. cost: see :meth:`flops`.
        draws: it uses ``seen.generator``, so that ``_seed<n>`` is another draw.
    """

    name: str
    choose: Callable[..., Any]
    needs: frozenset[str]
    says: str
    where: str
    digest: str = field(default="", compare=False)
    control: bool = False
    cost: Callable[[int, int, Any], int] | None = field(default=None, compare=False)

    @property
    def draws(self) -> bool:
        return "generator" in self.needs

    @property
    def built_in(self) -> bool:
        """Whether it came with this package; of others, records keep the digest of their file."""
        return self.where.startswith(f"{__package__}.")

    @property
    def by_row(self) -> bool:
        """Whether it ranks by one query row's attention, so that the name may choose which row."""
        return bool(self.needs & {"attention", "next_attention"})

    def flops(self, tokens: int, images: int, shape: Any) -> int:
        """Multiply-adds of one choice among ``images`` of a block's ``tokens``: the rows it looks at, and its own.

        ``shape``: of a decoder block, see :class:`redrel_vlmeval.bases.BlockShape`.
        """
        inner, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        found = tokens * inner if "attention" in self.needs else 0
        if "next_attention" in self.needs:
            found += tokens * (shape.width * keys + inner) + shape.width * inner
        return found + (self.cost(tokens, images, shape) if self.cost is not None else 0)

    @property
    def before_block_1(self) -> bool:
        """Whether it can choose at ``l0``, where no block has attended yet."""
        return not self.needs & AFTER_A_BLOCK

    @property
    def before_block_1_only(self) -> bool:
        """Whether it can choose at ``l0`` alone."""
        return bool(self.needs & BEFORE_BLOCK_1)


def suffix(name: str) -> str:
    """What says a rule behind the stages of a setting: ``_random``; nothing for the default."""
    return "" if name == DEFAULT else f"_{name}"


def reserved(word: str) -> bool:
    """Whether a word means something else in a variant name, so that no rule can be called so."""
    return _TAKEN.fullmatch(word) is not None


_rules: dict[str, Rule] = {}


def rule(
    name: str,
    *,
    needs: Iterable[str] = (),
    says: str,
    control: bool = False,
    cost: Callable[[int, int, Any], int] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: make ``function(seen, budget)`` known as the rule ``name``.

    Args:
        name: lower-case words of letters and digits, joined by hyphens.
        needs: the fields of ``seen`` that the function reads.
        says: which tokens it keeps, in words that follow "the K visual tokens".
        control: for comparison only; sheets never recommend it.
        cost: multiply-adds of its own arithmetic for (tokens, visual tokens, block shape), beyond the rows it reads.

    Raises:
        RuleError: the name is taken, cannot stand in a variant name, or ``needs`` names no field.
    """
    wanted = frozenset([needs] if isinstance(needs, str) else needs)

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        where, digest = _origin(function)
        if not _NAME.fullmatch(name) or reserved(name):
            raise RuleError(
                f"rule {name!r} ({where}): a name is lower-case letters and digits, joined by hyphens, and no other "
                "word of variant names (rows, official, ppl, p-.., pos-.., beam.., seed..)"
            )
        if unknown := sorted(wanted - FIELDS.keys()):
            raise RuleError(f"rule {name!r} ({where}): needs {', '.join(unknown)}; choose from {', '.join(FIELDS)}")
        if not says or "\n" in says:
            raise RuleError(f"rule {name!r} ({where}): says={says!r}, give one line such as 'whose keys are shortest'")
        other = _rules.get(name)
        if other is not None and other.where != where:
            raise RuleError(f"rule {name!r} ({where}): the name is taken by {other.where}; choose another")
        _rules[name] = Rule(name, function, wanted, says, where, digest, control, cost)
        return function

    return register


def _origin(function: Callable[..., Any]) -> tuple[str, str]:
    """File and line of a function, and the digest of the file's text."""
    code = inspect.unwrap(function).__code__
    path = Path(code.co_filename)
    where = f"{path}:{code.co_firstlineno}"
    if path.parent == Path(__file__).parent:
        where = f"redrel_vlmeval.rules.{path.stem}"
    try:
        return where, hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:  # typed at a prompt, or in a notebook
        return where, ""


# -- finding ----------------------------------------------------------------------------------------------------------


def find(name: str) -> Rule:
    """The rule of that name.

    Raises:
        UnknownName: there is none; names those that there are. RuleError: a file that might have it is broken.
    """
    _built_in()
    if name not in _rules:
        _foreign(os.environ.get(VARIABLE, ""))
    if name not in _rules:
        broken = f"; and {'; '.join(_broken)}" if _broken else ""
        raise UnknownName(f"unknown rule {name!r}: choose one of {', '.join(sorted(_rules))}{broken}")
    return _rules[name]


def known(everywhere: bool = False) -> dict[str, Rule]:
    """The rules, built-in ones first, in the order of their files; others as registered; ``everywhere``: looks for all.

    Raises:
        RuleError: ``everywhere``, and a file or a package with rules is broken.
    """
    _built_in()
    if everywhere:
        _foreign(os.environ.get(VARIABLE, ""))
        if _broken:
            raise RuleError("; ".join(_broken))
    # by file and not by import, because figures draw a rule by its place and any file may be imported first
    places = {f"{__package__}.{name}": place for place, name in enumerate(BUILT_IN)}
    return dict(sorted(_rules.items(), key=lambda item: places.get(item[1].where, len(places))))


@lru_cache(maxsize=1)
def _built_in() -> None:
    for name in BUILT_IN:
        importlib.import_module(f"{__package__}.{name}")


_broken: list[str] = []  # what went wrong where rules were looked for


@lru_cache(maxsize=8)
def _foreign(variable: str) -> None:
    """Register what the variable's files and installed packages have, once; what is broken is noted."""
    _broken.clear()
    for text in filter(None, variable.split(os.pathsep)):
        _tried(f"{VARIABLE}: {text}", partial(_run_file, text))
    from importlib.metadata import entry_points  # here, because it takes 20 ms and few names need it

    for point in entry_points(group=GROUP):
        origin = f"entry point {point.name!r} of {point.dist.name if point.dist else 'a package'}"
        _tried(origin, point.load)


def _run_file(text: str) -> None:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise InvalidValue("no such file")
    spec = importlib.util.spec_from_file_location(f"redrel_rules_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidValue("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a module up there
    spec.loader.exec_module(module)


def _tried(origin: str, load: Callable[[], object]) -> None:
    before = dict(_rules)
    try:
        load()
    except Exception as error:  # whatever is wrong in someone's file must not stop other names
        _rules.clear()
        _rules.update(before)  # half a file is none
        _broken.append(f"{origin} cannot be used: {_line_of(error)}{type(error).__name__}: {error}")


def _line_of(error: Exception) -> str:
    """``line 3: `` where a file stopped; nothing where the error says it itself."""
    if isinstance(error, (SyntaxError, RedrelError)):
        return ""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}: "
