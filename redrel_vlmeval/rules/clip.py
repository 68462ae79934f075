"""The text side of the CLIP whose vision tower a model has: LLaVA checkpoints hold the tower alone.

``REDREL_CLIP`` names it, a folder or a name of the hub (``openai/clip-vit-large-patch14-336`` for LLaVA-1.5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from redrel_vlmeval.errors import InvalidValue

if TYPE_CHECKING:
    from torch import Tensor, nn

VARIABLE = "REDREL_CLIP"
INSTEAD = "rule 'dpp-text' goes by the question's own embeddings instead"
PATCHES = "patch_embedding.weight"  # of any CLIP tower
# how hosts and models ask for short answers; CDPruner reads the question without
INSTRUCTIONS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
    "Please select the correct answer from the options above.",
    "Please answer yes or no.",
)
_TURN = re.compile(r"\s*(###\s*)?(assistant\s*:?|\[/INST\])\s*$", re.IGNORECASE)


def asked_words(text: str) -> str:
    """What is asked in the ``text`` behind the pictures: no call for a short answer, no name of the next speaker."""
    text = _TURN.sub("", text)
    for instruction in INSTRUCTIONS:
        text = text.replace(instruction, " ")
    return " ".join(text.split())


@dataclass(frozen=True)
class Clip:
    """A CLIP, its tokenizer, and the name it was loaded by."""

    name: str
    model: Any
    tokenizer: Any

    def patches(self, v: Tensor) -> Tensor:
        """The tower's features [n, C] in the space that CLIP compares with text: float32 [n, E]."""
        self.model.to(v.device)
        vision = self.model.vision_model
        return self.model.visual_projection(vision.post_layernorm(v.float()))

    def segments(self, words: str, device: Any) -> Tensor:
        """Text embeddings of ``words``, cut into as many texts as CLIP takes in at once: float32 [m, E]."""
        import torch

        self.model.to(device)
        most = self.model.config.text_config.max_position_embeddings
        ids = torch.tensor(self.tokenizer(words).input_ids, device=device)
        gap = -len(ids) % most if len(ids) > most else 0  # a text that fits is given as it is
        real = torch.nn.functional.pad(torch.ones_like(ids), (0, gap))
        ids = torch.nn.functional.pad(ids, (0, gap))
        rows = ids.view(-1, most) if len(ids) > most else ids[None]
        text = self.model.text_model(input_ids=rows, attention_mask=real.view_as(rows))
        return self.model.text_projection(text.pooler_output)

    def check(self, tower: nn.Module) -> None:
        """Refuse another tower than this CLIP's own.

        Raises:
            InvalidValue: its first weights are others.
        """
        import torch

        own, theirs = _first_weights(self.model.vision_model), _first_weights(tower)
        if theirs is None or own.shape != theirs.shape or not torch.allclose(own, theirs.float().cpu(), atol=1e-2):
            raise InvalidValue(f"{VARIABLE}={self.name}: the model's vision tower is not this CLIP's; {INSTEAD}")


def _first_weights(tower: nn.Module) -> Any:
    found = (value for name, value in tower.named_parameters() if name.endswith(PATCHES))
    return next((value.detach() for value in found), None)


def given() -> Clip:
    """The CLIP that the variable names, loaded once.

    Raises:
        InvalidValue: it names none, or one that cannot be loaded.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        raise InvalidValue(
            f"CLIP's text tower is not in the model: set {VARIABLE} to the CLIP its vision tower is from, a folder or "
            f"a name of the hub; {INSTEAD}"
        )
    return _loaded(name)


@lru_cache(maxsize=2)
def _loaded(name: str) -> Clip:
    from transformers import AutoTokenizer, CLIPModel

    try:
        model = CLIPModel.from_pretrained(name).float().eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InvalidValue(f"{VARIABLE}={name}: no CLIP with a tokenizer could be loaded from it: {error}") from error
    return Clip(name, model, tokenizer)
