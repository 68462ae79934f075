"""A tokenizer of bytes, for tiny checkpoints: it can say everything and needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def tokenizer(special: Sequence[str], template: str | None = None, kind: Any = None, **more: Any) -> Any:
    """A fast tokenizer: 256 bytes, then ``special`` tokens; of class ``kind``, where a processor takes no other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    names = {"model_input_names": ["input_ids", "attention_mask"]}  # old releases have token types, too
    kind = kind or PreTrainedTokenizerFast
    made = kind(tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, **names, **more)
    made.add_tokens(list(special), special_tokens=True)
    made.chat_template = template
    return made


def sentences(folder: Path, special: Sequence[str] = (), fast: bool = False) -> Any:
    """LLaMA's own tokenizer, of sentencepiece, which packages of its time load as such; then ``special`` tokens."""
    from sentencepiece import SentencePieceTrainer
    from transformers import LlamaTokenizer, LlamaTokenizerFast

    made = folder / "tokenizer.model"
    with open(made, "wb") as model:
        SentencePieceTrainer.train(  # type: ignore[attr-defined]
            sentence_iterator=iter(["what is in the picture ?"] * 9), model_writer=model, vocab_size=300,
            model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    words = (LlamaTokenizerFast if fast else LlamaTokenizer)(vocab_file=str(made))
    words.add_special_tokens({"pad_token": PAD})
    words.add_tokens(list(special), special_tokens=True)
    return words


def of_qwen() -> Any:
    """The class that processors of Qwen-VL insist on before release 5 of transformers; None since."""
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer, Qwen2TokenizerFast

    return None if issubclass(Qwen2Tokenizer, PreTrainedTokenizerFast) else Qwen2TokenizerFast


def slow(folder: Path, special: Sequence[str]) -> Any:
    """What ``AutoTokenizer`` loads where it is asked for none that is fast: of sentencepiece while there are such."""
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    return tokenizer(special) if issubclass(LlamaTokenizer, PreTrainedTokenizerFast) else sentences(folder, special)


def text_config(tokens: Any, **more: Any) -> dict[str, Any]:
    """Keys of a small decoder's config that most families share; it never ends an answer by itself."""
    unused = 8 if tokens.is_fast else 0  # ids that no token has, which sentencepiece cannot say
    return {
        "vocab_size": len(tokens) + unused, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192, "initializer_range": 0.3,
        "bos_token_id": tokens.bos_token_id, "eos_token_id": None, "pad_token_id": tokens.pad_token_id,
        "tie_word_embeddings": False,
    } | more  # fmt: skip


def save(folder: Path, model: Any, *parts: Any) -> None:
    """Write model and processor (or tokenizer) as the hub has them; answers are greedy and do not end early."""
    import torch

    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
    vars(model.config)["architectures"] = [type(model).__name__]  # which 4.57 lays into a nested config of some
    for part in (*parts, model.to(torch.float32)):
        part.save_pretrained(folder)
