"""What the host's own ``LLaVA`` class feeds its model, re-stated: prompt text, token ids and pixels.

Pure text and PIL; no torch, no host. The paper's numbers were measured on this input, so one space more or
another way to pad the picture moves every one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from redrel_vlmeval.prompts import LETTER, options, present

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)
IMAGE = "<image>"
QUOTED = "<\0image>"  # the mark where a question's own text holds it: characters, not a picture
STOP = "</s>"
CHINESE = re.compile("[\u4e00-\u9fff]")


def question_text(line: Mapping[str, Any]) -> str:
    """The user's text for one benchmark line: hint, question, options, and what form of answer is wanted."""
    text = str(line["question"])
    if present(line.get("hint")):
        text = f"{line['hint']}\n{text}"
    choices = options(line)
    text += "".join(f"\n{letter}. {option}" for letter, option in choices.items())
    chinese = CHINESE.search(text) is not None
    if choices:
        ask = "请直接回答选项字母。" if chinese else LETTER
    else:
        ask = "请直接回答问题。" if chinese else "Answer the question directly."
    return f"{text}\n{ask}"


def join_content(content: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """One turn's items -> its text with `` <image> `` where a picture stands, and the pictures' paths in order.

    ``<image>`` in a text is none: it becomes :data:`QUOTED`.
    """
    text, paths = "", []
    for item in content:
        if item["type"] == "text":
            text += item["value"].replace(IMAGE, QUOTED)
        elif item["type"] == "image":
            text += f" {IMAGE} "
            paths.append(item["value"])
    return text, paths


def single_prompt(content: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The prompt of one question (one space before ``ASSISTANT:``, one after)."""
    text, paths = join_content(content)
    return f"{SYSTEM}USER: {text} ASSISTANT: ", paths


def chat_prompt(turns: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The prompt of a conversation whose last turn is the user's; assistant turns end in ``</s>``."""
    prompt, paths = SYSTEM, []
    for turn in turns:
        text, more = join_content(turn["content"])
        user = turn["role"] == "user"
        prompt += ("USER: " if user else "ASSISTANT: ") + text + (" " if user else STOP)
        paths += more
    return prompt + "ASSISTANT: ", paths


def token_ids(
    prompt: str, encode: Callable[[str], list[int]], bos: int | None, image: int, per_image: int
) -> list[int]:
    """Token ids of a prompt, each ``<image>`` as ``per_image`` image tokens.

    The text between pictures is tokenised piece by piece, as the original code does: with ``encode`` (no special
    tokens), each piece as if it stood alone, and one ``bos`` before the first.
    """
    ids = [] if bos is None else [bos]
    for number, piece in enumerate(prompt.split(IMAGE)):
        if number:
            ids += [image] * per_image
        ids += encode(piece)
    return ids


def sentencepiece_ids(text: str, tokenize: Callable[[str], list[int]], eos: int) -> list[int]:
    """Token ids of a piece of text as the original's sentencepiece tokenizer gives them.

    One space is put before every piece, also before one that begins with a space, and none after ``</s>``. Tokenizers
    differ there from release to release, so each part is tokenised behind a line break, which merges with nothing.
    """
    mark = tokenize("\n")
    ids: list[int] = []
    for number, part in enumerate(text.split(STOP)):
        if number:
            ids.append(eos)
        elif part:
            part = f" {part}"
        ids += tokenize(f"\n{part}")[len(mark) :]
    return ids


def tokenised_as_text(text: str, tokenize: Callable[[str], list[int]], tags: Collection[str]) -> list[int]:
    """Token ids of a text in which ``tags`` are characters, though the tokenizer knows each as one token.

    A tag is cut behind its first character; what follows is tokenised behind a line break, which merges with nothing.
    """
    text = text.replace(QUOTED, IMAGE)
    cut = "|".join(f"(?<={re.escape(tag[:1])})(?={re.escape(tag[1:])})" for tag in tags)
    first, *rest = re.split(cut, text) if cut else [text]
    mark = len(tokenize("\n")) if rest else 0
    return [*tokenize(first), *(one for part in rest for one in tokenize(f"\n{part}")[mark:])]


def square_box(width: int, height: int) -> tuple[int, int, int, int]:
    """The square around a picture that its padding makes, in the picture's own pixels: left, top, right, bottom."""
    side = max(width, height)
    left, top = -((side - width) // 2), -((side - height) // 2)
    return left, top, left + side, top + side


def pad_to_square(picture: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The RGB picture centred on a square of the mean colour (CLIP's, 0..1)."""
    left, top, right, bottom = square_box(*picture.size)
    if (left, top) == (0, 0) and (right, bottom) == picture.size:
        return picture
    square = Image.new("RGB", (right - left, bottom - top), tuple(int(m * 255) for m in mean))
    square.paste(picture, (-left, -top))
    return square


def pixels(picture: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Pad to a square, resize (bicubic), scale to 0..1, normalise: float32 [3, size, size]."""
    square = pad_to_square(picture.convert("RGB"), mean)
    resized = square.resize((size, size), Image.Resampling.BICUBIC)
    # scaled in double precision, as CLIP's processor does: in single the last bit differs
    values: np.ndarray = (np.asarray(resized) * (1 / 255)).astype(np.float32)
    values = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return values.transpose(2, 0, 1)
