"""Token for token and pixel for pixel what the host's own ``LLaVA`` class gives its model, against a re-statement.

The re-statement runs the host's own prompt code; only what it takes from the ``llava`` package (tokenizer_image_token,
process_images) and the tokenizer of that package's transformers release are written down again here.
"""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
import torch
from checkpoints import MEAN, import_host, needs_host, save_llava
from hypothesis import given, settings, strategies as st
from original_llava import OriginalTokenizer, clip_processor, process_images, tokenizer_image_token
from PIL import Image
from skimage import data
from transformers import AutoTokenizer

from redrel_vlmeval.bases import TINY
from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.llava.core import LlavaCore

SIDE, PATCH = 336, 42
TOKENIZERS = ("sentencepiece", "new", "legacy")


@pytest.fixture(scope="module")
def cores(tmp_path_factory) -> dict[str, LlavaCore]:
    made = {}
    for kind in TOKENIZERS:
        folder = save_llava(tmp_path_factory.mktemp(kind), SIDE, PATCH, kind)
        made[kind] = LlavaCore(str(folder), device="cpu", dtype="float32")
    return made


@pytest.fixture
def host_llava(monkeypatch):
    """The host's LLaVA without weights; what its model is given is kept in ``given``."""
    constants, tools = types.ModuleType("llava.constants"), types.ModuleType("llava.mm_utils")
    constants.IMAGE_TOKEN_INDEX = -200
    tools.tokenizer_image_token, tools.process_images = tokenizer_image_token, process_images
    tools.KeywordsStoppingCriteria = lambda *_args: None
    for module in (types.ModuleType("llava"), constants, tools):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    import_host()
    from vlmeval.vlm.llava.llava import LLaVA

    model = LLaVA.__new__(LLaVA)
    model.system_prompt = (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    )
    model.stop_str, model.kwargs = "</s>", {}
    model.tokenizer, model.image_processor = OriginalTokenizer(), clip_processor()
    model.given = {}

    def generate(ids, images=None, **_kwargs):
        model.given = {"ids": ids.value, "pixels": None if images is None else images.value}

    model.model = types.SimpleNamespace(generate=generate)
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict[str, str]:
    """Real pictures of every shape and mode that benchmarks hold."""
    folder = tmp_path_factory.mktemp("photos")
    astronaut, coffee, rocket = (Image.fromarray(f()) for f in (data.astronaut, data.coffee, data.rocket))
    clear = astronaut.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear = clear.crop((0, 0, 511, 300))
    made = {
        "square.png": astronaut,
        "wide.png": coffee,
        "wide.jpg": rocket,
        "tall.png": astronaut.crop((100, 0, 333, 512)),
        "odd.png": astronaut.crop((0, 0, 200, 137)),
        "grey.png": Image.fromarray(data.camera()).crop((0, 0, 400, 511)),
        "grey_alpha.png": Image.fromarray(data.camera()).convert("LA").crop((0, 0, 90, 60)),
        "rgba.png": clear,
        "palette.png": coffee.convert("P", palette=Image.Palette.ADAPTIVE),
        "one_bit.png": astronaut.convert("1").crop((0, 0, 512, 200)),
        "cmyk.jpg": rocket.convert("CMYK"),
        "thin.png": coffee.crop((0, 0, 600, 1)),
        "small.png": coffee.crop((0, 0, 5, 3)),
    }
    for name, picture in made.items():
        picture.save(folder / name)
    palette = coffee.convert("P", palette=Image.Palette.ADAPTIVE).crop((0, 0, 100, 300))
    palette.save(folder / "palette_clear.png", transparency=3)
    return {path.name: str(path) for path in sorted(folder.iterdir())}


def expanded(ids, core):
    """The original's ids with its one mark per picture as the image tokens that its model puts there."""
    image, count = core.model.config.image_token_id, core.per_image
    return [token for i in ids for token in ([image] * count if i == -200 else [i])]


TEXTS = {
    "plain": "What color is the triangle?\nA. red\nB. blue\nAnswer with the option's letter.",
    "begins with a space": " What is shown?",
    "begins with spaces": "   Which?",
    "begins with a line break": "\nWhich?\n\n",
    "tabs and odd spaces": "\t a\u00a0b\u3000c  \r\n d ",
    "Chinese": "图中是什么颜色？\nA. 红色\n请直接回答选项字母。",
    "unknown characters": "naïve Ω 🙂 \u2581x \u2581\u2581 y",
    "digits": "12 + 345 = ?  3.14",
    "only spaces": "   ",
    "empty": "",
}


def item(part: str, photos: dict[str, str]) -> dict[str, str]:
    return {"type": "image", "value": photos[part]} if part in photos else {"type": "text", "value": part}


LAYOUTS = {
    **{name: ["wide.png", text] for name, text in TEXTS.items()},
    "no picture": ["What does Ann like?"],
    "picture last": ["Look:", "tall.png"],
    "only a picture": ["square.png"],
    "interleaved": ["First", "wide.png", "\nsecond ", "tall.png", " and third", "grey.png", "Which is a rocket?"],
    "pictures side by side": ["rgba.png", "palette.png", "Which?", "square.png", "square.png"],
    "stop mark in the text": ["wide.png", "Is </s> a tag?</s> So</s>", " yes"],
}


@needs_host
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_input_as_the_host_gives_its_model(layout, kind, cores, host_llava, photos):
    message = [item(part, photos) for part in LAYOUTS[layout]]
    host_llava.generate_inner(message)
    core = cores[kind]
    own = core.inputs(*input.single_prompt(message))
    assert own["input_ids"][0].tolist() == expanded(host_llava.given["ids"], core)
    if host_llava.given["pixels"] is None:
        assert "pixel_values" not in own
    else:
        np.testing.assert_array_equal(own["pixel_values"].numpy(), host_llava.given["pixels"])


CONVERSATIONS = {
    "one turn": [("user", ["wide.png", "What?"])],
    "three turns": [("user", ["wide.png", " What?"]), ("assistant", ["A cup. "]), ("user", ["Which color?"])],
    "new picture later": [
        ("user", ["tall.png", "Who\n?"]),
        ("assistant", ["Eileen"]),
        ("user", ["And here", "wide.png"]),
        ("assistant", [" a rocket\n"]),
        ("user", ["  图中是什么颜色？"]),
    ],
    "assistant says nothing": [("user", ["square.png"]), ("assistant", [""]), ("user", ["So?"])],
}


@needs_host
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_same_conversation_as_the_hosts(conversation, kind, cores, host_llava, photos):
    turns = [
        {"role": role, "content": [item(part, photos) for part in parts]} for role, parts in CONVERSATIONS[conversation]
    ]
    host_llava.chat_inner(turns)
    own = cores[kind].inputs(*input.chat_prompt(turns))
    assert own["input_ids"][0].tolist() == expanded(host_llava.given["ids"], cores[kind])
    np.testing.assert_array_equal(own["pixel_values"].numpy(), host_llava.given["pixels"])


pieces = st.sampled_from(
    [" ", "  ", "\n", "\t", "</s>", "a", "USER:", "the", " triangle", "color", "图", "🙂", "\u2581", "é", "7", "A. "]
)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.lists(pieces, max_size=12).map("".join))
@settings(max_examples=150, deadline=None)
def test_any_piece_of_text_is_tokenised_like_the_original(kind, cores, text):
    assert [1, *cores[kind].encode(text)] == OriginalTokenizer()(text).input_ids


def test_the_bare_processor_is_the_raw_one_without_its_prefix():
    """Guards the re-statement itself: a space in front does what the dummy prefix does, and only that."""
    tokenizer = OriginalTokenizer()
    for text in ("USER: a", " hello", "\nWhat  color"):
        assert tokenizer.bare.encode(f" {text}") == tokenizer.raw.encode(text) != tokenizer.bare.encode(text)


def test_every_photo_is_padded_resized_and_normalised_like_the_original(cores, photos):
    for name, path in photos.items():
        with Image.open(path) as picture:
            expected = process_images([picture.convert("RGB")], clip_processor(), None).value[0]
        found = cores["new"].pixels(path)
        assert found.dtype == np.float32 and found.shape == (3, SIDE, SIDE)
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_padding_is_the_mean_color_around_a_centred_picture():
    wide = Image.new("RGB", (7, 4), (255, 0, 0))
    square = np.asarray(input.pad_to_square(wide, MEAN))
    assert square.shape == (7, 7, 3)
    assert (square[1:5] == (255, 0, 0)).all()  # the odd row left over is below
    assert (square[[0, 5, 6]] == (122, 116, 104)).all()


def test_stock_pixels_are_kept_where_the_model_runs_in_half_precision(tmp_path, photos):
    core = LlavaCore(str(save_llava(tmp_path)), device="cpu", dtype="bfloat16")
    own = core.inputs(*input.single_prompt([item("wide.png", photos)]))["pixel_values"]
    with Image.open(photos["wide.png"]) as picture:
        expected = process_images([picture.convert("RGB")], clip_processor(48), None).value
    assert own.dtype == torch.bfloat16 and torch.equal(own, torch.from_numpy(expected).to(torch.bfloat16))


LINES = {
    "options": {"question": "What color?", "A": "red", "B": "blue"},
    "hint": {"question": "What color?", "hint": "Look at the sky.", "A": "red", "B": "blue"},
    "hint is NaN": {"question": "What color?", "hint": math.nan, "A": "red", "B": "blue"},
    "some options NaN": {"question": "How many?", "A": 1, "B": 2.5, "C": math.nan, "D": "four"},
    "no options": {"question": "What is shown?"},
    "Chinese question": {"question": "图中是什么颜色？", "A": "red", "B": "blue"},
    "Chinese option only": {"question": "Which?", "A": "红色", "B": "blue"},
    "Chinese hint, no options": {"question": "Which?", "hint": "看图"},
    "spaces and line breaks": {"question": " a\n\n b ", "hint": "\th ", "A": " x ", "B": "\ny"},
    "more columns": {"question": "Q?", "A": "x", "Z": "last", "lecture": "no", "category": "B", "AB": "no"},
}


@needs_host
@pytest.mark.parametrize("case", LINES)
def test_same_question_text_as_the_hosts_build_prompt(case, host_llava):
    import pandas as pd

    line = pd.Series({"index": 1, **LINES[case]})
    host_llava.use_custom_prompt = lambda _dataset: True
    host_llava.set_dump_image(lambda _line: ["a.png"])
    *_, text = host_llava.build_prompt(line, dataset="Some")
    assert input.question_text(line) == text["value"]
    assert input.question_text(dict(line)) == text["value"]


@needs_host
def test_same_joined_text_and_paths_as_the_hosts_concat(host_llava):
    kinds = ("text", "image", "image", "text", "text", "image")
    content = [{"type": kind, "value": value} for kind, value in zip(kinds, "abcdef", strict=True)]
    expected = "a <image>  <image> de <image> ", ["b", "c", "f"]
    assert input.join_content(content) == host_llava.concat_tilist(content) == expected


def test_the_whole_prompt_in_plain_words():
    """What the paper's numbers were measured on, written out: it must not move with the host either."""
    line = {"question": "What color?", "hint": "Ann likes red.", "A": "red", "B": "blue"}
    message = [{"type": "image", "value": "p"}, {"type": "text", "value": input.question_text(line)}]
    assert input.single_prompt(message) == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER:  <image> Ann likes red.\nWhat color?\nA. red\n"
        "B. blue\nAnswer with the option's letter from the given choices directly. ASSISTANT: ",
        ["p"],
    )


TAGGED = ["What does <image> mean?", "<image>", "a<image><image> b\n<image>", "<pad> <image"]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tagged(request, tmp_path_factory) -> LlavaCore:
    """A checkpoint whose tokenizer knows ``<image>`` and ``<pad>`` as one token each, as those on the hub do."""
    folder = save_llava(tmp_path_factory.mktemp(request.param), tokenizer=request.param)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return LlavaCore(str(folder), device="cpu")


@pytest.mark.parametrize("text", TAGGED)
def test_a_tag_in_a_text_is_text(text, tagged, photos):
    assert len(tagged.tokenizer("<image>", add_special_tokens=False)["input_ids"]) == 1
    content = [item("wide.png", photos), {"type": "text", "value": text}]
    for prompt, paths in (input.single_prompt(content), input.chat_prompt([{"role": "user", "content": content}])):
        ids = tagged.inputs(prompt, paths)["input_ids"][0].tolist()
        assert ids.count(tagged.image_token) == tagged.per_image
        behind = ids[len(ids) - ids[::-1].index(tagged.image_token) :]
        assert text in tagged.tokenizer.decode(behind)
        assert not set(behind) & {tagged.tokenizer.convert_tokens_to_ids(tag) for tag in ("<image>", "<pad>")}


@pytest.mark.parametrize("text", TAGGED)
def test_the_model_in_the_box_takes_a_tag_in_a_text_for_text(text, photos):
    core = LlavaCore(TINY, device="cpu")
    prompt, paths = input.single_prompt([item("wide.png", photos), {"type": "text", "value": text}])
    assert core.inputs(prompt, paths)["input_ids"][0].tolist().count(core.image_token) == core.per_image
    assert isinstance(core.answer(prompt, paths), str)


def test_marks_without_pictures_are_refused(cores):
    with pytest.raises(ValueError, match=r"2 <image> marks for 1 pictures"):
        cores["new"].inputs("<image> and <image>", ["a.png"])


def test_tokenizers_without_sentencepiece_pieces_are_left_alone():
    core = LlavaCore(TINY, device="cpu")
    text = " What color is the triangle?\nA. red"
    assert core.encode(text) == core.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert core.tokenizer.unk_token_id not in core.encode(text)
