"""Truncation, sweep and explanations through transformers' own path for flash kernels, the kernel itself emulated.

Flash kernels run on a GPU only. What stands around them runs anywhere: the masks of padding, the unpadding, and the
look-up of the kernel by the name in the module's config.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
import transformers.modeling_flash_attention_utils as flash
from explain_box import ask_tiny
from sweepbox import Host, grid
from tiny_models import TinyModel

from redrel_vlmeval.explain.maps.gradcam import Request, explain
from redrel_vlmeval.sweep import Sweeper
from redrel_vlmeval.truncation import truncated

pytestmark = pytest.mark.skipif(
    transformers.__version__ < "5", reason="older transformers looks its flash kernels up otherwise"
)
LAYOUTS = {
    "padded": ["ttttIttttt", "ttItt"],
    "equal lengths": ["ttttIttttt", "t" * 26],
    "two pictures": ["tttI" + "t" * 20, "ttItIttt"],
}


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: Any = None, causal: bool = False, **_: Any):
    """What the kernel computes: q [b, s, h, d], the last query at the last key."""
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], 2).transpose(1, 2) for t in (k, v))
    mask = torch.ones(q.shape[1], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[1]) if causal else None
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(q.transpose(1, 2), k, v, attn_mask=mask, scale=softmax_scale).transpose(1, 2)


def packed(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale=None, causal=False, **_: Any):
    """The same for rows without padding, one behind the other."""
    rows = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
    return torch.cat([dense(q[None, a:b], k[None, c:d], v[None, c:d], softmax_scale, causal)[0] for a, b, c, d in rows])


@pytest.fixture
def fast(llava: TinyModel, monkeypatch: pytest.MonkeyPatch) -> TinyModel:
    """The tiny LLaVA with flash_attention_2 in all its modules."""
    known = flash._lazy_imports

    def kernels(implementation: str | None, *args: Any, **kwargs: Any) -> Any:
        if implementation == "flash_attention_2":
            return dense, packed, None, flash._pad_input, flash._unpad_input
        return known(implementation, *args, **kwargs)

    monkeypatch.setattr(flash, "_lazy_imports", kernels)
    use(llava.model, "flash_attention_2")
    return llava


def use(model: torch.nn.Module, kernel: str) -> None:
    """As ``set_attn_implementation``, which refuses flash kernels where they are not installed."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = kernel


def tokens(model: Any, inputs: dict[str, torch.Tensor], setting: str) -> list[list[int]]:
    with torch.inference_mode(), truncated(model, setting):
        return model.generate(**inputs, max_new_tokens=5, do_sample=False).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("setting", ["l2_k5", "l0_k0", "l1_r50_l3_k2", "l2_k5_random"])
def test_answers_are_those_of_sdpa(fast: TinyModel, layout: str, setting: str) -> None:
    inputs = fast.batch(LAYOUTS[layout])
    found = tokens(fast.model, inputs, setting)
    use(fast.model, "sdpa")
    assert found == tokens(fast.model, inputs, setting)


def test_a_sweep_answers_as_with_sdpa(fast: TinyModel) -> None:
    settings = grid((0, 1, 3), (0, 5), ("attention", "random"))
    found = []
    for kernel in ("flash_attention_2", "sdpa"):
        use(fast.model, kernel)
        found.append(
            {name: one.text for name, one in Sweeper(Host(fast.model), settings).answer(fast.prompt()).items()}
        )
    assert found[0] == found[1] and len(found[0]) > 8


@pytest.mark.parametrize("setting", [None, "l2_k5"])
def test_maps_are_those_of_sdpa(fast: TinyModel, setting: str | None) -> None:
    request = Request(methods=("elementwise", "attn", "attn_grad"), where=("vision", "decoder"), tower=True)
    found = explain(ask_tiny(fast, setting=setting), request)
    use(fast.model, "sdpa")
    for one, other in zip(found.maps, explain(ask_tiny(fast, setting=setting), request).maps, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=1e-5, rtol=1e-4)
