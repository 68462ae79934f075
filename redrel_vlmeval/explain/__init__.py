"""Where a model looks and what counts: attention flow and Grad-CAM, layer by layer, of any name."""

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

import lazy_loader

# what the folder exports stands in __init__.pyi; each is imported when first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Moved(ModuleType):
    """A module of 0.1.0 under its old name: what is taken from it comes from where it is now, with a warning."""

    def __init__(self, name: str, now: str) -> None:
        super().__init__(name, self.__doc__)
        self._now = now

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(importlib.import_module(self._now), name)
        text = (
            f"{self.__name__}.{name}: take it from {__package__} or {self._now}; this path goes with the next release"
        )
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return found


# No files of these names: once imported, flow.py would hide the function that the folder exports.
for _old, _now in (("asking", "ask.asking"), ("flow", "maps.flow"), ("gradcam", "maps.gradcam")):
    sys.modules[f"{__name__}.{_old}"] = _Moved(f"{__name__}.{_old}", f"{__name__}.{_now}")
