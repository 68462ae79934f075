"""A prompt as a decoder is given it that is called with embeddings: where its visual tokens are is known by then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from redrel_vlmeval.truncation import Decoder


@contextmanager
def embeddings(decoder: Decoder) -> Iterator[dict[str, Any]]:
    """Within the context a prompt's ``inputs_embeds``, ``attention_mask`` and ``input_ids`` are noted, the last's.

    The ids [1, s] are one for each row of embeddings, see :meth:`Entrance.placed`. Stays empty for a model whose
    decoder finds ids and pixels itself.
    """
    noted: dict[str, Any] = {}

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = decoder.read_call(args, kwargs)
        if call.past or kwargs.get("inputs_embeds") is None or call.input_ids is None:
            return
        noted.clear()
        noted.update({"input_ids": call.input_ids, "inputs_embeds": kwargs["inputs_embeds"]})
        if call.attention_mask is not None:
            noted["attention_mask"] = call.attention_mask

    if decoder.entrance is None:
        yield noted
        return
    with decoder.entered():
        handle = decoder.root.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield noted
        finally:
            handle.remove()
