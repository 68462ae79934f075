"""Qwen-VL and Qwen-VL-Chat on their own code, fed exactly what the host's classes feed them; needs no host."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.models.checkpoint import CheckpointError, folder_weights
from redrel_vlmeval.models.pictures import PictureNames, check_readable
from redrel_vlmeval.models.qwen import checkpoint

logger = logging.getLogger("redrel_vlmeval")
SYSTEM = "You are a helpful assistant."
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
Content = Sequence[Mapping[str, Any]]


class QwenCore:
    """A loaded checkpoint that answers questions.

    Decoding is greedy. The host's chat class samples as the checkpoint says (``top_p``), and its answers can neither be
    repeated nor compared question by question; ``do_sample=True`` brings that back, with the checkpoint's settings.

    Args:
        model_path: ``Qwen/Qwen-VL``, ``Qwen/Qwen-VL-Chat``, or a local folder in their format.
        chat: answer in the format of ``Qwen-VL-Chat``; else continue the prompt.
        revision: commit on the hub; that of the two names is pinned.
        device, dtype: see :func:`qwen_checkpoint.place`.
        attn: ``sdpa``, or ``eager`` for the code's own attention.
        generation: keywords of ``generate``.

    Raises:
        CheckpointError: the checkpoint cannot be had or used.
        ValueError: unknown ``attn``, device or dtype.
    """

    def __init__(
        self, model_path: str, chat: bool = False, revision: str | None = None, device: str | None = None,
        dtype: str | None = None, attn: str = "sdpa", **generation: Any,
    ) -> None:  # fmt: skip
        if attn not in ("sdpa", "eager"):
            raise InvalidValue(f"attn {attn!r}: Qwen-VL runs with 'sdpa' or 'eager'")
        checkpoint.check_environment(model_path)
        revision = checkpoint.choose_revision(model_path, revision)
        folder = checkpoint.find_folder(model_path, revision)
        size, digest = folder_weights(str(folder))
        self.weights, self.chatty = model_path, chat
        self.revision = digest if Path(model_path).is_dir() else folder.name
        placement = checkpoint.place(device, dtype, size)
        self.model, self.tokenizer = checkpoint.load(model_path, self.revision, folder, placement, attn)
        if chat and getattr(self.model.generation_config, "chat_format", None) != "chatml":
            raise CheckpointError(
                f"{model_path}: no chat model (its chat_format is not 'chatml'); use Qwen/Qwen-VL-Chat"
            )
        self.device, self.dtype = torch.device(placement.device), placement.dtype
        self.generation = self._settings(generation)
        decoding = "sampled" if self.generation["do_sample"] else "greedy"
        self.backend = f"its own {type(self.model).__name__}, {decoding}"
        self.pictures = PictureNames()
        self.tokenizer.padding_side, self.tokenizer.pad_token_id = "left", self.tokenizer.eod_id
        logger.info("%s: %s, %s on %s, %s attention", model_path, self.backend, self.dtype, self.device, attn)

    def _settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keywords of ``generate``: the host's, greedy; the checkpoint's sampling only where it is asked for."""
        config, end = self.model.generation_config, self.tokenizer.eod_id
        sampling = {name: getattr(config, name) for name in SAMPLING if getattr(config, name, None) is not None}
        config.do_sample, config.temperature, config.top_p, config.top_k = False, 1.0, 1.0, 50  # the neutral ones
        settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": config.max_new_tokens or 512}
        settings |= {"use_cache": True, "pad_token_id": end, "eos_token_id": end}
        if not self.chatty:
            settings |= {"max_new_tokens": 512, "min_new_tokens": 1}
        return settings | (sampling if given.get("do_sample") else {}) | given

    def reply(self, content: Content, kind: str | None = None, dataset: str | None = None) -> str:
        """Answer to one question: items of type ``text`` and ``image``, interleaved as given.

        ``kind`` and ``dataset`` are the host's type and name of the benchmark; the base model's length of answer and
        the end of its prompt depend on them.

        Raises:
            ValueError: a picture is missing or cannot be read.
        """
        if self.chatty:
            return self.chat([{"role": "user", "content": content}])
        names = self._names(content)
        prompt = "".join(f"<img>{names[item['value']]}</img>" if _shows(item) else item["value"] for item in content)
        if kind == "VQA":
            prompt += " Answer:"
        ids = TextTokenizer(self.tokenizer, names.values()).encode(prompt)
        new = self._generate(ids, names, **answer_length(kind, dataset))
        return self._decode(new, skip_special_tokens=True)

    def chat(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """Answer to the last turn of a conversation, in which the user and the assistant take turns.

        Raises:
            ValueError: turns in another order, a base model, or a picture that is missing or cannot be read.
        """
        if not self.chatty:
            raise InvalidValue(f"{self.weights}: a base model holds no conversations; use Qwen/Qwen-VL-Chat")
        roles = [turn.get("role") for turn in turns]
        if roles != [("user", "assistant")[number % 2] for number in range(len(roles))] or len(roles) % 2 == 0:
            raise InvalidValue(f"a conversation goes user, assistant, ..., user; got {', '.join(map(str, roles))}")
        names = self._names([item for turn in turns for item in turn["content"]])
        said = [self._text(turn["content"], names) for turn in turns]
        ids = self._context(said, names)
        tokenizer = self.tokenizer
        stops = [tokenizer.im_end_id, tokenizer.im_start_id]
        new = self._generate(ids, names, stop_words_ids=[[stop] for stop in stops])
        end = next((place for place, token in enumerate(new) if token in (*stops, tokenizer.eod_id)), len(new))
        return self._decode(new[:end])

    def _text(self, content: Content, names: Mapping[str, str]) -> str:
        """One turn as the tokenizer writes it: ``Picture 1: <img>...</img>`` and a line break, and the text."""
        items = [{"image": names[i["value"]]} if _shows(i) else {"text": i["value"]} for i in content]
        return str(self.tokenizer.from_list_format(items))

    def _context(self, said: Sequence[str], names: Mapping[str, str]) -> list[int]:
        """Ids of a conversation by the code's own function; older turns that exceed its window are left out."""
        make_context = sys.modules[type(self.model).__module__].make_context  # type: ignore[attr-defined]
        _, ids = make_context(
            TextTokenizer(self.tokenizer, names.values()),
            said[-1],
            history=list(zip(said[:-1:2], said[1::2], strict=True)),
            system=SYSTEM,
            max_window_size=self.model.generation_config.max_window_size,
            chat_format="chatml",
        )
        return list(ids)

    def _names(self, content: Content) -> dict[str, str]:
        """Picture as given -> the path that stands for it in the prompt."""
        return {item["value"]: self.pictures.name(item["value"]) for item in content if _shows(item)}

    @torch.inference_mode()
    def _generate(self, ids: list[int], names: Mapping[str, str], **changes: Any) -> list[int]:
        """New token ids after a prompt.

        Raises:
            ValueError: the prompt is empty, or a picture cannot be read.
        """
        if not ids:
            raise InvalidValue("nothing to answer: the prompt has neither text nor picture")
        inputs = torch.tensor([ids], device=self.device)
        self.model.transformer.visual.redrel_features = {}  # else a picture asked about again would look faster
        try:
            output = self.model.generate(inputs, attention_mask=torch.ones_like(inputs), **(self.generation | changes))
        except Exception:
            for path in names:
                check_readable(path)
            raise
        return [int(token) for token in output[0, len(ids) :]]

    def _decode(self, new: list[int], **kwargs: Any) -> str:
        known = [token for token in new if token < len(self.tokenizer)]  # the head has rows that stand for nothing
        try:
            text = self.tokenizer.decode(known, **kwargs)
        except ValueError:  # its code fails on an answer with a picture's tags in it that hold no path
            text = self.tokenizer.decode([token for token in known if token < self.tokenizer.eod_id], **kwargs)
        return str(text).strip()


class TextTokenizer:
    """A tokenizer to which ``<img>`` in a question is text, and a picture only around one of ``names``."""

    TAGS = frozenset(("<img>", "</img>", "<imgpad>"))

    def __init__(self, tokenizer: Any, names: Any) -> None:
        self._tokenizer = tokenizer
        whole = "|".join(re.escape(f"<img>{name}</img>") for name in names)
        self._pictures = re.compile(f"({whole})" if whole else "(?!)")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, allowed_special: Any = "all", **kwargs: Any) -> list[int]:
        """Token ids; the tokenizer's own call wherever no tag stands in the text itself."""
        pieces = self._pictures.split(text)
        if not any(tag in piece for piece in pieces[::2] for tag in self.TAGS):
            return list(self._tokenizer.encode(text, allowed_special=allowed_special, **kwargs))
        special = self._tokenizer.special_tokens if allowed_special == "all" else allowed_special
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            allowed = allowed_special if number % 2 else set(special) - self.TAGS
            ids += self._tokenizer.encode(piece, allowed_special=allowed, **kwargs) if piece else []
        return ids


def answer_length(kind: str | None, dataset: str | None) -> dict[str, int]:
    """The base model's most new tokens for a benchmark, as the host's class has it; empty where it has none."""
    name = dataset or ""
    if kind in ("MCQ", "Y/N") or (kind == "Caption" and "COCO" in name):
        return {"max_new_tokens": 32}
    if kind == "VQA" and any(part in name for part in ("OCRVQA", "ChartQA", "DocVQA")):
        return {"max_new_tokens": 100}
    if kind == "VQA" and "TextVQA" in name:
        return {"max_new_tokens": 10}
    return {}


def _shows(item: Mapping[str, Any]) -> bool:
    """True for a picture.

    Raises:
        ValueError: neither text nor picture.
    """
    if item["type"] not in ("text", "image"):
        raise InvalidValue(f"item of type {item['type']!r}: Qwen-VL takes text and images")
    return bool(item["type"] == "image")
