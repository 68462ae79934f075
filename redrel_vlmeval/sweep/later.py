"""Second and later stages of a setting: its rule chooses again, by what the setting's own tokens do.

```
prompt              p p p I I I I t t     P = 3 prefix tokens, shared by all
l2_k3_l4_k1         . . . I I . I t t     own tokens, computed anew from block 3 on           [1, 5, D]
what a rule sees    0 0 0 I I . I t t     of the tokens held; the prefix, which no rule reads, is blank   [1, 8, D]
from block 5 on     . . . . I . . t t     own tokens                                          [1, 3, D]
```
"""

from __future__ import annotations

from dataclasses import replace

import torch

from redrel_vlmeval.names import Stage
from redrel_vlmeval.rules import AFTER_A_BLOCK
from redrel_vlmeval.sweep.shared import Shared
from redrel_vlmeval.truncation import Attention, Decoder, Evidence, Prompt, gathered, mean_row, peeked


def watched(shared: Shared, prompt: Prompt, stage: Stage, seen: Attention) -> Evidence | None:
    """What the rule of ``stage`` needs of the block before it, None where that is nothing.

    ``seen`` is the setting's own: query [1, h, n, d] of its own tokens, key and value [1, g, P + n, d].
    """
    needs = prompt.spec.rule_of(stage).needs
    if not (prompt.asks(stage) and needs & AFTER_A_BLOCK):
        return None
    view = prompt.view_before(stage.layer - 1)
    rows = prompt.query_rows(stage, shared.length, view) - shared.prefix
    text = prompt.text_rows(stage, view) - shared.prefix if "text_attention" in needs else rows
    found = gathered(seen, needs, rows, text)
    if found.queries is not None:
        found.queries = _behind_blanks(found.queries, shared.prefix, 2)
    return found


def choose(
    decoder: Decoder, shared: Shared, prompt: Prompt, stage: Stage, hidden: torch.Tensor, evidence: Evidence | None
) -> None:
    """Let the rule of ``stage`` choose, now that the own tokens ``hidden`` [1, n, D] leave block L."""
    needs = prompt.spec.rule_of(stage).needs
    if prompt.asks(stage):
        if evidence is None and needs & AFTER_A_BLOCK:
            raise decoder.unseen(stage.layer - 1)
        evidence = evidence or Evidence()
        view = prompt.view_before(stage.layer - 1)
        assert view is not None  # an earlier stage has dropped tokens
        given, prefix = shared.arguments[stage.layer], shared.prefix
        evidence.embeddings, evidence.towers = shared.embeddings, shared.towers
        held = decoder.at(stage.layer, given, view.rotary[0])
        evidence.look_behind(decoder, needs, _behind_blanks(hidden, prefix, 1), held)
        if "next_attention" in needs:
            own = decoder.at(stage.layer, given, view.rotary[0][prefix:])
            seen = peeked(decoder, stage.layer, hidden, own)
            mask = shared.mask_of(stage.layer, view.index[0][prefix:])
            key = torch.cat([shared.keys[stage.layer][:, :, :prefix], seen.key], 2)
            rows = prompt.query_rows(stage, shared.length, view) - prefix
            evidence.next_attention = mean_row(replace(seen, key=key, mask=mask), rows)
    prompt.decide(stage, evidence or Evidence())


def _behind_blanks(tensor: torch.Tensor, count: int, dim: int) -> torch.Tensor:
    shape = [count if axis == dim else size for axis, size in enumerate(tensor.shape)]
    return torch.cat([tensor.new_zeros(shape), tensor], dim)
