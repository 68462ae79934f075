"""LLaVA checkpoints made in the test, in the real one's format, and the real host imported without its side effects."""

from __future__ import annotations

import importlib.util
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers as tf

from redrel_vlmeval.host import VariantTable
from redrel_vlmeval.models.checkpoint import CheckpointError
from redrel_vlmeval.plugin import register
from tools.tiny.blank import picture_settings

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SENTENCES = [
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed,",
    "and polite answers to the human's questions. USER: What color is the triangle? ASSISTANT: red",
    "Answer with the option's letter from the given choices directly. A. left of B. right of C. above D. below",
    "Which of  these two pictures   shows more animals?    USER: Answer the question directly.",
    "请直接回答选项字母。图中是什么颜色？ 请直接回答问题。",
]
needs_host = pytest.mark.skipif(importlib.util.find_spec("vlmeval") is None, reason="vlmeval is not installed")


def import_host() -> None:
    """Import ``vlmeval``; what that changes for the whole process (autograd off, the seed) is put back."""
    grad, state = torch.is_grad_enabled(), torch.get_rng_state()
    import vlmeval.config  # noqa: F401

    torch.set_grad_enabled(grad)
    torch.set_rng_state(state)


def host_table() -> VariantTable:
    """The host's table of models, extended."""
    import_host()
    from vlmeval.config import supported_VLM

    return register(dict(supported_VLM))


@cache
def sentencepiece_model() -> bytes:
    """A BPE model with LLaMA's settings: byte fallback, one dummy prefix, no normalisation, spaces kept."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=560,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return model.getvalue()


def save_tokenizer(folder: Path, kind: str = "sentencepiece") -> None:
    """Tokenizer files: ``sentencepiece``, or a ``tokenizer.json`` whose normalizer puts a space before every stretch.

    ``legacy`` is what conversions by older releases look like; ``new`` is what the installed release writes.
    """
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if kind == "sentencepiece":
        return
    tf.LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    if kind == "legacy":
        written = json.loads((folder / "tokenizer.json").read_text())
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        prepend = {"type": "Prepend", "prepend": "\u2581"}
        written |= {"pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]}}
        (folder / "tokenizer.json").write_text(json.dumps(written))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL})
        )


def save_llava(folder: Path, side: int = 48, patch: int = 12, tokenizer: str = "sentencepiece") -> Path:
    """A random LLaVA of transformers' own classes, saved as the real one is."""
    vocab = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).get_piece_size()
    vision = tf.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
    )
    text = tf.LlamaConfig(
        vocab_size=vocab + 2,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    config = tf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=vocab,
        image_seq_length=(side // patch) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    tf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    save_tokenizer(folder, tokenizer)
    (folder / "preprocessor_config.json").write_text(json.dumps(picture_settings(side)))
    return folder


def refused(load: Any, path: object, *words: str, **kwargs: Any) -> str:
    """The message of the one error of ``load(path)``; it names the checkpoint and says each of ``words``."""
    with pytest.raises(CheckpointError) as caught:
        load(str(path), device="cpu", **kwargs)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message, message
    assert len(message) < 600 and "\n" not in message
    return message
