"""Qwen-VL's own code explained: groups, attention, gradients, the resampler's way to the patches, truncation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_checkpoint import write_checkpoint

from redrel_vlmeval.explain.ask.asking import Asked, ask_model
from redrel_vlmeval.explain.maps.flow import attention_flow, causal_curve, gradient_flow
from redrel_vlmeval.explain.maps.formulas import elementwise, objective
from redrel_vlmeval.explain.maps.gradcam import Request, explain
from redrel_vlmeval.explain.maps.grid import locality, through
from redrel_vlmeval.explain.maps.modes import differentiable
from redrel_vlmeval.explain.maps.pixels import grids
from redrel_vlmeval.explain.trust.faithfulness import deletion
from redrel_vlmeval.models.qwen.core import QwenCore
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import truncated

BLOCKS = 3


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> QwenCore:
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen") / "base", blocks=BLOCKS)
    return QwenCore(str(folder), dtype="float32", device="cpu", max_new_tokens=2, min_new_tokens=0)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.effect_noise((80, 40), 90).convert("RGB").save(path)
    return str(path)


def asked(core: QwenCore, picture: str, setting: str | None = None) -> Asked:
    content = [{"type": "image", "value": picture}, {"type": "text", "value": "What is it?"}]

    def say() -> str:
        if setting is None:
            return core.reply(content)
        with truncated(core.model, setting):
            return core.reply(content)

    spec = parse(setting) if setting else None
    return ask_model(core.model, say, core.tokenizer, spec, [picture])


def test_groups_and_shares(core: QwenCore, picture: str) -> None:
    found = asked(core, picture)
    sizes = found.spans().sizes()
    assert sizes["img"] == 256 and sizes["bos"] == 0 and sizes["sys"] == 1 and sizes["out"] == len(found.answer) > 0
    shares, mean = attention_flow(found)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    with torch.no_grad():
        out = found.model(**found.sequence(), use_cache=False, output_attentions=True)
    for layer, weights in enumerate(out.attentions):
        wanted = weights[0, :, found.spans().predict].mean(0)
        np.testing.assert_allclose(mean[layer], wanted.numpy(), atol=1e-5)
    gradient, saliency = gradient_flow(found)
    np.testing.assert_allclose(gradient.sum(-1), 1, atol=1e-5)
    assert (saliency >= 0).all() and saliency[..., 2].max() > 0
    assert causal_curve(found).shape == (BLOCKS + 1,)


def test_a_map_is_that_of_its_own_pass(core: QwenCore, picture: str) -> None:
    found = asked(core, picture)
    drawn = explain(found, Request(("elementwise",), where=("decoder", "vision", "projector")))
    decoder, vision, projector = drawn.maps
    assert decoder.status[0] == ("ok",) * BLOCKS and "no_gradient" not in vision.status[0]
    assert projector.values.shape == (1, 1, 256)
    image = found.spans().image
    kept = []
    handle = core.model.transformer.h[1].ln_1.register_forward_hook(lambda _m, _a, out: kept.append(out))
    with differentiable(core.model):
        core.model.requires_grad_(True)
        logits = core.model(**found.sequence(), use_cache=False).logits
        z = objective(logits[:, found.spans().predict], found.answer, "logit").sum()
        (slope,) = torch.autograd.grad(z, kept)
    handle.remove()
    wanted = elementwise(kept[0][0, image], slope[0, image]).detach().numpy()
    np.testing.assert_allclose(decoder.values[0, 1], wanted, atol=1e-6, rtol=1e-4)
    checked = explain(found, Request(("elementwise",), checkpointing=True)).maps[0].values
    np.testing.assert_allclose(checked, decoder.values, atol=1e-6, rtol=1e-4)


def test_the_resampler_leads_to_the_patches(core: QwenCore, picture: str) -> None:
    found = asked(core, picture)
    drawn = explain(found, Request(("elementwise", "attn")))
    assert drawn.attention is not None and drawn.attention.shape[:2] == (1, 256)
    np.testing.assert_allclose(drawn.attention.sum(-1), 1, atol=1e-4)
    patches = drawn.attention.shape[2]
    (grid,) = grids(found, "pixels")
    assert grid.index.size == patches and grid.size == (80, 40) and grid.box == (0, 0, 80, 40)
    assert grids(found)[0].shape == (16, 16)
    moved = through(drawn.maps[0].values, drawn.attention)
    assert moved.shape == (1, BLOCKS, patches)
    np.testing.assert_allclose(moved.sum(-1), drawn.maps[0].values.sum(-1), rtol=1e-3)
    for setting in (None, "l1_k9"):  # without gradients the features of the question's own pass would do
        alone = explain(asked(core, picture, setting), Request(("attn",)))
        np.testing.assert_allclose(alone.attention, drawn.attention, atol=1e-6)
    if patches >= 256:
        assert 0 <= locality(drawn.attention) <= 1


def test_kept_queries_stand_at_their_numbers_and_noise_reaches_the_pixels(core: QwenCore, picture: str) -> None:
    found = asked(core, picture, "l1_k9")
    drawn = explain(found, Request(("elementwise", "attn_grad")))
    for maps in drawn.maps:
        assert np.isfinite(maps.values[0, 0]).all()
        assert np.flatnonzero(np.isfinite(maps.values[0, 1])).tolist() == drawn.kept[1]
    whole = asked(core, picture)
    plain = explain(whole, Request(("elementwise",))).maps[0].values
    noisy = explain(whole, Request(("elementwise",), smooth=2, noise=0.3)).maps[0].values
    assert not np.allclose(plain, noisy)
    still = explain(whole, Request(("elementwise",), smooth=2, noise=0.0)).maps[0].values
    np.testing.assert_allclose(still, plain, atol=1e-6, rtol=1e-4)


def test_cells_are_erased_from_what_the_tower_sees(core: QwenCore, picture: str) -> None:
    found = asked(core, picture)
    (grid,) = grids(found, "pixels")
    curve = deletion(found, list(range(grid.index.size)))
    assert curve.scores[0] != curve.scores[-1]
    back = deletion(found, list(range(grid.index.size)), insertion=True)
    assert back.scores[-1] == pytest.approx(curve.scores[0], rel=1e-4)
