"""Loading Qwen-VL's own code leaves no trace outside of it, and what newer transformers broke in it works again."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import save_llava
from qwen_checkpoint import write_checkpoint

from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.qwen import compat
from redrel_vlmeval.models.qwen.compat import FONT, STREAM, importable
from redrel_vlmeval.models.qwen.core import QwenCore


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("compat") / "compat", chat=True)


@pytest.fixture(scope="module")
def core(folder) -> QwenCore:
    return QwenCore(str(folder), chat=True, device="cpu", max_new_tokens=5)


@pytest.fixture(scope="module")
def eager(folder) -> QwenCore:
    """The code's own attention, which adds whatever mask it is given."""
    return QwenCore(str(folder), chat=True, device="cpu", attn="eager")


def question(text: str = "What is it?") -> list[dict[str, str]]:
    return [{"type": "text", "value": text}]


# what loading leaves behind


def shared_state() -> dict[str, object]:
    """What other models' loading and generating depends on."""
    owners = [transformers.PreTrainedModel, transformers.GenerationMixin, transformers.GenerationConfig]
    owners += [transformers.LlavaForConditionalGeneration, torch.nn.Linear, torch.Tensor, torch]
    state: dict[str, object] = {
        f"{owner.__name__}.{key}": id(value) for owner in owners for key, value in vars(owner).items()
    }
    state["font"] = transformers.utils.try_to_load_from_cache
    state["stub"] = sys.modules.get(STREAM)
    state["dtype"], state["grad"] = torch.get_default_dtype(), torch.is_grad_enabled()
    return state


def test_loading_changes_nothing_outside_of_the_code_and_writes_nothing_here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fresh = write_checkpoint(tmp_path / "fresh")  # a folder's name is its modules': this code has not run yet
    before = shared_state()
    QwenCore(str(fresh), device="cpu", max_new_tokens=2).reply(question())
    after = shared_state()
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert {key for key in changed if not key.endswith("__slotnames__")} == set()  # that one is Python's, by copying
    assert os.listdir(tmp_path / "here") == []


def test_loading_twice_with_llava_between_gives_the_same_answers(folder, tmp_path):
    save_llava(tmp_path)
    llava = LlavaCore(str(tmp_path), device="cpu", max_new_tokens=5).reply(question())
    first = QwenCore(str(folder), chat=True, device="cpu", max_new_tokens=5)
    answers = [first.reply(question())]
    between = LlavaCore(str(tmp_path), device="cpu", max_new_tokens=5)
    assert between.reply(question()) == llava
    assert not any("redrel" in key for kind in type(between.model).__mro__ for key in vars(kind))
    second = QwenCore(str(folder), chat=True, device="cpu", max_new_tokens=5)
    answers += [second.reply(question()), first.reply(question())]
    assert len(set(answers)) == 1
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other) and one is not other


def test_mending_again_wraps_nothing_twice(core):
    kind = type(core.model)
    before = dict(vars(kind))
    compat.mend(kind)
    assert dict(vars(kind)) == before
    assert not hasattr(kind.generate.__wrapped__, "__wrapped__")


def test_both_contexts_end_after_an_error(folder):
    before = (transformers.utils.try_to_load_from_cache, sys.modules.get(STREAM))
    with pytest.raises(KeyError), importable():
        assert STREAM in sys.modules
        assert transformers.utils.try_to_load_from_cache is not before[0]
        raise KeyError("from within")
    assert (transformers.utils.try_to_load_from_cache, sys.modules.get(STREAM)) == before


def test_a_stream_generator_that_works_stays(monkeypatch):
    real = types.ModuleType(STREAM)
    monkeypatch.setitem(sys.modules, STREAM, real)
    with importable():
        assert sys.modules[STREAM] is real
    assert sys.modules[STREAM] is real


def test_a_stream_generator_that_fails_is_replaced_for_the_time(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, STREAM, raising=False)
    (tmp_path / f"{STREAM}.py").write_text("from transformers import a_name_that_is_gone")
    monkeypatch.syspath_prepend(tmp_path)
    with importable():
        assert sys.modules[STREAM].__dict__.get("__file__") is None
    assert STREAM not in sys.modules


def test_the_font_is_found_without_a_download(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    look_up = transformers.utils.try_to_load_from_cache
    with importable():
        found = transformers.utils.try_to_load_from_cache("Qwen/Qwen-VL-Chat", FONT)
        assert Path(found).is_file() and found.endswith(".ttf")
        assert transformers.utils.try_to_load_from_cache("Qwen/Qwen-VL-Chat", "other.ttf") is None
        Path(FONT).touch()
        assert transformers.utils.try_to_load_from_cache("Qwen/Qwen-VL-Chat", FONT) is None
    monkeypatch.setattr(transformers.utils, "try_to_load_from_cache", lambda *args: "/cached/SimSun.ttf")
    with importable():
        assert transformers.utils.try_to_load_from_cache("Qwen/Qwen-VL-Chat", FONT) == "/cached/SimSun.ttf"
    monkeypatch.undo()
    assert transformers.utils.try_to_load_from_cache is look_up


# what works again


def test_tables_hold_the_codes_own_values(core):
    rotary, attention = core.model.transformer.rotary_emb, core.model.transformer.h[-1].attn
    fresh = type(rotary)(rotary.dim, rotary.base)
    assert torch.equal(rotary.inv_freq, fresh.inv_freq) and fresh.inv_freq.device.type == "cpu"
    made = type(attention)(core.model.config)
    assert torch.equal(attention.logn_tensor, made.logn_tensor) and made.logn_tensor.device.type == "cpu"
    assert attention.logn_tensor[0, 4095, 0, 0] > attention.logn_tensor[0, 2047, 0, 0] == 1


def test_another_tensor_without_values_is_named(folder):
    with importable():
        code = compat.remote_code(str(folder))
        config = code.config.from_pretrained(str(folder))
        with torch.device("meta"):
            model = code.model(config)
    with pytest.raises(RuntimeError, match=r"transformer\.wte\.weight was left without values"):
        compat.restore_tables(model)


@torch.no_grad()
def test_steps_with_a_cache_and_no_mask_equal_one_pass(eager):
    ids = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(1))
    whole = eager.model(ids).logits
    past = eager.model(ids[:, :6], use_cache=True).past_key_values
    for place in range(6, 9):
        step = eager.model(ids[:, place : place + 1], past_key_values=past, use_cache=True)
        past = step.past_key_values
        torch.testing.assert_close(step.logits[:, 0], whole[:, place], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_and_without_a_cache_agree(eager, beams):
    ids = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(2))
    keywords = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "min_new_tokens": 6}
    cached, anew = (eager.model.generate(ids, use_cache=use, **keywords) for use in (True, False))
    assert cached.shape == (2, 15) and torch.equal(cached, anew)


@torch.no_grad()
@pytest.mark.parametrize("given", [True, False])
def test_every_step_of_a_generation_has_a_mask_of_the_length_so_far(core, given):
    """Newer releases leave a mask of ones out; without it the code cannot tell how much is behind a shortened cache."""
    seen = []
    note = lambda block, args, kwargs: seen.append(tuple(kwargs["attention_mask"].shape))  # noqa: E731
    handle = core.model.transformer.h[0].register_forward_pre_hook(note, with_kwargs=True)
    ids = torch.arange(5)[None]
    mask = {"attention_mask": torch.ones_like(ids)} if given else {}
    try:
        core.model.generate(ids, max_new_tokens=3, min_new_tokens=3, **mask)
    finally:
        handle.remove()
    assert seen == [(1, 1, 5, 5), (1, 1, 1, 6), (1, 1, 1, 7)]


def test_a_step_knows_its_length_by_the_ids_so_far_not_by_the_cache(core):
    """Block 1's cache may have been shortened."""
    short = ((torch.zeros(1, 2, 4, 32), torch.zeros(1, 2, 4, 32)),)
    inputs = core.model.prepare_inputs_for_generation(torch.arange(9)[None], past_key_values=short, use_cache=True)
    assert inputs["attention_mask"].shape == (1, 9) and inputs["input_ids"].tolist() == [[8]]


@torch.no_grad()
def test_a_config_and_keywords_go_together_and_the_config_stays(core, caplog, recwarn):
    ids = torch.arange(5)[None]
    config = transformers.GenerationConfig(max_new_tokens=3, eos_token_id=None, pad_token_id=0, do_sample=False)
    before = config.to_dict()
    assert core.model.generate(ids, generation_config=config, max_new_tokens=7).shape == (1, 12)
    assert config.to_dict() == before
    assert "deprecated" not in caplog.text and not [w for w in recwarn if "generation" in str(w.message)]


@torch.no_grad()
def test_head_masks_work_as_they_did(core):
    ids, heads = torch.arange(40)[None], core.model.config.num_attention_heads
    whole = core.model(ids).logits
    ones, zeros = torch.ones(heads), torch.ones(len(core.model.transformer.h), heads)
    torch.testing.assert_close(core.model(ids, head_mask=ones).logits, whole, rtol=1e-5, atol=1e-5)
    zeros[1, 2] = 0
    assert not torch.allclose(core.model(ids, head_mask=zeros).logits, whole, atol=1e-3)
