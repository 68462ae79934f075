"""Where visual tokens lie on their pictures: told from what a model was given, never from a count.

What the call does not say of it follows from the pictures' sizes; how each family lays them: ``layouts.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch

from redrel_vlmeval.errors import ExplainError, Unaskable
from redrel_vlmeval.models.layouts import FAMILIES, RUNS, WHOLE, Size, View, end_of
from redrel_vlmeval.models.pictures import opened
from redrel_vlmeval.truncation import Decoder

# arguments of a model's call that say how its pictures were cut
GIVEN = ("image_sizes", "image_grid_thw", "batch_num_images")


def told(decoder: Decoder, given: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """What is to be known of how the pictures of one prompt were cut, for :func:`views`.

    Args:
        given: arguments of the model's call.
        ids: long [s], without padding; of a decoder that is given embeddings as it has placed them.
    """
    image = decoder.image_mask(ids[None])[0]
    edges = torch.nn.functional.pad(image.int(), (1, 1)).diff().nonzero()[:, 0].tolist()
    runs = [
        (end - first, int(ids[first - 1]) if first else None)
        for first, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    return {name: given[name] for name in GIVEN if given.get(name) is not None} | {RUNS: runs}


def views(decoder: Decoder, given: Mapping[str, Any], tokens: int, sizes: Sequence[Size]) -> list[View]:
    """The views of one prompt's ``tokens`` visual tokens, picture by picture, the whole of it first.

    Args:
        given: what :func:`told` found.
        sizes: of the prompt's pictures, in order.

    Raises:
        ExplainError: the family's tokens are no places on a picture, or how they lie is not known here.
    """
    model = decoder.root if decoder.entrance is None else decoder.entrance.outer
    config: Any = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", type(model).__name__))
    if kind not in FAMILIES:
        raise ExplainError(
            f"{type(model).__name__}: how {kind} lays its visual tokens over a picture is not known here; known are "
            f"{', '.join(FAMILIES)}"
        )
    found = FAMILIES[kind](model, given, tokens, sizes)
    if not found or end_of(found[-1]) > tokens:
        raise ExplainError(
            f"{type(model).__name__}: {tokens} visual tokens of {len(sizes)} pictures are not laid out as {kind}'s are"
        )
    return sorted(found, key=lambda view: (view.picture, view.kind != WHOLE))


def recorded(decoder: Decoder, given: Mapping[str, Any], tokens: int, pictures: Sequence[str]) -> dict[str, Any]:
    """What a record says of a prompt's pictures: ``views``, a list for each :class:`View`, or why ``unplaced``.

    ``pictures``: paths.
    """
    try:
        found = views(decoder, given, tokens, [size_of(picture) for picture in pictures])
    except (ExplainError, Unaskable) as error:
        return {"unplaced": str(error)}
    return {"views": [[*astuple(view)[:-1], *(round(float(edge), 5) for edge in view.box)] for view in found]}


def size_of(path: str) -> Size:
    """Width and height of a picture's file.

    Raises:
        Unaskable: it is missing or no picture.
    """
    with opened(path) as picture:
        return picture.size
