"""The rule door: whoever registers gets in, whoever breaks a promise is named, and every rule keeps the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny_models import TinyModel

from redrel_vlmeval import names, rules
from redrel_vlmeval.errors import RedrelError, TruncationError
from redrel_vlmeval.rules import Choice, Merged, Rule, RuleError, Seen, decide, find, known, registry
from redrel_vlmeval.truncation import truncated

KEYNORM = """
from redrel_vlmeval import rule


@rule("keynorm", needs={"keys"}, says="whose keys of block L are shortest")
def keynorm(seen, budget):
    return seen.keys.norm(dim=-1).mean(0).argsort()[:budget]
"""


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Write a file of rules and name it in REDREL_RULES; afterwards the registry is as before."""
    before = dict(registry._rules)

    def write(text: str, name: str = "my_rules.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        monkeypatch.setenv(rules.VARIABLE, os.pathsep.join(filter(None, [os.environ.get(rules.VARIABLE), str(path)])))
        return path

    yield write
    registry._rules.clear()
    registry._rules.update(before)
    registry._foreign.cache_clear()


def made(choose, needs=(), **given) -> Rule:
    return Rule("mine", choose, frozenset(needs), "that I like", "my_rules.py:3", **given)


# -- getting in -------------------------------------------------------------------------------------------------------


def test_a_file_of_rules_is_found_by_names_and_by_the_engine(door, llava: TinyModel) -> None:
    path = door(KEYNORM)
    spec = names.parse("redrel_tiny_trunc_l2_k4_keynorm")
    assert spec.rule == "keynorm" and str(spec) == "redrel_tiny_trunc_l2_k4_keynorm"
    assert find("keynorm").where == f"{path}:5" and len(find("keynorm").digest) == 16
    with torch.no_grad(), truncated(llava.model, "l2_k4_keynorm") as trace:
        llava.model(**llava.prompt("ttItt", 1))
    assert len(trace.last.kept[2]) == 4 and trace.last.images[-1] == 4


def test_a_broken_file_stops_its_own_names_only(door) -> None:
    path = door("from redrel_vlmeval import rule\n\nraise OSError('no such disk')\n")
    assert names.parse("x_trunc_l2_k4_random").rule == "random"
    with pytest.raises(KeyError, match=rf"unknown rule 'keynorm'.*{path}:3: OSError: no such disk"):
        names.parse("x_trunc_l2_k4_keynorm")
    with pytest.raises(RuleError, match="no such disk"):
        known(everywhere=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (KEYNORM.replace("keynorm", "random"), "name is taken by redrel_vlmeval.rules.controls"),
        (KEYNORM.replace('"keynorm"', '"Key norm"'), "a name is lower-case letters"),
        (KEYNORM.replace('"keynorm"', '"rowmean"'), "no other word of variant names"),
        (KEYNORM.replace('"keys"', '"key"'), "needs key; choose from attention"),
        ("import nosuchmodule\n", "No module named 'nosuchmodule'"),
        ("def f(:\n", "invalid syntax"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_registered_says_why(door, text: str, said: str) -> None:
    door(text)
    with pytest.raises(RuleError, match=said):
        known(everywhere=True)
    assert known()["random"].where == "redrel_vlmeval.rules.controls"


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rules.VARIABLE, "nowhere.py")
    with pytest.raises(KeyError, match="REDREL_RULES: nowhere.py cannot be used: InvalidValue: no such file"):
        find("keynorm")


def test_reading_names_imports_no_torch() -> None:
    code = "import sys; from redrel_vlmeval import names; names.parse('x_trunc_l2_k4_random_seed3'); "
    code += "from redrel_vlmeval import checking; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- promises ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([0, 1], "returned 2 indices, asked for 3 of 8"),
        ([0, 1, 1], "index 1 twice"),
        ([0, 1, 8], "index 8, out of range: the 8 visual tokens are 0 to 7"),
        ([0, 1, -1], "index -1, out of range"),
        ([0.0, 1.0, 2.0], "float32"),
        ([float("nan")] * 3, "float32"),
        ([[0, 1, 2]], "expected 3 whole numbers"),
        ([True, False, True], "bool"),
        ("abc", "returned str, expected 3 indices"),
        (None, "returned NoneType"),
        (Merged([0, 1, 2], torch.ones(2, 8)), r"weights \[2, 8\], expected a float tensor \[3, 8\]"),
        (Merged([0, 1, 2], torch.full((3, 8), float("nan"))), "not finite"),
        (Merged([0, 1, 2], [[1.0]]), "weights list"),
    ],
)  # fmt: skip
def test_what_is_no_choice_is_refused_by_name(given: object, said: str) -> None:
    with pytest.raises(RuleError, match=rf"rule 'mine' \(my_rules.py:3\).*{said}"):
        decide(made(lambda seen, budget: given), Seen(8), 3)


def test_the_engine_names_variant_and_rule(door, llava: TinyModel) -> None:
    door(KEYNORM.replace("[:budget]", "[:1]"))
    with (
        torch.no_grad(),
        truncated(llava.model, "l2_k4_keynorm"),
        pytest.raises(TruncationError, match=r"rule 'keynorm' \(.*my_rules.py:5\) returned 1 indices, asked for 4"),
    ):
        llava.model(**llava.prompt("ttItt", 1))


def test_nothing_is_asked_where_there_is_no_choice() -> None:
    refusing = made(lambda seen, budget: pytest.fail("asked"))
    assert decide(refusing, Seen(8), 0).indices.tolist() == []
    assert decide(refusing, Seen(8), 9).indices.tolist() == list(range(8))


def test_rows_of_weights_follow_their_tokens() -> None:
    weights = torch.arange(24.0).view(3, 8)
    choice = decide(made(lambda seen, budget: Merged([5, 1, 3], weights)), Seen(8), 3)
    assert choice.indices.tolist() == [1, 3, 5] and torch.equal(choice.weights, weights[[1, 2, 0]])


def test_an_undeclared_need_is_named() -> None:
    with pytest.raises(RedrelError, match="seen.keys was not asked for: add 'keys' to the rule's needs"):
        decide(made(lambda seen, budget: seen.keys), Seen(8), 3)
    with pytest.raises(AttributeError, match="a rule sees no 'kees'"):
        decide(made(lambda seen, budget: seen.kees), Seen(8), 3)


def test_scores_that_are_no_numbers_have_no_best(llava: TinyModel) -> None:
    with pytest.raises(RedrelError, match="3 of 5 scores are NaN"):
        rules.highest(torch.tensor([0.0, float("nan"), 1.0, float("nan"), float("nan")]), 2)


@pytest.mark.parametrize("setting", ["l0_k4_divprune", "l0_k4_fps", "l0_k4_dpp-text", "l0_k4_scope", "l0_k4_visionzip",
                                     "l2_k4", "l2_k4_dart", "l0_k4_mmtok", "l0_k4_holov"])  # fmt: skip
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_that_is_no_number_is_refused_and_the_one_beside_it_is_not(
    setting: str, value: float, llava: TinyModel
) -> None:
    inputs = llava.batch(["tItt", "tItt"])
    inputs["pixel_values"][1] = value
    with torch.no_grad(), truncated(llava.model, setting), pytest.raises(RedrelError, match="NaN or infinite"):
        llava.model(**inputs)
    with torch.no_grad(), truncated(llava.model, setting):
        llava.model(**llava.prompt("tItt"))


# -- controls ---------------------------------------------------------------------------------------------------------


def test_ties_go_to_the_lower_index() -> None:
    scores = torch.tensor([1.0, 2.0, 2.0, 1.0, 2.0, 1.0])
    assert decide(find("attention"), Seen(6, attention=scores), 4).indices.tolist() == [0, 1, 2, 4]
    assert decide(find("lowest"), Seen(6, attention=scores), 2).indices.tolist() == [0, 3]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 60))
def test_uniform_is_evenly_spaced(tokens: int, budget: int) -> None:
    kept = decide(find("uniform"), Seen(tokens), budget).indices
    assert len(kept) == min(tokens, budget)
    if 1 < budget < tokens:
        assert int(kept.diff().max() - kept.diff().min()) <= 1
        assert abs(float(kept.float().mean()) - (tokens - 1) / 2) <= 1


def test_a_draw_depends_on_its_seed_alone() -> None:
    def draw(seed: int) -> list[int]:
        return decide(find("random"), Seen(10, generator=torch.Generator().manual_seed(seed)), 4).indices.tolist()

    assert draw(7) == draw(7) != draw(8)


# -- every rule -------------------------------------------------------------------------------------------------------

RULES = {name: rule for name, rule in known().items() if "clip" not in rule.needs}  # those: test_cdpruner.py


def setting(name: str, stage: str = "l2_k4") -> str:
    stage = stage.replace("l2", "l0") if RULES[name].before_block_1_only else stage
    return f"{stage}{rules.suffix(name)}"


def run(tiny: TinyModel, what: str, inputs: dict) -> tuple[list[list[int]], torch.Tensor]:
    """Kept tokens of each prompt, and logits of all positions."""
    with torch.no_grad(), truncated(tiny.model, what) as trace:
        logits = tiny.model(**inputs).logits
    return [next(iter(prompt.kept.values()), []) for prompt in trace.prompts], logits


@pytest.mark.parametrize("name", RULES)
def test_a_prompt_is_cut_alike_alone_and_in_any_batch(name: str, llava: TinyModel) -> None:
    """Rows of other lengths and numbers of pictures, padding on either side, another order."""
    texts = ["ttItttt", "IttItt", "ttt", "tIt"]
    alone = []
    for seed, text in enumerate(texts):
        kept, logits = run(llava, setting(name), llava.batch([text], seed))
        alone.append((kept[0], logits[0]))
        assert len(kept[0]) == (4 if "I" in text else 0)
    for side in ("left", "right"):
        for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
            batch = llava.joined([llava.batch([texts[i]], i) for i in order], side)
            kept, logits = run(llava, setting(name), batch)
            for row, i in enumerate(order):
                real = batch["attention_mask"][row].bool()
                assert kept[row] == alone[i][0], (name, side, order)
                torch.testing.assert_close(logits[row][real], alone[i][1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_all_tokens_are_the_untouched_model(name: str, llava: TinyModel) -> None:
    inputs = llava.prompt("ttItt", 3)
    with torch.no_grad():
        whole = llava.model(**inputs).logits
    assert torch.equal(run(llava, setting(name, "l2_k99"), inputs)[1], whole)


@pytest.mark.parametrize("name", RULES)
def test_equal_tokens_are_chosen_among_without_a_fault(name: str, llava: TinyModel) -> None:
    inputs = llava.prompt("ttItt", 3)
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    kept, _ = run(llava, setting(name), inputs)
    assert len(set(kept[0])) == 4


@pytest.mark.parametrize("name", RULES)
def test_before_block_1_it_chooses_or_is_refused(name: str, llava: TinyModel) -> None:
    if not find(name).before_block_1:
        with pytest.raises(KeyError, match="before block 1 there is no attention"):
            names.parse(setting(name, "l0_k4"))
        return
    inputs = llava.prompt("ttItt", 3)
    with torch.no_grad(), truncated(llava.model, setting(name, "l0_k4")) as trace:
        llava.model(**inputs)
    assert len(trace.last.kept[0]) == 4 and trace.last.images == [4] * trace.blocks


@pytest.mark.parametrize("name", RULES)
def test_its_words_are_checked_and_shown(name: str) -> None:
    from redrel_vlmeval.checking import check

    words = RULES[name].says.replace("{row}", "the last query row attends to")
    assert words in check(f"redrel_tiny_trunc_{setting(name)}")


def test_decisions_have_one_form() -> None:
    assert Choice(torch.tensor([1])).weights is None


def test_the_page_about_rules_says_what_a_rule_sees() -> None:
    page = (Path(__file__).parents[1] / "docs" / "rules.md").read_text(encoding="utf-8")
    for name, meaning in rules.FIELDS.items():
        assert f"| `{name}` | {meaning} |" in page
