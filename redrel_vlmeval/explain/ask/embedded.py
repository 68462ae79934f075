"""A prompt as a decoder is given it that is called with embeddings: where its visual tokens are is known by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.truncation import Decoder, replaced

FEATURES = "extract_feature"  # of InternVL and what is like it: pixels [n, 3, h, w] -> features [n, m, D]


@contextmanager
def embeddings(decoder: Decoder) -> Iterator[dict[str, Any]]:
    """Within the context a prompt's ``inputs_embeds``, ``attention_mask`` and ``input_ids`` are noted, the last's.

    The ids [1, s] are one for each row of embeddings, see :meth:`Entrance.placed`. Where a method of the outer model
    has made just the rows of the visual tokens, its ``pixel_values`` are noted too: :func:`remade` makes them again.
    Stays empty for a model whose decoder finds ids and pixels itself.
    """
    noted: dict[str, Any] = {}
    made: list[tuple[torch.Tensor, torch.Tensor]] = []  # pixels and features of the latest call

    def looking(original: Callable[..., Any]) -> Callable[..., Any]:
        def extract(*args: Any, **kwargs: Any) -> Any:
            features = original(*args, **kwargs)
            pixels = args[0] if args else next(iter(kwargs.values()))
            made[:] = [(pixels, features)] if isinstance(features, torch.Tensor) and features.ndim == 3 else []
            return features

        return extract

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = decoder.read_call(args, kwargs)
        if call.past or kwargs.get("inputs_embeds") is None or call.input_ids is None:
            return
        noted.clear()
        noted.update({"input_ids": call.input_ids, "inputs_embeds": kwargs["inputs_embeds"]})
        if call.attention_mask is not None:
            noted["attention_mask"] = call.attention_mask
        rows = kwargs["inputs_embeds"][decoder.image_mask(call.input_ids)]
        for pixels, features in made:
            same = features.flatten(0, 1).to(rows)
            if same.shape == rows.shape and torch.equal(same, rows):
                noted["pixel_values"] = pixels
        made.clear()

    if decoder.entrance is None:
        yield noted
        return
    with decoder.entered(), ExitStack() as undo:
        if hasattr(decoder.entrance.outer, FEATURES):
            undo.enter_context(replaced(decoder.entrance.outer, FEATURES, looking))
        undo.callback(decoder.root.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield noted


def remade(decoder: Decoder, rows: torch.Tensor, visual: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """``rows`` [b, s, D] with the features of ``pixels`` at ``visual`` (bool [b, s]), gradients included."""
    entrance: Any = decoder.entrance
    features = getattr(entrance.outer, FEATURES)(pixels)
    filled = rows.clone()
    filled[visual] = features.flatten(0, 1).to(rows)
    return filled
