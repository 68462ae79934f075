"""What lmms-eval is given through its entry-point group ``lmms_eval.models``: ids and where their classes are.

Importing this costs neither torch nor the harness's models, and cannot fail: one plugin that raises at load disables
all that come after it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from redrel_vlmeval.errors import InvalidValue

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Door:
    """One id of ours and the harness's own class behind it.

    Attributes:
        kind: ``chat`` or ``simple``, as the harness calls its two generations of classes.
        module, name: of the harness's class.
        single: that class answers one question at a time; batches are made here.
        needs: a package that it cannot do without, and what to use where that is missing.
    """

    kind: str
    module: str
    name: str
    single: bool = False
    needs: tuple[str, str] | None = None

    @property
    def source(self) -> str:
        return f"lmms_eval.models.{self.kind}.{self.module}"


DOORS = {
    "redrel_llava_hf": Door("chat", "llava_hf", "LlavaHf", single=True),
    "redrel_llava_onevision": Door(
        "simple",
        "llava_onevision",
        "Llava_OneVision",
        needs=("llava", "the weights of llava-hf/llava-onevision-*-hf run as redrel_llava_hf"),
    ),
    "redrel_qwen2_5_vl": Door("chat", "qwen2_5_vl", "Qwen2_5_VL"),
    "redrel_qwen3_vl": Door("chat", "qwen3_vl", "Qwen3_VL"),
    "redrel_internvl_hf": Door("chat", "internvl_hf", "InternVLHf", single=True),
    "redrel_huggingface": Door("chat", "huggingface", "Huggingface"),
}


def attach(models: Any) -> None:
    """Enter ``lmms_eval.models``, which has just run, where the entry point did not.

    It reads its entry points until one of them raises; a plugin that does so may have stood before ours.
    """
    registry = models.MODEL_REGISTRY_V2
    for manifest in manifests():
        if manifest.model_id not in registry.list_canonical_model_ids():
            registry.register_manifest(manifest)
            models.AVAILABLE_MODELS[manifest.model_id] = manifest.model_id


def manifests() -> list[Any]:
    """The harness's ``ModelManifest`` of each id; none, and a line in the log, in a release that has other ones."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest

        return [
            ModelManifest(model_id=name, **{f"{door.kind}_class_path": f"{__package__}.models.{name}"})
            for name, door in DOORS.items()
        ]
    except Exception as error:  # whatever is wrong with us must not become the failure of other plugins
        logger.warning("redrel-vlmeval: not registered with lmms-eval (%s: %s)", type(error).__name__, error)
        return []


def not_of_lmms(given: str) -> None:
    """Refuse what would be a sweep of lmms-eval: an id or a model's name of its runs, or ``--host`` itself.

    Raises:
        InvalidValue: it is one.
    """
    option, _, value = given.partition(" ")
    if option == "--host" or value.partition(".")[0] in DOORS:
        raise InvalidValue(
            f"{given}: one pass for all settings is for VLMEvalKit's models (--host vlmevalkit); lmms-eval filters and "
            "scores only the answers of its own run, of one setting. Its runs one after another in one process: "
            "python -m lmms_eval --config runs.yaml (docs/lmms-eval.md); their table: redrel sheet"
        )
