"""The stand-in for Qwen-VL's remote code has the original's names, numbers and faults.

``REDREL_QWEN_VL=<folder with the hub's .py files>`` puts the original beside it; without that the stand-in is held to
what the contract says of it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from qwen_checkpoint import ENDOFTEXT, IMAGE_START, STAND_IN
from qwen_code import HEADS, Code, asked, outputs

ORIGINAL = os.environ.get("REDREL_QWEN_VL")
beside_the_original = pytest.mark.skipif(
    not ORIGINAL, reason="REDREL_QWEN_VL names no folder with the original's files to compare with"
)
SPAN = 256
LINES = [{"text": "Which? "}, {"image": "/a/b.png"}, {"image": "/ü c.png"}, {"text": "Answer:"}]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Callable[[str], Code]]:
    """Remote code by name; the font it looks for while it is imported is found, so that nothing is fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.try_to_load_from_cache", lambda *_, **__: "no.ttf")
        folders = {"standin": STAND_IN, "original": Path(ORIGINAL or "")}
        yield lambda name: Code(folders[name], f"qwen_code_{name}")
    for name in [name for name in sys.modules if name.startswith("qwen_code_")]:
        del sys.modules[name]


@pytest.fixture
def ours(loaded) -> Code:
    return loaded("standin")


@pytest.fixture
def theirs(loaded) -> Code:
    return loaded("original")


@pytest.fixture
def tokenizer(ours, tmp_path) -> Any:
    return ours.tokenizer(tmp_path)


@pytest.fixture
def picture(tmp_path) -> str:
    path = tmp_path / "ü one.png"
    Image.frombytes("RGB", (9, 7), bytes(range(189))).save(path)
    return str(path)


@pytest.fixture
def prompts(picture, tmp_path) -> dict[str, list[str]]:
    other = tmp_path / "two.jpg"
    Image.linear_gradient("L").resize((20, 30)).save(other)
    two = f"a <img>{picture}</img> and <img>{other}</img> differ?"
    return {"text": ["no picture"], "one": [f"Q <img>{picture}</img> A:"], "two": [two], "batch": ["short", two]}


@beside_the_original
@pytest.mark.parametrize("seq_length", [2048, 64], ids=["plain", "ntk+logn"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("layout", ["text", "one", "two", "batch"])
def test_every_number_is_the_originals(ours, theirs, tokenizer, prompts, layout, use_cache, seq_length) -> None:
    batch = asked(tokenizer, prompts[layout])
    mine, wanted = (outputs(code.model(seq_length=seq_length), batch, use_cache) for code in (ours, theirs))
    assert mine.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(mine[name], wanted[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@beside_the_original
def test_weights_have_the_originals_names_and_shapes(ours, theirs) -> None:
    mine, wanted = ({n: tuple(t.shape) for n, t in code.model().state_dict().items()} for code in (ours, theirs))
    assert mine == wanted


@beside_the_original
def test_tables_are_the_originals(ours, theirs) -> None:
    made = []
    for code in (ours, theirs):
        model = code.model(seq_length=64).transformer
        visual = code.visual.VisionTransformer(56, 14, 32, 1, 2, 2.0, output_dim=128)
        assert [name for name, _ in model.named_buffers()] == [f"h.{i}.attn.masked_bias" for i in range(2)]
        rotary = [*model.rotary_emb(70, offset=3), *model.rotary_emb(5, ntk_alpha=3)]
        made.append([model.rotary_emb.inv_freq, model.h[1].attn.logn_tensor, *rotary, visual.attn_pool.pos_embed])
    torch.testing.assert_close(*made)


@beside_the_original
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"use_cache": False}], ids=["greedy", "beams", "no-cache"])
def test_generated_ids_are_the_originals(ours, theirs, tokenizer, prompts, how) -> None:
    batch = asked(tokenizer, prompts["batch"])
    mine, wanted = (code.generator().generate(**batch, do_sample=False, **how).tolist() for code in (ours, theirs))
    assert mine == wanted


@beside_the_original
def test_two_turns_of_chat_are_the_originals(ours, theirs, tmp_path, picture) -> None:
    said = []
    for code in (ours, theirs):
        model, tokenizer = code.generator(), code.tokenizer(tmp_path)
        query = tokenizer.from_list_format([{"image": picture}, {"text": "what?"}])
        _, history = model.chat(tokenizer, query, None, do_sample=False)
        said.append(model.chat(tokenizer, "and then?", history, do_sample=False, stop_words_ids=[[65]]))
    assert said[0] == said[1]
    assert [question for question, _ in said[0][1]] == [query, "and then?"]


@beside_the_original
@pytest.mark.parametrize(
    "text", ["plain", "é\u0301 日本\n", "<|im_start|>x<|im_end|>", "1<img>/ü</img>2<img>/b</img>", "</img>"]
)
def test_ids_and_text_are_the_originals(ours, theirs, tmp_path, text) -> None:
    mine, wanted = (code.tokenizer(tmp_path) for code in (ours, theirs))
    assert mine(text)["input_ids"] == wanted(text)["input_ids"]
    assert mine.tokenize(text, allowed_special=set()) == wanted.tokenize(text, allowed_special=set())
    ids = wanted(text)["input_ids"] + [wanted.im_end_id, wanted.eod_id]
    for how in ({}, {"skip_special_tokens": True}, {"errors": "ignore"}):
        assert mine.decode(ids, **how) == wanted.decode(ids, **how)
    assert len(mine) == len(wanted) == mine.vocab_size
    assert mine.from_list_format(LINES) == wanted.from_list_format(LINES)
    assert mine.image_special_tokens == wanted.image_special_tokens


@beside_the_original
@pytest.mark.parametrize("window", [6144, 330, 1], ids=["all", "some", "none"])
def test_chat_context_is_the_originals(ours, theirs, tmp_path, window) -> None:
    history = [("old <img>/p</img>", "yes"), ("second", None), ("third", "no <|im_end|>")]
    made = []
    for code in (ours, theirs):
        tokenizer, utils = code.tokenizer(tmp_path), code.qwen_generation_utils
        text, ids = utils.make_context(tokenizer, "<img>/q</img>now", history, "sys", window, "chatml")
        answers = [ids + [72, 73, tokenizer.im_end_id, 74], ids + [72, 73, 74], ids]
        decoded = [utils.decode_tokens(a, tokenizer, len(text), len(ids), "chatml") for a in answers]
        made.append((text, ids, decoded, utils.get_stop_words_ids("chatml", tokenizer)))
    assert made[0] == made[1]


@beside_the_original
def test_a_picture_is_encoded_as_by_the_original(ours, theirs, picture) -> None:
    mine, wanted = (code.model().transformer.visual for code in (ours, theirs))
    with torch.no_grad():
        torch.testing.assert_close(mine.encode([picture] * 2), wanted.encode([picture] * 2), rtol=1e-5, atol=1e-5)


# The contract's oddities, by name: each of these is something that other code has to step around.


@pytest.fixture(params=["standin", pytest.param("original", marks=beside_the_original)])
def code(request, loaded) -> Code:
    return loaded(request.param)


def test_the_ids_of_a_picture_are_the_bytes_of_its_path(code, tmp_path) -> None:
    ids = code.tokenizer(tmp_path)("Q<img>/ü.png</img>")["input_ids"]
    start, path = ids.index(IMAGE_START), "/ü.png".encode()
    assert ids[start + 1 : start + 1 + SPAN] == [*path, *[IMAGE_START + 2] * (SPAN - len(path))]
    assert ids[start + 1 + SPAN :] == [IMAGE_START + 1]
    assert ids[0] != ord("Q")  # text goes by rank, not by byte


def test_the_tokenizer_takes_256_bytes_and_the_model_only_254(code, tmp_path) -> None:
    tokenizer, model = code.tokenizer(tmp_path), code.model()
    opened: list[str] = []
    model.transformer.visual.encode = lambda paths: opened.extend(paths) or torch.zeros(len(paths), SPAN, 128)
    with torch.no_grad():
        model(**asked(tokenizer, [f"<img>{'x' * 254}</img>"]))
        assert opened == ["x" * 254]
        for length in (255, 256):
            batch = asked(tokenizer, [f"<img>{'x' * length}</img>"])
            with pytest.raises(ValueError, match="not in list"):
                model(**batch)
    with pytest.raises(ValueError):
        tokenizer(f"<img>{'x' * 257}</img>")


def test_a_picture_that_is_never_closed_is_refused(code, tmp_path) -> None:
    tokenizer = code.tokenizer(tmp_path)
    with pytest.raises(ValueError, match="(?i)closed"):
        tokenizer("look <img>/a.png")
    with pytest.raises(ValueError, match="(?i)closed"):
        tokenizer.decode([IMAGE_START, 65, 66])


def test_pictures_are_opened_at_every_prefill_and_at_no_step(code, tokenizer, prompts) -> None:
    model, batch, opened = code.generator(), asked(tokenizer, prompts["two"]), []
    encode = model.transformer.visual.encode
    model.transformer.visual.encode = lambda paths: opened.append(len(paths)) or encode(paths)
    model.generate(**batch, do_sample=False)
    assert opened == [2]
    model.generate(**batch, do_sample=False, use_cache=False)
    assert opened == [2, *[2] * model.generation_config.max_new_tokens]
    cache = model(torch.arange(5)[None], use_cache=True).past_key_values
    model(torch.tensor([[IMAGE_START]]), past_key_values=cache, attention_mask=torch.ones(1, 6))  # a step's <img>


def test_a_sequence_that_comes_short_to_ln_f_fails(code) -> None:
    model = code.model()
    model.transformer.ln_f.register_forward_pre_hook(lambda module, args: (args[0][:, 1:],))
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        model(torch.arange(5)[None])


@pytest.mark.parametrize("past", [HEADS, HEADS + 1])
def test_the_number_of_heads_is_taken_for_the_length_of_the_past(code, past) -> None:
    model = code.model()
    cache = model(torch.arange(past)[None], use_cache=True).past_key_values
    assert cache[0][0].shape == (1, past, HEADS, 32)
    more = {"attention_mask": torch.ones(1, past + 2), "past_key_values": cache}
    if past == HEADS:
        assert model(torch.tensor([[5, 6]]), **more).logits.shape[1] == 2
    else:
        with pytest.raises(RuntimeError, match="must match the size"):
            model(torch.tensor([[5, 6]]), **more)


def test_a_step_without_a_mask_fails(code) -> None:
    model = code.model()
    cache = model(torch.arange(5)[None], use_cache=True).past_key_values
    with pytest.raises(TypeError, match="NoneType"):
        model(torch.tensor([[5]]), past_key_values=cache)


def test_alpha_is_settled_by_the_first_call_and_the_length_by_block_0(code) -> None:
    model, called = code.model(seq_length=8), []
    rotary = model.transformer.rotary_emb
    rotary.register_forward_pre_hook(lambda m, args, given: called.append((*args, given)), with_kwargs=True)
    cache = model(torch.arange(8)[None], use_cache=True).past_key_values
    short = ((cache[0][0][:, :3], cache[0][1][:, :3]), cache[1])
    model(torch.tensor([[9]]), past_key_values=cache, attention_mask=torch.zeros(1, 1))
    model(torch.arange(9)[None])
    with pytest.raises(RuntimeError):
        model(torch.tensor([[9]]), past_key_values=short, attention_mask=torch.ones(1, 9))
    # nine tokens are past the trained length of eight: not with eight in the cache, but when they come at once
    assert called == [(8, {"ntk_alpha": 1}), (9, {"ntk_alpha": 1}), (9, {"ntk_alpha": 3}), (4, {"ntk_alpha": 3})]


def test_logn_goes_by_the_blocks_own_keys(code) -> None:
    model = code.model(seq_length=8, num_hidden_layers=2)
    attention, seen = model.transformer.h[1].attn, []
    assert attention.use_logn_attn and attention.logn_tensor.shape == (1, 32767, 1, 1)
    plain = attention._attn
    attention._attn = lambda query, *rest: seen.append(query) or plain(query, *rest)
    block, rotary = model.transformer.h[1], model.transformer.rotary_emb(64)
    x, past = torch.randn(1, 1, 128), torch.zeros(1, 63, HEADS, 32)
    for length in (7, 63):
        layer_past = (past[:, :length], past[:, :length])
        block(x, layer_past=layer_past, rotary_pos_emb=rotary, attention_mask=torch.zeros(1, 1, 1, length + 1))
    torch.testing.assert_close(seen[1], seen[0] * 2)  # log of 64 to the base of 8


def test_blocks_return_a_cache_only_when_asked(code) -> None:
    model = code.model()
    x, rotary = torch.randn(1, 3, 128), model.transformer.rotary_emb(3)
    for use_cache in (False, True):
        for attentions in (False, True):
            given = {"attention_mask": torch.zeros(1, 1, 3, 3), "output_attentions": attentions}
            out = model.transformer.h[0](x, rotary_pos_emb=rotary, use_cache=use_cache, **given)
            assert len(out) == 1 + use_cache + attentions
            assert isinstance(out[-1], tuple) == (use_cache and not attentions)


def test_weights_are_made_anew_and_tables_are_no_buffers(code) -> None:
    """What makes new releases load wrong weights: nothing guards ``.data``, and nobody moves a plain tensor."""
    model = code.model()
    attention = model.transformer.h[0].attn
    before = attention.c_proj.weight.clone()
    attention.c_proj.weight._is_hf_initialized = True
    model._init_weights(attention)
    assert not torch.equal(attention.c_proj.weight, before)
    assert "masked_bias" in dict(attention.named_buffers()) and "masked_bias" not in attention.state_dict()
    with torch.device("meta"):
        made = code.modeling_qwen.QWenLMHeadModel(model.config)
    assert made.transformer.rotary_emb.inv_freq.is_meta and made.transformer.h[0].attn.logn_tensor.is_meta
    made.to_empty(device="cpu")
    assert made.transformer.rotary_emb.inv_freq.is_meta and made.transformer.h[0].attn.logn_tensor.is_meta


def test_generation_is_mixed_in_by_transformers_and_not_by_the_code(code) -> None:
    names = code.modeling_qwen.QWenLMHeadModel.__bases__
    assert [base.__name__ for base in names] == ["QWenPreTrainedModel"]


def test_the_hubs_check_finds_what_the_code_imports(code) -> None:
    from transformers.dynamic_module_utils import get_imports

    wanted = {
        "modeling_qwen": {"einops", "torch", "transformers", "transformers_stream_generator"},
        "tokenization_qwen": {"matplotlib", "requests", "tiktoken", "transformers"},
        "visual": {"PIL", "requests", "torch", "torchvision"},
    }
    for module, packages in wanted.items():
        missing = packages - set(get_imports(getattr(code, module).__file__))
        assert not missing, f"{module} does not import {missing}"


def test_a_stop_word_ends_the_answer_one_step_later(code, tokenizer) -> None:
    model, batch = code.generator(), asked(tokenizer, ["tell me"])
    length = batch["input_ids"].shape[1]
    said = model.generate(**batch, do_sample=False)[0, length:].tolist()
    assert len(said) == 6 and ENDOFTEXT not in said
    cut = model.generate(**batch, do_sample=False, stop_words_ids=[said[1:3], [ENDOFTEXT]])[0, length:].tolist()
    assert cut == [*said[:3], ENDOFTEXT]


def test_a_base_checkpoint_does_not_chat(code, tmp_path) -> None:
    with pytest.raises(AssertionError, match="chat_format|chatml"):
        code.model(chat=False).chat(code.tokenizer(tmp_path), "hello", None)


def test_an_answer_that_no_mark_ends_loses_its_last_token(code, tmp_path) -> None:
    tokenizer, utils = code.tokenizer(tmp_path), code.qwen_generation_utils
    context, said = tokenizer("Q")["input_ids"], tokenizer("abc")["input_ids"]
    for end, text in (([tokenizer.im_end_id], "abc"), ([], "ab")):
        assert utils.decode_tokens(context + said + end, tokenizer, 1, 1, "chatml") == text


def test_the_font_is_looked_for_while_the_tokenizer_is_imported(code, monkeypatch, tmp_path) -> None:
    asked_for: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.utils.try_to_load_from_cache", lambda *names: asked_for.append(names))
    monkeypatch.setattr("requests.get", lambda url: asked_for.append(url) or type("Answer", (), {"content": b"font"}))
    importlib.reload(code.tokenization_qwen)
    assert asked_for[0] == ("Qwen/Qwen-VL-Chat", "SimSun.ttf") and asked_for[1].endswith("SimSun.ttf")
    assert (tmp_path / "SimSun.ttf").read_bytes() == b"font"
