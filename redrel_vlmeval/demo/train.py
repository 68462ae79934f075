"""Train ``redrel_tiny``, the LLaVA in the box, on generated pictures: ``python -m redrel_vlmeval.demo.train``.

Deterministic from the seed (for a given number of threads and release of torch). One picture carries several
questions: they share the picture's tokens and do not see one another, which trains 2.5 times as many questions per
second as one sequence each. Some branches do not see the picture either: text-only training, as LLaVA had.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from redrel_vlmeval.demo import scenes
from redrel_vlmeval.demo.blank import MEAN, STD, make_model, make_tokenizer, save
from redrel_vlmeval.models import llava_input

TRAIN_SEED = 1_000_000  # pictures of the benchmark use seeds below this: see benchmark.py
PLACEHOLDER = [{"type": "image", "value": ""}]


def surroundings(things: list[scenes.Thing]) -> np.ndarray:
    """What stands in and around every cell: [64 cells, 5 places, 2], places are the cell itself and its four neighbours.

    The two numbers are colour and shape, counted from 1; 0 is empty or off the grid.
    """
    grid = np.zeros((scenes.GRID**2, 2), np.int64)
    for thing in things:
        grid[thing.cell] = list(scenes.COLORS).index(thing.color) + 1, scenes.SHAPES.index(thing.shape) + 1
    around = np.zeros((len(grid), 5, 2), np.int64)
    around[:, 0] = grid
    for cell in range(len(grid)):
        for place, direction in enumerate(scenes.DIRECTIONS, start=1):
            other = scenes.neighbour(cell, direction)
            if other is not None:
                around[cell, place] = grid[other]
    return around


class Batches:
    """Endless training batches: step -> tensors, the same for the same seed and step."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_id: int, pictures: int, questions: int, seed: int) -> None:
        self.tokenizer, self.image_id = tokenizer, image_id
        self.pictures, self.questions, self.seed = pictures, questions, seed
        self.tokens = scenes.GRID**2
        prompt, _ = llava_input.single_prompt(PLACEHOLDER)
        head = prompt[: prompt.index(llava_input.IMAGE) + len(llava_input.IMAGE)]
        self.prefix = llava_input.token_ids(head, self.encode, tokenizer.bos_token_id, image_id, self.tokens)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def ask(self, things: list[scenes.Thing], rng: np.random.Generator, lesson: Lesson) -> tuple[scenes.Question, list[int], int]:
        """One question as (question, token ids after the picture, length of its prompt part)."""
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
        asked = self.encode(llava_input.question_text(line) + " ASSISTANT: ")
        return question, asked + self.encode(answer) + [self.tokenizer.eos_token_id], len(asked)

    def batch(self, step: int, lesson: Lesson) -> dict[str, torch.Tensor]:
        """input_ids, position_ids, labels [b, s]; mask bool [b, 1, s, s]; pixel_values; glyphs [b, 64, 5, 2]."""
        rng = np.random.default_rng([TRAIN_SEED + self.seed, step])
        rows, pictures, glyphs = [], [], []
        for _ in range(self.pictures):
            things = scenes.make_scene(rng)
            pictures.append(llava_input.pixels(scenes.render(things), scenes.SIZE, MEAN, STD))
            glyphs.append(surroundings(things))
            rows.append([self.ask(things, rng, lesson) for _ in range(self.questions)])
        blind = rng.random((self.pictures, self.questions)) < 0.5  # of the text questions, those without the picture
        tensors = self._pack(rows, blind)
        tensors["pixel_values"] = torch.from_numpy(np.stack(pictures))
        tensors["glyphs"] = torch.from_numpy(np.stack(glyphs))
        return tensors

    def _pack(self, rows: list, blind: np.ndarray) -> dict[str, torch.Tensor]:
        start = len(self.prefix)
        length = start + max(sum(len(ids) for _, ids, _ in row) for row in rows)
        length = -(-length // 16) * 16
        ids = np.full((len(rows), length), self.tokenizer.pad_token_id, np.int64)
        labels = np.full_like(ids, -100)
        positions = np.tile(np.arange(length), (len(rows), 1))
        mask = np.tile(np.eye(length, dtype=bool), (len(rows), 1, 1))
        mask[:, :start, :start] = np.tril(np.ones((start, start), bool))
        ids[:, :start] = self.prefix
        for number, row in enumerate(rows):
            at = start
            for part, (question, tokens, asked) in enumerate(row):
                end, size = at + len(tokens), len(tokens)
                ids[number, at:end] = tokens
                labels[number, at + asked : end] = tokens[asked:]
                mask[number, at:end, at:end] = np.tril(np.ones((size, size), bool))
                textual = question.category == "text" and blind[number, part]
                seen = start - self.tokens if textual else start
                mask[number, at:end, :seen] = True
                positions[number, at:end] = seen + np.arange(size)
                at = end
        out = {"input_ids": ids, "labels": labels, "position_ids": positions, "mask": mask[:, None]}
        return {key: torch.from_numpy(value) for key, value in out.items()}


@dataclass(frozen=True)
class Lesson:
    """Share of open answers, of each category and of idle context sentences; passed at ``enough`` right, or at ``until``."""

    open_share: float
    categories: tuple[float, ...]
    hints: float
    enough: float
    until: float


LESSONS = (
    Lesson(0.8, (0.5, 0.44, 0.0, 0.06), 0.05, 0.8, 0.4),
    Lesson(0.6, (0.2, 0.4, 0.33, 0.07), 0.2, 0.8, 0.55),
    Lesson(0.3, (0.15, 0.35, 0.42, 0.08), 0.3, 1.1, 1.1),
)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over 3 %, flat, then linear to 2 % of the peak over the last 30 %."""
    return peak * min(1.0, progress / 0.03 + 0.01, 0.02 + 0.98 * (1 - progress) / 0.3)


class Trainer:
    """Model, optimiser and the throw-away glyph head; state goes to ``<folder>/state.pt``."""

    def __init__(self, folder: Path, steps: int, seed: int, pictures: int, questions: int) -> None:
        torch.manual_seed(seed)
        self.folder, self.steps = folder, steps
        self.tokenizer = make_tokenizer()
        self.model: LlavaForConditionalGeneration = make_model(len(self.tokenizer))
        width = self.model.config.text_config.hidden_size
        self.head = torch.nn.Linear(width, 5 * (len(scenes.COLORS) + len(scenes.SHAPES) + 2))
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.02}, {"params": [*rest, *self.head.parameters()], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
        self.batches = Batches(self.tokenizer, self.model.config.image_token_id, pictures, questions, seed)
        self.step = self.lesson = 0

    def resume(self) -> None:
        path = self.folder / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.lesson = state["step"], state["lesson"]

    def keep(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "head": self.head.state_dict(), "step": self.step, "lesson": self.lesson}
        torch.save({**state, "optimizer": self.optimizer.state_dict()}, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")

    def glyph_loss(self, features: torch.Tensor, glyphs: torch.Tensor) -> torch.Tensor:
        """Naming colour and shape of every cell and its neighbours from its image token; drives the vision tower early on."""
        colors = len(scenes.COLORS) + 1
        logits = self.head(features).unflatten(-1, (5, -1))
        color = functional.cross_entropy(logits[..., :colors].flatten(0, 2), glyphs[..., 0].flatten())
        return color + functional.cross_entropy(logits[..., colors:].flatten(0, 2), glyphs[..., 1].flatten())

    def sight(self, steps: int, pictures: int, peak: float = 2e-3) -> None:
        """First lesson: vision tower and projector alone learn to tell every cell and its neighbours, at 64 pictures a step."""
        parts = [*self.model.model.vision_tower.parameters(), *self.model.model.multi_modal_projector.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW(parts, lr=peak, weight_decay=0.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate(step / steps, peak)
            rng = np.random.default_rng([TRAIN_SEED, 77, step])
            drawn = [scenes.make_scene(rng) for _ in range(pictures)]
            images = np.stack([llava_input.pixels(scenes.render(t), scenes.SIZE, MEAN, STD) for t in drawn])
            features = self.model.model.get_image_features(torch.from_numpy(images))
            features = getattr(features, "pooler_output", features)
            features = torch.stack(list(features)) if not isinstance(features, torch.Tensor) else features
            loss = self.glyph_loss(features, torch.from_numpy(np.stack([surroundings(t) for t in drawn])))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parts, 1.0)
            optimizer.step()
            if (step + 1) % 100 == 0:
                print(f"sight {step + 1}/{steps} loss {loss.item():.4f}", flush=True)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """-> (answer loss, glyph loss, share of answer tokens predicted right)."""
        seen: list[torch.Tensor] = []
        handle = self.model.model.multi_modal_projector.register_forward_hook(lambda _m, _i, out: seen.append(out))
        bias = torch.zeros(batch["mask"].shape).masked_fill_(~batch["mask"], torch.finfo(torch.float32).min)
        try:
            hidden = self.model.model(
                input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], attention_mask=bias,
                position_ids=batch["position_ids"], use_cache=False,
            ).last_hidden_state
        finally:
            handle.remove()
        target = batch["labels"][:, 1:]
        wanted = target != -100
        logits = self.model.lm_head(hidden[:, :-1][wanted])
        loss = functional.cross_entropy(logits, target[wanted])
        first = wanted & (batch["labels"][:, :-1] == -100)
        right = (logits.argmax(-1) == target[wanted])[first[wanted]].float().mean()
        return loss, self.glyph_loss(seen[0].view(len(hidden), -1, hidden.shape[-1]), batch["glyphs"]), right

    def run(self, peak: float, limit: int | None) -> None:
        self.model.train()
        until = min(self.steps, self.step + limit) if limit else self.steps
        began, shown = time.time(), {"loss": 0.0, "right": 0.0, "n": 0}
        while self.step < until:
            progress = self.step / self.steps
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(progress, peak)
            with torch.autocast("cpu", torch.bfloat16):
                loss, glyph, right = self.forward(self.batches.batch(self.step, LESSONS[self.lesson]))
            self.optimizer.zero_grad(set_to_none=True)
            (loss + 0.3 * glyph).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            shown = {"loss": shown["loss"] + loss.item(), "right": shown["right"] + right.item(), "n": shown["n"] + 1}
            if self.step % 50 == 0 or self.step == until:
                n, rate = shown["n"], (time.time() - began) / max(shown["n"], 1)
                print(f"step {self.step}/{self.steps} loss {shown['loss'] / n:.3f} right {shown['right'] / n:.3f} "
                      f"glyph {glyph.item():.3f} lesson {self.lesson} {rate:.2f} s/step", flush=True)
                self.lesson += shown["right"] / n > LESSONS[self.lesson].enough or progress > LESSONS[self.lesson].until
                began, shown = time.time(), {"loss": 0.0, "right": 0.0, "n": 0}
            if self.step % 100 == 0 or self.step == until:
                self.keep()
            if self.step % 200 == 0 or self.step == until:
                print(json.dumps({"step": self.step, **self.score()}), flush=True)

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """Accuracy by category on fresh pictures, multiple choice."""
        self.model.eval()
        out = {}
        for index, category in enumerate(scenes.CATEGORIES):
            exam = Lesson(0.0, tuple(float(i == index) for i in range(len(scenes.CATEGORIES))), 0.3, 1.0, 1.0)
            out[category] = round(float(self.forward(self.batches.batch(10**9 + index, exam))[2]), 3)
        self.model.train()
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("tiny-training"), help="state and finished checkpoint")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--stop-after", type=int, default=None, help="stop after this many more steps; run again to go on")
    parser.add_argument("--pictures", type=int, default=16, help="pictures a step")
    parser.add_argument("--questions", type=int, default=6, help="questions a picture")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args.folder, args.steps, args.seed, args.pictures, args.questions)
    trainer.resume()
    if trainer.step == 0:
        trainer.sight(800, 64)
        trainer.keep()
    trainer.run(args.lr, args.stop_after)
    if trainer.step == trainer.steps:
        save(trainer.model, trainer.tokenizer, args.folder / "checkpoint")
        print(f"checkpoint: {args.folder / 'checkpoint'}")


if __name__ == "__main__":
    main()
