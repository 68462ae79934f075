"""docs/models.md is what ``make coverage`` would write: its verdicts are those of ``classes.csv`` for the host here."""

from __future__ import annotations

import pytest
from checkpoints import needs_host

from redrel_vlmeval import checking, trying
from redrel_vlmeval.bases import BASES
from redrel_vlmeval.errors import UnknownName
from tools import coverage

pytestmark = needs_host


def table():
    """Rows of the page's last table, cells stripped."""
    text = coverage.PAGE.read_text(encoding="utf-8").rpartition("\n\n")[2].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text]


def test_the_page_says_what_classes_csv_says():
    said = [[kind, count, such, verdict, evidence, why] for kind, count, such, verdict, evidence, _, why in table()]
    assert said == [
        [f"`{line.kind}`", str(len(line.names)), f"`{line.names[0]}`", line.verdict, line.evidence, line.why]
        for line in coverage.lines()
    ]


def test_check_says_of_every_name_what_bases_says():
    for one in checking.verdicts():
        try:
            said = checking.check(f"{one.name}_trunc_l0_k0")
        except UnknownName as error:
            assert one.verdict == "refused" and one.why in str(error)
        else:
            assert one.verdict != "refused" and (one.name in BASES or one.why in said)


def test_what_is_measured_was_run_by_this_tool_or_is_said_to_be_older():
    ran = {kind.strip("`") for kind, *_, found, _why in table() if found}
    assert ran <= set(trying.MAKERS) and len(ran) > 15


@pytest.mark.parametrize(("verdict", "right", "agrees"), [("works", True, True), ("works", False, False)])
def test_a_run_that_contradicts_the_table_is_seen(monkeypatch, verdict, right, agrees):
    class Tried:
        wrong, tokens, apart = [] if right else ["wrong"], [3, 1], 0.0

    monkeypatch.setattr(trying, "try_name", lambda name: Tried(), raising=False)
    assert coverage.run(coverage.Line("Kind", verdict, "", "measured", ["name"])) is agrees
