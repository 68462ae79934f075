"""Asking a rule, and not believing it: the one place where engine, sweep, likelihood and explanations choose tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redrel_vlmeval.rules.registry import Rule, RuleError
from redrel_vlmeval.rules.seen import Merged, Seen

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """What stays of n visual tokens: ``indices`` long [K], ascending; ``weights`` float [K, n] of a merging rule."""

    indices: Tensor
    weights: Tensor | None = None


def decide(rule: Rule, seen: Seen, budget: int) -> Choice:
    """The ``budget`` visual tokens that ``rule`` keeps of ``seen.n``, checked.

    A budget of 0, or one that takes in all, leaves nothing to choose, and the rule is not asked.

    Raises:
        RuleError: what came back is not ``budget`` different numbers of tokens; names the rule and what it gave.
    """
    import torch

    if budget >= seen.n or budget == 0:
        return Choice(torch.arange(min(budget, seen.n)))
    with torch.no_grad():
        given = rule.choose(seen, budget)
    indices, weights = (given.indices, given.weights) if isinstance(given, Merged) else (given, None)
    indices, order = _checked(rule, indices, seen.n, budget).sort()
    if weights is None:
        return Choice(indices)
    if not isinstance(weights, torch.Tensor) or weights.shape != (budget, seen.n) or not weights.is_floating_point():
        shape = list(getattr(weights, "shape", [])) or type(weights).__name__
        raise RuleError(f"{_who(rule)} merged with weights {shape}, expected a float tensor [{budget}, {seen.n}]")
    if not bool(weights.isfinite().all()):
        raise RuleError(f"{_who(rule)} merged with weights that are not finite")
    return Choice(indices, weights[order.to(weights.device)])


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
