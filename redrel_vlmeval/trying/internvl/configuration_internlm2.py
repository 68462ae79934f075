"""Config of the stand-in for InternLM2's remote code."""

from transformers import PretrainedConfig


class InternLM2Config(PretrainedConfig):
    """Keys as InternLM2's; ``rope_scaling``: ``{"type": "dynamic", "factor": ...}``."""

    model_type = "internlm2"

    def __init__(
        self, vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, rms_norm_eps=1e-6, initializer_range=0.3,
        rope_theta=10000, rope_scaling=None, use_cache=True, **kwargs,
    ):  # fmt: skip
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.max_position_embeddings = num_key_value_heads, max_position_embeddings
        self.rms_norm_eps, self.initializer_range, self.use_cache = rms_norm_eps, initializer_range, use_cache
        self.rope_theta = rope_theta
        if rope_scaling is not None:
            self.rope_scaling = rope_scaling
