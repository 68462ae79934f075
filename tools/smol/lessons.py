"""What ``redrel_smol`` is trained on: step -> tensors, always the same for a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.smol import pairs
from redrel_vlmeval.models.tiny import scenes
from tools.packing import pack

TRAIN_SEED = 2_000_000  # pictures of the benchmark use seeds below this
FRESH = 10**9  # steps from here on are for scoring
PLACEHOLDER = [{"type": "image", "value": ""}]


class Batches:
    """Endless training batches of open questions, ``pictures`` pictures with up to ``questions`` questions each."""

    def __init__(self, tokenizer: Any, image_id: int, pictures: int, questions: int, seed: int) -> None:
        self.tokenizer, self.image_id = tokenizer, image_id
        self.pictures, self.questions, self.seed = pictures, questions, seed
        prompt, _ = input.single_prompt(PLACEHOLDER)
        head = prompt[: prompt.index(input.IMAGE) + len(input.IMAGE)]
        bos = tokenizer.bos_token_id
        self.prefix = input.token_ids(head, self.encode, bos, image_id, scenes.GRID**2)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def ask(self, question: scenes.Question) -> tuple[list[int], list[int]]:
        """Token ids behind the picture: the rest of the prompt, and the answer with its end."""
        prompt, _ = input.single_prompt([*PLACEHOLDER, {"type": "text", "value": question.text}])
        asked = self.encode(prompt.partition(input.IMAGE)[2])
        return asked, [*self.encode(f" {question.answer}"), self.tokenizer.eos_token_id]

    def rows(self, step: int, two_hops: float) -> tuple[list[np.ndarray], list[list[tuple[list[int], list[int]]]]]:
        """Pictures and their questions; ``two_hops`` is the share of questions of two hops, where there are any."""
        rng = np.random.default_rng([TRAIN_SEED + self.seed, step])
        pictures, rows = [], []
        for _ in range(self.pictures):
            things = pairs.make_scene(rng)
            found = pairs.visual_questions(things)
            share = two_hops if found["two-hop"] else 0.0
            weights = {"one-hop": 1 - share, "two-hop": share}
            pool = [(q, weight / len(found[kind])) for kind, weight in weights.items() if weight for q in found[kind]]
            chance = np.array([weight for _, weight in pool])
            chosen = rng.choice(len(pool), min(self.questions, len(pool)), replace=False, p=chance / chance.sum())
            pictures.append(pixels(things))
            rows.append([self.ask(pool[int(number)][0]) for number in chosen])
        return pictures, rows

    def batch(self, step: int, two_hops: float = 0.0) -> dict[str, torch.Tensor]:
        """input_ids, position_ids, labels, first [b, s]; mask bool [b, 1, s, s]; pixel_values [b, 3, h, w].

        The questions of a picture share its tokens and do not see one another. ``first`` marks the answers' first
        words.
        """
        pictures, rows = self.rows(step, two_hops)
        questions = [[(asked + answer, len(asked)) for asked, answer in row] for row in rows]
        packed = pack(self.prefix, questions, self.tokenizer.eos_token_id)
        first = np.zeros(packed.ids.shape, bool)
        for number, row in enumerate(rows):
            first[number, [at + len(asked) for at, (asked, _) in zip(packed.starts[number], row, strict=True)]] = True
        return packed.tensors() | {
            "first": torch.from_numpy(first),
            "pixel_values": torch.from_numpy(np.stack(pictures)),
        }


def pixels(things: list[scenes.Thing]) -> np.ndarray:
    """The picture as the model gets it, float32 [3, 96, 96]."""
    from tools.tiny.blank import MEAN, STD

    return input.pixels(pairs.render(things), scenes.SIZE, MEAN, STD)
