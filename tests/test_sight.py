"""What rules see of a vision tower, against the model's own modules called by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
import torch
import transformers as tf
from tiny_models import FAMILIES, TinyModel

from redrel_vlmeval import rules
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.rules import registry
from redrel_vlmeval.truncation import find_decoder, truncated
from redrel_vlmeval.truncation.sight import layout_of

TILED = ("llava_next", "llava_onevision")
FLAT = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TOWERS = [name for name in ("llava", *TILED, "internvl", *FLAT) if name in FAMILIES]
BATCH = ["ttIttttt", "ttttIttIttttt"]


def siglip() -> TinyModel:
    """A LLaVA whose tower has no class token."""
    vision = tf.SiglipVisionConfig(**tiny_models.VISION, vision_use_head=False)
    config = tf.LlavaConfig(
        vision_config=vision, text_config=tf.LlamaConfig(**tiny_models.TEXT), **tiny_models._TOKEN,
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=16,
    )  # fmt: skip
    return TinyModel("llava", tf.LlavaForConditionalGeneration(config), 16, tiny_models._square())


def windowed() -> TinyModel:
    """A Qwen2.5-VL whose pictures are several windows, the last ones narrow."""
    made = FAMILIES["qwen2_5_vl"]()

    def pixels(n: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(60 * n, 96), "image_grid_thw": torch.tensor([[1, 6, 10]] * n)}

    return TinyModel("qwen2_5_vl", made.model, 15, pixels)


@pytest.fixture
def spied() -> Iterator[list[rules.Seen]]:
    """What the rule ``spy`` was shown, prompt by prompt."""
    rules.known()
    before, found = dict(registry._rules), []

    @rules.rule("spy", needs={"tower", "embeddings"}, says="that come first")
    def spy(seen: rules.Seen, budget: int) -> list[int]:
        found.append(seen)
        return list(range(budget))

    yield found
    registry._rules.clear()
    registry._rules.update(before)


def made(name: str) -> TinyModel:
    tiny: TinyModel = {"siglip": siglip, "windowed": windowed}.get(name, FAMILIES.get(name))()
    tiny.model.eval()
    return tiny


KINDS = [*TOWERS, "siglip", *(["windowed"] if "qwen2_5_vl" in FAMILIES else [])]


@pytest.mark.parametrize("setting", ["l0_k2_spy", "l2_k2_spy", "l1_k3_l3_k2_spy"])
@pytest.mark.parametrize("name", KINDS)
def test_the_projector_makes_the_visual_tokens_of_the_features(
    name: str, setting: str, spied: list[rules.Seen]
) -> None:
    """Of every prompt of a padded batch, also where an earlier stage has dropped some."""
    tiny = made(name)
    with torch.no_grad(), truncated(tiny.model, setting):
        tiny.model(**tiny.batch(BATCH))
    projector = find_decoder(tiny.model).projector()
    side = layout_of(find_decoder(tiny.model)).merge ** 2
    assert len(spied) == 2 * setting.count("_k")
    for seen in spied:
        features = seen.tower.features
        assert len(features) == len(seen.embeddings) == seen.n
        if name in (*FLAT, "windowed"):
            features = features.view(seen.n * side, -1)
        real = torch.ones(seen.n, dtype=torch.bool)
        if name in TILED:  # a newline has no patch
            real = (seen.embeddings - tiny.model.model.image_newline).abs().amax(1) > 1e-6
            assert setting[3:5] != "_k2" or int((~real).sum()) >= 4
            assert not features[~real].any()
            features = features[real]
        with torch.no_grad():
            assert torch.allclose(projector(features), seen.embeddings[real], atol=1e-5)


def by_hand(tiny: TinyModel, inputs: dict[str, Any]) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Block -> states that leave it, attention [p, h, s, s] and keys [p, h, s, d], by the attention's own projections.

    Qwen-VL's: all patches of a picture that attend to one another as one p, states [patches, C].
    """
    layout, found, handles = layout_of(find_decoder(tiny.model)), {}, []
    for number in {layout.read, layout.middle, layout.last}:
        block = layout.blocks[number]
        attention = next(getattr(block, n) for n in ("self_attn", "attn", "attention") if hasattr(block, n))

        def hook(module: Any, args: Any, kwargs: Any, output: Any, number: int = number) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if hasattr(module, "qkv"):
                heads = module.num_heads
                q, k, _ = module.qkv(hidden).view(len(hidden), 3, heads, -1).permute(1, 2, 0, 3)
                cos, sin = (table[None] for table in kwargs["position_embeddings"])
                half = q.shape[-1] // 2
                q, k = (x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin for x in (q, k))
                ends = kwargs["cu_seqlens"].tolist()
                same = torch.zeros(len(hidden), len(hidden), dtype=torch.bool)
                for start, end in zip(ends, ends[1:], strict=False):
                    same[start:end, start:end] = True
                scores = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).masked_fill(~same, -torch.inf)
                found[number] = scores.softmax(-1)[None], k[None]
                return
            q, k = (p(hidden).unflatten(-1, (2, -1)).transpose(1, 2) for p in (module.q_proj, module.k_proj))
            found[number] = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1), k

        handles.append(attention.register_forward_hook(hook, with_kwargs=True))
        handles.append(
            block.register_forward_hook(
                lambda _m, _a, output, number=number: found.update(
                    {number: (output if isinstance(output, torch.Tensor) else output[0], *found[number])}
                )
            )
        )
    with torch.no_grad():
        tiny.model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def patches_of(features: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Which rows of ``states`` [patches, C] every token's features [tokens, g C] are made of: long [tokens, g]."""
    parts = features.unflatten(1, (-1, states.shape[-1]))
    apart = torch.cdist(parts.flatten(0, 1), states, compute_mode="donot_use_mm_for_euclid_dist")
    assert apart.amin(1).max() < 1e-4
    return apart.argmin(1).view(len(features), -1)


@pytest.mark.parametrize("name", KINDS)
def test_scores_are_those_of_the_blocks(name: str, spied: list[rules.Seen]) -> None:
    tiny = made(name)
    inputs = tiny.batch(BATCH)
    layout = layout_of(find_decoder(tiny.model))
    flat = name in (*FLAT, "windowed")
    expected = by_hand(tiny, inputs)
    with torch.no_grad(), truncated(tiny.model, "l0_k2_spy"):
        tiny.model(**inputs)
    features = torch.cat([seen.tower.features for seen in spied])
    patched = features.abs().sum(1) > 0
    assert bool(patched.all()) != (name in TILED)
    features = features[patched]
    classed = 1 if name in ("llava", "llava_next", "internvl") else 0
    states = expected[layout.read][0]
    states = states if flat else states[:, classed:].flatten(0, 1)
    groups = patches_of(features, states)
    assert groups.flatten().sort().values.tolist() == list(range(len(states)))  # each patch once
    for place, number in (("read", layout.read), ("middle", layout.middle), ("last", layout.last)):
        _, weights, keys = expected[number]
        pictures = {"qwen": 3}.get(name[:4], 1) if flat else 1
        received = weights.mean((1, 2))[:, classed:].flatten() * (3 if flat else pictures)
        row = weights[:, :, 0, 1:].mean(1).flatten() if classed else received
        per_patch = keys.mean(1)[:, classed:].flatten(0, 1)
        for field, values in (("attention", row), ("received", received), ("keys", per_patch)):
            found = torch.cat([getattr(getattr(seen.tower, place), field) for seen in spied])
            assert not found[~patched].any()
            found = found[patched]
            assert torch.allclose(found, values[groups].mean(1), atol=1e-5), (place, field)


def test_which_blocks_are_looked_at() -> None:
    llava = layout_of(find_decoder(made("llava").model))
    assert (llava.read, llava.last, llava.classed) == (0, 1, True)  # hidden_states[-2] leaves the last block but one
    assert not layout_of(find_decoder(made("siglip").model)).classed
    if "qwen2_5_vl" in FAMILIES:
        assert layout_of(find_decoder(made("windowed").model)).read == 1  # the last that is not cut into windows


def test_towers_that_cannot_be_told_apart_are_refused_by_name() -> None:
    tiny = made("llava")
    tiny.model.config.model_type = "other"
    with pytest.raises(TruncationError, match="l2_k8_cls: rule 'cls': other"), truncated(tiny.model, "l2_k8_cls"):
        pass
    with truncated(tiny.model, "l2_k0_cls"):  # nothing is left to choose
        pass


def test_a_tower_read_at_several_blocks_is_refused() -> None:
    tiny = made("llava")
    tiny.model.config.vision_feature_layer = [-2, -1]
    with pytest.raises(TruncationError, match="several blocks"), truncated(tiny.model, "l0_k8_cls"):
        pass


def test_nothing_is_left_behind(spied: list[rules.Seen]) -> None:
    tiny = made("llava")
    inputs = tiny.prompt()
    with torch.no_grad():
        plain = tiny.model(**inputs).logits  # transformers puts hooks of its own in at the first call
        before = [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in tiny.model.named_modules()]
        configs = [m.config for m in tiny.model.modules() if hasattr(m, "config")]
        with truncated(tiny.model, "l0_k2_cls"):
            tiny.model(**inputs)
        assert before == [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in tiny.model.named_modules()]
        assert [id(m.config) for m in tiny.model.modules() if hasattr(m, "config")] == list(map(id, configs))
        assert torch.equal(tiny.model(**inputs).logits, plain)


def test_text_alone_needs_no_tower() -> None:
    tiny = made("llava")
    inputs = tiny.prompt("tttttt")
    with torch.no_grad():
        plain = tiny.model(**inputs).logits
        with truncated(tiny.model, "l0_k2_cls"):
            assert torch.equal(tiny.model(**inputs).logits, plain)


@pytest.mark.parametrize("name", [name for name in ("llava", "llava_next", "qwen2_5_vl") if name in FAMILIES])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_generate_sees_the_same_tower(name: str, options: dict[str, Any], spied: list[rules.Seen]) -> None:
    """Newer releases run the tower before the first forward call, and repeat every prompt for beams only after it."""
    tiny = made(name)
    inputs = tiny.batch(BATCH)
    with torch.no_grad(), truncated(tiny.model, "l1_k2_spy"):
        tiny.model(**inputs)
        alone = list(spied)
        spied.clear()
        for _ in range(2):  # one question after the other
            tiny.model.generate(**inputs, **options, max_new_tokens=3, min_new_tokens=3)
    assert len(spied) == 2 * (2 if not options else 4)
    for number, seen in enumerate(spied):
        expected = alone[number % (2 if not options else 4) // (1 if not options else 2)]
        assert seen.n == expected.n
        assert torch.allclose(seen.tower.features, expected.tower.features, atol=1e-5)
        assert torch.allclose(seen.tower.read.attention, expected.tower.read.attention, atol=1e-5)
