"""Decoders laid out like InternLM2: what rules and maps are shown, rotary tables by the true length, refusals."""

from __future__ import annotations

import copy
import json
import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from checkpoints import host_table, needs_host

from redrel_vlmeval import trying
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.explain.ask import ask_host
from redrel_vlmeval.explain.maps import Request, explain
from redrel_vlmeval.explain.maps.flow import flow
from redrel_vlmeval.models import TruncatedVLM
from redrel_vlmeval.names import parse
from redrel_vlmeval.sweep import Sweeper
from redrel_vlmeval.truncation import find_decoder, replaced_generate, truncated
from redrel_vlmeval.truncation.ranking import attention_rows
from redrel_vlmeval.trying.restated import Restated

pytestmark = needs_host
NAME = "InternVL2-8B"
TRAINED = 64  # tokens that the second checkpoint was "trained" with; a picture has 7 * 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(host's model, the same with rotary tables that grow beyond TRAINED tokens, a question), on a CPU."""
    table, folder = host_table(), tmp_path_factory.mktemp("internlm2")
    with trying.on_cpu():
        given = trying.make("InternVLChat", NAME, folder) | {"max_new_tokens": 5}
        plain = table[NAME](**given)
        config = json.loads((folder / "config.json").read_text())
        config["llm_config"] |= {"max_position_embeddings": TRAINED, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
        (folder / "config.json").write_text(json.dumps(config))
        growing = table[NAME](**given)
        said = [{"type": "image", "value": trying.draw(folder)[0]}, {"type": "text", "value": "What is it?"}]
        yield plain, growing, said


@pytest.fixture(scope="module")
def host(made):
    return made[0]


@pytest.fixture(scope="module")
def prompt(made):
    """Embeddings of a prompt and the places of its visual tokens, as the inner model is given them."""
    host, _, said = made
    root, seen = host.model.language_model, []
    with replaced_generate(root, lambda own: lambda **kw: seen.append(kw["inputs_embeds"]) or own(**kw)):
        host.generate(said)
    return seen[0]


def logits(host, said, around):
    """Of every step of an answer within ``around``."""
    heard = []
    handle = host.model.language_model.register_forward_hook(
        lambda _m, _a, out: heard.append(out.logits[0, -1].clone())
    )
    with around:
        host.generate([dict(item) for item in said])
    handle.remove()
    return torch.stack(heard)


def test_a_rule_is_shown_what_the_attention_itself_attends_with(host, prompt):
    decoder, seen = find_decoder(host.model), []
    attention = decoder.blocks[1].attention
    weights = []
    own = attention.register_forward_hook(lambda _m, _a, out: weights.append(out[1]))
    with patch.object(type(decoder.blocks[1]), "forward", with_weights), torch.no_grad():
        decoder.root(inputs_embeds=prompt)  # nobody watches
        with decoder.probe(1, lambda *given: seen.append(given)):
            decoder.root(inputs_embeds=prompt)
    own.remove()
    (query, key, mask, scaling, _, value), length = seen[0], prompt.shape[1]
    assert query.shape == (1, 4, length, 8) and key.shape == value.shape == (1, 2, length, 8)
    rows = torch.tensor([[length - 1, 3]])
    torch.testing.assert_close(attention_rows(query, key, rows, scaling, mask), weights[0].mean(1)[:, rows[0]])
    assert torch.equal(weights[0], weights[1])


def with_weights(self, hidden_states, use_cache=False, **given):
    out, _, present = self.attention(self.attention_norm(hidden_states), output_attentions=True, **given)
    hidden_states = hidden_states + out
    return (hidden_states + self.feed_forward(self.ffn_norm(hidden_states)),)


def test_values_are_those_that_weights_are_applied_to(host, prompt):
    decoder, seen, mixed = find_decoder(host.model), [], []
    attention = decoder.blocks[1].attention
    handle = attention.wo.register_forward_pre_hook(lambda _m, args: mixed.append(args[0]))
    with torch.no_grad(), decoder.probe(1, lambda *given: seen.append(given)):
        decoder.root(inputs_embeds=prompt)
    handle.remove()
    query, key, mask, scaling, _, value = seen[0]
    row = ((query[0, :, -1:] @ key[0].repeat_interleave(2, 0).mT) / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close((row @ value[0].repeat_interleave(2, 0)).flatten(), mixed[-1][0, -1])


@pytest.mark.parametrize("setting", ["l2_k8_flow", "l1_k8_dart", "l0_k8_divprune", "l1_k20-flow_l3_k4-next"])
def test_rules_that_see_single_heads_answer(made, setting):
    host, _, said = made
    with truncated(host.model, setting) as trace:
        host.generate(said)
    assert trace.last.images[-1] == int(setting.rpartition("k")[2].partition("-")[0].partition("_")[0])


def test_a_rule_that_turns_ones_is_refused_by_name(host):
    with pytest.raises(TruncationError, match="'raters'.*its rotary tables are not laid out"):
        truncated(host.model, "l2_k8_raters").__enter__()


@pytest.mark.parametrize("setting", ["l2_k8", "l1_k0"])
def test_beyond_the_trained_length_tables_are_those_of_the_whole_prompt(made, setting):
    _, growing, said = made
    layer, keep = int(setting[1]), int(setting[4:])
    decoder = find_decoder(growing.model)
    assert decoder.blocks[3].attention.rotary_emb.max_position_embeddings == TRAINED
    forget(decoder)
    again = Restated(decoder, layer, keep)
    masked = logits(growing, said, again.applied(decoder.root))
    forget(decoder)
    dropped = logits(growing, said, truncated(growing.model, setting))
    assert len(dropped) == 5 and float((masked - dropped).abs().max()) < 1e-4
    plain = logits(made[0], said, truncated(made[0].model, setting))
    assert float((plain - dropped).abs().max()) > 1e-2


def forget(decoder):
    """Tables of a longer prompt stay, as in the code itself; begin again."""
    for block in decoder.blocks:
        rotary = block.attention.rotary_emb
        rotary.tables, rotary.max_seq_len_cached = None, rotary.max_position_embeddings


def test_a_sweep_across_such_tables_is_refused_by_name(made):
    _, growing, said = made
    with pytest.raises(TruncationError, match=f"beyond {TRAINED} tokens its rotary tables change.* one by one"):
        Sweeper(growing, [parse(f"{NAME}_trunc_l2_k8")]).answer(said)


@pytest.mark.parametrize("setting", ["l0_k4_uniform", "l2_k4"])
def test_steps_without_mask_and_positions_stand_behind_the_whole_prompt(made, setting):
    """Code like this counts both from block 1's keys; options are ranked by such steps."""
    host, _, said = made
    root, found = host.model.language_model, []
    ids = torch.tensor([[40, 41, 42]])

    def behind(first, length):
        for each in (1, 3, None):
            cache, steps = first, []
            for number, part in enumerate(ids.split(each or 1, 1)):
                whole = length + number + 1
                given = {"attention_mask": torch.ones(1, whole), "position_ids": torch.tensor([[whole - 1]])}
                out = root(input_ids=part, past_key_values=cache, **({} if each else given))
                cache, steps = out.past_key_values, [*steps, out.logits]
            found.append(torch.cat(steps, 1))

    def once(**given):
        rows = given["inputs_embeds"]
        behind(root(inputs_embeds=rows).past_key_values, rows.shape[1])
        return torch.tensor([[2]])

    with truncated(host.model, setting), torch.no_grad(), replaced_generate(root, lambda _own: once):
        host.generate(said)
    for steps in found[:2]:
        torch.testing.assert_close(steps, found[2], atol=1e-4, rtol=0)


def test_maps_of_an_answer(made):
    host, _, said = made
    for model in (host, TruncatedVLM(host, "l2_k8")):
        asked = ask_host(model, said)
        shares = flow(asked, cuts=model is host)
        np.testing.assert_allclose(shares.attention.sum(-1), 1, atol=1e-5)
        (found, *_) = explain(asked, Request(("elementwise",))).maps
        kept = 112 if model is host else 8
        assert [int(np.isfinite(row).sum()) for row in found.values[0]] == [112, 112, kept, kept, kept]


@pytest.mark.parametrize("told", [False, True])
def test_what_is_laid_out_alike_and_attends_otherwise_is_refused(host, made, told):
    """``told``: only where it is given one argument more, as code is that has other weights for visual tokens."""
    other = copy.deepcopy(host.model)
    kind = type(other.language_model.model.layers[0].attention)

    class Louder(kind):
        def forward(self, hidden_states, louder=not told, **given):
            out, *rest = super().forward(hidden_states, **given)
            return (2 * out if louder else out, *rest)

    refused = pytest.raises(TruncationError, match="Louder: laid out like InternLM2's, but its output is not")
    for block in other.language_model.model.layers:
        block.attention.__class__ = Louder
    with patch.object(host, "model", other), truncated(other, "l2_k8"):
        if told:
            host.generate(made[2])
            for block in other.language_model.model.layers:
                add = lambda _m, args, given: (args, given | {"louder": True})  # noqa: E731
                block.attention.register_forward_pre_hook(add, with_kwargs=True)
        with refused:
            host.generate(made[2])


def test_nothing_is_left_on_the_model_nor_on_a_copy(host, made):
    decoder = find_decoder(host.model)
    before = logits(host, made[2], truncated(host.model, "l2_k9999"))
    with truncated(host.model, "l0_k2_uniform"):
        host.generate(made[2])
        twin = copy.deepcopy(host.model)
    for block in decoder.blocks:
        assert "forward" not in block.attention.__dict__ and not block.attention.rotary_emb._forward_pre_hooks
    with patch.object(host, "model", twin):
        after = logits(host, made[2], truncated(twin, "l2_k9999"))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_a_language_model_that_lost_its_generate_is_refused_when_the_variant_is_built(host):
    lost = patch.object(type(host.model.language_model), "can_generate", classmethod(lambda cls: False))
    with lost, pytest.raises(TruncationError, match=r"its InternLM2ForCausalLM has no generate\(\).*4.49 does"):
        TruncatedVLM(host, "l2_k8")
