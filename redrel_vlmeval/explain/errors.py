"""The one exception of explanations."""


class ExplainError(RuntimeError):
    """An explanation that cannot be given for this model or question: names the value, the place and the choices."""
