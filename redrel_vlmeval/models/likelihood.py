"""Options ranked by likelihood: the letter that the model finds likeliest behind the prompt, all from one prefill.

The base prepares its prompt as ever; in place of generating, its ``generate`` runs the prefill once and scores each
option from that prefill's KV cache. An option's score is the sum of its tokens' log-probabilities: the probability
that the model's answer begins with it. It is not divided by length: letters are one token each in every family here,
where mean and sum agree, and of unequal lengths a mean would compare averages, not answers.

A letter can stand with or without a space before it, and the prompt's last token decides which of both the model
writes. It is the model that is asked: all options are spelt the way that has more probability over all of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models.wrapping import tokenizer_of
from redrel_vlmeval.truncation import find_decoder

Spelling = Mapping[str, Sequence[int]]  # option -> its tokens
# the prefill is the first step of a greedy generation, whatever the base's own settings are
PREFILL = {
    "max_new_tokens": 1, "min_new_tokens": 0, "do_sample": False, "num_beams": 1, "num_return_sequences": 1,
    "use_cache": True, "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
LIMITS = ("max_length", "min_length", "streamer")


@dataclass(frozen=True)
class Ranking:
    """Log-probability of each option, the tokens it was spelt with, and the first of the likeliest."""

    logprobs: dict[str, float]
    tokens: dict[str, list[int]]

    @property
    def best(self) -> str:
        return max(self.logprobs, key=self.logprobs.__getitem__)


class Ranker:
    """What takes the place of ``generate``: it ranks ``spellings``' options once and answers with the best one.

    Args:
        model: the torch model whose ``generate`` is replaced by :meth:`replace` of it.
        spellings: ways to spell the same options.
        variant: its name, for messages.
    """

    def __init__(self, model: Any, spellings: Sequence[Spelling], variant: str) -> None:
        self.model, self.spellings, self.variant = model, spellings, variant
        self.found: Ranking | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What an efficiency record says of the ranking; the KV cache grew by all but the last of ``new_tokens``."""
        longest = max(len(tokens) for spelling in self.spellings for tokens in spelling.values())
        return {"option_logprobs": self.found.logprobs if self.found else {}, "new_tokens": longest}

    def check_answer(self, answer: Any, base: str) -> None:
        """Refuse an answer of ``base`` that is not the letter ranked first.

        Raises:
            TruncationError: it did not generate, or made something else of the letter.
        """
        best = self.found.best if self.found else None
        if best is None or str(answer).strip() != best:
            raise TruncationError(
                f"{self.variant}: {best or 'nothing'} was ranked first, but {base} answered {str(answer)[:80]!r}: it "
                "does not answer by one generate() of its torch model, so options cannot be ranked"
            )

    def replace(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """``generate`` whose output is the prompt and the best option's tokens.

        Raises:
            TruncationError: a batch of prompts, a second call for the same question, or scores that are no numbers.
        """

        def rank(*args: Any, **kwargs: Any) -> Any:
            if self.found is not None:
                raise TruncationError(f"{self.variant}: the base generates more than once a question; rank one answer")
            config = kwargs.get("generation_config") or getattr(self.model, "generation_config", None)
            whole = kwargs.get("return_dict_in_generate", getattr(config, "return_dict_in_generate", False))
            settings = {name: value for name, value in kwargs.items() if name not in LIMITS}
            output = generate(*args, **(settings | PREFILL))
            if len(output.sequences) != 1:
                raise TruncationError(f"{self.variant}: {len(output.sequences)} prompts at once; options rank for one")
            prompt = output.sequences[:, :-1]
            self.found = self._rank(output, prompt, kwargs.get("attention_mask"))
            best = prompt.new_tensor([self.found.tokens[self.found.best]])
            output.sequences = torch.cat([prompt, best], dim=1)
            return output if whole else output.sequences

        return rank

    @torch.no_grad()
    def _rank(self, prefill: Any, prompt: torch.Tensor, mask: Any) -> Ranking:
        first = prefill.logits[0][0].float().log_softmax(-1)
        scores = [dict.fromkeys(spelling, 0.0) for spelling in self.spellings]
        behind = None
        # the longest last, so that the cache's length in the trace is the longest there was
        for number, option in sorted(_each(self.spellings), key=lambda one: len(self.spellings[one[0]][one[1]])):
            tokens = self.spellings[number][option]
            score = float(first[tokens[0]])
            if len(tokens) > 1:
                cache, length = prefill.past_key_values, prompt.shape[1]
                behind = behind or _Continuation(self.model, cache, length, mask, self.variant)
                score += behind.score(tokens)
            scores[number][option] = score
        if any(math.isnan(score) for spelling in scores for score in spelling.values()):
            raise TruncationError(f"{self.variant}: the model's log-probabilities are no numbers (nan); change dtype")
        best = max(range(len(scores)), key=lambda number: _log_sum(scores[number].values()))
        return Ranking(scores[best], {option: list(tokens) for option, tokens in self.spellings[best].items()})


class _Continuation:
    """Scores tokens behind one prompt, again and again from the same cache.

    Raises:
        TruncationError: a padded prompt, or a cache that is written in place, so that one option would leave traces for
            the next.
    """

    def __init__(self, model: Any, cache: Any, length: int, mask: Any, variant: str) -> None:
        self.model: Any
        decoder = find_decoder(model)
        if isinstance(mask, torch.Tensor) and not bool(mask.all()):
            raise TruncationError(f"{variant}: options of several tokens cannot be ranked behind a padded prompt")
        self.model, self.length = decoder.heard(model), max(length, decoder.past(cache))
        decoder.check_cache(cache, self.length)
        self.restored = _restorer(cache)
        self.takes_position = "cache_position" in inspect.signature(self.model.forward).parameters

    def score(self, tokens: Sequence[int]) -> float:
        """Sum of the log-probabilities of all tokens but the first, each behind those before it."""
        cache, total = self.restored(), 0.0
        for step, (token, following) in enumerate(zip(tokens, tokens[1:], strict=False)):
            # no mask: one whole prompt hides nothing, and some families read positions off a mask of full length
            call = {"input_ids": torch.tensor([[token]], device=self.model.device), "past_key_values": cache}
            if self.takes_position:
                call["cache_position"] = torch.tensor([self.length + step], device=self.model.device)
            output = self.model(**call, use_cache=True)
            cache = output.past_key_values
            total += float(output.logits[0, -1].float().log_softmax(-1)[following])
        return total


def _restorer(cache: Any) -> Callable[[], Any]:
    """A function that gives ``cache`` as it is now, whatever was appended since.

    Appending makes new tensors (``torch.cat``), so the old ones are still whole: they are kept, not copied, and put
    back, which is right for blocks of unequal length as well. A tuple never changes.
    """
    if isinstance(cache, tuple):
        return lambda: cache
    holders = [cache, *getattr(cache, "layers", [])]
    states = [_shallow(vars(holder)) for holder in holders]

    def restored() -> Any:
        for holder, state in zip(holders, states, strict=True):
            vars(holder).clear()
            vars(holder).update(_shallow(state))
        return cache

    return restored


def _shallow(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in state.items()}


def _each(spellings: Sequence[Spelling]) -> Iterable[tuple[int, str]]:
    return [(number, option) for number, spelling in enumerate(spellings) for option in spelling]


def _log_sum(logs: Iterable[float]) -> float:
    found = list(logs)
    top = max(found)
    return top if math.isinf(top) else top + math.log(sum(math.exp(one - top) for one in found))


def find_tokenizer(holder: Any, variant: str) -> Any:
    """The tokenizer of a host model, see :func:`tokenizer_of`.

    Raises:
        TruncationError: there is none.
    """
    found = tokenizer_of(holder)
    if found is None:
        raise TruncationError(
            f"{variant}: {type(holder).__name__} has neither tokenizer nor processor, so options have no tokens to rank"
        )
    return found


def spellings(tokenizer: Any, letters: Sequence[str], variant: str) -> list[dict[str, list[int]]]:
    """Tokens of each letter behind a prompt: without a space before it and with one, where the two differ.

    Each is tokenised behind a line break, which merges with nothing, because a tokenizer treats a text's beginning
    otherwise.

    Raises:
        TruncationError: the tokenizer gives two letters the same tokens, or none.
    """
    found: list[dict[str, list[int]]] = []
    for space in ("", " "):
        spelling = {letter: _behind(tokenizer, f"{space}{letter}") for letter in letters}
        told_apart = len({tuple(tokens) for tokens in spelling.values() if tokens}) == len(spelling)
        if told_apart and spelling not in found:
            found.append(spelling)
    if not found:
        raise TruncationError(f"{variant}: its tokenizer cannot tell the options {', '.join(letters)} apart")
    return found


def _behind(tokenizer: Any, text: str) -> list[int]:
    mark, both = (list(tokenizer(f"\n{part}", add_special_tokens=False)["input_ids"]) for part in ("", text))
    return both[len(mark) :] if both[: len(mark)] == mark else []
