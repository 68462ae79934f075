"""The sweep of ``redrel_tiny`` equals the variants by name, question by question; its memory, records and refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modelbox
import pytest
import torch
from modelbox import BLOCKS
from sweepbox import Host, compare, grid, state
from tiny_models import TinyModel

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models.efficiency import MEASURED
from redrel_vlmeval.models.llava.input import single_prompt
from redrel_vlmeval.models.tiny import benchmark
from redrel_vlmeval.names import Stage, VariantSpec, parse
from redrel_vlmeval.sweep import Sweeper, question
from redrel_vlmeval.sweep.continuation import Continuation
from redrel_vlmeval.truncation import truncated

GRID = [VariantSpec("redrel_tiny", (Stage(layer, keep),)) for layer in range(1, BLOCKS) for keep in (0, 8, 24, 63, 64)]
GRID += [VariantSpec("redrel_tiny", (Stage(0, 0),)), VariantSpec("redrel_tiny", (Stage(0, 8),), "random")]
GRID += [VariantSpec("redrel_tiny", (Stage(layer, 8),), rule) for layer in (2, 5) for rule in ("random", "uniform")]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three questions of each category of the benchmark, as the host puts them."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMUData", str(folder))
        modelbox.classes()
        dataset = benchmark.dataset_classes()[0]("RedRelShapes_MINI")
    return dataset.data.groupby("category").head(3), dataset


@pytest.mark.parametrize(
    "long", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["stock", "four tokens and more"]
)
def test_answers_equal_those_of_the_names_question_by_question(questions: Any, base: Any, long: bool) -> None:
    """Over the grid, through the host's own prompt and ``TruncatedVLM``; records agree where they say the same."""
    lines, dataset = questions
    benchmark_name = dataset.dataset_name
    model = base if long else modelbox.classes().LLaVA15("redrel_tiny", device="cpu")
    model.set_dump_image(dataset.dump_image)
    sweep = Sweeper(model, GRID)
    rows = [line for _, line in lines.iterrows()][:: 3 if long else 1]
    swept = [sweep.answer(model.build_prompt(line, benchmark_name), benchmark_name) for line in rows]
    changed = 0
    for spec in GRID:
        variant = modelbox.classes().TruncatedVLM(model, spec.setting)
        variant.set_dump_image(dataset.dump_image)
        for line, answers in zip(rows, swept, strict=True):
            message = variant.build_prompt(line, dataset=benchmark_name)
            assert answers[spec.setting].text == variant.generate(message=message, dataset=benchmark_name), spec
            changed += answers[spec.setting].text != answers[""].text
    assert changed > 20


def test_a_record_says_what_the_variants_own_says(base: Any, asked: Any, tmp_path: Path) -> None:
    """All of the names of a run's record but the question's, and equal values but for times and margins."""
    spec = GRID[6]
    variant = modelbox.classes().TruncatedVLM(base, spec.setting)
    modelbox.in_host(lambda: variant.generate(asked), 7, tmp_path, f"redrel_tiny_trunc_{spec.setting}")
    (alone,) = modelbox.records(tmp_path)
    swept = Sweeper(base, GRID).answer(asked)[spec.setting].record
    extra = {"source", "margin", "letter_logits"}
    of_the_question = {"index", "model", "dataset", "time"}
    assert swept.keys() - extra == alone.keys() - of_the_question
    timed = set(MEASURED)
    assert all(swept[name] is None for name in timed) and alone["prefill_ms"] > 0 and alone["kv_bytes_measured"] > 0
    for name in alone.keys() - of_the_question - timed - {"base"}:
        assert swept[name] == alone[name], name
    assert (swept["source"], swept["base"]) == ("sweep", "redrel_tiny")


def test_margins_are_those_of_the_first_token(base: Any, asked: Any) -> None:
    answers = Sweeper(base, GRID).answer(asked)
    kwargs = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 1, "do_sample": False}
    inputs = base.core.inputs(*single_prompt(asked))
    encode = lambda letter: base.core.tokenizer(letter, add_special_tokens=False)["input_ids"][-1]  # noqa: E731
    first = None
    for setting in ("", "l2_k8", "l1_k0"):
        with torch.inference_mode():
            if setting:
                with truncated(base.model, setting):
                    logits = base.model.generate(**inputs, **kwargs).logits[0][0]
            else:
                logits = base.model.generate(**inputs, **kwargs).logits[0][0]
                first = int(logits.argmax())
        record = answers[setting].record
        others = torch.cat([logits[:first], logits[first + 1 :]])
        assert record["margin"] == pytest.approx(float(logits[first] - others.max()), abs=2e-4)
        assert list(record["letter_logits"]) == ["A", "B", "C", "D"]
        for letter, value in record["letter_logits"].items():
            assert value == pytest.approx(float(logits[encode(letter)]), abs=2e-4)
    assert answers[""].record["margin"] > 0


def test_what_drops_nothing_is_not_computed_again(base: Any, pictures: list[str]) -> None:
    calls = []
    handle = base.model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        sweep = Sweeper(base, GRID)
        answers = sweep.answer(modelbox.message(pictures, "What color is grass?"))
        assert sweep.batches == [] and len({answer.text for answer in answers.values()}) == 1
        assert len(calls) == answers[""].record["new_tokens"]
        assert answers["l2_k8"].record["mode"] == "untouched" and answers["l2_k8"].record["image_tokens"] == 0
        all_kept = Sweeper(base, [spec for spec in GRID if spec.stages[0].keep == 64])
        all_kept.answer(modelbox.message(pictures, 0, modelbox.QUESTION))
        assert all_kept.batches == []
    finally:
        handle.remove()


def test_settings_that_keep_the_same_tokens_run_once(llava: TinyModel) -> None:
    same = [spec for spec in grid((2,), (0,)) if spec.row == "last"]
    assert len(same) == 4 and compare(llava.model, llava.prompt("tttItttt"), same).batches == [1]


# memory


@pytest.mark.parametrize("budget", [1, 200_000, 400_000, 10**9])
def test_memory_is_kept_by_fewer_at_a_time(llava: TinyModel, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redrel_vlmeval.sweep.memory.ACTIVATIONS", 1)
    held = []

    class Weighed(Continuation):
        def step(self, ids: torch.Tensor) -> torch.Tensor:
            logits = super().step(ids)
            segments = [s for part in (*self.segments, [s for s in self.own if s]) for s in part]
            held.append(sum(t.numel() * t.element_size() for s in segments for t in (s.keys, s.values)))
            return logits

    monkeypatch.setattr(question, "Continuation", Weighed)
    specs = grid(range(1, 5), (0, 4, 9), ("attention",))
    batches = compare(llava.model, llava.prompt("tttItttt"), specs, memory=budget).batches
    assert sum(batches) == 28
    assert max(batches) == {1: 1, 200_000: 7, 400_000: 18, 10**9: 28}[budget]
    if budget > 1:
        assert max(held) <= budget


def test_answers_longer_than_the_room_made_for_them(llava: TinyModel) -> None:
    """The untouched answer ends at once, others go on for long: they are run again with more room, in the end all."""
    inputs = llava.prompt("tttItttt")
    first = Host(llava.model, max_new_tokens=1).generate(inputs)
    swept = compare(llava.model, inputs, grid((1, 2, 4), (0, 3, 9)), eos_token_id=[int(first)], max_new_tokens=40)
    assert len(swept.batches) > 1 and swept.batches[0] > swept.batches[-1]
    assert swept.answer(inputs)[""].record["new_tokens"] == 1


# what is refused, and what is left behind


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([], "one base, got 0"),
        (["a_trunc_l1_k1", "b_trunc_l1_k1"], "one base, got 2: a, b"),
        (["a_p-qcm"], "p-qcm: a sweep truncates, and this setting does not"),
        (["a_trunc_l1_k4_official"], "l1_k4_official: .*'official' hides them"),
        (["a_trunc_l1_k4_beam3"], "greedy decoding, not beams"),
        (["a_trunc_l1_k4_ppl"], "greedy decoding, not ppl"),
        (["a_trunc_l1_k4_p-qcm"], "the stock prompt .*, not a prompt"),
        (["a_trunc_l1_k4", "a_trunc_l1_k4"], "l1_k4: .*given twice"),
        (["a_trunc_l5_k4"], "layer 5 .* 5 blocks"),
    ],
)
def test_settings_that_cannot_be_swept_are_refused(llava: TinyModel, specs: list[str], words: str) -> None:
    with pytest.raises(TruncationError, match=words):
        Sweeper(Host(llava.model), [parse(spec) for spec in specs])


def test_a_model_that_cannot_be_swept_is_refused(base: Any) -> None:
    with pytest.raises(TruncationError, match="not from a variant"):
        Sweeper(modelbox.classes().TruncatedVLM(base, "l2_k8"), GRID)
    with pytest.raises(TruncationError, match="no torch model"):
        Sweeper(SimpleNamespace(key="sk"), GRID)


SOME = grid((1, 3), (0, 4), ("attention",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 3}, "greedily.* beam_search"),
        ({"do_sample": True}, "greedily.* sample"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
    ],
)
def test_other_decoding_is_refused_and_leaves_the_model_as_it_was(llava: TinyModel, options: Any, words: str) -> None:
    inputs = llava.prompt("tItt")
    Host(llava.model).generate(inputs)
    before = state(llava.model)
    with pytest.raises(TruncationError, match=words):
        Sweeper(Host(llava.model, **options), SOME).answer(inputs)
    assert state(llava.model) == before


def test_a_truncated_model_is_not_swept(llava: TinyModel) -> None:
    sweep = Sweeper(Host(llava.model), SOME)
    with truncated(llava.model, "l1_k1"), pytest.raises(TruncationError, match="sweep: this model is truncated alr"):
        sweep.answer(llava.prompt("tItt"))
    assert sweep.answer(llava.prompt("tItt")).keys() == {"", *(spec.setting for spec in SOME)}


def test_padded_prompts_are_refused(llava: TinyModel) -> None:
    inputs = llava.prompt("tItt")
    inputs["attention_mask"][0, 0] = 0
    with pytest.raises(TruncationError, match="without padding"):
        Sweeper(Host(llava.model), SOME).answer(inputs)
    with pytest.raises(TruncationError, match="one prompt at a time"):
        Sweeper(Host(llava.model), SOME).answer(llava.batch(["tItt", "ttItt"]))


def test_a_host_that_does_not_generate_once_is_refused(llava: TinyModel) -> None:
    class Twice(Host):
        def generate(self, message: Any, dataset: str | None = None) -> str:
            return super().generate(message) + super().generate(message)

    class Never(Host):
        def generate(self, message: Any, dataset: str | None = None) -> str:
            return "I am an API"

    for host, words in ((Twice(llava.model), "generate twice"), (Never(llava.model), "without a call of model.gen")):
        with pytest.raises(TruncationError, match=words):
            Sweeper(host, SOME).answer(llava.prompt("tItt"))


@pytest.mark.parametrize("where", ["prefill", "step", "logits"])
def test_an_exception_on_the_way_leaves_the_model_as_it_was(
    llava: TinyModel, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, host = llava.prompt("tItt"), Host(llava.model)
    host.generate(inputs)
    before = state(llava.model)
    sweep = Sweeper(host, SOME)
    with monkeypatch.context() as patch:

        def fail(*_args: Any, **_kwargs: Any) -> Any:
            raise OSError("no space")

        patch.setattr(*((sweep.decoder, "logits") if where == "logits" else (Continuation, where)), fail)
        with pytest.raises(OSError, match="no space"):
            sweep.answer(inputs)
    assert state(llava.model) == before
    with truncated(llava.model, "l1_k4"):  # not refused as truncated already, and still right
        alone = host.generate(inputs)
    assert sweep.answer(inputs)["l1_k4"].text == alone


def test_a_model_that_does_more_than_its_parts_is_refused(llava: TinyModel) -> None:
    def scaled(_module: Any, _args: Any, output: Any) -> Any:
        output.logits = output.logits * 2
        return output

    handle = llava.model.register_forward_hook(scaled)
    try:
        with pytest.raises(TruncationError, match="the output layer cannot be run apart"):
            Sweeper(Host(llava.model), SOME).answer(llava.prompt("tItt"))
    finally:
        handle.remove()
    handle = llava.model.model.language_model.register_forward_pre_hook(
        lambda _module, args, kwargs: (args, kwargs | {"inputs_embeds": kwargs["inputs_embeds"] * 2}), with_kwargs=True
    )
    try:
        with pytest.raises(TruncationError, match="the embedding cannot be run apart"):
            Sweeper(Host(llava.model), SOME).answer(llava.prompt("tItt"))
    finally:
        handle.remove()
