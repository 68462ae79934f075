"""The one exception of this package."""


class TruncationError(RuntimeError):
    """A truncation that cannot be honoured on this model or call: names the variant, the layer and what was found."""
