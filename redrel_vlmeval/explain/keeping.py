"""What every rule keeps of one picture at one budget, on a model of the host; one forward call for each rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from redrel_vlmeval import rules
from redrel_vlmeval.errors import ExplainError, TruncationError
from redrel_vlmeval.explain.ask import Asked, ask_host, questions
from redrel_vlmeval.explain.draw import Panel, keptfigures
from redrel_vlmeval.explain.maps import grids, shown
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import truncated

LAYER, LONGEST = 2, 640  # the block behind which rules choose that need attention; pixels of the picture in a panel


def draw(picture: Path, question: str, model: str, output: Path, keep: int | None = None) -> list[str]:
    """Write the figure; what rules said that refused, a line each.

    Args:
        model: a base of the host. keep: visual tokens; a quarter of them if not given.

    Raises:
        ExplainError: no picture, no question, tokens without a known place, or nothing to drop.
        KeyError: no such model.
    """
    if parse(model).stages:
        raise ExplainError(f"--model {model}: give the base alone; every rule is tried on it")
    keptfigures.check(output)
    (item,) = questions.own([picture], [question])
    asked = ask_host(questions.build(model), item.message)
    grid, total = grids(asked)[0], len(asked.spans().image)
    keep = max(1, total // 4) if keep is None else keep
    if keep >= total:
        raise ExplainError(f"--keep {keep}: the picture has {total} tokens in {model}; keep fewer")
    panels, refusals = [], []
    for rule in rules.known(everywhere=True).values():
        try:
            kept = np.isin(grid.index, kept_by(asked, rule, keep))
            panels.append(Panel(rule.name, kept, rule.control))
        except TruncationError as error:
            panels.append(Panel(rule.name, None, rule.control))
            refusals.append(f"refused: {error}")
    head = [
        f"{model}: {keep} of {total} visual tokens, before block 1, or after block {LAYER} (*); controls are slanted",
        question,
    ]
    late = {rule.name for rule in rules.known().values() if not rule.before_block_1}
    panels = [Panel(one.rule + "*" * (one.rule in late), one.kept, one.control) for one in panels]
    keptfigures.save(keptfigures.panels(shown(str(picture), LONGEST), grid, panels, head), output)
    return refusals


@torch.no_grad()
def kept_by(asked: Asked, rule: rules.Rule, keep: int) -> list[int]:
    """The visual tokens of one question that a rule keeps, numbered among its own.

    Raises:
        TruncationError: it cannot choose on this model, or of this picture.
    """
    layer = 0 if rule.before_block_1 else LAYER
    with truncated(asked.decoder, f"l{layer}_k{keep}{rules.suffix(rule.name)}", asked.tokenizer) as trace:
        asked.called(**asked.given(asked.inputs))
    return trace.last.kept[layer]
