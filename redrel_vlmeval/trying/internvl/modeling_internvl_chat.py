"""Stand-in for InternVL's remote code, written anew: ``chat`` calls ``generate``, which hands embeddings to an inner
language model's. What is not between question and decoder (the tower's blocks, templates) is as small as can be."""

import torch
from torch import nn
from transformers import LlamaForCausalLM, Qwen2ForCausalLM
from transformers.modeling_utils import PreTrainedModel

from .configuration_internvl_chat import InternVLChatConfig
from .modeling_internlm2 import InternLM2ForCausalLM

KINDS = {kind.__name__: kind for kind in (InternLM2ForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM)}
START, END, CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"


class Tower(nn.Module):
    """Pixels [n, 3, h, w] -> features [n, patches, width]."""

    def __init__(self, config):
        super().__init__()
        self.patches = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.layers = nn.ModuleList([nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2)])

    def forward(self, pixels):
        hidden = self.patches(pixels).flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden = hidden + layer(hidden).tanh()
        return hidden


class InternVLChatModel(PreTrainedModel):
    config_class = InternVLChatConfig
    base_model_prefix = "language_model"
    _supports_sdpa = True
    _no_split_modules = ["Qwen2DecoderLayer", "LlamaDecoderLayer", "Block"]

    def __init__(self, config, use_flash_attn=True):
        super().__init__(config)
        vision, width = config.vision_config, config.llm_config.hidden_size
        self.num_image_token = int((config.force_image_size // vision.patch_size * config.downsample_ratio) ** 2)
        self.merge = int(1 / config.downsample_ratio)
        self.vision_model = Tower(vision)
        self.language_model = KINDS[config.llm_config.architectures[0]](config.llm_config)
        self.mlp1 = nn.Sequential(
            nn.Linear(vision.hidden_size * self.merge**2, width), nn.GELU(), nn.Linear(width, width)
        )
        self.img_context_token_id = None
        self.post_init()

    def extract_feature(self, pixel_values):
        features = self.vision_model(pixel_values)
        side, merge = int(features.shape[1] ** 0.5), self.merge
        grid = features.view(len(features), side // merge, merge, side // merge, merge, -1).transpose(2, 3)
        return self.mlp1(grid.reshape(len(features), self.num_image_token, -1))

    def chat(self, tokenizer, pixel_values, question, generation_config, history=None, return_history=False,
             num_patches_list=None, verbose=False):  # fmt: skip
        if history is None and pixel_values is not None and "<image>" not in question:
            question = "<image>\n" + question
        if num_patches_list is None:
            num_patches_list = [] if pixel_values is None else [len(pixel_values)]
        self.img_context_token_id = tokenizer.convert_tokens_to_ids(CONTEXT)
        turns = [*(history or []), (question, "")]
        query = "".join(f"user: {asked}\nassistant: {said}" for asked, said in turns)
        for count in num_patches_list:
            query = query.replace("<image>", START + CONTEXT * self.num_image_token * count + END, 1)
        given = tokenizer(query, return_tensors="pt")
        output = self.generate(
            pixel_values=pixel_values, input_ids=given["input_ids"], attention_mask=given["attention_mask"],
            **generation_config,
        )  # fmt: skip
        answer = tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip()
        return (answer, [*turns[:-1], (question, answer)]) if return_history else answer

    @torch.no_grad()
    def generate(self, pixel_values=None, input_ids=None, attention_mask=None, generation_config=None, **kwargs):
        embeddings = self.language_model.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.extract_feature(pixel_values).flatten(0, 1)
            embeddings = embeddings.clone()
            embeddings[input_ids == self.img_context_token_id] = features.to(embeddings.dtype)
        return self.language_model.generate(
            inputs_embeds=embeddings, attention_mask=attention_mask, generation_config=generation_config,
            use_cache=True, **kwargs,
        )  # fmt: skip
