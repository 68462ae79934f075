"""What is put on a model for a while: methods made over, hooks. They come off without a trace, and off copies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import update_wrapper
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from torch import nn

from redrel_vlmeval.errors import TruncationError

if TYPE_CHECKING:
    from redrel_vlmeval.truncation.decoders import Decoder

Method = Callable[..., Any]
_active: WeakSet[nn.Module] = WeakSet()


class _Replaced:
    """A method of one module, made over. In a copy of the module, deep or pickled, it is its class's own method."""

    def __init__(self, module: nn.Module, name: str, made: Method) -> None:
        update_wrapper(self, getattr(module, name))  # `generate` reads the signature of `forward`
        self._module, self._name, self._made = module, name, made  # afterwards: what it wraps may be one of these

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._made(*args, **kwargs)

    def __reduce__(self) -> Any:
        return getattr, (self._module, self._name)  # a copy that is being made has nothing of its own yet


class Hook:
    """A hook of ours on a module. In a copy of the module, deep or pickled, it does nothing."""

    def __init__(self, call: Method) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return Hook, (_nothing,)


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """What a hook does in a copy."""


class Turn:
    """Which thread's prompt is the one at hand; ``over`` is called when it no longer is."""

    def __init__(self, what: str, over: Callable[[], None]) -> None:
        self._what, self._over = what, over
        self._thread: int | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within the context it is this thread's; contexts of one thread nest.

        Raises:
            TruncationError: it is another thread's, whose choice of tokens would cut this one's prompt.
        """
        before, own = self._thread, threading.get_ident()
        if before not in (None, own):
            raise TruncationError(
                f"{self._what}: another thread is inside this truncated() model; ask one question after the other, or "
                "give each thread a model and a truncated() of its own"
            )
        self._thread = own
        try:
            yield
        finally:
            self._thread = before
            if before is None:
                self._over()


@contextmanager
def replaced(module: nn.Module, name: str, make: Callable[[Method], Method]) -> Iterator[None]:
    """Within the context method ``name`` is ``make(what it was)``; afterwards exactly what it was. Contexts nest."""
    own = {name: module.__dict__[name]} if name in module.__dict__ else {}
    setattr(module, name, _Replaced(module, name, make(getattr(module, name))))
    try:
        yield
    finally:
        delattr(module, name)
        module.__dict__.update(own)


def replaced_generate(model: nn.Module, make: Callable[[Method], Method]) -> AbstractContextManager[None]:
    """Within the context ``model.generate`` is ``make(what it was)``."""
    return replaced(model, "generate", make)


@contextmanager
def claimed(decoder: Decoder, what: str) -> Iterator[None]:
    """Within the context the model is changed for ``what`` alone.

    Raises:
        TruncationError: it is changed already.
    """
    if decoder.text in _active:
        raise TruncationError(f"{what}: this model is truncated already; leave the other truncated() first")
    _active.add(decoder.text)
    try:
        yield
    finally:
        _active.discard(decoder.text)
