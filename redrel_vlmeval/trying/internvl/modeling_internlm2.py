"""Stand-in for InternLM2's remote code, written anew. What other code must live with is kept on purpose: a projection
of queries, keys and values in one, rotary tables made in each block for as many positions as it holds keys, tuple
caches, additive masks, and positions counted from block 1's keys where none are given."""

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .configuration_internlm2 import InternLM2Config


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, hidden):
        return self.weight * hidden * (hidden.square().mean(-1, keepdim=True) + self.eps).rsqrt()


class Rotary(nn.Module):
    """Tables (cos, sin), each [seq_len, d]; their base grows with what was asked for beyond the trained length."""

    def __init__(self, width, config):
        super().__init__()
        self.width, self.base, self.tables = width, config.rope_theta, None
        self.max_position_embeddings = self.max_seq_len_cached = config.max_position_embeddings
        self.factor = (getattr(config, "rope_scaling", None) or {}).get("factor")

    def forward(self, x, seq_len=None):
        if self.tables is None or seq_len > self.max_seq_len_cached:
            self.max_seq_len_cached = max(seq_len, self.max_seq_len_cached)
            beyond, base = self.max_seq_len_cached / self.max_position_embeddings, self.base
            if self.factor and beyond > 1:
                base *= (self.factor * beyond - self.factor + 1) ** (self.width / (self.width - 2))
            rates = base ** -(torch.arange(0, self.width, 2, device=x.device).float() / self.width)
            angles = torch.outer(torch.arange(self.max_seq_len_cached, device=x.device).float(), rates).repeat(1, 2)
            self.tables = angles.cos(), angles.sin()
        return tuple(table[:seq_len].to(x.dtype) for table in self.tables)


def turned(x, cos, sin, position_ids):
    first, second = x.chunk(2, -1)
    return x * cos[position_ids][:, None] + torch.cat((-second, first), -1) * sin[position_ids][:, None]


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        rows = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.wqkv = nn.Linear(config.hidden_size, rows, bias=False)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.rotary_emb = Rotary(self.head_dim, config)

    def forward(self, hidden_states, attention_mask=None, position_ids=None, past_key_value=None,
                output_attentions=False, use_cache=False, **kwargs):  # fmt: skip
        batch, length, width = hidden_states.shape
        groups, each = self.num_key_value_heads, self.num_key_value_groups
        fused = self.wqkv(hidden_states).view(batch, length, groups, each + 2, self.head_dim)
        query = fused[:, :, :, :each].reshape(batch, length, -1, self.head_dim).transpose(1, 2)
        key, value = fused[:, :, :, each].transpose(1, 2), fused[:, :, :, each + 1].transpose(1, 2)
        keys = length + (past_key_value[0].shape[2] if past_key_value is not None else 0)
        cos, sin = self.rotary_emb(value, seq_len=keys)
        query, key = turned(query, cos, sin, position_ids), turned(key, cos, sin, position_ids)
        if past_key_value is not None:
            key, value = torch.cat((past_key_value[0], key), 2), torch.cat((past_key_value[1], value), 2)
        scores = query @ key.repeat_interleave(each, 1).transpose(2, 3) / self.head_dim**0.5
        if attention_mask is not None:
            if attention_mask.shape != (batch, 1, length, keys):
                raise ValueError(f"mask {tuple(attention_mask.shape)} for {length} queries and {keys} keys")
            scores = scores + attention_mask
        weights = scores.float().softmax(-1).to(query.dtype)
        out = (weights @ value.repeat_interleave(each, 1)).transpose(1, 2).reshape(batch, length, width)
        return self.wo(out), weights if output_attentions else None, (key, value) if use_cache else None


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attention_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, use_cache=False, **given):
        out, _, present = self.attention(self.attention_norm(hidden_states), use_cache=use_cache, **given)
        hidden_states = hidden_states + out
        hidden_states = hidden_states + self.feed_forward(self.ffn_norm(hidden_states))
        return (hidden_states, present) if use_cache else (hidden_states,)


class InternLM2PreTrainedModel(PreTrainedModel):
    config_class = InternLM2Config
    base_model_prefix = "model"
    _no_split_modules = ["Block"]

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)


class InternLM2Model(InternLM2PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.tok_embeddings

    def _prepare_decoder_attention_mask(self, attention_mask, input_shape, inputs_embeds, past_key_values_length):
        """Padding [b, k] -> additive [b, 1, q, k]; the causal part reckons with ``past_key_values_length`` keys."""
        lowest = torch.finfo(inputs_embeds.dtype).min
        mask = torch.zeros_like(attention_mask, dtype=inputs_embeds.dtype).masked_fill(attention_mask == 0, lowest)
        mask = mask[:, None, None].expand(-1, 1, input_shape[1], -1)
        if input_shape[1] > 1:
            ahead = torch.full((input_shape[1],) * 2, lowest, dtype=mask.dtype, device=mask.device).triu(1)
            mask = mask + nn.functional.pad(ahead, (past_key_values_length, 0))
        return mask

    def forward(self, inputs_embeds, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        batch, length, _ = inputs_embeds.shape
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=inputs_embeds.device)[None]
        if attention_mask is None:
            attention_mask = torch.ones(batch, past + length, dtype=torch.bool, device=inputs_embeds.device)
        mask = self._prepare_decoder_attention_mask(attention_mask, (batch, length), inputs_embeds, past)
        hidden, presents = inputs_embeds, ()
        for number, block in enumerate(self.layers):
            out = block(
                hidden, attention_mask=mask, position_ids=position_ids, use_cache=use_cache,
                past_key_value=None if past_key_values is None else past_key_values[number],
            )  # fmt: skip
            hidden, presents = out[0], (*presents, *out[1:])
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=presents or None)


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # of releases that would hand their own cache to any model

    def get_input_embeddings(self):
        return self.model.tok_embeddings

    def get_output_embeddings(self):
        return self.output

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
                use_cache=None, return_dict=None):  # fmt: skip
        if inputs_embeds is None:
            inputs_embeds = self.model.tok_embeddings(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        out = self.model(inputs_embeds, attention_mask, position_ids, past_key_values, use_cache)
        return CausalLMOutputWithPast(logits=self.output(out[0]).float(), past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None,
                                      **kwargs):  # fmt: skip
        given = {"past_key_values": past_key_values, "use_cache": kwargs.get("use_cache")}
        positions = None
        if attention_mask is not None:
            positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        if past_key_values is not None:
            given["input_ids"], positions = input_ids[:, -1:], positions if positions is None else positions[:, -1:]
        elif inputs_embeds is not None:
            given["inputs_embeds"] = inputs_embeds
        else:
            given["input_ids"] = input_ids
        return given | {"attention_mask": attention_mask, "position_ids": positions}

    @staticmethod
    def _reorder_cache(past_key_values, beam_idx):
        return tuple(tuple(part.index_select(0, beam_idx) for part in pair) for pair in past_key_values)
