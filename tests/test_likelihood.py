"""Ranked options against the plainest way to score them: for every option a forward call of prompt and option."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle import Oracle
from qwen_checkpoint import ENDOFTEXT, write_checkpoint
from qwen_prompts import QwenOracle, batch, between_tags
from tiny_models import FAMILIES, IMAGE, TinyModel, build

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.models.likelihood import Ranker, find_tokenizer, spellings
from redrel_vlmeval.models.qwen.core import QwenCore
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import truncated
from redrel_vlmeval.truncation.hooks import replaced_generate

ONE = [{"A": [11], "B": [12], "C": [13], "D": [14]}]
# some options of several tokens, some beginning alike, one that is the beginning of another
SEVERAL = [
    {"A": [11, 21, 31], "B": [11, 22], "C": [13], "D": [11, 21]},
    {"A": [41], "B": [42], "C": [43, 7], "D": [44]},
]
SETTINGS = ["", "l2_k4", "l0_k0", "l1_k9_l3_k2", "l2_k4_lowest_rowmean", "l2_r25_uniform", "l2_k4_official"]


def rank(model: Any, setting: str, options: list[dict[str, list[int]]], inputs: dict[str, Any], **more: Any) -> Any:
    """What was found, the output, the prefill's and the later forward calls' lengths, the trace."""
    ranker, lengths = Ranker(model, options, f"x_{setting}"), []
    hook = model.register_forward_pre_hook(lambda _m, _a, k: lengths.append(k["input_ids"].shape[1]), with_kwargs=True)
    try:
        cut = truncated(model, setting) if setting else nullcontext()
        with torch.no_grad(), replaced_generate(model, ranker.replace), cut as trace:
            output = model.generate(**inputs, **more)
    finally:
        hook.remove()
    return SimpleNamespace(found=ranker.found, output=output, lengths=lengths, trace=trace, record=ranker.record)


def lengthened(inputs: dict[str, torch.Tensor], tokens: list[int]) -> dict[str, torch.Tensor]:
    more = {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}
    more["mm_token_type_ids"] = torch.zeros_like(more["input_ids"])
    return inputs | {name: torch.cat([inputs[name], new], 1) for name, new in more.items() if name in inputs}


@torch.no_grad()
def plain_score(model: Any, inputs: dict[str, torch.Tensor], tokens: list[int], cached: bool = False) -> float:
    """Log-probability of ``tokens`` behind a prompt, all in one forward call, or one token after another."""
    if cached:
        out = model(**inputs, use_cache=True)
        logits, mask = [out.logits[0, -1]], inputs["attention_mask"]
        for token in tokens[:-1]:
            mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
            step = {"input_ids": torch.tensor([[token]]), "attention_mask": mask}
            out = model(**step, past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[0, -1])
    else:
        logits = list(model(**lengthened(inputs, tokens), use_cache=False).logits[0, -len(tokens) - 1 : -1])
    return sum(float(row.log_softmax(-1)[token]) for row, token in zip(logits, tokens, strict=True))


def check(tiny: Any, setting: str, options: list[dict[str, list[int]]], inputs: dict[str, Any], where: Any) -> Any:
    """Every option's score equals the oracle's, one prefill was run, and the likeliest came out."""
    got = rank(tiny.model, setting, options, inputs, max_new_tokens=9, do_sample=False)
    oracle, image = where(inputs["input_ids"])
    spec, context, official = parse(setting or "base"), nullcontext(), False
    if setting:
        places = image[0].nonzero()[:, 0].tolist()
        kept = {layer: [[places[number] for number in numbers]] for layer, numbers in got.trace.last.kept.items()}
        stages, official = {layer: len(rows[0]) for layer, rows in kept.items()}, spec.official
        context = oracle(tiny, stages, spec.rule, spec.row, official, None if official else kept).applied()
    with context:
        wanted = [
            {name: plain_score(tiny.model, inputs, tokens, cached=official) for name, tokens in spelling.items()}
            for spelling in options
        ]
    chosen = max(wanted, key=lambda scores: sum(map(math.exp, scores.values())))
    assert got.found.logprobs == pytest.approx(chosen, abs=1e-4)
    best = max(chosen, key=lambda name: chosen[name])
    tokens = options[wanted.index(chosen)]
    assert got.found.best == best and got.found.tokens == tokens
    prompt = inputs["input_ids"].shape[1]
    assert got.output[0].tolist() == inputs["input_ids"][0].tolist() + tokens[best]
    steps = sum(len(one) - 1 for spelling in options for one in spelling.values())
    assert got.lengths == [prompt] + [1] * steps
    longest = max(len(one) for spelling in options for one in spelling.values())
    assert got.record == {"option_logprobs": got.found.logprobs, "new_tokens": longest}
    if setting:
        assert len(got.trace.prompts) == 1
        assert got.trace.last.kv == [held + longest - 1 for held in got.trace.last.tokens]
    return got


def of_llava(ids: torch.Tensor) -> Any:
    return Oracle, ids == IMAGE


def of_qwen(ids: torch.Tensor) -> Any:
    return QwenOracle, between_tags(ids)


@pytest.mark.parametrize("options", [ONE, SEVERAL], ids=["one token", "several"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_scores_of_a_llava_are_those_of_whole_forward_calls(llava: TinyModel, setting: str, options: Any) -> None:
    check(llava, setting, options, llava.prompt("ttIttt"), of_llava)


@pytest.mark.parametrize("setting", ["", "l2_k2", "l0_k0"])
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"llava"}))
def test_scores_of_every_family(name: str, setting: str) -> None:
    tiny = build(name)
    check(tiny, setting, SEVERAL, tiny.prompt("ttIttt"), of_llava)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trained length 64: the prompt is beyond it, so NTK and logn scaling are at work."""
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen") / "base", blocks=5, seq_length=64)
    return QwenCore(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize("options", [ONE, SEVERAL], ids=["one token", "several"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_scores_of_qwen_vl(qwen: QwenCore, tmp_path: Path, setting: str, options: Any) -> None:
    check(SimpleNamespace(model=qwen.model), setting, options, batch(tmp_path, ["tItttt"]), of_qwen)


def test_one_token_options_are_the_argmax_of_the_letters_logits(llava: TinyModel) -> None:
    answers = set()
    for seed in range(8):
        inputs = llava.prompt("ttIttt", seed)
        with torch.no_grad():
            logits = llava.model(**inputs).logits[0, -1]
        best = "ABCD"[int(logits[[11, 12, 13, 14]].argmax())]
        got = rank(llava.model, "", ONE, inputs)
        assert got.found.best == best and len(got.lengths) == 1
        answers.add(best)
    assert len(answers) > 1


def test_letters_are_spelt_as_the_model_would_begin_its_answer(llava: TinyModel) -> None:
    """The spelling with more probability over all options wins, also where the other holds the likeliest one."""
    inputs = llava.prompt("ttIttt")
    with torch.no_grad():
        order = llava.model(**inputs).logits[0, -1, 4:90].argsort(descending=True) + 4
    tokens = order.tolist()
    one_good = {"A": tokens[0:1], "B": tokens[-1:], "C": tokens[-2:-1], "D": tokens[-3:-2]}
    all_good = {name: tokens[number : number + 1] for number, name in enumerate("DCBA", 1)}
    with torch.no_grad():
        share = llava.model(**inputs).logits[0, -1].softmax(-1)
    assert share[tokens[0]] < share[tokens[1:5]].sum()  # or the test says nothing
    for both in ([one_good, all_good], [all_good, one_good]):
        assert rank(llava.model, "", both, inputs).found.tokens == all_good


def test_options_of_several_tokens_are_scored_in_any_order_alike(llava: TinyModel) -> None:
    inputs, spelling = llava.prompt("ttIttt"), SEVERAL[0]
    for setting in ("", "l0_k0", "l1_k9_l3_k2"):
        whole = rank(llava.model, setting, [spelling], inputs).found.logprobs
        turned = rank(llava.model, setting, [dict(reversed(spelling.items()))], inputs).found.logprobs
        one_by_one = [rank(llava.model, setting, [{name: one}], inputs) for name, one in spelling.items()]
        alone = {name: score for got in one_by_one for name, score in got.found.logprobs.items()}
        assert whole == turned == alone


def test_settings_of_the_base_do_not_reach_the_ranking(llava: TinyModel) -> None:
    inputs = llava.prompt("ttIttt")
    plain = rank(llava.model, "l2_k4", SEVERAL, inputs)
    settings = {"do_sample": True, "num_beams": 3, "min_new_tokens": 4, "max_new_tokens": 6, "use_cache": False}
    changed = rank(llava.model, "l2_k4", SEVERAL, inputs, **settings)
    assert changed.found == plain.found and changed.lengths == plain.lengths
    assert rank(llava.model, "l2_k4", SEVERAL, inputs, max_length=999).found == plain.found
    whole = rank(llava.model, "l2_k4", SEVERAL, inputs, return_dict_in_generate=True).output
    assert torch.equal(whole.sequences, plain.output)


def test_what_cannot_be_ranked_is_refused(llava: TinyModel) -> None:
    two = llava.batch(["ttIttt", "tI"])
    with pytest.raises(TruncationError, match="x_l2_k4: 2 prompts at once"):
        rank(llava.model, "l2_k4", ONE, two)
    ranker = Ranker(llava.model, ONE, "x_ppl")
    with torch.no_grad(), replaced_generate(llava.model, ranker.replace):
        llava.model.generate(**llava.prompt("ttIttt"))
        with pytest.raises(TruncationError, match="x_ppl: the base generates more than once"):
            llava.model.generate(**llava.prompt("ttIttt"))
    padded = {name: value[:1] for name, value in llava.batch(["tI", "tIttt"]).items()}
    assert rank(llava.model, "", ONE, padded).lengths == [padded["input_ids"].shape[1]]
    with pytest.raises(TruncationError, match="x_: options of several tokens cannot be ranked behind a padded prompt"):
        rank(llava.model, "", SEVERAL, padded)
    with pytest.raises(TruncationError, match="KV cache of type StaticCache"):
        rank(llava.model, "", SEVERAL, llava.prompt("ttIttt"), cache_implementation="static")
    torch.nn.init.constant_(llava.model.get_output_embeddings().weight, math.nan)
    with pytest.raises(TruncationError, match="x_: the model's log-probabilities are no numbers"):
        rank(llava.model, "", ONE, llava.prompt("ttIttt"))


class Words:
    """A tokenizer of whole words with a space before each, as sentencepiece has them; ``\\n`` stands alone."""

    encode = None

    def __init__(self, known: dict[str, int]) -> None:
        self.known = known

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens and text.startswith("\n")
        return {"input_ids": [0] + ([self.known.get(text[1:], 9)] if text[1:] else [])}


def test_letters_are_spelt_with_and_without_a_space() -> None:
    known = {"A": 1, " A": 2, "B": 3, " B": 4}
    assert spellings(Words(known), ["A", "B"], "x") == [{"A": [1], "B": [3]}, {"A": [2], "B": [4]}]
    same = {"A": 1, " A": 1, "B": 3, " B": 3}
    assert spellings(Words(same), ["A", "B"], "x") == [{"A": [1], "B": [3]}]
    unknown = {"A": 1, "B": 3}  # with a space both are the unknown token
    assert spellings(Words(unknown), ["A", "B"], "x") == [{"A": [1], "B": [3]}]
    with pytest.raises(TruncationError, match="x_ppl: its tokenizer cannot tell the options A, B apart"):
        spellings(Words({}), ["A", "B"], "x_ppl")


def test_qwen_vls_letters_are_one_byte_and_the_authors_have_a_space_before(qwen: QwenCore) -> None:
    """In the real vocabulary `` A`` is one token, as its authors rank it; the tiny one has bytes only."""
    bare, spaced = spellings(qwen.tokenizer, ["A", "B"], "x")
    assert {name: qwen.tokenizer.decode(tokens) for name, tokens in bare.items()} == {"A": "A", "B": "B"}
    assert {name: qwen.tokenizer.decode(tokens) for name, tokens in spaced.items()} == {"A": " A", "B": " B"}
    assert all(token < ENDOFTEXT for tokens in [*bare.values(), *spaced.values()] for token in tokens)


def test_a_tokenizer_is_found_where_host_classes_keep_it(qwen: QwenCore) -> None:
    words = Words({})
    for holder in (
        SimpleNamespace(tokenizer=words), SimpleNamespace(processor=SimpleNamespace(tokenizer=words)),
        SimpleNamespace(core=SimpleNamespace(tokenizer=words)), SimpleNamespace(tokenizer=None, processor=words),
    ):  # fmt: skip
        assert find_tokenizer(holder, "x") is words
    assert find_tokenizer(SimpleNamespace(core=qwen), "x") is qwen.tokenizer
    with pytest.raises(TruncationError, match="x_ppl: SimpleNamespace has neither tokenizer nor processor"):
        find_tokenizer(SimpleNamespace(processor=print), "x_ppl")
