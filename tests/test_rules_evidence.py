"""What the engine shows to the rules of published methods, and whole methods, against the model's modules by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sweepbox import compare
from tiny_models import FAMILIES, IMAGE, TinyModel

from redrel_vlmeval import rules
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.rules import registry, tower
from redrel_vlmeval.truncation import find_decoder, truncated
from redrel_vlmeval.truncation.layout import KNOWN

ASKED = (
    "text_queries text_keys text_values queries values normed text_normed embeddings entered text ones text_ones "
    "places text_places"
).split()


@pytest.fixture
def spied() -> Iterator[list[rules.Seen]]:
    """What the rule ``spy`` was shown, prompt by prompt."""
    rules.known()
    before, found = dict(registry._rules), []

    @rules.rule("spy", needs=ASKED, says="that come last")
    def spy(seen: rules.Seen, budget: int) -> list[int]:
        found.append(seen)
        return list(range(seen.n - budget, seen.n))

    yield found
    registry._rules.clear()
    registry._rules.update(before)


def rotated(vectors: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """[h, s, d] turned by cos and sin [1, s, d]."""
    half = vectors.shape[-1] // 2
    turned = torch.cat([-vectors[..., half:], vectors[..., :half]], -1)
    return vectors * tables[0] + turned * tables[1]


@torch.no_grad()
def test_a_later_stage_of_a_padded_batch_sees_the_prompts_own(spied: list[rules.Seen], llava: TinyModel) -> None:
    texts = ["ttIttttt", "tttttttItttItt"]
    with truncated(llava.model, "l1_k9_l3_k4_spy"):
        llava.model(**llava.batch(texts))
    text = llava.model.model.language_model
    for row, _ in enumerate(texts):
        first, seen = spied[row], spied[2 + row]
        assert seen.n == 9 and first.n in (16, 32) and torch.equal(seen.entered, first.embeddings)
        assert torch.equal(seen.embeddings, first.embeddings[-9:]) and torch.equal(seen.text, first.text)
        assert torch.equal(seen.places, first.places[-9:])
        ids = llava.batch(texts)["input_ids"][row]
        ids = ids[ids != 3]
        assert torch.equal(ids[first.places], torch.full((first.n,), IMAGE))
        assert first.text_places.tolist() == list(range(int(first.places[-1]) + 1, len(ids)))
        assert torch.allclose(seen.text, text.embed_tokens(ids[first.text_places]), atol=1e-6)
        ones, text_ones = (
            rotated(torch.ones(1, len(places), 8), text.rotary_emb(seen.ones, places[None]))[0]
            for places in (seen.places, seen.text_places)
        )
        # padding moves all positions alike, so only what they make of one another is the prompt's own
        assert torch.allclose(seen.text_ones @ seen.ones.T, text_ones @ ones.T, atol=1e-4)


@torch.no_grad()
def test_queries_keys_values_and_normed_states_are_those_of_block_l(spied: list[rules.Seen], llava: TinyModel) -> None:
    inputs = llava.prompt("ttIttttt")
    with truncated(llava.model, "l2_k4_spy"):
        llava.model(**inputs)
    states = llava.model(**inputs, output_hidden_states=True).hidden_states
    text, seen = llava.model.model.language_model, spied[0]
    block = text.layers[1]
    entering = block.input_layernorm(states[1][0])
    tables = text.rotary_emb(states[1], torch.arange(len(entering))[None])
    own = block.self_attn
    heads = {n: getattr(own, f"{n}_proj")(entering).unflatten(-1, (-1, 8)).transpose(0, 1) for n in "qkv"}
    queries, keys = rotated(heads["q"], tables), rotated(heads["k"], tables)
    for found, expected in (
        (seen.queries, queries[:, seen.places]),
        (seen.values, heads["v"][:, seen.places]),
        (seen.text_queries, queries[:, seen.text_places]),
        (seen.text_keys, keys[:, seen.text_places]),
        (seen.text_values, heads["v"][:, seen.text_places]),
        (seen.normed, text.norm(states[2][0, seen.places])),
        (seen.text_normed, text.norm(states[2][0, seen.text_places])),
    ):
        assert torch.allclose(found, expected, atol=1e-4)
    assert int(seen.text_places[-1]) == len(entering) - 1  # the last text token is the prompt's last


@torch.no_grad()
def test_pyramiddrop_is_block_l_plus_1_on_the_states_that_leave_l(llava: TinyModel) -> None:
    """Re-stated with whole layers and no hooks; positions are counted anew after every cut."""
    inputs = llava.prompt("tttIttttt", 2)
    setting = "l1_r50_l2_r25_l4_r12_next_pos-new"
    with truncated(llava.model, setting) as trace:
        logits = llava.model(**inputs).logits[0, -1]
    model = llava.model.model
    image = inputs["input_ids"][0] == IMAGE
    hidden = model(**inputs, output_hidden_states=True).hidden_states[0]
    kept, text, count = torch.arange(int(image.sum())), model.language_model, int(image.sum())
    for number, block in enumerate(text.layers):
        tables = text.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        if share := {1: 50, 2: 25, 4: 12}.get(number):
            normed = block.input_layernorm(hidden[0])
            projections = block.self_attn.q_proj, block.self_attn.k_proj
            q, k = (p(normed).unflatten(-1, (-1, 8)).transpose(0, 1) for p in projections)
            q, k = rotated(q, tables), rotated(k, tables).repeat_interleave(2, 0)
            row = (q[:, -1:] @ k.transpose(1, 2) / 8**0.5).softmax(-1).mean(0)[0]
            best = row[image].sort(descending=True, stable=True).indices[: int(count * share / 100 + 0.5)].sort().values
            stay = torch.cat([(~image).nonzero()[:, 0], image.nonzero()[best, 0]]).sort().values
            kept, image, hidden = kept[best], image[stay], hidden[:, stay]
            assert trace.last.kept[number] == kept.tolist()
            tables = text.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        mask = torch.full((hidden.shape[1],) * 2, -torch.inf).triu(1)[None, None]
        out: Any = block(hidden, position_embeddings=tables, attention_mask=mask)
        hidden = out if isinstance(out, torch.Tensor) else out[0]
    assert torch.allclose(llava.model.lm_head(text.norm(hidden))[0, -1], logits, atol=1e-4)


@torch.no_grad()
def test_a_question_that_ends_with_its_picture_has_no_text_to_go_by(llava: TinyModel) -> None:
    for name in ("raters", "flow", "dpp-text", "mmtok"):
        said = pytest.raises(TruncationError, match=f"{name}.*no text comes after")
        with truncated(llava.model, f"l2_k4_{name}"), said:
            llava.model(**llava.prompt("tttI"))


@torch.no_grad()
def test_pictures_share_the_budget(llava: TinyModel) -> None:
    """A tower sees one picture at a time; the budget is dealt out by tokens."""
    with truncated(llava.model, "l0_k9_cls") as trace:
        llava.model(**llava.prompt("ttIttIttt"))
    kept = trace.last.kept[0]
    assert sum(j < 16 for j in kept) == 5 and len(kept) == 9


@torch.no_grad()
@pytest.mark.skipif("qwen2_5_vl" not in FAMILIES, reason="this release's Qwen2.5-VL shows no attention")
def test_neighbours_are_told_by_the_towers_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = FAMILIES["qwen2_5_vl"]()
    wide = {"pixel_values": torch.randn(144, 96), "image_grid_thw": torch.tensor([[1, 8, 18]])}  # 36, but not 6 x 6
    wide_tiny = TinyModel("qwen2_5_vl", tiny.model.eval(), 36, lambda n: wide)
    asked: list[tuple[int, int]] = []
    own = tower.hierarchical
    monkeypatch.setattr(tower, "hierarchical", lambda *args: asked.append(args[2]) or own(*args))
    with truncated(tiny.model, "l0_k7_hiprune") as trace:
        tiny.model(**wide_tiny.prompt())
    assert len(trace.last.kept[0]) == 7 and asked == [(4, 9)]
    with truncated(tiny.model, "l0_k9_l2_k7_hiprune"), pytest.raises(TruncationError, match="rows and columns"):
        tiny.model(**wide_tiny.prompt())


# what a family does not show -> what the refusal says
REFUSED = {"clip": "set REDREL_CLIP", "tower": "cannot be told apart", "smaller": "made smaller"}


def cut(tiny: TinyModel, setting: str, inputs: dict[str, torch.Tensor]) -> tuple[list[list[int]], torch.Tensor]:
    """Kept tokens of every prompt, and logits of all positions."""
    with truncated(tiny.model, setting) as trace:
        logits = tiny.model(**inputs).logits
    return [next(iter(prompt.kept.values()), []) for prompt in trace.prompts], logits


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_on_every_family(family: str) -> None:
    """Alone as in a padded batch with several pictures; all tokens kept; equal tokens; or refused when it is made."""
    tiny = FAMILIES[family]()
    tiny.model.eval()
    alone = [tiny.batch([text], seed) for seed, text in enumerate(["ttIttt", "ttttttItItt"])]
    batch = tiny.joined(alone, "left")
    if not family.startswith("qwen"):  # as `generate` does: rotated keys, which dart measures, depend on the place
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    whole = tiny.model(**alone[1]).logits
    plain = alone[0] | {"pixel_values": torch.zeros_like(alone[0]["pixel_values"])}
    refused = set()
    for name, rule in rules.known().items():
        stage = "l0" if rule.before_block_1 and name != "hiprune" else "l2"
        word = f"_{name}" * (name != rules.DEFAULT)
        setting = f"{stage}_k{2 if rule.before_block_1_only else 3}{word}"  # two pictures of one token each
        try:
            found, _ = cut(tiny, setting, batch)
        except TruncationError as error:
            said = next((said for need, said in REFUSED.items() if need in rule.needs), "")
            said = REFUSED["tower"] if name == "cdpruner" and tiny.model.config.model_type not in KNOWN else said
            said = "rows and columns" if name == "hiprune" and tiny.model.config.model_type in KNOWN else said
            assert f"rule {name!r}" in str(error) and said and said in str(error), str(error)
            refused.add(name)
            continue
        for row, inputs in enumerate(alone):
            kept, _ = cut(tiny, setting, inputs)
            assert kept == [found[row]] and len(found[row]) == int(setting[4]), (name, row)
        assert torch.equal(cut(tiny, f"{stage}_k999{word}", alone[1])[1], whole), name
        assert len(set(cut(tiny, setting, plain)[0][0])) == int(setting[4]), name
    of_tower = {name for name, rule in rules.known().items() if "tower" in rule.needs}
    tiled = {"hiprune"} if family in ("llava_next", "llava_onevision") else set()
    small = set() if family in ("llava", "llava_mistral", "internvl", "qwen2_vl", "qwen2_5_vl") else {"downsample"}
    assert refused == small | {"cdpruner"} | (tiled if tiny.model.config.model_type in KNOWN else of_tower)


@pytest.mark.parametrize("family", ["llava", *(["qwen2_5_vl"] if "qwen2_5_vl" in FAMILIES else [])])
def test_a_sweep_answers_as_single_runs_do_and_runs_the_tower_once(family: str) -> None:
    tiny = FAMILIES[family]()
    tiny.model.eval()
    settings = [
        f"l{layer}_k{2 if rule.before_block_1_only else 3}_{name}" for name, rule in rules.known().items()
        if name != rules.DEFAULT and "clip" not in rule.needs
        for layer in (0, 2) if (rule.before_block_1 if layer == 0 else not rule.before_block_1_only)
    ]  # fmt: skip
    runs = []
    handle = find_decoder(tiny.model).tower().register_forward_hook(lambda *_: runs.append(1))
    specs = [VariantSpec("base", (spec := parse(one)).stages, spec.rule) for one in settings]
    compare(tiny.model, tiny.prompt(), specs)
    handle.remove()
    small = 2 * sum(spec.chosen_by[0].before_block_1_only for spec in specs)  # a smaller picture goes through it again
    assert len(runs) == 2 + len(specs) + small  # untouched, swept, and each setting alone
