"""``TruncatedVLM``: answers as its base does inside ``truncated``, leaves the rest to it, refuses what cannot be."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from checkpoints import needs_host
from modelbox import BLOCKS, QUESTION, TOKENS, in_host, message, records

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation import truncated

pytestmark = needs_host


LINE = {"index": 7, "question": "What color?", "hint": math.nan, "A": "red", "B": "blue", "C": math.nan}


@pytest.mark.parametrize("setting", ["l2_k16", "l1_k0", "l0_k0", "l3_r25_random", "l2_k32_l5_k4", "l4_k8_official"])
def test_a_variant_answers_as_the_core_inside_truncated(classes, base, pictures, setting):
    variant = classes.TruncatedVLM(base, setting)
    for number in range(3):
        ask = message(pictures, number, QUESTION)
        with truncated(base.model, setting) as trace:
            expected = base.core.reply(ask)
        assert trace.prompts[-1].kept
        assert variant.generate(ask, dataset="RedRelShapes") == expected
    assert variant.chat_inner([{"role": "user", "content": message(pictures, 0, QUESTION)}])


def test_a_rule_is_told_the_question_in_words(classes, base, pictures, told):
    classes.TruncatedVLM(base, "l2_k8_asked").generate(message(pictures, 0, QUESTION))
    (words,) = ("".join(text.split()) for text in told)  # the toy's tokenizer writes no spaces
    assert words == "".join(QUESTION.split()) + "ASSISTANT:"


def test_a_variant_that_keeps_every_token_answers_as_the_base(classes, base, pictures):
    variant = classes.TruncatedVLM(base, f"l1_k{TOKENS}")
    for number in range(4):
        ask = message(pictures, number, QUESTION)
        assert variant.generate(ask) == base.generate(ask)


def test_several_variants_of_one_model_do_not_disturb_each_other(classes, base, pictures, tmp_path):
    ask = message(pictures, 2, QUESTION)
    untouched = base.generate(ask)
    variants = [classes.TruncatedVLM(base, setting) for setting in ("l1_k0", "l3_k8")]
    alone = [variant.generate(ask) for variant in variants]
    assert [variant.generate(ask) for variant in variants] == alone and base.generate(ask) == untouched
    for number, model in enumerate([base, *variants]):
        folder = tmp_path / str(number)
        folder.mkdir()
        name = ["redrel_tiny", "redrel_tiny_trunc_l1_k0", "redrel_tiny_trunc_l3_k8"][number]
        in_host(lambda model=model: model.generate(ask), 1, folder, name)
        (record,) = records(folder)
        assert record["setting"] == ["", "l1_k0", "l3_k8"][number]
        assert record["backend"] == "transformers LlavaForConditionalGeneration" and record["weights"] == "redrel_tiny"


@pytest.mark.parametrize("setting", ["l2_k16_beam3", "beam3"])
def test_beam_suffix_equals_num_beams(classes, base, pictures, monkeypatch, setting):
    name = f"redrel_tiny_trunc_{setting}" if setting.startswith("l") else f"redrel_tiny_{setting}"
    variant = classes.TruncatedVLM(base, name)
    ask = message(pictures, 1, QUESTION)
    used, generate = [], base.model.generate

    def spy(*args, **kwargs):
        used.append(kwargs["num_beams"])
        return generate(*args, **kwargs)

    monkeypatch.setattr(base.model, "generate", spy)
    answer = variant.generate(ask)
    assert base.model.generate is spy  # put back, although it was set on the model itself
    monkeypatch.setitem(base.core.generation, "num_beams", 3)
    if setting.startswith("l"):
        with truncated(base.model, "l2_k16"):
            expected = base.core.reply(ask)
    else:
        expected = base.core.reply(ask)
    assert answer == expected and used == [3, 3]


def test_generate_is_the_class_own_again_after_a_beam_search(classes, base, asked):
    classes.TruncatedVLM(base, "redrel_tiny_trunc_l2_k16_beam2").generate(asked)
    assert "generate" not in base.model.__dict__


# what is left to the base


class Host:
    """A host model that notes what it is asked; ``model`` is a decoder that can be truncated."""

    INTERLEAVE = False
    VIDEO_LLM = "the base's"

    def __init__(self, model):
        self.model, self.noted = model, []

    def set_dump_image(self, function):
        self.noted.append(function)

    def use_custom_prompt(self, dataset):
        return dataset == "Mine"

    def build_prompt(self, line, dataset=None):
        return [{"type": "text", "value": f"{line} {dataset}"}]

    def preproc_content(self, inputs):
        return [{"type": "text", "value": f"<{inputs}>"}]

    def generate_inner(self, message, dataset=None):
        return f"{message[0]['value']} {dataset}"


def test_prompts_pictures_and_flags_are_the_bases(classes, base):
    host = Host(base.model)
    variant = classes.TruncatedVLM(host, "l2_k16")
    dump = print
    variant.set_dump_image(dump)
    assert host.noted == [dump] == [variant.dump_image_func]
    assert variant.use_custom_prompt("Mine") is True and variant.use_custom_prompt("Other") is False
    assert variant.build_prompt("line", dataset="Mine") == [{"type": "text", "value": "line Mine"}]
    assert variant.generate("a", dataset="D") == "<a> D"
    assert variant.INTERLEAVE is False and classes.TruncatedVLM(base, "l2_k16").INTERLEAVE is True
    assert variant.VIDEO_LLM == "the base's" and variant.noted is host.noted
    assert not hasattr(variant, "is_api")
    with pytest.raises(TruncationError, match="no multi-turn chat"):
        variant.chat_inner([{"role": "user", "content": []}])


def test_dumped_pictures_of_a_variant_are_the_bases(classes, base):
    variant = classes.TruncatedVLM(base, "l2_k16")
    variant.set_dump_image(lambda line: ["x.png"])
    assert variant.build_prompt(LINE, dataset="RedRelShapes")[0] == {"type": "image", "value": "x.png"}


# prompts by name


class Asker(Host):
    """A host model that shows its torch model the question with a limit of its own, as Qwen-VL does."""

    pictures: str | list[str]
    limits: dict[str, int]

    def dump_image(self, line, dataset):
        assert dataset == "RedRelShapes"
        return self.pictures

    def build_prompt(self, line, dataset=None):
        raise AssertionError("the stock prompt was built")

    def generate_inner(self, message, dataset=None):
        return self.model.generate(message, **self.limits)


@pytest.fixture
def asker(base, monkeypatch):
    """Its ``seen`` are the keywords that reached the torch model; its answer is the message."""
    host = Asker(base.model)
    host.pictures, host.limits, host.seen = ["x.png", "y.png"], {"max_new_tokens": 32}, []
    host.preproc_content = lambda inputs: inputs

    def generate(message, **kwargs):
        host.seen.append(kwargs)
        return message

    monkeypatch.setattr(base.model, "generate", generate)
    return host


CQM = "Context: N/A\nQuestion: What color?\nOptions: (A) red (B) blue\n"


@pytest.mark.parametrize("setting", ["p-cqm", "l2_k16_p-cqm"])
@pytest.mark.parametrize("pictures", [["x.png", "y.png"], "x.png", []])
def test_a_named_prompt_comes_after_the_bases_pictures(classes, asker, setting, pictures):
    asker.pictures = pictures
    variant = classes.TruncatedVLM(asker, setting)
    assert not asker.use_custom_prompt("RedRelShapes") and variant.use_custom_prompt("RedRelShapes") is True
    message = variant.build_prompt(LINE, dataset="RedRelShapes")
    text = f"{CQM}Answer with the option's letter from the given choices directly."
    shown = [pictures] if isinstance(pictures, str) else pictures
    assert message == [*({"type": "image", "value": path} for path in shown), {"type": "text", "value": text}]
    assert variant.generate(message, dataset="RedRelShapes") == message
    assert asker.seen[-1]["max_new_tokens"] == 32  # a letter needs no more room


@pytest.mark.parametrize("setting", ["p-cqm-p2", "l2_k16_p-p1-cqm", "l2_k16_p-cqm-p3_beam3", "p-cqm-p1_beam2"])
@pytest.mark.parametrize(
    ("limits", "room"),
    [
        ({"max_new_tokens": 32}, {"max_new_tokens": 512}),
        ({"max_new_tokens": 2048}, {"max_new_tokens": 2048}),
        ({"max_length": 100}, {"max_new_tokens": 512}),
        ({"max_length": 4096}, {"max_new_tokens": 4096}),
        ({}, {"max_new_tokens": 512}),
        ({"generation_config": SimpleNamespace(max_new_tokens=10)}, {"max_new_tokens": 512}),
        ({"generation_config": SimpleNamespace(max_new_tokens=600)}, {}),
    ],
)
def test_reasoning_has_room_whatever_the_bases_limit(classes, asker, setting, limits, room):
    asker.limits = limits
    variant = classes.TruncatedVLM(asker, setting)
    variant.generate(variant.build_prompt(LINE, dataset="RedRelShapes"), dataset="RedRelShapes")
    (seen,) = asker.seen
    assert {k: v for k, v in seen.items() if k in ("max_new_tokens", "max_length")} == room
    assert seen.get("num_beams", 1) == variant.spec.beam


@pytest.mark.parametrize("setting", ["p-qcm", "l2_k16_p-cqm-p2_beam2"])
def test_the_model_in_the_box_answers_a_named_prompt(classes, base, pictures, tmp_path, setting):
    variant = classes.TruncatedVLM(base, setting)
    variant.set_dump_image(lambda line: [pictures[0]])
    ask = variant.build_prompt(LINE, dataset="RedRelShapes")
    name = f"redrel_tiny_{'trunc_' * bool(variant.spec.stages)}{setting}"
    answer = in_host(lambda: variant.generate(ask, dataset="RedRelShapes"), 1, tmp_path, name)
    assert isinstance(answer, str) and "generate" not in base.model.__dict__
    (record,) = records(tmp_path)
    assert (record["setting"], record["mode"]) == (setting, "dropped" if setting.startswith("l") else "untouched")
    core, limit = base.core, 512 if "p2" in setting else 6
    changed = {"max_new_tokens": limit, "num_beams": variant.spec.beam}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changed.items():
            patch.setitem(core.generation, name, value)
        if setting.startswith("l"):
            with truncated(base.model, "l2_k16"):
                assert core.reply(ask) == answer
        else:
            assert core.reply(ask) == answer


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [("POPE", "Y/N on image"), ("TextVQA_VAL", "VQA on image"), ("MMDU", "MT on image"), (None, "not known"),
     ("MVBench", "Video-MCQ on video")],
)  # fmt: skip
def test_a_benchmark_that_is_no_multiple_choice_is_refused_by_name(classes, asker, dataset, kind):
    variant = classes.TruncatedVLM(asker, "p-cqm")
    words = rf"p-cqm: prompt 'cqm' is for multiple choice.*benchmark {dataset!r} is {kind}"
    with pytest.raises(ValueError, match=words):
        variant.use_custom_prompt(dataset)
    with pytest.raises(ValueError, match=words):
        variant.build_prompt(LINE, dataset=dataset)


def test_a_benchmark_that_asks_in_its_own_words_is_refused(classes, asker):
    variant = classes.TruncatedVLM(asker, "p-cqm")
    asker.chat_inner = lambda message, dataset=None: "chatted"
    forced = [{"type": "text", "value": "Which?"}]
    for _ in range(2):  # before any question was built, and after
        with pytest.raises(ValueError, match="'RedRelShapes' asks in words of its own, not in those of prompt 'cqm'"):
            variant.generate(forced, dataset="RedRelShapes")
        with pytest.raises(ValueError, match="'MMDU' asks in words of its own"):
            variant.chat_inner([{"role": "user", "content": forced}], dataset="MMDU")
        variant.build_prompt(LINE, dataset="RedRelShapes")
    assert variant.generate(forced) == forced  # no benchmark: the words are the caller's
    assert variant.chat_inner([{"role": "user", "content": forced}]) == "chatted"


@pytest.mark.parametrize("wrong", [{"question": " "}, {"A": math.nan, "B": math.nan}])
def test_a_line_that_cannot_be_asked_is_named(classes, asker, wrong):
    with pytest.raises(ValueError, match="question 7 of RedRelShapes"):
        classes.TruncatedVLM(asker, "p-cqm").build_prompt(LINE | wrong, dataset="RedRelShapes")


# what is refused at once


def test_a_base_is_built_from_the_table_with_the_keywords(classes):
    variant = classes.TruncatedVLM(
        "tiny_here", "l2_k16", table={"tiny_here": lambda **kwargs: classes.LLaVA15("redrel_tiny", **kwargs)},
        device="cpu", max_new_tokens=2, use_vllm=False,
    )  # fmt: skip
    assert str(variant.spec) == "tiny_here_trunc_l2_k16" and variant.core.generation["max_new_tokens"] == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("l2", "l2"),
        ("l2_k16_best", "best"),
        ("l0_k4", "l0"),
        ("l2_k16_p-cot", "unknown prompt 'cot'"),
        ("other_trunc_l2_k16", "'other'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_built(classes, spec, words):
    def build(**_kwargs):
        raise AssertionError("built although the name is wrong")

    with pytest.raises(KeyError, match=words):
        classes.TruncatedVLM("tiny_here", spec, table={"tiny_here": build})


def test_an_unknown_base_is_named(classes):
    with pytest.raises(KeyError, match="'nobody'.*unknown"):
        classes.TruncatedVLM("nobody", "l2_k16", table={})


@pytest.mark.parametrize("setting", [f"l{BLOCKS}_k1", f"l{BLOCKS + 1}_k1", "l2_k16_l40_k4"])
def test_too_deep_is_refused_when_built(classes, base, setting):
    with pytest.raises(TruncationError, match=rf"{setting}.*{BLOCKS}"):
        classes.TruncatedVLM(base, setting)
    assert isinstance(classes.TruncatedVLM(base, f"l{BLOCKS - 1}_k1").generate("Hi"), str)


def test_a_base_without_a_torch_model_is_refused(classes):
    api = SimpleNamespace(model="gpt-4o", key="sk")
    with pytest.raises(TruncationError, match=r"SimpleNamespace cannot be truncated: it holds no torch model.*API"):
        classes.TruncatedVLM(api, "l2_k16")


def test_a_base_with_an_unknown_decoder_is_refused_with_the_reason(classes):
    holder = SimpleNamespace(model=torch.nn.Linear(2, 2))
    with pytest.raises(TruncationError, match=r"l2_k16: SimpleNamespace cannot be truncated: model: .*Linear"):
        classes.TruncatedVLM(holder, "l2_k16")
