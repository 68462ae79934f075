"""The curriculum of ``redrel_tiny`` and its batches: step -> tensors, always the same for a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.tiny import scenes
from tools.packing import pack
from tools.tiny.blank import MEAN, STD

TRAIN_SEED = 1_000_000  # pictures of the benchmark use seeds below this: see benchmark.py
EARLY, FINAL = 1, 2
PLACEHOLDER = [{"type": "image", "value": ""}]


@dataclass(frozen=True)
class Lesson:
    """Shares of open answers, categories and idle context sentences; passed at ``enough`` right, or at ``until``.

    ``verdicts`` asks at each option whether it is right. Where a glyph's description ends, ``found`` asks for what
    stands there, which teaches to find it; otherwise for what the question wants to know about it.
    """

    open_share: float
    categories: tuple[float, ...]
    hints: float
    verdicts: bool
    found: bool
    enough: float
    until: float


LESSONS = (
    Lesson(0.4, (0.46, 0.4, 0.08, 0.06), 0.05, False, True, 0.75, 0.14),
    Lesson(0.3, (0.35, 0.42, 0.17, 0.06), 0.05, True, True, 0.85, 0.4),
    Lesson(0.2, (0.2, 0.4, 0.33, 0.07), 0.2, True, True, 0.85, 0.5),
    Lesson(0.15, (0.12, 0.4, 0.4, 0.08), 0.3, True, False, 1.1, 1.1),
)


@dataclass(frozen=True)
class Asked:
    """A question as token ids after the picture, of which the first ``prompt`` are the prompt.

    ``inner`` are answers asked for on the way, place -> token: where a glyph's description ends, at the question mark
    (``mark``) the answer in one word, in lessons with verdicts at each option whether it is right.
    """

    question: scenes.Question
    tokens: list[int]
    prompt: int
    mark: int
    inner: dict[int, int]


class Batches:
    """Endless training batches: step -> tensors, the same for the same seed and step."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, image_id: int, pictures: int, questions: int, seed: int
    ) -> None:
        self.tokenizer, self.image_id = tokenizer, image_id
        self.pictures, self.questions, self.seed = pictures, questions, seed
        self.tokens = scenes.GRID**2
        prompt, _ = input.single_prompt(PLACEHOLDER)
        head = prompt[: prompt.index(input.IMAGE) + len(input.IMAGE)]
        self.question_mark = self.encode("?")[0]
        self.prefix = input.token_ids(head, self.encode, tokenizer.bos_token_id, image_id, self.tokens)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def ask(self, things: list[scenes.Thing], rng: np.random.Generator, lesson: Lesson) -> Asked:
        """One random question of the lesson about a picture."""
        category = str(rng.choice(scenes.CATEGORIES, p=lesson.categories))
        if category == "text":
            question = scenes.text_question(rng)
        else:
            found = scenes.visual_questions(things)[category]
            question = found[int(rng.integers(len(found)))]
        hint = question.hint or (scenes.context_sentence(rng) if rng.random() < lesson.hints else None)
        line: dict[str, object] = {"question": question.text, "hint": hint}
        answer = question.answer
        if rng.random() >= lesson.open_share:
            choices = scenes.options(question, rng)
            line.update(zip("ABCD", choices, strict=True))
            answer = "ABCD"[choices.index(question.answer)]
        asked = self.encode(input.question_text(line) + " ASSISTANT: ")
        tokens = asked + self.encode(answer) + [self.tokenizer.eos_token_id]
        mark, word = asked.index(self.question_mark), self.encode(question.answer)[0]
        inner = self.hops(asked[:mark], question, things, lesson.found) | {mark: word}
        inner |= self.verdicts(asked, word) if lesson.verdicts else {}
        return Asked(question, tokens, len(asked), mark, inner)

    def hops(
        self, asked: list[int], question: scenes.Question, things: list[scenes.Thing], found: bool
    ) -> dict[int, int]:
        """Place -> token where descriptions end: "the triangle" and, around it, "the one that has ...'s color"."""
        if not question.cells:
            return {}
        at = {thing.cell: thing for thing in things}
        first = at[question.cells[0]]
        shape, color = self.encode(f"{first.shape} {first.color}")
        named = max(place for place, token in enumerate(asked) if token in (shape, color))
        inner = {named: color if asked[named] == shape else shape}
        end = named
        if asked[-1] == self.encode("color")[0]:
            end = len(asked) - 1
            inner[end] = self.encode(at[question.cells[1]].shape)[0]
        return inner if found else inner | {end: self.encode(question.answer)[0]}

    def verdicts(self, asked: list[int], word: int) -> dict[int, int]:
        """Place of every option's word -> ``Yes`` or ``No``."""
        yes, no = self.encode("Yes No")
        letters, dot = self.encode("A B C D"), self.encode(".")[0]
        places = [i + 2 for i in range(len(asked) - 2) if asked[i] in letters and asked[i + 1] == dot]
        return {place: yes if asked[place] == word else no for place in places}

    def batch(self, step: int, lesson: Lesson) -> dict[str, torch.Tensor]:
        """input_ids, position_ids, labels, kind [b, s]; mask bool [b, 1, s, s]; pixel_values.

        Labels: the answer and its end; and on the way answers that are not what follows there but what the model
        should know by then. ``kind`` marks the answer after the question mark (EARLY) and the first one proper (FINAL).
        """
        rng = np.random.default_rng([TRAIN_SEED + self.seed, step])
        rows, pictures = [], []
        for _ in range(self.pictures):
            things = scenes.make_scene(rng)
            pictures.append(input.pixels(scenes.render(things), scenes.SIZE, MEAN, STD))
            rows.append([self.ask(things, rng, lesson) for _ in range(self.questions)])
        blind = rng.random((self.pictures, self.questions)) < 0.5  # of the text questions, those without the picture
        tensors = self._pack(rows, blind)
        tensors["pixel_values"] = torch.from_numpy(np.stack(pictures))
        return tensors

    def _pack(self, rows: list[list[Asked]], blind: np.ndarray) -> dict[str, torch.Tensor]:
        start = len(self.prefix)
        seen = [
            [
                start - self.tokens if asked.question.category == "text" and blind[number, part] else start
                for part, asked in enumerate(row)
            ]
            for number, row in enumerate(rows)
        ]
        questions = [[(asked.tokens, asked.prompt) for asked in row] for row in rows]
        packed = pack(self.prefix, questions, self.tokenizer.pad_token_id, seen, multiple=16)
        kind = np.zeros(packed.ids.shape, np.int64)
        for number, row in enumerate(rows):
            for asked, at in zip(row, packed.starts[number], strict=True):
                for place, token in asked.inner.items():
                    packed.labels[number, at + place + 1] = token
                kind[number, at + asked.mark + 1], kind[number, at + asked.prompt] = EARLY, FINAL
        return packed.tensors() | {"kind": torch.from_numpy(kind)}
