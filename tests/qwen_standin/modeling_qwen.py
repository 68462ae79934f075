"""A stand-in for Qwen-VL's decoder, written from the contract, faults included; for reading pictures, not for training.

What other code must live with is kept on purpose: tuple caches, additive masks, a past length read off the number of
heads, rotary lengths from block 0, tables that are no buffers, and pictures opened again at every prefill.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers.generation.logits_process import LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .configuration_qwen import QWenConfig, chosen_dtype
from .qwen_generation_utils import StopWordsLogitsProcessor, decode_tokens, get_stop_words_ids, make_context
from .visual import VisionTransformer

LOGN_LENGTH = 32767


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class RotaryEmbedding(nn.Module):
    """[cos, sin], each [1, length, 1, dim]; rebuilt, twice as long, when too short or when alpha changes."""

    def __init__(self, dim, base=10000):
        super().__init__()
        self.dim, self.base = dim, base
        self.inv_freq = 1.0 / base ** (torch.arange(0, dim, 2).float() / dim)
        self._seq_len_cached, self._ntk_alpha_cached, self._rotary_pos_emb_cache = 0, 1.0, None

    def forward(self, max_seq_len, offset=0, ntk_alpha=1.0):
        end = max_seq_len + offset
        if end > self._seq_len_cached or ntk_alpha != self._ntk_alpha_cached:
            device, base = self.inv_freq.device, self.base * ntk_alpha ** (self.dim / (self.dim - 2))
            self.inv_freq = 1.0 / base ** (torch.arange(0, self.dim, 2, device=device).float() / self.dim)
            self._seq_len_cached, self._ntk_alpha_cached = max(2 * end, 16), ntk_alpha
            angles = torch.outer(torch.arange(self._seq_len_cached, device=device).float(), self.inv_freq)
            angles = rearrange(torch.cat([angles, angles], dim=-1), "n d -> 1 n 1 d")
            self._rotary_pos_emb_cache = [angles.cos(), angles.sin()]
        return [table[:, offset:end] for table in self._rotary_pos_emb_cache]


def rotated(x, rotary):
    """The first ``rotary`` channels of x [b, n, h, d] turned by their positions, the rest as they are."""
    cos, sin = rotary
    turning, still = x.float().tensor_split([cos.shape[-1]], dim=-1)
    left, right = turning.chunk(2, dim=-1)
    turning = turning * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([turning, still], dim=-1).type_as(x)


class QWenAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        # never read; but a buffer that no checkpoint holds makes new transformers initialise this module again
        self.register_buffer("masked_bias", torch.tensor(-1e4), persistent=False)
        self.num_heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.split_size = config.hidden_size
        width = config.kv_channels * config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * width)
        self.c_proj = nn.Linear(config.hidden_size, width, bias=not config.no_bias)
        self.attn_dropout = nn.Dropout(config.attn_dropout_prob)
        self.use_logn_attn, self.seq_length = config.use_logn_attn, config.seq_length
        logn = [math.log(i, self.seq_length) if i > self.seq_length else 1.0 for i in range(1, LOGN_LENGTH + 1)]
        self.logn_tensor = torch.tensor(logn)[None, :, None, None]

    def _attn(self, query, key, value, registered_causal_mask, attention_mask=None, head_mask=None):
        # a mask of None fails here, and the scale is rounded to the weights' dtype
        weights = query @ key.transpose(-1, -2) / query.new_tensor(value.shape[-1] ** 0.5) + attention_mask
        weights = self.attn_dropout(weights.softmax(dim=-1).type(value.dtype))
        weights = weights if head_mask is None else weights * head_mask
        return (weights @ value).transpose(1, 2), weights

    def forward(
        self, hidden_states, rotary_pos_emb=None, registered_causal_mask=None, layer_past=None, attention_mask=None,
        head_mask=None, output_attentions=False, use_cache=False,
    ):  # fmt: skip
        parts = self.c_attn(hidden_states).split(self.split_size, dim=2)
        query, key, value = (part.unflatten(-1, (self.num_heads, self.head_dim)) for part in parts)
        new = query.shape[1]
        if rotary_pos_emb is not None:
            last = [table[:, -new:] for table in rotary_pos_emb]
            query, key = rotated(query, last), rotated(key, last)
        if layer_past is not None:
            key, value = torch.cat([layer_past[0], key], dim=1), torch.cat([layer_past[1], value], dim=1)
        present = (key, value) if use_cache else None
        if self.use_logn_attn and not self.training:
            self.logn_tensor = self.logn_tensor.to(query)
            query = query * self.logn_tensor[:, key.shape[1] - new : key.shape[1]]
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        out, weights = self._attn(*heads_first, registered_causal_mask, attention_mask, head_mask)
        out = self.c_proj(out.flatten(2))
        return (out, present, weights) if output_attentions else (out, present)


class QWenMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        inner, bias = config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(config.hidden_size, inner, bias=bias)
        self.w2 = nn.Linear(config.hidden_size, inner, bias=bias)
        self.c_proj = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(self, hidden_states):
        return self.c_proj(self.w1(hidden_states) * F.silu(self.w2(hidden_states)))


class QWenBlock(nn.Module):
    """(hidden, present[, weights]) with ``use_cache``, (hidden[, weights]) without."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = QWenAttention(config)
        self.ln_2 = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(
        self, hidden_states, rotary_pos_emb=None, registered_causal_mask=None, layer_past=None, attention_mask=None,
        head_mask=None, encoder_hidden_states=None, encoder_attention_mask=None, use_cache=False,
        output_attentions=False,
    ):  # fmt: skip
        attended, *rest = self.attn(
            self.ln_1(hidden_states), rotary_pos_emb, registered_causal_mask=registered_causal_mask,
            layer_past=layer_past, attention_mask=attention_mask, head_mask=head_mask, use_cache=use_cache,
            output_attentions=output_attentions,
        )  # fmt: skip
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + self.mlp(self.ln_2(hidden_states))
        return (hidden_states, *(rest if use_cache else rest[1:]))


class QWenPreTrainedModel(PreTrainedModel):
    config_class = QWenConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["QWenBlock"]

    def _init_weights(self, module):
        std = self.config.initializer_range
        # written through .data: the guards of new transformers for loaded weights do not see it
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(std=std)
            if getattr(module, "bias", None) is not None:
                module.bias.data.zero_()
        elif isinstance(module, RMSNorm):
            module.weight.data.fill_(1.0)
        for name, parameter in module.named_parameters():
            if name == "c_proj.weight":
                parameter.data.normal_(std=std / math.sqrt(2 * self.config.num_hidden_layers))


def additive_mask(attention_mask, shape, past_length, like):
    """[b, 1, new, past_length + new] to add to the scores: the lowest number hides, twice where both reasons hold."""
    lowest, mask, new = torch.finfo(like.dtype).min, None, shape[1]
    if new > 1:
        mask = like.new_full((new, new), lowest).triu(1)
        mask = F.pad(mask, (past_length, 0))[None, None].expand(shape[0], 1, -1, -1)
    if attention_mask is not None:
        hidden = (attention_mask[:, None, None] == 0).expand(-1, 1, new, -1)
        padding = like.new_zeros(hidden.shape).masked_fill(hidden, lowest)
        mask = padding if mask is None else padding + mask
    return mask


class QWenModel(QWenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.rotary_emb = RotaryEmbedding(int(config.kv_channels * config.rotary_pct), base=config.rotary_emb_base)
        self.use_dynamic_ntk, self.seq_length = config.use_dynamic_ntk, config.seq_length
        self.registered_causal_mask = None
        self.h = nn.ModuleList(QWenBlock(config) for _ in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.visual = VisionTransformer(**config.visual)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def _pictures(self, input_ids):
        """(row, <img> position, </img> position) of every picture, and the vectors that belong between the two."""
        start = self.config.visual["image_start_id"]
        opened, closed = (torch.where(input_ids == tag) for tag in (start, start + 1))
        assert (opened[0] == closed[0]).all(), "<img> and </img> do not pair up"
        spans, paths = list(zip(*(place.tolist() for place in (*opened, closed[1])), strict=True)), []
        for row, a, b in spans:
            # the last of the 256 places is not read: one byte of padding has to stand before it
            ids = input_ids[row, a + 1 : b - 1].tolist()
            paths.append(bytes(ids[: ids.index(start + 2)]).decode())
        return spans, self.visual.encode(paths)

    def _rotary(self, new, past_key_values):
        """Tables for all positions of block 0's cache and the new ones; alpha is settled while that cache is empty."""
        length = new if past_key_values[0] is None else new + past_key_values[0][0].shape[1]
        alpha = self.rotary_emb._ntk_alpha_cached
        if self.use_dynamic_ntk and length == new and not self.training:
            alpha = max(2 ** math.ceil(math.log(length / self.seq_length, 2) + 1) - 1, 1)
        return self.rotary_emb(length, ntk_alpha=alpha)

    def forward(
        self, input_ids=None, past_key_values=None, attention_mask=None, token_type_ids=None, position_ids=None,
        head_mask=None, inputs_embeds=None, encoder_hidden_states=None, encoder_attention_mask=None, use_cache=None,
        output_attentions=None, output_hidden_states=None, return_dict=None,
    ):  # fmt: skip
        config, spans, pictures = self.config, (), ()
        if past_key_values is None and torch.any(input_ids == config.visual["image_start_id"]):
            spans, pictures = self._pictures(input_ids)
        use_cache = config.use_cache if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.use_return_dict if return_dict is None else return_dict

        # size(-2) of [b, seq, heads, head_dim] is the number of heads; one-token steps never notice
        past_length = 0 if past_key_values is None else past_key_values[0][0].size(-2)
        past_key_values = past_key_values or (None,) * len(self.h)
        head_mask = self.get_head_mask(head_mask, config.num_hidden_layers)
        hidden_states = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        shape = hidden_states.shape
        attention_mask = additive_mask(attention_mask, shape, past_length, hidden_states)
        rotary = [table.to(hidden_states.device) for table in self._rotary(shape[1], past_key_values)]
        hidden_states = self.drop(hidden_states).clone()
        for (row, a, b), picture in zip(spans, pictures, strict=True):
            hidden_states[row, a + 1 : b] = picture

        presents, weights, seen = (), (), ()
        for block, layer_past, mask in zip(self.h, past_key_values, head_mask, strict=False):
            seen += (hidden_states,) if output_hidden_states else ()
            hidden_states, *rest = block(
                hidden_states, layer_past=layer_past, rotary_pos_emb=rotary,
                registered_causal_mask=self.registered_causal_mask, attention_mask=attention_mask, head_mask=mask,
                encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=None,
                use_cache=use_cache, output_attentions=output_attentions,
            )  # fmt: skip
            presents, weights = presents + tuple(rest[:1]), weights + tuple(rest[-1:])
        # the length the prompt came in with: a block that dropped tokens has to give their places back before this
        hidden_states = self.ln_f(hidden_states).view(shape)

        presents = presents if use_cache else None
        seen = (*seen, hidden_states) if output_hidden_states else None
        if not return_dict:
            return tuple(x for x in (hidden_states, presents, seen) if x is not None)
        weights = weights if output_attentions else None
        return BaseModelOutputWithPast(hidden_states, presents, seen, weights)


def stream_generator():
    """What the original's chat_stream borrows; for the import alone, which the hub's check demands of everyone."""
    from transformers_stream_generator.main import NewGenerationMixin

    return NewGenerationMixin


class QWenLMHeadModel(QWenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        dtype = chosen_dtype(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if dtype is not None:
            self.to(dtype)
        self.post_init()

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, inputs_embeds=None, **kwargs):
        attention_mask, position_ids = kwargs.get("attention_mask"), None
        if attention_mask is not None and kwargs.get("position_ids") is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        if past_key_values:
            input_ids = input_ids[:, -1:]
            position_ids = None if position_ids is None else position_ids[:, -1:]
        first = {"input_ids": input_ids}
        if inputs_embeds is not None and past_key_values is None:
            first = {"inputs_embeds": inputs_embeds}
        rest = {"past_key_values": past_key_values, "use_cache": kwargs.get("use_cache"), "position_ids": position_ids}
        return {**first, **rest, "attention_mask": attention_mask, "token_type_ids": kwargs.get("token_type_ids")}

    def forward(
        self, input_ids=None, past_key_values=None, attention_mask=None, token_type_ids=None, position_ids=None,
        head_mask=None, inputs_embeds=None, encoder_hidden_states=None, encoder_attention_mask=None, labels=None,
        use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None,
    ):  # fmt: skip
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        out = self.transformer(
            input_ids, past_key_values=past_key_values, attention_mask=attention_mask, token_type_ids=token_type_ids,
            position_ids=position_ids, head_mask=head_mask, inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache, output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )  # fmt: skip
        logits, loss = self.lm_head(out[0]), None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device))
        if not return_dict:
            return (*(() if loss is None else (loss,)), logits, *out[1:])
        return CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states, out.attentions)

    @staticmethod
    def _reorder_cache(past_key_values, beam_idx):
        return tuple(tuple(x.index_select(0, beam_idx.to(x.device)) for x in layer) for layer in past_key_values)

    def chat(
        self, tokenizer, query, history, system="You are a helpful assistant.", append_history=True,
        stop_words_ids=None, generation_config=None, **kwargs,
    ):  # fmt: skip
        """(response, history); the caller's own lists of history and stop words grow."""
        settings = self.generation_config if generation_config is None else generation_config
        assert settings.chat_format == "chatml", f"no chat with chat_format {settings.chat_format!r}, only 'chatml'"
        history, stop_words_ids = [] if history is None else history, [] if stop_words_ids is None else stop_words_ids
        window = kwargs.get("max_window_size") or settings.max_window_size
        text, ids = make_context(tokenizer, query, history, system, window, settings.chat_format)
        stop_words_ids.extend(get_stop_words_ids(settings.chat_format, tokenizer))
        settled = {"generation_config": settings, "return_dict_in_generate": False}
        out = self.generate(torch.tensor([ids]).to(self.device), stop_words_ids=stop_words_ids, **settled, **kwargs)
        response = decode_tokens(out[0], tokenizer, len(text), len(ids), settings.chat_format)
        if append_history:
            history.append((query, response))
        return response, history

    def generate(self, inputs=None, generation_config=None, logits_processor=None, **kwargs):
        settings = self.generation_config if generation_config is None else generation_config
        stop = kwargs.pop("stop_words_ids", None) or getattr(settings, "stop_words_ids", None)
        if stop is not None:
            logits_processor = LogitsProcessorList() if logits_processor is None else logits_processor
            logits_processor.append(StopWordsLogitsProcessor(stop, settings.eos_token_id))
        # no base class named here has generate: transformers adds GenerationMixin when it loads the code
        return super().generate(inputs, generation_config=settings, logits_processor=logits_processor, **kwargs)
