"""Our errors have one root: what is raised for people to read descends from :class:`RedrelError`.

Each class is also the built-in that fits it, so that callers who catch ``KeyError`` or ``ValueError`` go on doing so.
"""

from __future__ import annotations


class RedrelError(Exception):
    """Something that the user can mend; its text names the value, where it came from and what would be right."""

    def __str__(self) -> str:
        """The text as it was given: ``KeyError`` would print its repr."""
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class InvalidValue(RedrelError, ValueError):
    """A value that means nothing where it was given."""


class Unaskable(InvalidValue):
    """One question that cannot be asked, where the others of its benchmark can.

    ``placed`` says whether its text names the question already, and not only what is wrong with it.
    """

    def __init__(self, text: str, placed: bool = False) -> None:
        super().__init__(text)
        self.placed = placed


class UnknownName(RedrelError, KeyError):
    """A name that nothing answers to."""


class TruncationError(RedrelError, RuntimeError):
    """A truncation that cannot be honoured on this model or call: names the variant, the layer and what was found."""


class Refused(RedrelError):
    """A refusal where the host is told to turn every RuntimeError into an answer (``SKIP_ERR=1``): this one is none."""


class ExplainError(RedrelError, RuntimeError):
    """An explanation that cannot be made or read; says what is wrong and what would work."""


def one_line(error: BaseException) -> str:
    """Kind and text of an error, fit for one line of a log or one field of a sheet."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
