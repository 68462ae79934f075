"""Train ``redrel_tiny``, the LLaVA in the box, on generated pictures: ``python -m tools.tiny.train``.

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
from transformers import LlavaForConditionalGeneration

from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.tiny import scenes
from redrel_vlmeval.truncation.decoders.tokens import image_token
from tools.tiny.blank import MEAN, STD, make_model, make_tokenizer, save
from tools.tiny.lessons import EARLY, FINAL, LESSONS, TRAIN_SEED, Batches, Lesson

WARM_UP = 96  # steps


def learning_rate(step: int, steps: int, peak: float, warm: int, fall: float) -> float:
    """Linear warm-up over ``warm`` steps, flat, then linear to 2 % of the peak over the last ``fall`` of all."""
    return peak * min(1.0, step / warm + 0.01, 0.02 + 0.98 * (1 - step / steps) / fall)


def surroundings(things: list[scenes.Thing]) -> np.ndarray:
    """What stands in and around every cell, [64 cells, 5 places, 2]: the cell itself and its four neighbours.

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


@dataclass(frozen=True)
class Step:
    """The loss, and the share of answers right at the end of the prompt and (``early``) at the question mark."""

    loss: torch.Tensor
    right: torch.Tensor
    early: torch.Tensor


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
        groups = [
            {"params": decay, "weight_decay": 0.02},
            {"params": [*rest, *self.head.parameters()], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
        self.batches = Batches(self.tokenizer, image_token(self.model), pictures, questions, seed)
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
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "step": self.step,
            "lesson": self.lesson,
        }
        torch.save({**state, "optimizer": self.optimizer.state_dict()}, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")

    def glyph_loss(self, features: torch.Tensor, glyphs: torch.Tensor) -> torch.Tensor:
        """Naming each cell and its neighbours by colour and shape from its image token; drives the vision tower."""
        colors = len(scenes.COLORS) + 1
        logits = self.head(features).unflatten(-1, (5, -1))
        color = functional.cross_entropy(logits[..., :colors].flatten(0, 2), glyphs[..., 0].flatten())
        return color + functional.cross_entropy(logits[..., colors:].flatten(0, 2), glyphs[..., 1].flatten())

    def sight(self, steps: int, pictures: int, peak: float = 2e-3) -> None:
        """First lesson: vision tower and projector alone learn to tell every cell and its neighbours."""
        parts = [
            *self.model.model.vision_tower.parameters(),
            *self.model.model.multi_modal_projector.parameters(),
            *self.head.parameters(),
        ]
        optimizer = torch.optim.AdamW(parts, lr=peak, weight_decay=0.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak, steps // 33, 0.5)
            rng = np.random.default_rng([TRAIN_SEED, 77, step])
            drawn = [scenes.make_scene(rng) for _ in range(pictures)]
            images = np.stack([input.pixels(scenes.render(t), scenes.SIZE, MEAN, STD) for t in drawn])
            features = self.model.model.get_image_features(torch.from_numpy(images))
            features = getattr(features, "pooler_output", features)
            features = torch.stack(list(features)) if not isinstance(features, torch.Tensor) else features
            glyphs = np.stack([surroundings(t) for t in drawn])
            loss = self.glyph_loss(features, torch.from_numpy(glyphs))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parts, 1.0)
            optimizer.step()
            if (step + 1) % 100 == 0:
                print(f"sight {step + 1}/{steps} loss {loss.item():.4f}", flush=True)

    def freeze_sight(self) -> None:
        """From the second lesson on the pictures' features stay as they are, as LLaVA keeps its vision tower."""
        self.model.model.vision_tower.requires_grad_(False)
        self.model.model.multi_modal_projector.requires_grad_(False)

    def forward(self, batch: dict[str, torch.Tensor]) -> Step:
        """One batch through the model."""
        bias = torch.zeros(batch["mask"].shape).masked_fill_(~batch["mask"], torch.finfo(torch.float32).min)
        hidden = self.model.model(
            input_ids=batch["input_ids"],
            pixel_values=batch["pixel_values"],
            attention_mask=bias,
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
        target = batch["labels"][:, 1:]
        wanted = target != -100
        logits = self.model.lm_head(hidden[:, :-1][wanted])
        loss = functional.cross_entropy(logits, target[wanted])
        right = logits.argmax(-1) == target[wanted]
        kind = batch["kind"][:, 1:][wanted]
        return Step(loss, right[kind == FINAL].float().mean(), right[kind == EARLY].float().mean())

    def run(self, peak: float, limit: int | None) -> None:
        self.model.train()
        until = min(self.steps, self.step + limit) if limit else self.steps
        began, shown = time.time(), np.zeros(4)
        while self.step < until:
            progress = self.step / self.steps
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.steps, peak, WARM_UP, 0.3)
            with torch.autocast("cpu", torch.bfloat16):
                step = self.forward(self.batches.batch(self.step, LESSONS[self.lesson]))
            self.optimizer.zero_grad(set_to_none=True)
            step.loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            shown += [step.loss.item(), step.right.item(), step.early.item(), 1]
            if self.step % 50 == 0 or self.step == until:
                loss, right, early, _ = shown / shown[3]
                rate = (time.time() - began) / shown[3]
                print(
                    f"step {self.step}/{self.steps} lesson {self.lesson} loss {loss:.3f} right {right:.3f} "
                    f"early {early:.3f} {rate:.2f} s/step",
                    flush=True,
                )
                lesson = LESSONS[self.lesson]
                self.lesson += int(early > lesson.enough or progress > lesson.until)
                began, shown = time.time(), np.zeros(4)
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
            exam = Lesson(
                0.0, tuple(float(i == index) for i in range(len(scenes.CATEGORIES))), 0.3, False, False, 1.0, 1.0
            )
            out[category] = round(self.forward(self.batches.batch(10**9 + index, exam)).right.item(), 3)
        self.model.train()
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("tiny-training"), help="state and finished checkpoint")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument(
        "--stop-after", type=int, default=None, help="stop after this many more steps; run again to go on"
    )
    parser.add_argument("--pictures", type=int, default=16, help="pictures a step")
    parser.add_argument("--questions", type=int, default=6, help="questions a picture")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args.folder, args.steps, args.seed, args.pictures, args.questions)
    trainer.resume()
    if trainer.step == 0:
        trainer.sight(800, 64)
        trainer.keep()
    trainer.freeze_sight()
    trainer.run(args.lr, args.stop_after)
    if trainer.step == trainer.steps:
        save(trainer.model, trainer.tokenizer, args.folder / "checkpoint")
        print(f"checkpoint: {args.folder / 'checkpoint'}")


if __name__ == "__main__":
    main()
