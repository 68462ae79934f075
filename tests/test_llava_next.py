"""LLaVA-NeXT under the host's names: the host's own prompt and pictures, on tiny checkpoints saved in its format."""

from __future__ import annotations

import inspect
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from checkpoints import host_table, needs_host, save_llava, save_tokenizer, sentencepiece_model
from modelbox import QUESTION, in_host, message, records
from PIL import Image
from sentencepiece import SentencePieceProcessor

from redrel_vlmeval.errors import Unaskable
from redrel_vlmeval.host import runner
from redrel_vlmeval.models.checkpoint import CheckpointError
from redrel_vlmeval.truncation import truncated

pytestmark = needs_host
SIDE, PATCH = 24, 6
# the templates of the checkpoints on the hub
TEMPLATES = {
    "vicuna": (
        "{% for message in messages %}USER: {% for item in message['content'] %}{% if item['type'] == 'image' %}<image>"
        "\n{% endif %}{% endfor %}{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}"
        "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    ),
    "mistral": (
        "{% for message in messages %}[INST] {% for item in message['content'] %}{% if item['type'] == 'image' %}"
        "<image>\n{% endif %}{% endfor %}{% for item in message['content'] %}{% if item['type'] == 'text' %}"
        "{{ item['text'] }}{% endif %}{% endfor %} [/INST]{% endfor %}"
    ),
}


def save_processor(folder, template, kind):
    save_tokenizer(folder, "new")
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    shared = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "chat_template": template}
    if "num_additional_image_tokens" in inspect.signature(kind.__init__).parameters:
        shared["num_additional_image_tokens"] = 1
    if kind is tf.LlavaNextProcessor:
        pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
        size, crop = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
        pictures = tf.LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=pinpoints)
    else:
        pictures = tf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    kind(pictures, tokenizer, **shared).save_pretrained(folder)
    return tokenizer.convert_tokens_to_ids("<image>")


def save_next(folder, template):
    """A random LLaVA-NeXT of transformers' own classes, saved as the real ones are."""
    image = save_processor(folder, template, tf.LlavaNextProcessor)
    vocab = SentencePieceProcessor(model_proto=sentencepiece_model()).get_piece_size()
    vision = tf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    text = tf.LlamaConfig(
        vocab_size=vocab + 8, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    config = tf.LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=image, vision_feature_layer=-2,
        image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]],
    )  # fmt: skip
    torch.manual_seed(0)
    tf.LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[*TEMPLATES, "interleave"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(f"llava-next-{request.param}")
    if request.param != "interleave":
        return save_next(place, TEMPLATES[request.param])
    save_llava(place, SIDE, PATCH)
    save_processor(place, TEMPLATES["vicuna"], tf.LlavaProcessor)
    config = json.loads((place / "config.json").read_text())
    config["image_token_index"] = tf.AutoTokenizer.from_pretrained(place).convert_tokens_to_ids("<image>")
    config.pop("image_token_id", None)
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.fixture(scope="module")
def table():
    """The host's table, extended."""
    return host_table()


@pytest.fixture(scope="module")
def model(folder, table):
    return table["llava_next_vicuna_7b"](model_path=str(folder), device="cpu", max_new_tokens=4)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Two pictures of one size, and one that is cut into other tiles."""
    place = tmp_path_factory.mktemp("shapes")
    for name, color, size in (("a", "red", (60, 40)), ("b", "blue", (60, 40)), ("c", "green", (20, 70))):
        Image.new("RGB", size, color).save(place / f"{name}.png")
    return [str(path) for path in sorted(place.iterdir())]


class Given(dict):
    """What a processor gives, on no GPU."""

    def to(self, *_where):
        return self


def host_input(model, content):
    """What the host's own class gives its model, its processor called as it was meant."""
    from vlmeval.vlm.llava.llava import LLaVA_Next

    host, seen = LLaVA_Next.__new__(LLaVA_Next), {}

    class Processor:
        apply_chat_template, decode = model.processor.apply_chat_template, staticmethod(lambda *_a, **_k: "")

        def __call__(self, prompt, images, return_tensors):
            return Given(model.processor(text=prompt, images=images or None, return_tensors=return_tensors))

    def generate(**given):
        seen.update(given)
        return [None]

    host.processor, host.model, host.kwargs = Processor(), SimpleNamespace(generate=generate), {}
    host.generate_inner(content)
    return seen


@pytest.mark.parametrize("parts", [(0, QUESTION), (2, QUESTION), ("First", 0, "then", 2, QUESTION), ("No picture?",)])
def test_same_input_as_the_hosts_class(model, shapes, parts):
    content = message(shapes, *parts)
    ours, host = model.inputs(content), host_input(model, [dict(item) for item in content])
    assert set(ours) == set(host)
    for name, value in ours.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(host[name])), name


@pytest.mark.parametrize("line", [{"A": "red", "B": "blue"}, {"hint": "Look.", "A": "red"}, {}])
def test_same_prompt_of_a_line_as_the_hosts_class(model, line):
    import pandas as pd
    from vlmeval.vlm.llava.llava import LLaVA_Next

    host = LLaVA_Next.__new__(LLaVA_Next)
    for one in (host, model):
        one.set_dump_image(lambda line: ["a.png", "b.png"])
    row = pd.Series({"index": 1, "question": "Which?"} | line)
    assert model.build_prompt(row, dataset="MMBench") == host.build_prompt(row, dataset="MMBench")
    assert model.use_custom_prompt("MMBench") and not model.use_custom_prompt("POPE")


def test_a_variant_by_name_drops_and_its_controls_hold(model, folder, table, shapes, tmp_path):
    kwargs = {"model_path": str(folder), "device": "cpu", "max_new_tokens": 4}
    variant = table["llava_next_vicuna_7b_trunc_l2_k5"](**kwargs)
    content = message(shapes, 0, QUESTION)
    name = "llava_next_vicuna_7b_trunc_l2_k5"
    answer = in_host(lambda: variant.generate([dict(item) for item in content]), 1, tmp_path, name)
    with truncated(model.model, "l2_k5"):
        assert answer == model.reply(content)
    (record,) = records(tmp_path)
    n = record["image_tokens"]
    assert n > 5 and record["images_per_block"] == [n, n, 5, 5]
    assert record["backend"] == f"transformers {type(model.model).__name__}" and record["weights"] == str(folder)

    def logits(setting, picture):
        with truncated(model.model, setting) if setting else torch.no_grad(), torch.no_grad():
            return model.model(**model.inputs(message(shapes, picture, QUESTION))).logits[:, -1]

    assert torch.equal(logits("l2_k9999", 0), logits("", 0))
    assert torch.equal(logits("l0_k0", 0), logits("l0_k0", 1)) and not torch.equal(logits("", 0), logits("", 1))


def test_an_answer_is_what_was_generated_and_nothing_of_the_prompt(model, shapes):
    answer = model.generate(message(shapes, 0, "ASSISTANT: [/INST] so?"))
    assert "so?" not in answer and "</s>" not in answer and answer == answer.strip()


def test_a_mark_in_a_text_is_named(model, shapes):
    with pytest.raises(Unaskable, match=r"its text holds '<image>'.*\(question 'What is <image>\?'\)"):
        model.generate(message(shapes, 0, "What is <image>?"))


def test_another_architecture_is_refused(table, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="architecture 'llama', expected LLaVA-NeXT, such as llava-hf/llava-v1.6"):
        table["llava_next_mistral_7b"](model_path=str(tmp_path), device="cpu")


def test_every_name_of_the_hosts_class_is_ours(table):
    found = {name: entry for name, entry in runner.entries().items() if entry.kind == "LLaVA_Next"}
    assert len(found) >= 9
    for name, entry in found.items():
        assert isinstance(table[name], partial) and table[name].args == (name,)
        assert table[name].keywords["model_path"] == entry.keywords["model_path"]
