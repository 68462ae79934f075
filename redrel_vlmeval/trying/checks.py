"""Whether a name of the host truncates right: its own class, its own prompt and ``generate``, on a tiny checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.truncation import Trace, find_decoder, replaced_generate, truncated
from redrel_vlmeval.trying.restated import Restated

LAYER, KEEP = 2, 8
STEPS = 5  # tokens of an answer
BENCHMARK = "MMStar"  # some classes ask in other words for other benchmarks, and cannot do without one
CLOSE = 1e-4  # logits, of models of random weights in float32


@dataclass(frozen=True)
class Tried:
    """What one class did with one picture and ``l2_k8``.

    tokens, keys: in each block. same: K = all is bit for bit the untouched model. blind: largest difference between
    two pictures' logits under ``l0_k0``; sees: untouched. apart: from the re-statement, over all steps. kept: whether
    it keeps the same tokens. steps: logits that were compared.
    """

    model: str
    tokens: list[int]
    keys: list[int]
    same: bool
    blind: float
    sees: float
    apart: float
    kept: bool
    steps: int

    @property
    def wrong(self) -> list[str]:
        """What of it is not as it must be."""
        tokens, keys = self.tokens, self.keys
        dropped = tokens[LAYER] < tokens[0] and keys[LAYER] < keys[0] and len(set(tokens[LAYER:])) == 1
        found = {
            f"later blocks hold {tokens} tokens, {keys} keys": dropped and tokens[0] - keys[0] == tokens[-1] - keys[-1],
            "K = all differs from the untouched model": self.same,
            f"l0_k0 tells two pictures apart, by {self.blind:.1g}": self.blind == 0,
            "the untouched model does not tell two pictures apart": self.sees > 0,
            f"steps differ from the masked re-statement by {self.apart:.1g}": self.apart < CLOSE,
            "other tokens are kept than in the masked re-statement": self.kept,
            "the answer has one token only": self.steps > 1,
        }
        return [fault for fault, right in found.items() if not right]

    def __str__(self) -> str:
        found = "; ".join(self.wrong) or "truncates right"
        blocks = f"tokens {self.tokens} and keys {self.keys} of its blocks"
        return f"{self.model}: {found}; {blocks}; {self.apart:.1g} from the masked re-statement in {self.steps} steps"


def _shortly(generate: Callable[..., Any]) -> Callable[..., Any]:
    """A class may ask for thousands of tokens."""
    return lambda *args, **kwargs: generate(*args, **(kwargs | {"max_new_tokens": STEPS, "do_sample": False}))


class _Heard:
    """Logits of the last position, call by call, of one answer."""

    def __init__(self, model: Any, undo: ExitStack) -> None:
        self.logits: list[torch.Tensor] = []
        undo.callback(model.register_forward_hook(self._note).remove)

    def _note(self, _module: Any, _args: Any, output: Any) -> None:
        self.logits.append(output.logits[0, -1].float().clone())


def attempt(table: Mapping[str, Any], name: str, pictures: Sequence[str], question: str, **kwargs: Any) -> Tried:
    """Ask ``name``'s variant and its base about two pictures.

    Args:
        table: the host's, extended by our names.
        kwargs: to the builder: where its checkpoint lies.

    Raises:
        RedrelError: the class, or its model, is refused. Whatever the host's class raises.
    """
    variant = table[f"{name}_trunc_l{LAYER}_k{KEEP}"](**kwargs)
    model = variant.torch_model
    decoder = find_decoder(model)
    answer = _asker(variant.inner, model, decoder.heard(model), pictures, question)

    trace, dropped = answer(f"l{LAYER}_k{KEEP}")
    _, whole = answer()
    _, every = answer("l2_k9999")
    _, other = answer("", 1)
    blind = [answer("l0_k0", picture)[1][0] for picture in (0, 1)]
    again = Restated(decoder, LAYER, KEEP)
    _, masked = answer(restated=again)
    last = _last(trace)
    return Tried(
        type(model).__name__,
        last.tokens,
        last.kv,
        len(whole) == len(every) and all(map(torch.equal, whole, every)),
        _apart(*blind),
        _apart(whole[0], other[0]),
        max(_apart(a, b) for a, b in zip(dropped, masked, strict=True)),
        last.kept.get(LAYER) == again.kept,
        len(dropped),
    )


def _asker(
    inner: Any, model: nn.Module, heard: nn.Module, pictures: Sequence[str], question: str
) -> Callable[..., tuple[Any, list[torch.Tensor]]]:
    """A function that asks about one of ``pictures``, truncated or with a re-statement applied: trace and logits."""
    one = Path(pictures[0]).with_stem("picture")  # some classes put its path into the prompt

    def answer(setting: str = "", picture: int = 0, restated: Restated | None = None) -> tuple[Any, list[torch.Tensor]]:
        shutil.copyfile(pictures[picture], one)
        message = [{"type": "image", "value": str(one)}, {"type": "text", "value": question}]
        with ExitStack() as undo:
            trace = undo.enter_context(truncated(model, setting)) if setting else None
            if restated is not None:
                undo.enter_context(restated.applied(heard))
            spoken = _Heard(heard, undo)
            undo.enter_context(replaced_generate(heard, _shortly))
            inner.generate([dict(item) for item in message], dataset=BENCHMARK)
            return trace, spoken.logits

    return answer


def _last(trace: Trace | None) -> Any:
    if trace is None or not trace.prompts:
        raise RedrelError("the host's class answered without a call of its model")
    return trace.prompts[-1]


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())
