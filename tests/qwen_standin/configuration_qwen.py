"""A stand-in's settings, written from the contract: the field names a Qwen-VL checkpoint's config.json uses.

``intermediate_size`` is twice the width of the feed-forward layer, ``seq_length`` the length up to which neither NTK
nor logn does anything.
"""

import torch
from transformers import PretrainedConfig

DEFAULTS = {
    "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "kv_channels": 128,
    "intermediate_size": 22016, "layer_norm_epsilon": 1e-6, "initializer_range": 0.02, "no_bias": True,
    "emb_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "max_position_embeddings": 8192, "scale_attn_weights": True,
    "rotary_pct": 1.0, "rotary_emb_base": 10000, "use_dynamic_ntk": True, "use_logn_attn": True,
    "use_flash_attn": "auto", "use_cache": True, "bf16": False, "fp16": False, "fp32": False,
}  # fmt: skip


class QWenConfig(PretrainedConfig):
    """Sizes and switches; ``seq_length`` and ``visual`` have no default and come from config.json alone."""

    model_type = "qwen"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, tie_word_embeddings=False, **kwargs):
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


def chosen_dtype(config):
    """The dtype of the one flag of bf16, fp16, fp32 that is set; with none, the best of the machine, written back."""
    assert config.bf16 + config.fp16 + config.fp32 <= 1, "more than one of bf16, fp16 and fp32 is true"
    if not (config.bf16 or config.fp16 or config.fp32):
        config.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        config.fp16 = torch.cuda.is_available() and not config.bf16
        config.fp32 = not torch.cuda.is_available()
    return torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
