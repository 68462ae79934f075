"""Config of the stand-in for InternVL's remote code."""

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from .configuration_internlm2 import InternLM2Config

KINDS = {"InternLM2ForCausalLM": InternLM2Config, "LlamaForCausalLM": LlamaConfig, "Qwen2ForCausalLM": Qwen2Config}


class InternVLChatConfig(PretrainedConfig):
    """``vision_config`` and ``llm_config``; a tile has ``(image / patch * downsample_ratio) ** 2`` visual tokens."""

    model_type = "internvl_chat"
    is_composition = True

    def __init__(self, vision_config=None, llm_config=None, downsample_ratio=0.5, force_image_size=448, **kwargs):
        super().__init__(**kwargs)
        llm_config = llm_config or {"architectures": ["Qwen2ForCausalLM"]}
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        self.llm_config = KINDS[llm_config["architectures"][0]](**llm_config)
        self.downsample_ratio, self.force_image_size = downsample_ratio, force_image_size
        self.hidden_size = self.llm_config.hidden_size
        self.tie_word_embeddings = self.llm_config.tie_word_embeddings = False

    def to_dict(self):
        nested = {"vision_config": self.vision_config.to_dict(), "llm_config": self.llm_config.to_dict()}
        return super().to_dict() | nested | {"model_type": self.model_type}
