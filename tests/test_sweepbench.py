"""``redrel bench sweep`` measures what it says: its arms, the plan's numbers, and bars that can be missed."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from tiny_models import TinyModel
from typer.testing import CliRunner

from redrel_vlmeval import cli
from redrel_vlmeval.bench import command, subjects, sweep as sweepbench, table as tablebench
from redrel_vlmeval.bench.sweep import Plan, Timed
from redrel_vlmeval.names import Stage, VariantSpec

SMALL = Plan(length=671, images=576, prefix=35, blocks=16)


def test_the_plan_of_the_small_llava_is_that_of_the_issue() -> None:
    specs = sweepbench.grid(SMALL.blocks, SMALL.images)
    assert len(specs) == 60 and str(specs[-1]) == "bench_trunc_l12_k432"
    assert SMALL.sweep(specs) / SMALL.one_by_one(specs) == pytest.approx(0.348, abs=1e-3)
    assert SMALL.sweep(specs) / SMALL.published(specs) == pytest.approx(0.225, abs=1e-3)
    one = VariantSpec("bench", (Stage(3, 72),))
    assert SMALL.one_by_one([one]) == 3 * 671 + 13 * (95 + 72)
    assert SMALL.sweep([one]) == 16 * 671 + 13 * (60 + 72)


def test_all_arms_run_and_the_answers_agree(llava: TinyModel) -> None:
    subject = subjects.llava_subject(llava.model, {})
    plan, seen = Plan.of(subject), list[str]()
    specs = sweepbench.grid(plan.blocks, plan.images)
    assert (plan.images, plan.blocks, len(specs)) == (16, 5, 20)
    found = sweepbench.bench(subject, specs, 2, seen.append)
    assert [len(seconds) for seconds in (found.sweep, found.less, found.one_by_one, found.published)] == [2, 2, 2, 2]
    assert found.agreeing == 1.0 and found.batches == [20]
    assert all(a > b > 0 for a, b in zip(found.one_by_one, found.the_one_more, strict=True))
    assert sum(step.startswith("one by one") for step in seen) == 40
    shape = 2 * 2 * 8 * 4  # keys and values, two key heads of 8 channels in float32
    held = sum((5 - s.stages[0].layer) * (plan.length - 16 + s.stages[0].keep) for s in specs)
    assert found.kv == held * shape
    rows = sweepbench.table(plan, specs, found)
    assert [row["arm"] for row in rows] == ["sweep", "one by one", "published way"] and rows[1]["ratio"] == 1
    assert llava.model.config._attn_implementation == "sdpa"


def timed(sweep: float, less: float, peak: int, agreeing: float = 1.0) -> Timed:
    one_by_one, the_one_more, published = 100.0, 20.0, 160.0
    return Timed(
        [sweep], [less], [one_by_one], [the_one_more], [published], [60], agreeing, peak, 100_000_000, 900_000_000
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "missed"),
    [
        (timed(43, 37, 1_000_000_000), []),
        (timed(44, 38, 1_000_000_000), ["sweep over one by one"]),
        (timed(45, 37, 1_000_000_000), ["sweep over one by one", "sweep over the published way", "one more K"]),
        (timed(43, 37, 1_200_000_000), ["peak MB"]),
        (timed(43, 37, 1_000_000_000, 0.98), ["answers"]),
    ],
)
def test_bars_are_missed_where_they_should_be(found: Timed, missed: list[str]) -> None:
    specs = sweepbench.grid(SMALL.blocks, SMALL.images)
    wrong = [check.what for check in sweepbench.checks(SMALL, specs, found, True) if not check.holds]
    assert len(wrong) == len(missed) and all(w.startswith(m) for w, m in zip(wrong, missed, strict=True))


def test_the_command(llava: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subjects.llava_subject(llava.model, {})
    monkeypatch.setattr(command.Request, "build", lambda self: subject)
    arguments = ["bench", "sweep", "--rounds", "1", "--settings", "l1_k0,l1_k5,l3_k5"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "3 settings, 111 tokens, 16 of them of images" in result.output and "published way" in result.output
    monkeypatch.setattr(sweepbench, "checks", lambda *_: [sweepbench.Check("impossible", 1.0, "< 0", False)])
    assert CliRunner().invoke(cli.app, [*arguments, "--check"]).exit_code == 1
    wrong = CliRunner().invoke(cli.app, ["bench", "swep"])
    assert isinstance(wrong.exception, ValueError) and "choose prefill, rules, batch, sweep" in str(wrong.exception)


def test_a_table_is_eight_rules_at_three_budgets_and_shares_most_of_its_work(llava: TinyModel) -> None:
    specs = tablebench.settings(576)
    assert len(specs) == 24 and len({spec.setting for spec in specs}) == 24
    assert {spec.stages[0].keep for spec in specs} == {192, 128, 64}
    subject = subjects.Subject(llava.model, llava.prompt("tttItttt"), lambda *_: nullcontext())
    few = tablebench.settings(16)[:6]
    found = tablebench.bench(subject, few, 1)
    assert found.agreeing == 1 and len(found.sweep) == len(found.at_once) == len(found.one_by_one) == 1
    assert found.over_one_by_one(found.sweep) > 0
    assert 0.3 < tablebench.planned(subject, few) < 1
