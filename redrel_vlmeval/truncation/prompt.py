"""The state of one batch of prompts under truncation: which tokens are image tokens, and what each stage decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.names import Stage, VariantSpec
from redrel_vlmeval.truncation import ranking
from redrel_vlmeval.truncation.trace import PromptTrace
from redrel_vlmeval.truncation.views import View


class Prompt:
    """Decisions of one prefill, kept through decoding.

    Shapes: b prompts, s positions (padded). ``image`` and ``real`` are bool [b, s].
    """

    def __init__(
        self,
        spec: VariantSpec,
        ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image: torch.Tensor,
        blocks: int,
    ) -> None:
        self.spec, self.ids, self.blocks = spec, ids, blocks
        self.image = image
        if attention_mask is None:
            self.real = torch.ones_like(self.image)
        elif isinstance(attention_mask, torch.Tensor) and attention_mask.shape == ids.shape:
            self.real = attention_mask.bool()
        else:
            found = list(getattr(attention_mask, "shape", [])) or type(attention_mask).__name__
            raise TruncationError(f"{spec}: attention_mask {found} at prefill, expected a tensor {list(ids.shape)}")
        counts = torch.stack([(self.image & self.real).sum(1), self.real.sum(1)]).tolist()
        self.image_counts: list[int] = counts[0]
        self.real_counts: list[int] = counts[1]
        self.views: dict[int, View] = {}
        self.keeps: dict[int, torch.Tensor] = {}  # layer -> bool [b, s], image tokens kept
        self.cache: Any = None
        self.is_prefilled: Callable[[Any], bool] = lambda cache: False  # set once the prefill is done
        self.stages = [stage for stage in spec.stages if self._bites(stage)]
        self.traces = [PromptTrace([n] * blocks, [i] * blocks) for n, i in zip(counts[1], counts[0], strict=True)]

    def _bites(self, stage: Stage) -> bool:
        """True if the stage removes a token of at least one prompt."""
        return any(stage.count(n) < n for n in self.image_counts)

    def recomputes(self, ids: torch.Tensor) -> bool:
        """True if ``ids`` are these prompts with more tokens behind them (a generation step without cache)."""
        length = self.ids.shape[1]
        return ids.shape[0] == self.ids.shape[0] and ids.shape[1] > length and torch.equal(ids[:, :length], self.ids)

    def stage_before(self, block: int) -> Stage | None:
        """The last biting stage whose tokens are gone when block number ``block`` (0-based) begins."""
        return next((stage for stage in reversed(self.stages) if stage.layer <= block), None)

    def view_before(self, block: int) -> View | None:
        """The positions that block (0-based) holds; None for all."""
        stage = self.stage_before(block)
        return None if stage is None else self.views.get(stage.layer)

    def candidates(self, stage: Stage) -> torch.Tensor:
        """Image tokens that are still there when ``stage`` decides, bool [b, s]."""
        earlier = [self.keeps[s.layer] for s in self.stages if s.layer < stage.layer]
        return earlier[-1] if earlier else self.image & self.real

    def query_rows(self, stage: Stage, length: int, view: View | None) -> torch.Tensor:
        """Query rows to rank by, as positions [b, r] among those of ``view``; this call was given ``length`` tokens."""
        real = self.real
        if length > real.shape[1]:
            real = torch.nn.functional.pad(real, (0, length - real.shape[1]), value=True)
        positions = torch.arange(length, device=real.device)
        last = (positions * real).amax(1, keepdim=True)
        if self.spec.row == "last":
            rows = last
        else:
            image = self.candidates(stage)
            start = (torch.arange(image.shape[1], device=real.device) * image).amax(1, keepdim=True)
            start = torch.where(image.any(1, keepdim=True), start, last)
            rows = start if self.spec.row == "rowimg" else self._rows_between(start, last)
        return rows if view is None else place_in(view, rows)

    @staticmethod
    def _rows_between(start: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Rows start..last of each prompt, [b, r]; shorter ones repeat their last row."""
        reach = int((last - start).max()) + 1
        return torch.minimum(start + torch.arange(reach, device=start.device), last)

    def decide(self, stage: Stage, scores: torch.Tensor | None) -> None:
        """Choose the image tokens that outlive ``stage``: by ``scores`` (float [b, s], full positions), or without."""
        candidates = self.candidates(stage)
        wanted = [stage.count(n) for n in self.image_counts]
        counts = torch.tensor(wanted, device=candidates.device)
        if self.spec.rule == "uniform":
            keep = ranking.uniform(candidates, counts)
        elif self.spec.rule == "random":
            seeds = [ranking.sample_seed(row[real].tolist()) for row, real in zip(self.ids, self.real, strict=True)]
            keep = ranking.random(candidates, counts, seeds)
        else:
            scores = torch.zeros(candidates.shape, device=candidates.device) if scores is None else scores  # l0_k0
            keep = ranking.best(scores, candidates, counts, lowest=self.spec.rule == "lowest")
        self.keeps[stage.layer] = keep
        remaining = [
            real - image + min(k, image)
            for real, image, k in zip(self.real_counts, self.image_counts, wanted, strict=True)
        ]
        if not self.spec.official:
            stays = self.real & (~self.image | keep)
            self.views[stage.layer] = View.of(stage.layer, stays, remaining)
        self._note(stage, wanted, remaining)

    def _note(self, stage: Stage, wanted: list[int], remaining: list[int]) -> None:
        for row, trace in enumerate(self.traces):
            after = self.blocks - stage.layer
            if wanted[row] >= self.image_counts[row]:
                continue
            trace.mode = "official" if self.spec.official else "dropped"
            trace.images[stage.layer :] = [wanted[row]] * after
            if not self.spec.official:
                trace.tokens[stage.layer :] = [remaining[row]] * after

    def kept_numbers(self) -> list[dict[int, list[int]]]:
        """For each prompt: stage layer -> kept image tokens, numbered among its image tokens, if any were dropped."""
        numbers = (self.image & self.real).long().cumsum(1) - 1
        kept: list[dict[int, list[int]]] = [{} for _ in self.traces]
        for stage in self.stages:
            keep = self.keeps[stage.layer]
            for row, count in enumerate(self.image_counts):
                if stage.count(count) < count:
                    kept[row][stage.layer] = numbers[row][keep[row]].tolist()
        return kept


def place_in(view: View, positions: torch.Tensor) -> torch.Tensor:
    """Full positions [b, r] -> their places in ``view``, [b, r]; for a position that is gone, the next one held."""
    return torch.searchsorted(view.index.contiguous(), positions.contiguous())
