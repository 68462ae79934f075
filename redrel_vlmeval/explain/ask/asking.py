"""One question put to a host model, and what it takes to run prompt and answer again: the inputs of its ``generate``.

The prompt is the host's own, down to the token: nothing is built a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import nn

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask.embedded import embeddings, remade
from redrel_vlmeval.explain.ask.generated import is_greedy, said_by, without_end
from redrel_vlmeval.explain.ask.spans import Spans, spans
from redrel_vlmeval.models import find_torch_model, tokenizer_of
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.truncation import Decoder, find_decoder, replaced_generate


@dataclass
class Asked:
    """A prompt as the host gave it to its torch model, and the answer to explain.

    Attributes:
        inputs: tensors of the model's forward call for the prompt alone; ``input_ids`` is [1, s]. Of a model whose
            decoder is given embeddings they are those of that decoder, ``inputs_embeds`` [1, s, d] among them, and the
            ``pixel_values`` that the embeddings of pictures can be made of again.
        answer: ids of the answer's tokens, its end-of-sequence token left out.
        reply: what the model said, in words. own: whether ``answer`` is what the model said.
        greedy: whether the model's own answer is a plain argmax at every step.
        spec: the truncation to run under; None for the untouched model.
        tokenizer: of the host; None where none was found.
        pictures: paths of the question's pictures, in order.
    """

    model: nn.Module
    inputs: dict[str, torch.Tensor]
    answer: list[int]
    reply: str = ""
    own: bool = True
    greedy: bool = False
    spec: VariantSpec | None = None
    tokenizer: Any = None
    pictures: list[str] = field(default_factory=list)

    @cached_property
    def decoder(self) -> Decoder:
        """The adapter of the model."""
        return find_decoder(self.model)

    @property
    def called(self) -> nn.Module:
        """Whose forward call the ``inputs`` are."""
        return self.decoder.heard(self.model)

    @property
    def embedded(self) -> bool:
        """Whether pictures are embeddings before that call, so that neither pixels nor the tower are part of it."""
        return "inputs_embeds" in self.inputs

    def check_within(self, wanted: Iterable[str]) -> None:
        """Refuse to look into what is done before the decoder is called, where that is given embeddings.

        Raises:
            ExplainError: names what can be had.
        """
        outside = [what for what in wanted if what in ("vision", "projector", "tower", "a changed picture")]
        if self.embedded and outside and "pixel_values" not in self.inputs:
            raise ExplainError(
                f"{type(self.model).__name__} makes embeddings of its pictures before its decoder is called, in a way "
                f"not known here: {outside[0]} cannot be looked into; maps of the decoder and the flow can be had"
            )

    @property
    def prompt(self) -> int:
        """Length of the prompt in tokens."""
        return int(self.inputs["input_ids"].shape[1])

    def given(self, batch: dict[str, torch.Tensor], anew: bool = False) -> dict[str, torch.Tensor]:
        """Arguments of a forward call for ``batch``, which is like ``inputs``: without ids where it has embeddings.

        These are left where an engine looks them up: as the host's class would have been given them. ``anew``: those of
        pictures are made of the pixels again, within the call's gradients.
        """
        if not self.embedded:
            return batch
        if self.decoder.entrance is not None:
            self.decoder.entrance.ids = batch["input_ids"]
        given = {name: tensor for name, tensor in batch.items() if name not in ("input_ids", "pixel_values")}
        if anew:
            visual = self.decoder.image_mask(batch["input_ids"])
            visual[:, self.prompt :] = False  # what the answer utters is text
            given["inputs_embeds"] = remade(self.decoder, given["inputs_embeds"], visual, batch["pixel_values"])
        return given

    def sequence(self) -> dict[str, torch.Tensor]:
        """``inputs`` with the answer's tokens behind the prompt."""
        ids = self.inputs["input_ids"]
        answer = torch.tensor([self.answer], device=ids.device, dtype=ids.dtype)
        longer = dict(self.inputs)
        for name, tensor in self.inputs.items():
            if name == "input_ids":
                longer[name] = torch.cat([ids, answer], 1)
            elif name == "inputs_embeds":
                with torch.no_grad():
                    longer[name] = torch.cat([tensor, self.decoder.embed(answer).to(tensor)], 1)
            elif tensor.shape == ids.shape:  # attention_mask is 1 there, token types are those of an answer
                fill = int(name == "attention_mask" or (name == "token_type_ids" and not bool(tensor.any())))
                longer[name] = torch.cat([tensor, torch.full_like(answer, fill).to(tensor.dtype)], 1)
        return longer

    def spans(self, rows: str = "predict") -> Spans:
        """Groups and answer rows of prompt and answer."""
        ids = self.inputs["input_ids"]
        image = torch.zeros(self.prompt + len(self.answer), dtype=torch.bool)
        image[: self.prompt] = self.decoder.image_mask(ids)[0].cpu()
        return spans(image.numpy(), self.prompt, int(ids[0, 0]) == self._bos(), rows)

    def _bos(self) -> int | None:
        config: Any = getattr(self.model, "config", None)
        texts = [self.tokenizer, getattr(config, "text_config", None), config]
        found = [getattr(text, "bos_token_id", None) for text in texts]
        return next((int(token) for token in found if isinstance(token, int)), None)

    def words(self, ids: Sequence[int]) -> list[str]:
        """Each token by itself as text, ``<id>`` without a tokenizer."""
        if self.tokenizer is None:
            return [f"<{token}>" for token in ids]
        return [_word(self.tokenizer, token) for token in ids]

    def with_answer(self, ids: Sequence[int]) -> Asked:
        """The same question with another answer, given as token ids.

        Raises:
            ExplainError: no token, or one outside the vocabulary.
        """
        size = self.decoder.head.weight.shape[0] if hasattr(self.decoder.head, "weight") else None
        if not ids or any(token < 0 or (size is not None and token >= size) for token in ids):
            raise ExplainError(f"answer {list(ids)}: give at least one token id, each from 0 to {size}")
        return replace(self, answer=[int(token) for token in ids], own=self.own and list(ids) == self.answer)


def ask_model(
    model: nn.Module,
    say: Callable[[], Any],
    tokenizer: Any = None,
    spec: VariantSpec | None = None,
    pictures: Sequence[str] = (),
) -> Asked:
    """Let ``say`` make the host answer one question, and keep what it gave ``model.generate`` and what came out.

    Raises:
        ExplainError: ``generate`` was not called, or without ids; a video, no picture, several prompts at once, or a
            picture too large to open.
    """
    decoder = find_decoder(model)
    if decoder.divided:
        raise ExplainError(
            f"{type(model).__name__}: other processes hold heads of it; load it with device_map, not tp_plan"
        )
    calls: list[tuple[dict[str, Any], Any]] = []

    def watch(generate: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            out = generate(*args, **kwargs)
            calls.append(({"input_ids": args[0]} | kwargs if args else kwargs, out))
            return out

        return watched

    with embeddings(decoder) as embedded, replaced_generate(decoder.heard(model), watch):
        try:
            reply = say()
        except Image.DecompressionBombError as error:
            raise ExplainError(f"a picture is larger than is safe to open ({error}); make it smaller") from error
    if not calls:
        raise ExplainError(f"the host never called generate of {type(model).__name__}: its prompt cannot be read")
    given, out = calls[-1]
    inputs = _tensors(embedded or given)
    _check(inputs, decoder)
    ids = out.sequences if hasattr(out, "sequences") else out
    answer = without_end(said_by(ids[0].tolist(), given), given, decoder.heard(model))
    if not answer:
        raise ExplainError("the model answered nothing (its first token ends the answer); give an answer to explain")
    return Asked(
        model, inputs, answer, str(reply), True, is_greedy(given, decoder.heard(model)), spec, tokenizer,
        list(pictures),
    )  # fmt: skip


def ask_host(host: Any, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> Asked:
    """:func:`ask_model` for a built model of the host (``redrel_tiny``, ``llava_v1.5_7b_trunc_l5_k128``, ...).

    Args:
        message: the question as the host hands it to a model: items of type ``text`` and ``image``.

    Raises:
        ExplainError: see :func:`ask_model`. TruncationError: the host model holds no known decoder.
    """
    kinds = [str(item.get("type")) for item in message]
    if "video" in kinds:
        raise ExplainError("the question has a video: explanations are for pictures")
    if "image" not in kinds:
        raise ExplainError("the question has no picture: there is nothing to map")
    model = getattr(host, "torch_model", None) or find_torch_model(host, type(host).__name__)
    spec = getattr(host, "spec", None)
    spec = spec if isinstance(spec, VariantSpec) and spec.stages else None
    pictures = [str(item["value"]) for item in message if item["type"] == "image"]
    return ask_model(model, lambda: host.generate(list(message), dataset), tokenizer_of(host), spec, pictures)


def _tensors(given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a ``generate`` call, out of inference mode: such tensors take no part in autograd."""
    inputs = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    if "input_ids" not in inputs and "inputs" in inputs:
        inputs["input_ids"] = inputs.pop("inputs")
    for name in ("position_ids", "labels"):  # those of the prompt; the model counts the answer's itself
        inputs.pop(name, None)
    with torch.inference_mode(False):
        return {name: value.clone() for name, value in inputs.items()}


def _check(inputs: Mapping[str, torch.Tensor], decoder: Decoder) -> None:
    if any("video" in name for name in inputs):
        raise ExplainError("the question has a video: explanations are for pictures")
    ids = inputs.get("input_ids")
    if ids is None:
        raise ExplainError("the host calls generate without input_ids: image tokens and text cannot be told apart")
    if len(ids) != 1:
        raise ExplainError(f"the host asks {len(ids)} prompts at once: explain one question at a time")
    if not bool(decoder.image_mask(ids).any()):
        raise ExplainError("the question has no picture (no image token in its prompt): there is nothing to map")


def answer_ids(asked: Asked, answer: str, likelihood: Callable[[Asked], float]) -> list[int]:
    """Token ids of an answer given in words, split as the model itself would most likely utter it.

    A tokenizer may split a word differently behind the prompt than by itself (``B`` or ``▁B``); where it does, every
    splitting that reads the same is scored by ``likelihood`` (log-probability) and the likeliest is taken.

    Raises:
        ExplainError: no tokenizer, an empty answer, or no splitting that reads as ``answer``.
    """
    tokenizer = asked.tokenizer
    if tokenizer is None:
        raise ExplainError("this host model shows no tokenizer: only its own answer can be explained")
    if not answer.strip():
        raise ExplainError("the answer is empty: give its words")
    tail = asked.inputs["input_ids"][0, -8:].tolist()
    image = asked.decoder.image_mask(asked.inputs["input_ids"])[0, -8:].tolist()
    tail = [token for token, pictured in zip(tail, image, strict=True) if not pictured]
    before = str(tokenizer.decode(tail))
    joined, alone = _encode(tokenizer, before + answer), _encode(tokenizer, before)
    candidates = [_encode(tokenizer, answer), _encode(tokenizer, f" {answer}")]
    if joined[: len(alone)] == alone:
        candidates.append(joined[len(alone) :])
    unique = [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in candidates if ids)]
    same = [ids for ids in unique if str(tokenizer.decode(ids)).strip() == answer.strip()]
    if not same:
        seen = "; ".join(" + ".join(map(repr, asked.words(ids))) for ids in unique)
        raise ExplainError(
            f"answer {answer!r}: its tokens do not read the same again ({seen}); write it as the model would"
        )
    return same[0] if len(same) == 1 else max(same, key=lambda ids: likelihood(asked.with_answer(ids)))


def _word(tokenizer: Any, token: int) -> str:
    try:
        return str(tokenizer.decode([token]))
    except ValueError:  # the code of Qwen-VL reads a picture's opening and closing tag only together
        known = tokenizer.convert_ids_to_tokens(token)
        return known.decode("utf-8", "replace") if isinstance(known, bytes) else str(known)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
