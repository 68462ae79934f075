"""What the engine asks of a decoder, whichever family it is of: the seam between truncation and model internals."""

from __future__ import annotations

import inspect
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from redrel_vlmeval.bases import BlockShape
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.decoders import stretch
from redrel_vlmeval.truncation.decoders.calls import Attend, Call, Observer, observing
from redrel_vlmeval.truncation.decoders.entrance import Entrance
from redrel_vlmeval.truncation.decoders.modules import Modules
from redrel_vlmeval.truncation.decoders.parallel import group_of
from redrel_vlmeval.truncation.views import View, causal, hide, is_per_token, take


@dataclass
class Decoder(Modules):
    """A model's decoder blocks and how to shorten what they are given.

    ``root`` is the model as called, ``text`` the module that owns the blocks. Blocks are counted from 0. ``entrance``:
    where the prompt's ids are seen, of a ``root`` that is given embeddings.
    """

    root: nn.Module
    text: nn.Module
    blocks: list[nn.Module]
    entrance: Entrance | None = field(default=None, kw_only=True)
    _memo: dict[tuple[int, ...], tuple[Any, Any]] = field(default_factory=dict, kw_only=True)

    layout: ClassVar[str]  # the module tree it is recognised by, for messages
    rotary: ClassVar[str]  # the argument of a block that holds the rotary tables

    @property
    def given_tables(self) -> bool:
        """Whether a block is given cosine and sine, one row a token, and not the places to make them of."""
        return self.rotary == "position_embeddings"

    def heard(self, model: nn.Module) -> nn.Module:
        """Whose ``generate`` and ``forward`` make the answers of ``model``: its own, also where it wraps ``root``.

        A model that hands embeddings to ``root`` does not have those calls itself.
        """
        return model if self.entrance is None else self.root

    @property
    @abstractmethod
    def kernel(self) -> str:
        """Name of the attention function in use: ``sdpa``, ``eager``, ``flash_attention_2``, ..."""

    @property
    def flash(self) -> bool:
        """Whether that takes no mask but one of padding, [b, s]."""
        return "flash" in self.kernel

    @property
    @abstractmethod
    def shape(self) -> BlockShape:
        """Sizes of a block (all blocks are alike)."""

    @abstractmethod
    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        """Which of ``ids`` (long [b, s]) stand for image tokens, bool [b, s]."""

    @abstractmethod
    def pictures(self, given: Mapping[str, Any]) -> bool:
        """Whether a forward call's arguments bring pixels."""

    @abstractmethod
    def past(self, cache: Any) -> int:
        """Tokens that a cache stands for; 0 for None."""

    @abstractmethod
    def cache_of(self, kwargs: Mapping[str, Any]) -> Any:
        """The KV cache in a block's arguments at prefill, or None."""

    def cache_after(self, output: Any, cache: Any) -> Any:
        """The KV cache when a forward call is done: ``cache`` where it is filled in place."""
        return cache

    def continues(self, cache: Any, earlier: Any, generating: bool) -> bool:
        """Whether ``cache`` is what ``earlier``, the cache after the last forward call, was.

        Within one ``generate`` it may have been reordered by beam search.
        """
        return cache is earlier

    def prefilled(self, cache: Any) -> Callable[[Any], bool]:
        """Tells of any later cache whether it is ``cache`` again, as the prefill left it; keeps no tensor alive.

        A cache that is filled in place never is: it goes on being itself.
        """
        return lambda other: False

    @abstractmethod
    def held_length(self, cache: Any, block: int) -> int:
        """Keys that a block really holds in a cache; 0 without one."""

    @abstractmethod
    def held_bytes(self, cache: Any) -> int:
        """Bytes of the key and value tensors that the cache really holds, all blocks and all rows of the batch."""

    @abstractmethod
    def check_cache(self, cache: Any, longest: int) -> None:
        """Raise TruncationError for caches whose blocks cannot differ in length, or not at ``longest`` tokens."""

    def window(self, cache: Any) -> int | None:
        """The most tokens that every block of a cache holds, where some hold a window of the latest only."""
        return None

    def report_length(self, cache: Any, dropped: Mapping[int, int]) -> Callable[[], None]:
        """After a prefill: make later steps count the tokens that left, block -> how many. Returns what undoes it.

        Models take the position of generated tokens from the length of block 1's cache, and the width of a mask from
        that of the first block of its kind, full or sliding.
        """
        return lambda: None

    def extras(self, view: Callable[[], View | None]) -> AbstractContextManager[None]:
        """Within the context, what a model adds to hidden states *between* blocks fits the tokens that are held there.

        ``view()``: which tokens the block that has just run holds, None for all.
        """
        return nullcontext()

    def added(self) -> AbstractContextManager[list[torch.Tensor]]:
        """Within the context, what a forward call adds to its visual tokens behind blocks 1, 2, .. is collected.

        One [n, width] for each such block, of the prompt's n visual tokens in order.
        """
        return nullcontext([])

    @abstractmethod
    def shorten(self, block: int, kwargs: dict[str, Any], view: View) -> dict[str, Any]:
        """A block's prefill arguments (rotary tables, masks, positions) cut to ``view``; made once a forward."""

    def given(
        self, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], view: View
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A block's arguments at prefill with ``hidden`` in place of its own hidden states, as they were given."""
        if not args:
            return (), kwargs | {"hidden_states": hidden}
        return (hidden, *(take(a, view.index, 1) if is_per_token(a, view) else a for a in args[1:])), kwargs

    def narrow(self, block: int, kwargs: dict[str, Any], view: View, held: int, queries: int) -> dict[str, Any]:
        """A block's arguments at a later step: the mask's columns are those of the ``held`` keys and the new ones."""
        keys = held + queries
        mask = self._mask(kwargs, view, lambda mask: view.column_mask(mask, queries, keys, self.flash))
        return kwargs | {"attention_mask": mask}

    def masked(self, kwargs: dict[str, Any], visible: torch.Tensor, queries: int) -> dict[str, Any]:
        """A block's arguments with the keys that ``visible`` (bool [b, k]) excludes hidden; nothing is dropped."""
        mask = kwargs.get("attention_mask")
        keys = visible.shape[1]
        if mask is None:
            mask = causal(queries, keys, visible.device)
        allowed = visible[:, None, None].to(mask.device)
        if queries == keys:  # a hidden token's own row must attend to something, or its softmax is NaN
            allowed = allowed | torch.eye(keys, dtype=torch.bool, device=mask.device)
        return kwargs | {"attention_mask": hide(mask, allowed)}

    @abstractmethod
    def attending(
        self, blocks: Sequence[int], attend: Attend, kernel: str | None = None
    ) -> AbstractContextManager[None]:
        """Within the context these blocks attend by ``attend(attention)``, with the model's own kernel or another.

        Contexts nest: the kernel that ``attend`` is given is then what was entered before.
        """

    @contextmanager
    def probe(self, block: int, observer: Observer) -> Iterator[None]:
        """Within the context ``observer(query, key, mask, scaling, softcap, value)`` sees the block attend.

        query: [b, h, q, d]; key, value: [b, h_kv, k, d]; query and key rotated; the very tensors that the model's
        kernel is given. Contexts nest: every observer sees the block once a call.
        """
        with self.attending([block], observing(observer)):
            yield

    @property
    def divided(self) -> bool:
        """Whether other processes hold a part of the heads (tensor parallel)."""
        return group_of(self.blocks[0]) is not None

    @property
    def per_picture(self) -> int | None:
        """Visual tokens of every picture, where all have equally many; None where they differ or nobody says."""
        return None

    @property
    def axes(self) -> int:
        """Numbers that a token's rotary position consists of: 3 (time, row, column) where pictures have places."""
        return 1

    @property
    def trained(self) -> int | None:
        """Tokens up to which rotary angles do not depend on the longest prompt of a call; None where they never do."""
        return stretch.trained(self.text)

    def uncached(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A block's arguments without its cache, for a call that must leave no trace."""
        caches = ("past_key_values", "past_key_value", "layer_past")
        return dict(kwargs) | {name: None for name in caches if name in kwargs} | {"use_cache": False}

    def unseen(self, block: int) -> TruncationError:
        """What to raise where the attention of ``block`` (from 0) was not to be looked at."""
        return TruncationError(
            f"{type(self.root).__name__}: block {block + 1} did not attend through transformers' attention interface, "
            "so its image tokens were not ranked"
        )

    # -- what a block is given when a prompt is continued from the middle ----------------------------------------------

    @contextmanager
    def noting(self) -> Iterator[list[torch.Tensor]]:
        """Within the context, the position ids that a forward call computes its rotary tables from are collected."""
        yield []

    @abstractmethod
    def at(self, block: int, kwargs: Mapping[str, Any], index: torch.Tensor) -> dict[str, Any]:
        """A block's arguments for the prompt's tokens at ``index`` (long [n]), in one row and without mask and cache.

        ``kwargs`` are those of the prefill. :meth:`forget_prompt` afterwards.
        """

    @abstractmethod
    def beyond(
        self, block: int, kwargs: Mapping[str, Any], noted: Sequence[torch.Tensor], length: int, ahead: int, count: int
    ) -> dict[str, Any]:
        """The same for ``count`` tokens, each ``ahead`` places (0 for the next) behind a prompt of ``length``."""

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The parts of a forward call that truncation needs, wherever they stand among its arguments."""
        given = inspect.signature(self.root.forward).bind_partial(*args, **kwargs).arguments
        given = {**given.get("kwargs", {}), **given}
        cache, ids, rows = given.get("past_key_values"), given.get("input_ids"), given.get("inputs_embeds")
        pictures, past = self.pictures(given), self.past(cache)
        if self.entrance is not None and rows is not None:
            ids, pictures = self.entrance.placed(rows), self.entrance.pixels
        return Call(ids, given.get("attention_mask"), cache, past, pictures, given.get("position_ids"))

    def entered(self, clock: Callable[[], float] = time.perf_counter) -> AbstractContextManager[None]:
        """Within the context the ids of prompts are noted whose embeddings ``root`` is given, and when they came."""
        return nullcontext() if self.entrance is None else self.entrance.watched(clock)

    def forget_call(self) -> None:
        """Let go of the tensors that were shared between the blocks of one forward call."""
        self._memo.clear()

    def forget_prompt(self) -> None:
        """Undo what was changed on the model for the prompt at hand."""
        self.forget_call()

    def _mask(self, kwargs: Mapping[str, Any], view: View, make: Callable[[Any], Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None and not isinstance(mask, torch.Tensor):
            raise TruncationError(
                f"attention mask of type {type(mask).__name__}: use attn_implementation sdpa, eager or flash"
            )
        return self._once(mask, view, lambda: make(mask))

    def _once(self, source: Any, view: View, make: Callable[[], Any]) -> Any:
        """Blocks share their arguments: each is shortened once per view, its source kept alive as ids are reused."""
        return self._known((id(source), id(view)), (source, view), make)

    def _known(self, key: tuple[int, ...], alive: Any, make: Callable[[], Any]) -> Any:
        if key not in self._memo:
            self._memo[key] = (make(), alive)
        return self._memo[key][0]
