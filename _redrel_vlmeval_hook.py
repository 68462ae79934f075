"""Registers redrel-vlmeval's variants when, and only when, a module of :data:`TARGETS` is imported.

Imports only ``sys`` and ``os``. ``redrel_vlmeval.pth`` (``.start`` from Python 3.15 on) beside this file calls
:func:`install` at interpreter start; ``REDREL_DISABLE=1`` turns that off. A registration that fails warns in one line,
if it can, and leaves the host as it was.
"""

import os
import sys

TARGET = "vlmeval.config"
# What a host imports -> where its ``attach`` is. lmms-eval has a door of its own, which any other plugin can block.
TARGETS = {TARGET: "redrel_vlmeval.plugin", "lmms_eval.models": "redrel_vlmeval.lmms.door"}


class VariantFinder:
    """Answers for :data:`TARGETS` alone: finds one where the other finders do, and registers after it ran."""

    strict = False  # True under `redrel run`: a user who asked for variants gets the error, not a warning

    def find_spec(self, name, path=None, target=None):
        if name not in TARGETS:
            return None
        for finder in sys.meta_path:
            find = None if isinstance(finder, VariantFinder) else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                # only loaders that run a module in Python can be followed up; others are left alone
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader:
    """The host module's own loader, with one step after ``exec_module``; gone from the module before that step."""

    def __init__(self, inner, finder):
        self.inner, self.finder = inner, finder

    def __getattr__(self, name):
        if name == "inner":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def create_module(self, spec):
        make = getattr(self.inner, "create_module", None)
        return make(spec) if make else None

    def exec_module(self, module):
        # restored first: loaders compare and reload() finds again through meta_path
        module.__spec__.loader = module.__loader__ = self.inner
        self.inner.exec_module(module)
        register(module, self.finder.strict)


def register(module, strict=False):
    """Add the variants to an executed module of ``TARGETS``. Without ``strict``, a failure is one line on stderr."""
    try:
        # from sys, and not by importlib, which is no light import
        __import__(TARGETS[module.__name__])
        sys.modules[TARGETS[module.__name__]].attach(module)
    except (Exception, SystemExit) as error:  # whatever is wrong with us must not become the host's failure
        if strict:
            raise
        warn(error, module.__name__)


def warn(error, target):
    """One line on stderr, where it can be written to; it may be closed, full, a broken pipe, or no stream at all."""
    try:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"redrel-vlmeval: not fully registered with {target} ({reason}); REDREL_DISABLE=1 turns it off\n"
        try:
            number = sys.stderr.fileno()
        except Exception:  # a stream in memory, of a notebook or a test
            sys.stderr.write(message)
            return
        sys.stderr.flush()
        # not by the stream: what it could not write it keeps, and Python would end with 120 for it
        os.write(number, message.encode("utf-8", "backslashreplace"))
    except Exception:
        pass


def install(strict=False):
    """Put the finder at ``sys.meta_path[0]``, once. ``strict`` (``redrel run``) overrules ``REDREL_DISABLE``."""
    if not strict and os.environ.get("REDREL_DISABLE", "0") not in ("", "0"):
        return
    finder = next((finder for finder in sys.meta_path if isinstance(finder, VariantFinder)), None)
    if finder is None:
        finder = VariantFinder()
        sys.meta_path.insert(0, finder)
    finder.strict = finder.strict or strict
    if strict and TARGET in sys.modules:
        register(sys.modules[TARGET], strict)
