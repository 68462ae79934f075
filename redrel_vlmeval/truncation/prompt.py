"""The state of one batch of prompts under truncation: which tokens are visual tokens, and what each stage decided."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from redrel_vlmeval import rules
from redrel_vlmeval.errors import InvalidValue, RedrelError, TruncationError
from redrel_vlmeval.names import Stage, VariantSpec, stage_before
from redrel_vlmeval.truncation.decoders import Decoder
from redrel_vlmeval.truncation.seeing import Evidence, one_prompt, pictures_of, remaining, sample_seed
from redrel_vlmeval.truncation.trace import PromptTrace
from redrel_vlmeval.truncation.views import View


class Prompt:
    """Decisions of one prefill, kept through decoding.

    Shapes: b prompts, s positions (padded). ``image``, ``real`` and what is kept are bool [b, s] on the CPU: they are
    read there once, so that choosing costs one wait for the device a stage.
    """

    def __init__(
        self,
        spec: VariantSpec,
        ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image: torch.Tensor,
        blocks: int,
        per_picture: int | None = None,
    ) -> None:
        self.spec, self.ids, self.blocks, self.per_picture = spec, ids, blocks, per_picture
        self.image = image.cpu()
        if attention_mask is None:
            self.real = torch.ones_like(self.image)
        elif isinstance(attention_mask, torch.Tensor) and attention_mask.shape == ids.shape:
            self.real = attention_mask.bool().cpu()
        else:
            found = list(getattr(attention_mask, "shape", [])) or type(attention_mask).__name__
            raise TruncationError(f"{spec}: attention_mask {found} at prefill, expected a tensor {list(ids.shape)}")
        self.image_counts: list[int] = (self.image & self.real).sum(1).tolist()
        self.real_counts: list[int] = self.real.sum(1).tolist()
        self.views: dict[int, View] = {}
        self.keeps: dict[int, torch.Tensor] = {}  # layer -> bool [b, s], visual tokens kept
        self.merges: dict[int, dict[int, rules.Choice]] = {}  # layer -> row -> a choice that changes what it keeps
        self.cache: Any = None
        self.is_prefilled: Callable[[Any], bool] = lambda cache: False  # set once the prefill is done
        self.stages = [stage for stage in spec.stages if self._bites(stage)]
        counts = zip(self.real_counts, self.image_counts, strict=True)
        self.traces = [PromptTrace([real] * blocks, [images] * blocks) for real, images in counts]

    def wanted(self, stage: Stage) -> list[int]:
        """Visual tokens of each prompt that go on behind ``stage``."""
        try:
            return [stage.count(count, self.blocks) for count in self.image_counts]
        except InvalidValue as error:
            raise TruncationError(f"{self.spec}: {error}") from error

    def _bites(self, stage: Stage) -> bool:
        """True if the stage removes a token of at least one prompt."""
        return any(want < count for want, count in zip(self.wanted(stage), self.image_counts, strict=True))

    def asks(self, stage: Stage) -> bool:
        """True if its rule has a choice to make for at least one prompt."""
        return any(0 < want < count for want, count in zip(self.wanted(stage), self.image_counts, strict=True))

    def recomputes(self, ids: torch.Tensor) -> bool:
        """True if ``ids`` are these prompts with more tokens behind them (a generation step without cache)."""
        length = self.ids.shape[1]
        return ids.shape[0] == self.ids.shape[0] and ids.shape[1] > length and torch.equal(ids[:, :length], self.ids)

    def stage_before(self, block: int) -> Stage | None:
        """The last biting stage whose tokens are gone when block number ``block`` (0-based) begins."""
        return stage_before(self.stages, block)

    def view_before(self, block: int) -> View | None:
        """The positions that block (0-based) holds; None for all."""
        stage = self.stage_before(block)
        return None if stage is None else self.views.get(stage.layer)

    def candidates(self, stage: Stage) -> torch.Tensor:
        """Visual tokens that are still there when ``stage`` decides, bool [b, s]."""
        earlier = [self.keeps[s.layer] for s in self.stages if s.layer < stage.layer]
        return earlier[-1] if earlier else self.image & self.real

    # -- query rows ---------------------------------------------------------------------------------------------------

    def query_rows(self, stage: Stage, length: int, view: View | None) -> torch.Tensor:
        """Query rows to rank by, as places [b, r] among those of ``view``; this call was given ``length`` tokens.

        The last token is the last one that is still there: a prompt may end with a picture whose end is dropped.
        """
        held = self._held(stage, length)
        last = [int(row.nonzero()[-1]) for row in held]
        if self.spec.row == "last":
            return self._places([[end] for end in last], view)
        images = self.image & self.real if self.spec.row == "rowtext" else self.candidates(stage)
        rows = []
        for real, image, end in zip(held, images, last, strict=True):
            picture = int(image.nonzero()[-1]) if bool(image.any()) else end  # its last token
            first = min(picture + (self.spec.row == "rowtext"), end)
            behind = (real[first:].nonzero()[:, 0] + first).tolist()
            rows.append(behind[:1] if self.spec.row == "rowimg" else behind)
        return self._places(rows, view)

    def text_rows(self, stage: Stage, view: View | None) -> torch.Tensor:
        """The rows of each prompt's text after its last picture, as places [b, r]; shorter ones repeat their last."""
        texts = [row.nonzero()[:, 0].tolist() for row in self._text()]
        last = [int(row.nonzero()[-1]) for row in self._held(stage, self.ids.shape[1])]
        return self._places([text or [end] for text, end in zip(texts, last, strict=True)], view)

    def _held(self, stage: Stage, length: int) -> torch.Tensor:
        """Real tokens that are there when ``stage`` decides, bool [b, length]; tokens behind the prompt all are."""
        held = self.real & (~self.image | self.candidates(stage))
        return torch.nn.functional.pad(held, (0, length - held.shape[1]), value=True)

    def _text(self) -> torch.Tensor:
        """Real tokens behind the last visual token, bool [b, s]; all of them where there is none."""
        positions = torch.arange(self.image.shape[1])
        end = torch.where(self.image & self.real, positions, -1).amax(1, keepdim=True)
        return self.real & (positions > end)

    def questions(self, tokenizer: Any, needs: Collection[str]) -> list[str]:
        """The text of each prompt after its last picture, in words; nothing where nobody needs it."""
        if "question" not in needs:
            return []
        ids = self.ids.cpu()
        chosen = zip(ids, self._text() & (ids >= 0), strict=True)  # below 0: of no word
        return [tokenizer.decode(ids[text].tolist(), skip_special_tokens=True) for ids, text in chosen]

    @staticmethod
    def _places(rows: list[list[int]], view: View | None) -> torch.Tensor:
        """Positions, all held, -> places in ``view`` [b, r]; shorter lists repeat their last."""
        most = max(map(len, rows))
        found = torch.tensor([row + row[-1:] * (most - len(row)) for row in rows])
        return found if view is None else torch.searchsorted(view.index.cpu().contiguous(), found)

    # -- choosing -----------------------------------------------------------------------------------------------------

    def decide(self, stage: Stage, evidence: Evidence) -> None:
        """Choose the visual tokens that outlive ``stage``, prompt by prompt, as its rule does.

        Raises:
            RuleError: the rule gave something else than asked. TruncationError: it failed.
        """
        rule, candidates, wanted = self.spec.rule_of(stage), self.candidates(stage), self.wanted(stage)
        outer = None if self.spec.official else self.view_before(stage.layer - 1)
        keep = torch.zeros_like(candidates)
        for row, budget in enumerate(wanted):
            places = candidates[row].nonzero()[:, 0]
            if 0 < budget < len(places):
                choice = self._ask(rule, evidence, row, places, budget, outer, stage)
                places = places[choice.indices]
                if not choice.plain:
                    self.merges.setdefault(stage.layer, {})[row] = choice
            elif budget == 0:
                places = places[:0]
            keep[row, places] = True
        self.keeps[stage.layer] = keep
        if not self.spec.official:
            stays = self.real & (~self.image | keep)
            view = View.of(stage.layer, stays, None if outer is None else outer.to(stays.device), self.renumbered)
            self.views[stage.layer] = view.to(self.ids.device)
        self._note(stage, wanted)

    def _ask(
        self, rule: rules.Rule, evidence: Evidence, row: int, places: torch.Tensor, budget: int, outer: View | None,
        stage: Stage,
    ) -> rules.Choice:  # fmt: skip
        text = self._text()[row].nonzero()[:, 0]
        inside = places, text
        if outer is not None:
            index = outer.index[row].cpu()
            inside = torch.searchsorted(index, places), torch.searchsorted(index, text)
        image = self.image[row] & self.real[row]
        where = dict(zip(("visual", "text", "visual_full", "text_full"), (*inside, places, text), strict=True))
        where |= {"entered": image.nonzero()[:, 0], "first": self.real[row].nonzero()[0, 0]}
        pictures = pictures_of(image, self.per_picture)
        if len(places) < self.image_counts[row]:
            pictures = remaining(pictures, (image.long().cumsum(0) - 1)[places])
        seed = self._seed(row) if rule.draws else 0
        try:
            seen = one_prompt(evidence, rule.needs, row, where, pictures, stage.layer, seed)
            return rules.decide(rule, seen, budget)
        except TruncationError:
            raise
        except RedrelError as error:
            raise rules.RuleError(f"{self.spec}: rule {rule.name!r} ({rule.where}): {error}") from error

    def _seed(self, row: int) -> int:
        """From the prompt's own tokens: neither padding, batch nor device changes a draw."""
        return sample_seed(self.ids[row][self.real[row].to(self.ids.device)].tolist(), self.spec.seed)

    def merging(self, stage: Stage, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where a merging choice takes from, and where to: places among what is held before the cut, and behind it."""
        visual = self.candidates(stage)[row].nonzero()[:, 0]
        kept = self.keeps[stage.layer][row].nonzero()[:, 0]
        outer = self.view_before(stage.layer - 1)
        if outer is not None:
            visual = torch.searchsorted(outer.index[row].cpu(), visual)
        return visual, torch.searchsorted(self.views[stage.layer].index[row].cpu(), kept)

    @property
    def renumbered(self) -> bool:
        return self.spec.positions == "new"

    def _note(self, stage: Stage, wanted: list[int]) -> None:
        after = self.blocks - stage.layer
        for row, trace in enumerate(self.traces):
            if wanted[row] >= self.image_counts[row]:
                continue
            trace.mode = "official" if self.spec.official else "dropped"
            trace.images[stage.layer :] = [wanted[row]] * after
            if not self.spec.official:
                trace.tokens[stage.layer :] = [self.real_counts[row] - self.image_counts[row] + wanted[row]] * after
            choice = self.merges.get(stage.layer, {}).get(row)
            if choice is not None and choice.weights is not None:
                trace.merged[stage.layer] = choice.weights

    def note_call(self, decoder: Decoder, prefill: bool) -> None:
        """Write into the traces what a forward call has left behind: kept tokens, and keys that blocks hold."""
        if prefill:
            for trace, kept in zip(self.traces, self.kept_numbers(), strict=True):
                trace.kept = kept
        if self.cache is None:
            return
        held = [decoder.held_length(self.cache, block) for block in range(self.blocks)]
        for row, trace in enumerate(self.traces):
            padding = [self.ids.shape[1] - self.real_counts[row]] * self.blocks
            for block in range(self.blocks):
                view = self.view_before(block)
                if view is not None:
                    padding[block] = view.index.shape[1] - trace.tokens[block]
            trace.kv = [count - more for count, more in zip(held, padding, strict=True)]

    def kept_numbers(self) -> list[dict[int, list[int]]]:
        """For each prompt: stage layer -> kept visual tokens, numbered among its visual tokens, if any were dropped."""
        numbers = (self.image & self.real).long().cumsum(1) - 1
        kept: list[dict[int, list[int]]] = [{} for _ in self.traces]
        for stage in self.stages:
            for row, (want, count) in enumerate(zip(self.wanted(stage), self.image_counts, strict=True)):
                if want < count:
                    kept[row][stage.layer] = numbers[row][self.keeps[stage.layer][row]].tolist()
        return kept
