"""Asking a rule, and not believing it: the one place where engine, sweep, likelihood and explanations choose tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redrel_vlmeval.rules.registry import Rule, RuleError
from redrel_vlmeval.rules.seen import Merged, Replaced, Seen

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """What stays of n visual tokens: ``indices`` long [K], ascending; ``weights`` float [K, n] of a merging rule, or
    ``rows`` [K, D] of one that replaces."""

    indices: Tensor
    weights: Tensor | None = None
    rows: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the tokens that stay are as they were."""
        return self.weights is None and self.rows is None

    def applied(self, tokens: Tensor) -> Tensor:
        """What the kept tokens become, [K, D], of the n ``tokens`` [n, D]."""
        if self.rows is not None:
            return self.rows.to(tokens)
        if self.weights is None:
            return tokens.index_select(0, self.indices.to(tokens.device))
        return (self.weights.to(tokens.device).float() @ tokens.float()).to(tokens.dtype)


def decide(rule: Rule, seen: Seen, budget: int) -> Choice:
    """The ``budget`` visual tokens that ``rule`` keeps of ``seen.n``, checked.

    A budget of 0, or one that takes in all, leaves nothing to choose, and the rule is not asked.

    Raises:
        RuleError: what came back is not ``budget`` different numbers of tokens; names the rule and what it gave.
        InvalidValue: what the rule would see has NaN or infinities.
    """
    import torch

    if budget >= seen.n or budget == 0:
        return Choice(torch.arange(min(budget, seen.n)))
    seen.check()
    with torch.no_grad():
        given = rule.choose(seen, budget)
    indices = given.indices if isinstance(given, (Merged, Replaced)) else given
    indices, order = _checked(rule, indices, seen.n, budget).sort()
    if isinstance(given, Replaced):
        return Choice(indices, rows=_checked_rows(rule, given.rows, budget)[order.to(given.rows.device)])
    if not isinstance(given, Merged):
        return Choice(indices)
    weights = given.weights
    if not isinstance(weights, torch.Tensor) or weights.shape != (budget, seen.n) or not weights.is_floating_point():
        shape = list(getattr(weights, "shape", [])) or type(weights).__name__
        raise RuleError(f"{_who(rule)} merged with weights {shape}, expected a float tensor [{budget}, {seen.n}]")
    if not bool(weights.isfinite().all()):
        raise RuleError(f"{_who(rule)} merged with weights that are not finite")
    return Choice(indices, weights[order.to(weights.device)])


def _checked_rows(rule: Rule, rows: Any, budget: int) -> Tensor:
    """Rows [budget, D] that are numbers.

    Raises:
        RuleError: see :func:`decide`.
    """
    import torch

    if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) != budget or not rows.is_floating_point():
        shape = list(getattr(rows, "shape", [])) or type(rows).__name__
        raise RuleError(f"{_who(rule)} replaced tokens by rows {shape}, expected a float tensor [{budget}, width]")
    if not bool(rows.isfinite().all()):
        raise RuleError(f"{_who(rule)} replaced tokens by rows that are not finite")
    return rows


def _checked(rule: Rule, indices: Any, n: int, budget: int) -> Tensor:
    """Indices as long [budget] on the CPU.

    Raises:
        RuleError: see :func:`decide`.
    """
    import torch

    try:
        found = torch.as_tensor(indices).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RuleError(f"{_who(rule)} returned {type(indices).__name__}, expected {budget} indices") from error
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        what = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
        raise RuleError(f"{_who(rule)} returned {what}, expected {budget} whole numbers: indices of the tokens to keep")
    if len(found) != budget:
        raise RuleError(f"{_who(rule)} returned {len(found)} indices, asked for {budget} of {n}")
    found = found.long()
    if wrong := found[(found < 0) | (found >= n)].tolist():
        raise RuleError(f"{_who(rule)} returned index {wrong[0]}, out of range: the {n} visual tokens are 0 to {n - 1}")
    if len(found.unique()) != budget:
        twice = found[(found[:, None] == found).sum(1) > 1].tolist()
        raise RuleError(f"{_who(rule)} returned index {twice[0]} twice, asked for {budget} different ones of {n}")
    return found


def _who(rule: Rule) -> str:
    return f"rule {rule.name!r} ({rule.where})"
