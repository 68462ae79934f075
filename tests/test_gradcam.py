"""Maps of all layers from one pass are those of a pass per layer; statuses say where nothing can be mapped."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from explain_box import ask_tiny, build_double
from tiny_models import BLOCKS, FAMILIES, TinyModel, build

from redrel_vlmeval.bench.subjects import set_kernel
from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask.asking import Asked
from redrel_vlmeval.explain.maps import formulas, gradcam
from redrel_vlmeval.explain.maps.formulas import objective
from redrel_vlmeval.explain.maps.gradcam import Explained, Maps, Request, explain

ONE = Request(methods=("elementwise", "gradcam", "gradcam_official"), where=("decoder", "vision"))


def maps(found: Explained, method: str, where: str = "decoder") -> Maps:
    return next(m for m in found.maps if (m.where, m.method) == (where, method))


def loop(asked: Asked, module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A pass of its own for one node, weights trainable as they come: its activation and gradient."""
    kept: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out))
    out = asked.model(**asked.sequence(), use_cache=False)
    handle.remove()
    z = objective(out.logits[:, asked.spans().predict], asked.answer, "logit").sum()
    (slope,) = torch.autograd.grad(z, kept, allow_unused=True)
    return kept[0].detach(), slope


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_one_pass_is_the_loop_over_layers_to_the_last_bit(name: str, checkpointing: bool) -> None:
    asked = ask_tiny(build_double(name), layout="tttIttttt")
    found = explain(asked, replace(ONE, where=("decoder",), checkpointing=checkpointing))
    image = asked.spans().image
    for layer in range(BLOCKS):
        activation, slope = loop(asked, asked.decoder.part(layer, "input_norm"))
        for method in ("elementwise", "gradcam"):
            wanted = formulas.FORMULAS[method](activation[0, image], slope[0, image]).float().numpy()
            assert np.abs(maps(found, method).values[0, layer] - wanted).max() == 0, (layer, method)
        activation, slope = loop(asked, asked.decoder.part(layer, "middle_norm"))
        wanted = formulas.official(activation[0, image], slope[0, image]).float().numpy()
        if layer < BLOCKS - 1:
            assert np.abs(maps(found, "gradcam_official").values[0, layer] - wanted).max() == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_vision_towers_maps_are_those_of_the_loop(checkpointing: bool) -> None:
    asked = ask_tiny(build_double("llava"))
    found = maps(explain(asked, replace(ONE, checkpointing=checkpointing)), "elementwise", "vision")
    first, last = asked.decoder.vision_blocks()
    activation, slope = loop(asked, first)
    wanted = formulas.elementwise(activation[0, 1:], slope[0, 1:]).float().numpy()
    assert np.abs(found.values[0, 0] - wanted).max() == 0 and wanted.max() > 0
    # LLaVA reads the block before the last: nothing depends on the last
    assert found.status == (("ok", "no_gradient"),)
    assert loop(asked, last)[1] is None
    assert np.isnan(found.values[0, 1]).all()


def test_every_family_has_maps_where_its_image_tokens_are(family: TinyModel) -> None:
    asked = ask_tiny(family)
    found = explain(asked, Request(where=("decoder", "projector", "vision")))
    count = len(asked.spans().image)
    for entry in found.maps:
        if entry.where != "decoder":
            continue
        assert entry.values.shape == (1, BLOCKS, count) and entry.values.dtype == np.float32
        defined = list(entry.status[0][:-1])
        assert set(defined) <= {"ok", "blank"} and "ok" in defined, entry.method
    assert maps(found, "elementwise", "projector").status[0] in (("ok",), ("blank",))
    assert "ok" in maps(found, "elementwise", "vision").status[0]


def test_the_last_blocks_post_attention_node_has_no_gradient(family: TinyModel) -> None:
    found = maps(explain(ask_tiny(family, new=1)), "gradcam_official")
    assert found.status[0][-1] == "no_gradient"
    assert "no_gradient" not in found.status[0][:-1]


def test_attention_maps_are_those_of_eager_autograd(family: TinyModel) -> None:
    asked = ask_tiny(family)
    found = explain(asked, Request(methods=("attn", "attn_grad")))
    set_kernel(asked.model, "eager")
    asked.model.requires_grad_(True)
    with torch.enable_grad():
        out = asked.model(**asked.sequence(), use_cache=False, output_attentions=True)
        spans = asked.spans()
        z = objective(out.logits[:, spans.predict], asked.answer, "logit").sum()
        slopes = torch.autograd.grad(z, out.attentions)
    for layer, (weights, slope) in enumerate(zip(out.attentions, slopes, strict=True)):
        rows = weights[0, :, spans.predict][..., spans.image]
        wanted = rows.mean((0, 1)).detach().numpy()
        np.testing.assert_allclose(maps(found, "attn").values[0, layer], wanted, atol=1e-6)
        wanted = torch.relu(rows * slope[0, :, spans.predict][..., spans.image]).mean((0, 1)).detach().numpy()
        np.testing.assert_allclose(maps(found, "attn_grad").values[0, layer], wanted, atol=1e-6, rtol=1e-4)


def test_tokens_apart_add_up_to_the_answer_and_carry_their_own_rows(llava: TinyModel) -> None:
    asked = ask_tiny(llava)
    request = Request(methods=("attn", "elementwise"), per_token=True)
    apart, whole = explain(asked, request), explain(asked, replace(request, per_token=False))
    assert maps(apart, "attn").values.shape[0] == 3
    np.testing.assert_allclose(maps(apart, "attn").values.mean(0), maps(whole, "attn").values[0], atol=1e-6)
    # gradients add up before the positive part is taken
    sums = maps(apart, "elementwise").values.sum(0)
    assert (sums >= maps(whole, "elementwise").values[0] - 1e-5).all()
    one = explain(asked.with_answer(asked.answer[:1]), request)
    np.testing.assert_allclose(maps(apart, "elementwise").values[0], maps(one, "elementwise").values[0], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ("llava", "qwen2_vl") if name in FAMILIES])
def test_truncated_maps_stand_at_the_kept_tokens(name: str) -> None:
    tiny = build(name)
    asked = ask_tiny(tiny, setting="l2_k2_l4_k0")
    found = explain(asked)
    (first, _) = sorted(found.kept)
    kept = found.kept[first]
    for method in ("elementwise", "gradcam", "attn", "attn_grad"):
        entry = maps(found, method)
        assert np.isfinite(entry.values[0, :2]).all()
        for layer in (2, 3):
            assert np.flatnonzero(np.isfinite(entry.values[0, layer])).tolist() == kept, method
        assert entry.status[0][4] == "pruned" and np.isnan(entry.values[0, 4]).all()
        assert "pruned" not in entry.status[0][:4]


def test_truncated_maps_are_those_of_the_truncated_model(llava: TinyModel) -> None:
    """Changing what a dropped token holds after its stage changes nothing; at a kept one it changes as G says."""
    tiny = build_double("llava")
    asked = ask_tiny(tiny, setting="l2_k5", new=2)
    found = explain(asked, Request(methods=("elementwise",)))
    everything = explain(replace(asked, spec=None, own=False), Request(methods=("elementwise",)))
    assert not np.allclose(
        np.nan_to_num(maps(found, "elementwise").values[0, 0]), maps(everything, "elementwise").values[0, 0]
    )
    plain = explain(replace(asked, spec=None, own=False), Request(methods=("attn",)))
    cut = explain(asked, Request(methods=("attn",)))
    np.testing.assert_allclose(maps(cut, "attn").values[0, :2], maps(plain, "attn").values[0, :2], atol=1e-6)


def test_smoothing_is_the_mean_over_noisy_copies_of_a_seed(llava: TinyModel) -> None:
    asked = ask_tiny(llava, new=1)
    request = Request(methods=("elementwise", "attn"), smooth=3, noise=0.2, seed=5)
    one, again = explain(asked, request), explain(asked, request)
    other = explain(asked, replace(request, seed=6))
    still = explain(asked, replace(request, noise=0.0))
    plain = explain(asked, replace(request, smooth=0))
    for method in request.methods:
        np.testing.assert_array_equal(maps(one, method).values, maps(again, method).values)
        assert not np.allclose(maps(one, method).values, maps(other, method).values)
        np.testing.assert_allclose(maps(still, method).values, maps(plain, method).values, atol=1e-5, rtol=1e-4)
    for batch in (1, 2):  # how the copies are dealt to passes is a matter of memory
        dealt = explain(asked, replace(request, batch=batch))
        for method in request.methods:
            np.testing.assert_allclose(maps(dealt, method).values, maps(one, method).values, atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(dealt.z, one.z, rtol=1e-4)
    truncated = explain(ask_tiny(llava, new=1, setting="l2_k5"), request)
    assert np.isfinite(maps(truncated, "elementwise").values[0, 3]).sum() >= 5


def test_gradients_too_small_for_float16_are_not_lost(llava: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a large model's late blocks, where dz/dA is below float16's normal numbers (6e-5)."""
    monkeypatch.setattr(gradcam, "objective", lambda *given: 1e-6 * objective(*given))
    asked = ask_tiny(llava, new=1)
    request = Request(methods=("elementwise", "gradcam", "attn_grad"))
    expected = explain(asked, request)
    llava.model.half()
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in asked.inputs.items()}
    found = explain(replace(asked, inputs=half, own=False), request)
    for one, other in zip(found.maps, expected.maps, strict=True):
        assert one.values.dtype == np.float32 and one.status == other.status
        for layer in (0, 2, 3):
            assert np.corrcoef(one.values[0, layer], other.values[0, layer])[0, 1] > 0.98, (one.method, layer)


def test_objectives_differ_and_contrast_is_against_the_options_given(llava: TinyModel) -> None:
    asked = ask_tiny(llava, new=1)
    logits = torch.tensor([[[1.0, 4.0, 2.0, 3.0]]])
    assert float(objective(logits, [1], "logit")) == 4
    assert float(objective(logits, [1], "contrast")) == 1
    assert float(objective(logits, [1], "contrast", [0, 2])) == 2
    assert float(objective(logits, [1], "logprob")) == pytest.approx(4 - float(logits.logsumexp(-1)))
    drawn = [explain(asked, Request(("elementwise",), objective=kind)).maps[0].values for kind in ("logit", "contrast")]
    assert not np.allclose(*drawn)
    with pytest.raises(ExplainError, match="choose one of logit, logprob, contrast"):
        explain(asked, Request(objective="loss"))


def test_what_does_not_exist_is_refused(llava: TinyModel) -> None:
    asked = ask_tiny(llava, new=1)
    with pytest.raises(ExplainError, match="layer 6: there are 5 blocks of decoder"):
        explain(asked, Request(layers=(2, 6)))
    with pytest.raises(ExplainError, match="layer 3: there are 2 blocks of vision"):
        explain(asked, Request(("gradcam",), where=("vision",), layers=(3,)))
    with pytest.raises(ExplainError, match="method 'lime': choose from elementwise"):
        explain(asked, Request(methods=("lime",)))
    with pytest.raises(ExplainError, match="where 'tower': choose from vision, projector, decoder"):
        explain(asked, Request(where=("tower",)))
    with pytest.raises(ExplainError, match="add where 'decoder'"):
        explain(asked, Request(methods=("attn",), where=("vision",)))
    assert explain(asked, Request(layers=(2, 4))).maps[0].layers == (2, 4)
    both = explain(asked, Request(("gradcam",), where=("decoder", "vision"), layers=(2, 4))).maps
    assert [found.layers for found in both] == [(2, 4), (2,)], "numbers are those that a place has"


def test_more_than_memory_holds_is_said(llava: TinyModel) -> None:
    asked = ask_tiny(llava, new=1)
    with pytest.raises(ExplainError, match="does not fit into memory: use checkpointing, fewer"):
        explain(asked, Request(smooth=10**12, batch=10**12))


class Quantised(torch.nn.Module):
    """A layer of whole numbers, through which no gradient goes."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.scale = float(layer.weight.detach().abs().max()) / 127
        self.register_buffer("weight", (layer.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x.detach(), self.weight.to(x.dtype) * self.scale)


def test_a_model_without_gradients_says_so_and_still_shows_attention(llava: TinyModel) -> None:
    llava.model.set_output_embeddings(Quantised(llava.model.get_output_embeddings()))
    asked = ask_tiny(llava, new=1)
    with pytest.raises(ExplainError, match="cannot be differentiated .quantised weights.*method 'attn'"):
        explain(asked, Request(("elementwise",)))
    assert explain(asked, Request(("attn",))).maps[0].status[0] == ("ok",) * BLOCKS


def test_a_quantised_decoder_under_a_plain_head_says_so(llava: TinyModel) -> None:
    decoder = ask_tiny(llava, new=1).decoder
    for block in decoder.blocks:
        for name, layer in list(block.named_modules()):
            if isinstance(layer, torch.nn.Linear):
                block.set_submodule(name, Quantised(layer))
    asked = ask_tiny(llava, new=1)
    with pytest.raises(ExplainError, match="cannot be differentiated .quantised weights"):
        explain(asked, Request(("elementwise",)))
    assert explain(asked, Request(("attn",))).maps[0].status[0] == ("ok",) * BLOCKS


def test_autograd_switched_off_by_the_host_is_no_obstacle(llava: TinyModel) -> None:
    asked = ask_tiny(llava)
    wanted = explain(asked, Request(("elementwise",))).maps[0].values
    with torch.no_grad():
        np.testing.assert_array_equal(explain(asked, Request(("elementwise",))).maps[0].values, wanted)
    with torch.inference_mode():
        np.testing.assert_array_equal(explain(asked, Request(("elementwise",))).maps[0].values, wanted)


def traces(model: torch.nn.Module) -> Any:
    """Everything a call could leave on a model: hooks, own attributes, flags."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(m.__dict__)) for m in model.modules()]
    return hooks, [p.requires_grad for p in model.parameters()], model.training, [p.grad for p in model.parameters()]


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_nothing_survives_a_call(llava: TinyModel) -> None:
    asked = ask_tiny(llava, setting="l2_k5")
    request = Request(where=("decoder", "vision"), per_token=True, checkpointing=True)
    explain(asked, request)
    before, count = traces(llava.model), tensors()
    for _ in range(50):
        explain(asked, request)
    assert traces(llava.model) == before
    assert tensors() <= count


def test_nothing_survives_an_exception(llava: TinyModel) -> None:
    asked = ask_tiny(llava)
    explain(asked)
    before, count = traces(llava.model), tensors()

    def fail(*_args: Any) -> None:
        raise ValueError("in the middle of a forward call")

    handle = llava.model.get_output_embeddings().register_forward_hook(fail)
    for checkpointing in (False, True):
        with pytest.raises(ValueError, match="in the middle"):
            explain(asked, Request(checkpointing=checkpointing))
    handle.remove()
    assert traces(llava.model) == before
    assert tensors() <= count
    assert asked.decoder.kernel == "sdpa"


def test_a_tower_that_shows_no_attention_is_named(llava: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CLIP's in transformers 4.49, which does not attend through the attention interface."""
    asked = ask_tiny(llava, new=1)
    monkeypatch.setattr(type(asked.decoder), "vision_probe", lambda *_: nullcontext())
    with pytest.raises(ExplainError, match="tower: this release of transformers does not show"):
        explain(asked, Request(("attn",), tower=True))
