"""Which ids stand for visual tokens, as configs say it."""

from __future__ import annotations

from torch import nn

from redrel_vlmeval.errors import TruncationError

# where configs name the id of image tokens: transformers' new and old key, Kimi-VL's
IMAGE_KEYS = ("image_token_id", "image_token_index", "media_placeholder_token_id")
VIDEO_KEYS = ("video_token_id", "video_token_index")


def image_token(model: nn.Module) -> int:
    """The id of image tokens that a model's config names.

    Raises:
        TruncationError: it names none.
    """
    config = getattr(model, "config", None)
    token = next((one for key in IMAGE_KEYS if (one := getattr(config, key, None)) is not None), None)
    if token is None:
        raise TruncationError(
            f"{type(model).__name__}: its config names no image token ({', '.join(IMAGE_KEYS)}): "
            "it is a text model, or its pictures enter elsewhere"
        )
    return int(token)


def visual_tokens(model: nn.Module) -> tuple[int, ...]:
    """The ids of image tokens, and of video tokens where the config names them.

    Raises:
        TruncationError: it names no image token.
    """
    config = getattr(model, "config", None)
    videos = (getattr(config, key, None) for key in VIDEO_KEYS)
    return tuple(dict.fromkeys([image_token(model), *(int(token) for token in videos if token is not None)]))
