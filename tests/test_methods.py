"""Published methods: every setting is a name of ours in its one form, and the page says the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from redrel_vlmeval import methods
from redrel_vlmeval.cli import app
from redrel_vlmeval.errors import UnknownName
from redrel_vlmeval.names import parse
from redrel_vlmeval.rules import known

PAGE = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
METHODS = methods.known()
SETTINGS = [(title, family, budget, one) for title, method in METHODS.items()
            for family, pairs in method.settings.items() for budget, one in pairs.items()]  # fmt: skip


@pytest.mark.parametrize(("title", "family", "budget", "setting"), SETTINGS)
def test_settings_are_names_and_belong_to_one_method(title: str, family: str, budget: str, setting: str) -> None:
    assert str(parse(setting)) == setting
    assert methods.title_of(setting) == title
    assert set(METHODS[title].settings) <= set(methods.FAMILIES)


def average(setting: str, tokens: int, blocks: int) -> float:
    """Visual tokens that enter a block, mean over all blocks."""
    held, total = tokens, 0
    stages = {stage.layer: stage for stage in parse(setting).stages}
    for block in range(blocks):
        if block in stages:
            held = stages[block].count(tokens, blocks)
        total += held
    return total / blocks


@pytest.mark.parametrize(
    ("title", "budget", "expected"),
    [
        ("FastV", "192", 192), ("FastV", "128", 128), ("FastV", "64", 64), ("VTW", "288", 288), ("VScan", "64", 64),
        ("PyramidDrop", "270", 269.25), ("DART", "128", 159.75), ("SparseVLM+", "192", 206.75),
        ("SparseVLM+", "128", 144.1), ("SparseVLM+", "64", 81.75), ("DivPrune", "64", 64), ("RedRel", "128", 198),
    ],
)  # fmt: skip
def test_budgets_mean_what_the_facts_say(title: str, budget: str, expected: float) -> None:
    assert average(METHODS[title].settings["LLaVA-1.5"][budget], 576, 32) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize(("family", "blocks"), [("28 blocks", 28), ("36 blocks", 36)])
def test_percentages_are_averages(family: str, blocks: int) -> None:
    for _, settings in [(m.title, m.settings[family]) for m in METHODS.values() if family in m.settings]:
        for budget, setting in settings.items():
            assert average(setting, 10_000, blocks) / 100 == pytest.approx(float(budget.rstrip("%")), abs=0.6)


def test_fastv_is_166_98_and_30() -> None:
    assert [parse(s).stages[0].count(576, 32) for s in METHODS["FastV"].settings["LLaVA-1.5"].values()] == [166, 98, 30]


def test_what_is_not_offered_says_why() -> None:
    assert all(method.differs for method in METHODS.values() if not method.settings)
    assert methods.title_of("l3_k7") == ""


def test_the_command_lists_them() -> None:
    whole = CliRunner().invoke(app, ["methods"])
    assert whole.exit_code == 0 and all(f"{title} (" in whole.output for title in METHODS)
    one = CliRunner().invoke(app, ["methods", "fastv"])
    assert "192: l2_a192" in one.output and "DivPrune" not in one.output
    with pytest.raises(UnknownName, match="unknown method 'FastW': choose one of RedRel, FastV"):
        methods.find("FastW")


def test_the_page_has_every_rule_and_every_method() -> None:
    assert all(f"| `{name}` |" in PAGE for name in known())
    assert all(f"| {title} |" in PAGE for title in METHODS)
