"""Shares equal those of eager attention, curves say what a cut changes, bands hold what they claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from explain_box import ask_tiny
from tiny_models import BLOCKS, TinyModel

from redrel_vlmeval.bench.subjects import set_kernel
from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask.asking import Asked
from redrel_vlmeval.explain.ask.spans import GROUPS
from redrel_vlmeval.explain.maps import flow as flows
from redrel_vlmeval.explain.maps.bands import band, flat_from, flat_interval
from redrel_vlmeval.explain.maps.flow import attention_flow, causal_curve, curves, flow, gradient_flow
from redrel_vlmeval.explain.maps.formulas import objective
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import truncated


def eager(asked: Asked) -> list[torch.Tensor]:
    """Whole attention matrices of every decoder block, [h, s, s]."""
    set_kernel(asked.model, "eager")
    with torch.no_grad():
        found = asked.model(**asked.sequence(), use_cache=False, output_attentions=True).attentions
    set_kernel(asked.model, "sdpa")
    return [weights[0] for weights in found]


def test_shares_are_those_of_eager_attention(family: TinyModel) -> None:
    asked = ask_tiny(family)
    for rows in ("predict", "emit"):
        shares, mean = attention_flow(asked, rows)
        spans = asked.spans(rows)
        assert shares.shape == (BLOCKS, 4, 3, 5)
        np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
        for layer, weights in enumerate(eager(asked)):
            chosen = weights[:, spans.rows].numpy()
            np.testing.assert_allclose(mean[layer], chosen.mean(0), atol=1e-5)
            for number in range(len(GROUPS)):
                wanted = chosen[..., spans.group == number].sum(-1)
                np.testing.assert_allclose(shares[layer, ..., number], wanted, atol=1e-5)
    assert asked.decoder.kernel == "sdpa"


def test_saliency_is_attention_times_its_own_gradient(llava: TinyModel) -> None:
    asked = ask_tiny(llava)
    _, saliency = gradient_flow(asked)
    set_kernel(asked.model, "eager")
    asked.model.requires_grad_(True)
    out = asked.model(**asked.sequence(), use_cache=False, output_attentions=True)
    spans = asked.spans()
    z = objective(out.logits[:, spans.predict], asked.answer, "logit").sum()
    slopes = torch.autograd.grad(z, out.attentions)
    set_kernel(asked.model, "sdpa")
    for layer, (weights, slope) in enumerate(zip(out.attentions, slopes, strict=True)):
        change = (weights * slope)[0, :, spans.predict].sum(0).abs().detach().numpy()
        for number in range(len(GROUPS)):
            wanted = change[:, spans.group == number].sum(-1)
            np.testing.assert_allclose(saliency[layer, :, number], wanted, atol=1e-5, rtol=1e-4)


def test_gradient_shares_sum_to_one_and_the_last_block_needs_no_row_after_the_answer(llava: TinyModel) -> None:
    asked = ask_tiny(llava)
    share, _ = gradient_flow(asked)
    np.testing.assert_allclose(share.sum(-1), 1, atol=1e-5)
    assert (share[:, GROUPS.index("img")] > 0).all()


def test_the_causal_curve_is_the_engines(llava: TinyModel) -> None:
    asked = ask_tiny(llava, new=1)
    found = causal_curve(asked)
    assert found.shape == (BLOCKS + 1,)
    margins = []
    with torch.no_grad():
        for layer in range(BLOCKS):
            with truncated(asked.model, f"l{layer}_k0"):
                margins.append(asked.model(**asked.inputs).logits[:, -1:])
        margins.append(asked.model(**asked.inputs).logits[:, -1:])
    wanted = [float(objective(logits, asked.answer, "contrast")) for logits in margins]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert found[-1] > 0  # the model's own answer, greedily


def test_under_a_variant_a_cut_comes_on_top(llava: TinyModel) -> None:
    asked = ask_tiny(llava, setting="l2_k5")
    assert str(flows.cut(asked, 1)) == "l1_k0"
    assert str(flows.cut(asked, 2)) == "l2_k0"
    assert str(flows.cut(asked, 4)) == "l2_k5_l4_k0"
    assert flows.cut(asked, BLOCKS) is asked.spec
    shares, mean = attention_flow(asked)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    image = mean[:, 0, asked.spans().image]
    assert (image[:2] > 0).all()
    assert [(row > 0).sum() for row in image[2:]] == [5, 5, 5]
    assert np.isfinite(causal_curve(asked)).all()


def test_flow_leaves_the_trained_weights_trainable_and_the_mode_as_it_was(llava: TinyModel) -> None:
    asked = ask_tiny(llava, new=1)
    llava.model.train()
    before = {name: p.clone() for name, p in llava.model.named_parameters()}
    with torch.no_grad():  # the host switches autograd off for the whole process
        found = flow(asked, cuts=False)
    assert found.gradient is not None and found.causal is None and found.flat_from is None
    assert all(p.requires_grad and torch.equal(p, before[name]) for name, p in llava.model.named_parameters())
    assert llava.model.training


def test_a_curve_is_flat_from_where_it_stays() -> None:
    assert flat_from(np.array([0, 1, 9.5, 4, 9.2, 9.8, 10])) == 4
    assert flat_from(np.array([0.0, 0, 0, 10])) == 3
    assert flat_from(np.array([5.0, 5, 5])) == 0
    assert flat_from(np.array([10.0, 3, 0.5, 0])) == 2  # a falling curve goes flat, too


def test_bands_hold_the_mean_and_narrow_with_more_questions() -> None:
    rng = np.random.default_rng(0)
    few, many = band(rng.normal(size=(10, 3))), band(rng.normal(size=(400, 3)))
    assert (few.low < few.mean).all() and (few.mean < few.high).all()
    assert ((many.high - many.low) < (few.high - few.low)).all()
    np.testing.assert_allclose(many.high - many.low, 2 * 1.96 / 20, rtol=0.25)
    assert band(rng.normal(size=(9, 3))).low is None, "too few to draw from"
    holed = band(np.array([[1.0, np.nan], [3.0, np.nan]]))
    assert holed.mean[0] == 2 and np.isnan(holed.mean[1])
    with pytest.raises(ExplainError, match="no question"):
        band([])


def test_bands_resample_pictures() -> None:
    """Four questions of each picture that are alike say no more than one of them."""
    values = np.random.default_rng(1).normal(size=(20, 3)).repeat(4, axis=0)
    names = [number // 4 for number in range(80)]
    width = [found.high - found.low for found in (band(values, names), band(values[::4]), band(values))]
    np.testing.assert_allclose(width[0], width[1])
    np.testing.assert_allclose(width[0], 2 * width[2], rtol=0.15)
    causal = np.cumsum(np.random.default_rng(2).random((20, 6)), axis=1)
    assert len(flat_interval(causal)) == 3 and flat_interval(causal[:9]) == (flat_from(causal[:9].mean(0)),)


def test_curves_of_a_benchmark(llava: TinyModel) -> None:
    found = [flow(ask_tiny(llava, layout, new=2)) for layout in ("tIttt", "ttItttttt")]
    drawn = curves(found)
    assert drawn.attention.mean.shape == (BLOCKS, 5) and drawn.attention.questions == 2
    assert drawn.attention.low is None and len(drawn.flat_from) == 1, "two questions have no band"
    assert drawn.causal is not None and drawn.causal.mean.shape == (BLOCKS + 1,)
    many = curves(found * 6)
    at, low, high = many.flat_from
    assert low <= at <= high and many.attention.low.shape == (BLOCKS, 5)
    assert curves(found * 6, ["a", "b"] * 6).causal.high is None, "twelve questions on two pictures"
    rows = flows.records(found[0], "7")
    assert len(rows) == BLOCKS * 5
    assert sum(row["attention"] for row in rows[:5]) == pytest.approx(1, abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(float(found[0].causal[1]))


def test_unknown_rows_are_refused(llava: TinyModel) -> None:
    with pytest.raises(ExplainError, match="choose one of predict, emit"):
        attention_flow(ask_tiny(llava), "last")


def test_official_mode_explains_one_token_only(llava: TinyModel) -> None:
    asked = replace(ask_tiny(llava), spec=parse("l2_k5_official"), own=False)
    with pytest.raises(ExplainError, match="explain one token"):
        attention_flow(asked)
    shares, _ = attention_flow(asked.with_answer(asked.answer[:1]))
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
