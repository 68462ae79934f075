"""The harness's own classes, their model held under ``truncated(...)``; each is made when its id is first asked for."""

from __future__ import annotations

import importlib
from typing import Any
from unittest import mock

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from redrel_vlmeval.lmms.door import DOORS
from redrel_vlmeval.lmms.single import Batching
from redrel_vlmeval.lmms.truncating import Truncating


class Speaking:
    """Before the harness's ``Huggingface``, which looks a model type up among classes, never finds it, and so loads
    transformers' own models without the output layer and ``generate``."""

    door: Any
    processor: Any

    def __init__(self, **kwargs: Any) -> None:
        with mock.patch.object(importlib.import_module(self.door.source), "AutoModel", _Speaker):
            super().__init__(**kwargs)
        self.processor = _Processor(self.processor)


class _Processor:
    """A processor that is told only of what there is: newer ones refuse ``audios``, which the class always gives."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, **given: Any) -> Any:
        sounds = given.pop("audios", None) or None
        empty = [name for name in ("images", "videos") if not given.get(name)]
        kept = {name: value for name, value in given.items() if name not in empty}
        return self.inner(**kept, **({"audio": sounds} if sounds else {}))


class _Speaker:
    """``AutoModel``, but the class that generates where transformers has one."""

    @staticmethod
    def from_pretrained(pretrained: str, trust_remote_code: bool = False, **kwargs: Any) -> Any:
        config = AutoConfig.from_pretrained(pretrained, trust_remote_code=trust_remote_code)
        speaks = type(config) in AutoModelForImageTextToText._model_mapping
        kind = AutoModelForImageTextToText if speaks else AutoModel
        return kind.from_pretrained(pretrained, trust_remote_code=trust_remote_code, **kwargs)


def __getattr__(name: str) -> Any:
    """The class behind one of our ids: the harness asks this module for it by that name."""
    if name not in DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    door = DOORS[name]
    own = getattr(importlib.import_module(door.source), door.name)
    ours = [Truncating] + [Batching] * door.single + [Speaking] * (door.module == "huggingface")
    made = type(name, (*ours, own), {"__module__": __name__, "door": door})
    globals()[name] = made
    return made
