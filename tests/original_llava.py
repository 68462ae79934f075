"""What the ``llava`` package and its transformers release (4.37) do to prompts and pictures, written down again."""

from __future__ import annotations

import types

import numpy as np
import sentencepiece
import transformers as tf
from checkpoints import MEAN, STD, sentencepiece_model
from PIL import Image
from sentencepiece import sentencepiece_model_pb2


class OriginalTokenizer:
    """LLaMA's tokenizer as of transformers 4.37 with ``legacy=False``, as LLaVA-1.5's checkpoints have it."""

    bos_token_id, eos_token_id = 1, 2

    def __init__(self) -> None:
        self.raw = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
        bare = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model())
        bare.normalizer_spec.add_dummy_prefix = False
        self.bare = sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())

    def __call__(self, text: str) -> types.SimpleNamespace:
        first, *later = text.split("</s>")
        ids = [self.bos_token_id, *self.raw.encode(first)]
        for part in later:
            ids += [self.eos_token_id, *self.bare.encode(part)]
        return types.SimpleNamespace(input_ids=ids)

    def batch_decode(self, _ids, skip_special_tokens):
        return [""]


def tokenizer_image_token(prompt, tokenizer, image_token, return_tensors=None):
    chunks = [tokenizer(chunk).input_ids for chunk in prompt.split("<image>")]
    ids, offset = [], 0
    if chunks and chunks[0] and chunks[0][0] == tokenizer.bos_token_id:
        offset, ids = 1, [chunks[0][0]]
    separated = [part for chunk in chunks for part in (chunk, [image_token] * (offset + 1))][:-1]
    for part in separated:
        ids.extend(part[offset:])
    return Captured(ids)


def expand2square(picture, color):
    width, height = picture.size
    if width == height:
        return picture
    if width > height:
        square = Image.new(picture.mode, (width, width), color)
        square.paste(picture, (0, (width - height) // 2))
    else:
        square = Image.new(picture.mode, (height, height), color)
        square.paste(picture, ((height - width) // 2, 0))
    return square


def process_images(pictures, processor, _arguments):
    color = tuple(int(x * 255) for x in processor.image_mean)
    squares = [expand2square(picture, color) for picture in pictures]
    found = [processor.preprocess(square, return_tensors="np")["pixel_values"][0] for square in squares]
    return Captured(np.stack(found))


class Captured:
    """Stands for a tensor on the GPU that the host's code sends there."""

    def __init__(self, value):
        self.value = value

    def unsqueeze(self, _axis):
        return self

    def cuda(self):
        return self

    def to(self, *_args, **_kwargs):
        return self


def clip_processor(side=336):
    """CLIP's processor on PIL pictures, which is what the original code runs on."""
    kind = getattr(tf, "CLIPImageProcessorPil", tf.CLIPImageProcessor)
    return kind(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=3,
        image_mean=MEAN,
        image_std=STD,
    )
