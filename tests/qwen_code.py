"""A folder of Qwen-VL's remote code imported as it stands, around transformers' own loading and the package's repairs.

What new transformers no longer give such code is lent to each model here, so that only the code itself is compared.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from qwen_checkpoint import ENDOFTEXT, random_weights, tiny_config, tiny_vocabulary
from transformers import GenerationMixin

HEADS = 4


class Code:
    """The modules of one folder of remote code, imported as they stand, and tiny models and tokenizers of them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package

    def __getattr__(self, module: str) -> ModuleType:
        return importlib.import_module(f"{self.name}.{module}")

    def model(self, chat: bool = True, **sizes: Any) -> Any:
        """A model with the weights of ``qwen_checkpoint``, and, on its class, what new transformers no longer give."""
        config = tiny_config(2, 128, HEADS, sizes.pop("seq_length", 2048), torch.float32, fp32=True, **sizes)
        original = self.modeling_qwen.QWenLMHeadModel
        lent = {"_supports_default_dynamic_cache": classmethod(lambda cls: False)}
        model = type(original.__name__, (original, GenerationMixin), lent)(self.config(config)).eval()
        model.transformer.get_head_mask = lambda mask, blocks: [None] * blocks
        model.load_state_dict(random_weights(config, 0, torch.float32))
        ends = {"eos_token_id": ENDOFTEXT, "pad_token_id": ENDOFTEXT}
        wanted = {"chat_format": "chatml" if chat else "raw", "max_window_size": 6144, **ends, "max_new_tokens": 6}
        for name, value in wanted.items():
            setattr(model.generation_config, name, value)
        return model

    def generator(self) -> Any:
        """A model whose decode steps take a mask of None, which new transformers make of one that hides nothing."""

        def with_mask(block: Any, args: Any, given: dict[str, Any]) -> Any:
            mask = given["attention_mask"]
            return args, given | {"attention_mask": torch.zeros(1) if mask is None else mask}

        model = self.model()
        for block in model.transformer.h:
            block.register_forward_pre_hook(with_mask, with_kwargs=True)
        return model

    def config(self, keys: dict[str, Any]) -> Any:
        return self.configuration_qwen.QWenConfig(**{k: v for k, v in keys.items() if k != "torch_dtype"})

    def tokenizer(self, folder: Path) -> Any:
        vocabulary = folder / "qwen.tiktoken"
        vocabulary.write_bytes(tiny_vocabulary())
        tokenizer = self.tokenization_qwen.QWenTokenizer(str(vocabulary))
        tokenizer.padding_side, tokenizer.pad_token_id = "left", tokenizer.eod_id
        return tokenizer


@torch.no_grad()
def outputs(model: Any, batch: Any, use_cache: bool) -> dict[str, torch.Tensor]:
    """Everything a prefill gives, and, with a cache, two steps after it."""
    out = model(**batch, use_cache=use_cache, output_attentions=True, output_hidden_states=True)
    seen = {"logits": out.logits, "hidden": torch.stack(out.hidden_states), "weights": torch.stack(out.attentions)}
    mask = batch["attention_mask"]
    for step in range(2 if use_cache else 0):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        new = torch.full((len(mask), 1), 70 + step)
        out = model(new, past_key_values=out.past_key_values, attention_mask=mask, use_cache=True)
        seen[f"step {step}"] = out.logits
        seen[f"cache {step}"] = torch.stack([torch.stack(layer) for layer in out.past_key_values])
    return seen


def asked(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    encoded = tokenizer(texts, return_tensors="pt", padding="longest")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
