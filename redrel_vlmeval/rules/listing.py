"""What there is, for people: ``redrel rules``."""

from __future__ import annotations

from redrel_vlmeval.rules.registry import Rule, known

HEADS = ("rule", "keeps the K visual tokens", "needs", "from")


def table() -> str:
    """All rules that can be found, those of ``REDREL_RULES`` and of installed packages too, one a line.

    Raises:
        RuleError: a file or a package with rules is broken.
    """
    from tabulate import tabulate

    rows = [_row(rule) for rule in known(everywhere=True).values()]
    return tabulate(rows, headers=HEADS, disable_numparse=True, maxcolwidths=[None, 46, 30, 50])


def _row(rule: Rule) -> tuple[str, ...]:
    name = f"{rule.name} (control)" if rule.control else rule.name
    return (
        name,
        rule.says.format(row="the ranking row attends to"),
        ", ".join(sorted(rule.needs)) or "nothing",
        rule.where,
    )
