"""``_ppl``: the host's models answer with the option they find likeliest, whichever way the question is asked."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import qwen_box
import torch
from checkpoints import needs_host
from modelbox import in_host, records
from qwen_box import kinds, watched

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models import tokenizer_of
from redrel_vlmeval.models.llava import input
from redrel_vlmeval.truncation import truncated

pytestmark = [needs_host, pytest.mark.filterwarnings("ignore:Following kwargs received")]
DATA = "RedRelShapes"
LINE = {
    "index": 7, "question": "What color is the square?", "hint": math.nan, "A": "red", "B": "blue", "C": "green",
    "D": math.nan, "answer": "B",
}  # fmt: skip


class Benchmark:
    """What the host gives a model: a method of the benchmark, which also knows how the host would ask."""

    def __init__(self, *pictures: str) -> None:
        self.paths = list(pictures)

    def dump_image(self, line: Any) -> list[str]:
        return self.paths

    def build_prompt(self, line: Any) -> list[dict[str, str]]:
        shown = [{"type": "image", "value": path} for path in self.paths]
        return [*shown, {"type": "text", "value": f"Question: {line['question']}\nOptions:\nA. red\nB. blue\n"}]


def name_of(setting: str, base: str = "redrel_tiny") -> str:
    return f"{base}_{'trunc_' * setting.startswith('l')}{setting}"


SETTINGS = ["ppl", "l2_k16_ppl", "l0_k0_ppl", "l2_k4_official_ppl", "p-qwen_ppl", "l4_k8_p-cqm_ppl"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_likeliest_letter_is_the_answer_and_the_record_says_how_likely(classes, base, pictures, tmp_path, setting):
    variant = classes.TruncatedVLM(base, name_of(setting))
    answers = set()
    for number, picture in enumerate(pictures[:3]):
        variant.set_dump_image(Benchmark(picture).dump_image)
        assert variant.use_custom_prompt(DATA) is True
        ask = variant.build_prompt(LINE, dataset=DATA)
        answer = in_host(lambda ask=ask: variant.generate(ask, dataset=DATA), number, tmp_path, name_of(setting))
        inputs = base.core.inputs(*input.single_prompt(ask))
        cut = setting.partition("_p")[0] if setting.startswith("l") else ""
        with torch.no_grad(), truncated(base.model, cut) if cut else nullcontext():
            scores = base.model(**inputs).logits[0, -1].log_softmax(-1)
        wanted = {name: float(scores[base.core.encode(name)[0]]) for name in "ABC"}
        record = records(tmp_path)[-1]
        assert record["option_logprobs"] == pytest.approx(wanted, abs=1e-4)
        assert answer == max(wanted, key=wanted.__getitem__)
        assert (record["new_tokens"], record["decode_ms_per_token"], record["setting"]) == (1, None, setting)
        assert record["prefill_ms"] > 0 and record["kv_tokens"] == record["tokens"]
        assert record["prompt_tokens"] == inputs["input_ids"].shape[1]
        answers.add(tuple(record["option_logprobs"].values()))
    assert len(answers) == (1 if setting.startswith("l0") else 3) and "generate" not in base.model.__dict__


def test_the_stock_prompt_is_the_bases(classes, base, pictures):
    variant = classes.TruncatedVLM(base, "ppl")
    for model in (variant, base):
        model.set_dump_image(Benchmark(pictures[0]).dump_image)
    assert variant.build_prompt(LINE, dataset=DATA) == base.build_prompt(LINE, dataset=DATA)


@pytest.fixture(scope="module")
def qwens(tmp_path_factory) -> dict[str, Any]:
    return qwen_box.ours(qwen_box.write(tmp_path_factory.mktemp("models")))


@pytest.mark.parametrize("kind", ["base", "chat"])
@pytest.mark.parametrize("setting", ["ppl", "l1_k64_ppl", "l1_k64_p-qwen_ppl"])
def test_qwen_vl_is_asked_as_the_benchmark_asks_and_answers_with_a_letter(qwens, tmp_path, kind, setting):
    (picture, *_) = qwen_box.draw(tmp_path)
    bench, variant = Benchmark(picture), kinds().variant(qwens[kind], name_of(setting, "qwen"))
    variant.set_dump_image(bench.dump_image)
    ask = variant.build_prompt(LINE, dataset=DATA)
    assert "p-qwen" in setting or ask == bench.build_prompt(LINE)
    folder = tmp_path / "out"
    folder.mkdir()
    with watched(qwens[kind]) as (calls,):
        answer = in_host(lambda: variant.generate(ask, dataset=DATA), 1, folder, name_of(setting, "qwen"))
    ((prompt, _),) = calls
    tokenizer, (record,) = qwens[kind].core.tokenizer, records(folder)
    text = tokenizer.decode(prompt)
    if kind == "base":
        assert text == f"<img>{picture}</img>{ask[-1]['value']}"
    else:
        assert text.endswith(f"{ask[-1]['value']}<|im_end|>\n<|im_start|>assistant\n")
    scores = record["option_logprobs"]
    assert list(scores) == ["A", "B", "C"] and answer == max(scores, key=scores.__getitem__)
    assert record["image_tokens"] == 256 and record["mode"] == ("dropped" if "l1" in setting else "untouched")
    # with the space before it a letter has two tokens here, so the cache grew by one
    assert record["new_tokens"] == 2 and record["kv_tokens"] == [held + 1 for held in record["tokens"]]


def test_the_prompt_of_qwen_vls_authors_is_theirs_letter_by_letter(qwens, tmp_path):
    (picture, *_) = qwen_box.draw(tmp_path)
    variant = kinds().variant(qwens["base"], "qwen_p-qwen_ppl")
    variant.set_dump_image(Benchmark(picture).dump_image)
    with watched(qwens["base"]) as (calls,):
        variant.generate(variant.build_prompt(LINE, dataset=DATA), dataset=DATA)
    ((prompt, _),) = calls
    assert qwens["base"].core.tokenizer.decode(prompt) == (
        f"<img>{picture}</img>Context: N/A\nQuestion: What color is the square?\nOptions: A. red\nB. blue\nC. green\n"
        "Answer:"
    )


# what is refused


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [("POPE", "Y/N on image"), ("TextVQA_VAL", "VQA on image"), (None, "not known"), ("MVBench", "Video-MCQ on video")],
)
def test_a_benchmark_that_is_no_multiple_choice_is_refused_by_name(classes, base, dataset, kind):
    variant = classes.TruncatedVLM(base, "l2_k16_ppl")
    words = rf"ppl: 'ppl' ranks options, which is for multiple choice .*benchmark {dataset!r} is {kind}.*without _ppl"
    with pytest.raises(ValueError, match=words):
        variant.use_custom_prompt(dataset)
    with pytest.raises(ValueError, match=words):
        variant.build_prompt(LINE, dataset=dataset)


def test_a_question_whose_options_are_not_known_is_refused(classes, base, pictures):
    variant = classes.TruncatedVLM(base, "ppl")
    variant.set_dump_image(Benchmark(pictures[0]).dump_image)
    other = [{"type": "text", "value": "Which?"}]
    benchmark = "ppl: benchmark .* asks in words of its own.*run it without _ppl"
    for dataset, words in ((DATA, benchmark), (None, "ppl: _ppl compares the options .* give a benchmark")):
        with pytest.raises(ValueError, match=words):
            variant.generate(other, dataset=dataset)
        variant.build_prompt(LINE, dataset=DATA)
    with pytest.raises(ValueError, match="asks in words of its own"):
        variant.chat_inner([{"role": "user", "content": other}], dataset="MMDU")
    with pytest.raises(ValueError, match=f"question 7 of {DATA}: multiple choice without options"):
        variant.build_prompt(LINE | dict.fromkeys("ABC", math.nan), dataset=DATA)


class Host:
    """A host model without a prompt of its own, that makes something of the torch model's answer."""

    def __init__(self, base: Any, make: Any) -> None:
        self.model, self.tokenizer, self.make = base.model, base.core.tokenizer, make
        self.core = base.core

    def set_dump_image(self, function: Any) -> None: ...

    def use_custom_prompt(self, dataset: str) -> bool:
        return False

    def preproc_content(self, inputs: Any) -> Any:
        return inputs

    def generate_inner(self, message: Any, dataset: str | None = None) -> Any:
        return self.make(self.core.reply(message)) if self.make else "free text"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (None, "nothing was ranked first, but Host answered 'free text'"),
        (lambda answer: f"The answer is {answer}.", "[ABC] was ranked first, but Host answered 'The answer is [ABC].'"),
    ],
)
def test_a_base_that_answers_otherwise_than_by_one_generate_is_refused(classes, base, pictures, make, words):
    variant = classes.TruncatedVLM(Host(base, make), "ppl")
    variant.set_dump_image(Benchmark(pictures[0]).dump_image)
    ask = variant.build_prompt(LINE, dataset=DATA)
    with pytest.raises(TruncationError, match=words):
        variant.generate(ask, dataset=DATA)
    assert "generate" not in base.model.__dict__


def test_a_base_is_refused_when_built_or_asked_without_tokenizer_or_benchmark(classes, base):
    with pytest.raises(TruncationError, match="ppl: SimpleNamespace has neither tokenizer nor processor"):
        classes.TruncatedVLM(SimpleNamespace(model=base.model), "ppl")
    ovis = SimpleNamespace(model=base.model, text_tokenizer=tokenizer_of(base))  # its class's name for it
    assert classes.TruncatedVLM(ovis, "ppl")._tokenizer is tokenizer_of(base) is not None
    variant = classes.TruncatedVLM(Host(base, str), "ppl")
    variant.set_dump_image(lambda line: [])
    with pytest.raises(ValueError, match=f"ppl: benchmark '{DATA}' is not known"):
        variant.build_prompt(LINE, dataset=DATA)
    with pytest.raises(KeyError, match="ppl_beam3.*use one of the two"):
        classes.TruncatedVLM(base, "ppl_beam3")
