"""What makes Qwen-VL's own code faster changes nothing that it computes: attention, logits, features of pictures."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from qwen_checkpoint import write_checkpoint
from qwen_prompts import batch, image_ids, picture

from redrel_vlmeval.models.qwen.core import QwenCore

LOWEST = torch.finfo(torch.float32).min


@pytest.fixture(scope="module")
def cores(tmp_path_factory) -> dict[str, QwenCore]:
    folder = str(write_checkpoint(tmp_path_factory.mktemp("kernel") / "kernel", seq_length=300))
    return {attn: QwenCore(folder, device="cpu", attn=attn) for attn in ("sdpa", "eager")}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> dict[str, torch.Tensor]:
    """A row with a picture, and one of two pictures, longer than the trained length, that pads the first."""
    return batch(tmp_path_factory.mktemp("pictures"), ["tItttt", "ttItIt"])


def tensors(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(queries)
    sizes = {"query": queries, "key": keys, "value": keys}
    return {name: torch.randn(2, 4, n, 32, generator=generator).to(dtype) for name, n in sizes.items()}


def causal(queries: int, keys: int, padded: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The code's own mask [2, 1, q, k], row 1 left-padded: where both parts hide a key their sum is -inf."""
    future = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    lowest = torch.finfo(dtype).min
    mask = torch.zeros(2, 1, queries, keys).masked_fill(future, lowest).to(dtype)
    mask[1, :, :, :padded] += lowest
    return mask


# attention


@pytest.mark.parametrize("queries, keys, padded", [(40, 40, 0), (40, 40, 13), (1, 40, 13), (1, 40, 0), (7, 40, 5)])
def test_attention_is_the_codes_own(cores, queries, keys, padded):
    ours, own = (core.model.transformer.h[1].attn._attn for core in cores.values())
    given, mask = tensors(queries, keys), causal(queries, keys, padded)
    assert torch.isinf(mask).any() == (padded > 0 and queries == keys)
    out, weights = ours(**given, registered_causal_mask=None, attention_mask=mask)
    expected, _ = own(**given, registered_causal_mask=None, attention_mask=mask)
    assert weights is None and out.shape == expected.shape == (2, queries, 4, 32)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_attention_in_bfloat16_is_as_close_to_the_truth_as_the_codes_own(cores):
    ours, own = (core.model.transformer.h[1].attn._attn for core in cores.values())
    exact = tensors(40, 40, torch.bfloat16)
    truth, _ = own(
        **{k: v.float() for k, v in exact.items()}, registered_causal_mask=None, attention_mask=causal(40, 40, 3)
    )
    mask = causal(40, 40, 3, torch.bfloat16)
    errors = [
        (attend(**exact, registered_causal_mask=None, attention_mask=mask)[0].float() - truth)[:, 3:].abs().max()
        for attend in (ours, own)
    ]
    assert errors[0] <= 1.5 * errors[1] < 0.05


def test_a_row_that_sees_nothing_is_no_nan_where_the_code_gives_none(cores):
    """Rows of padding hide every key by the lowest number, none by -inf: their softmax is even, not NaN."""
    ours = cores["sdpa"].model.transformer.h[0].attn._attn
    mask = torch.zeros(2, 1, 6, 6)
    mask[1, :, :3] = LOWEST
    out, _ = ours(**tensors(6, 6), registered_causal_mask=None, attention_mask=mask)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[1, 0], tensors(6, 6)["value"][1].mean(1), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_are_the_codes_own_with_padding_and_beyond_the_trained_length(cores, prompts, use_cache):
    ours, own = (core.model(**prompts, use_cache=use_cache) for core in cores.values())
    assert prompts["input_ids"].shape[1] > 300 and not prompts["attention_mask"].all()
    torch.testing.assert_close(ours.logits, own.logits, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(ours.logits).all()


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_generated_tokens_are_the_codes_own(cores, prompts, beams):
    keywords = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams}
    ours, own = (core.model.generate(**prompts, **keywords) for core in cores.values())
    assert torch.equal(ours, own) and len(ours) == 2


def test_its_name_can_be_read(cores):
    kernels = {
        attn: {getattr(block.attn._attn, "kernel", "eager") for block in core.model.transformer.h}
        for attn, core in cores.items()
    }
    assert kernels == {"sdpa": {"sdpa"}, "eager": {"eager"}}


@torch.no_grad()
@pytest.mark.parametrize("way", ["argument", "config", "inner"])
def test_attention_weights_are_given_where_they_are_asked_for(cores, prompts, way, monkeypatch):
    models = [core.model for core in cores.values()]
    calls = [model.transformer if way == "inner" else model for model in models]
    keywords = {} if way == "config" else {"output_attentions": True}
    if way == "config":
        for model in models:
            monkeypatch.setattr(model.config, "output_attentions", True)
    ours, own = (call(**prompts, **keywords).attentions for call in calls)
    assert len(ours) == len(own) == 3
    for one, other in zip(ours, own, strict=True):
        assert torch.equal(one, other) and one.shape[-1] == prompts["input_ids"].shape[1]
    monkeypatch.undo()
    assert calls[0](**prompts).attentions is None
    _, weights = models[0].transformer.h[0].attn._attn(**tensors(3, 3), registered_causal_mask=None)
    assert weights is None  # asked for once is not asked for ever


@torch.no_grad()
def test_a_head_mask_goes_to_the_codes_own(cores):
    heads = torch.zeros(3, 4)
    heads[1, 2] = 1
    ours, own = (core.model(torch.arange(30)[None], head_mask=heads).logits for core in cores.values())
    assert torch.equal(ours, own)


# logits of the last position


@pytest.fixture
def head(cores):
    """How many positions the head of the SDPA model saw, call by call."""
    seen: list[int] = []
    model = cores["sdpa"].model
    handle = model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    yield SimpleNamespace(model=model, seen=seen)
    handle.remove()


@torch.no_grad()
def test_generation_computes_the_last_positions_logits_only(head, prompts):
    head.model.generate(**prompts, max_new_tokens=3, min_new_tokens=3)
    head.model.generate(**prompts, max_new_tokens=2, min_new_tokens=2, use_cache=False)
    assert head.seen == [1] * 5
    assert head.model(**prompts).logits.shape[:2] == prompts["input_ids"].shape


@torch.no_grad()
def test_a_generation_that_fails_leaves_all_positions_to_the_next_call(head, prompts):
    def stop(ids, scores):
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        head.model.generate(**prompts, max_new_tokens=3, logits_processor=[stop])
    assert head.model(**prompts).logits.shape[:2] == prompts["input_ids"].shape


@pytest.mark.parametrize("keywords, last_only", [({}, True), ({"prompt_lookup_num_tokens": 3}, False)])
def test_generation_that_reads_several_positions_has_them(head, monkeypatch, keywords, last_only):
    seen = []
    generate = lambda self, *args, **kwargs: seen.append(self.lm_head.redrel_last_only)  # noqa: E731
    monkeypatch.setattr(type(head.model), "generate", generate)
    head.model.generate(torch.arange(5)[None], **keywords)
    assert seen == [last_only]


# pictures


@pytest.fixture
def tower(cores, tmp_path):
    """How many pictures the vision tower was given, call by call."""
    model = cores["sdpa"].model
    visual, seen = model.transformer.visual, []
    visual.redrel_features = {}
    handle = visual.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    yield SimpleNamespace(model=model, visual=visual, seen=seen, paths=[str(picture(tmp_path, n)) for n in range(3)])
    handle.remove()


def prompt(*paths: str) -> torch.Tensor:
    return torch.tensor([[5, *[token for path in paths for token in image_ids(Path(path))], 6, 7]])


@torch.no_grad()
@pytest.mark.parametrize("keywords", [{"use_cache": False}, {"num_beams": 3}, {"num_beams": 2, "use_cache": False}])
def test_a_picture_is_encoded_once_a_question(tower, keywords):
    ids = prompt(tower.paths[0], tower.paths[1], tower.paths[0])
    tower.model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, **keywords)
    assert tower.seen == [2]


@torch.no_grad()
def test_features_are_the_codes_own_in_their_order(tower, cores):
    paths = [tower.paths[n] for n in (1, 0, 1, 2)]
    expected = torch.cat([cores["eager"].model.transformer.visual.encode([path]) for path in paths])
    torch.testing.assert_close(tower.visual.encode(paths), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tower.visual.encode(paths[::-1]), expected.flip(0), rtol=1e-5, atol=1e-5)
    assert tower.seen == [3]


@torch.no_grad()
def test_only_what_is_new_is_encoded_and_only_the_last_call_is_kept(tower):
    tower.visual.encode(tower.paths[:2])
    tower.visual.encode(tower.paths[1:])
    tower.visual.encode(tower.paths[:1])
    assert tower.seen == [2, 1, 1] and len(tower.visual.redrel_features) == 1


@torch.no_grad()
def test_a_changed_file_is_encoded_again(tower):
    path = tower.paths[0]
    before = tower.visual.encode([path])
    data = Path(tower.paths[1]).read_bytes()
    Path(path).write_bytes(data)
    os.utime(path, ns=(1, 1))
    assert not torch.allclose(tower.visual.encode([path]), before, atol=1e-3)
    assert tower.seen == [1, 1]


def test_with_gradients_nothing_is_kept(tower):
    with torch.enable_grad():
        for _ in range(2):
            assert tower.visual.encode(tower.paths[:1]).requires_grad
    assert tower.seen == [1, 1] and tower.visual.redrel_features == {}


@torch.no_grad()
def test_a_deep_copy_has_a_kernel_of_its_own(cores):
    ids = torch.arange(12)[None]
    other = copy.deepcopy(cores["sdpa"].model)
    assert other.transformer.h[0].attn._attn.__self__ is other.transformer.h[0].attn
    before = cores["sdpa"].model(ids).logits
    for parameter in other.parameters():
        parameter.zero_()
    assert torch.equal(cores["sdpa"].model(ids).logits, before) and not other(ids).logits.any()
    assert not other.generate(ids, max_new_tokens=1, min_new_tokens=1, eos_token_id=None)[0, -1]
