"""Golden vectors: the committed ones pass, and a file that cannot be one says where."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redrel_vlmeval.cli import app
from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.rules import goldens

FILE = Path(__file__).parent / "goldens" / "rules.json"
VECTORS: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text())


def redrel(*args: str) -> Any:
    return CliRunner().invoke(app, args)


def test_all_vectors_pass_and_every_runner_has_one() -> None:
    done = redrel("rules", "--goldens", str(FILE))
    count = sum(map(len, VECTORS.values()))
    assert done.exit_code == 0 and done.output.splitlines()[-1] == f"{count} of {count} vectors"
    assert VECTORS.keys() == goldens.RUNNERS.keys()


@pytest.mark.parametrize("rule", VECTORS)
def test_every_expectation_can_fail(rule: str, tmp_path: Path) -> None:
    case = VECTORS[rule][0]
    outcomes = [key for key in ("kept", "order", "r", "f", "rows", "targets", "contextual_first")
                if isinstance(case.get(key), list)]  # fmt: skip
    assert outcomes
    for key in outcomes:
        wrong = copy.deepcopy(case)
        place = wrong[key] if not isinstance(wrong[key][0], list) else wrong[key][1]
        place[1] += 1 if isinstance(place[1], int) else 1e-4
        path = tmp_path / "wrong.json"
        path.write_text(json.dumps({rule: [wrong]}))
        done = redrel("rules", "--goldens", str(path))
        assert done.exit_code == 1 and "0 of 1 vectors" in done.output and f"{key}: expected" in done.output


def test_order_counts_where_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for key, same in (("kept", True), ("order", False)):
        case = {"X": [16, 8], "T": 5, key: [12, 2, 15, 14, 5]}
        path.write_text(json.dumps({"divprune": [case]}))
        assert [not difference for _, difference in goldens.run(path)] == [same]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "no JSON"),
        ("[]", "expected {rule: [case, ...]}"),
        ("{}", "no case in it"),
        ('{"divprune": []}', "expected {rule: [case, ...]}"),
        ('{"divprune": [3]}', "divprune 1 is no object"),
        ('{"nosuch": [{}]}', "unknown rule 'nosuch': vectors are known of divprune"),
        ('{"divprune": [{"T": 5}]}', "divprune 1: 'X' is missing"),
        ('{"divprune": [{"X": [4, 2], "T": 2}]}', "divprune 1: nothing is expected"),
        ('{"divprune": [{"X": [4, 2], "T": 2, "kept": [0, 1], "keep": 1}]}', "nothing is known of keep"),
        ('{"divprune": [{"X": [4], "T": 2, "kept": [0]}]}', "expected [n, d], [n, d, a] or [n, d, a, b]"),
        ('{"divprune": [{"X": [4, 2.5], "T": 2, "kept": [0]}]}', "expected [n, d]"),
        ('{"divprune": [{"X": [4, 2, "a"], "T": 2, "kept": [0]}]}', "a and b are numbers"),
        ('{"divprune": [{"X": [4, 2], "T": 5, "kept": [0]}]}', "T=5, expected a whole number from 1 to 4"),
        ('{"divprune": [{"X": [4, 2], "T": true, "kept": [0]}]}', "T=True"),
        ('{"vispruner": [{"V": [4, 2], "T": 2, "r": 2, "attention": "A(n)", "kept": [0]}]}', "r=2, expected a number"),
        ('{"vispruner": [{"V": [4, 2], "T": 2, "r": 1, "attention": "B", "kept": [0]}]}', "expected 'A(n)'"),
        ('{"mmtok": [{"X": [4, 2], "V": [5, 2], "Z": [1, 2], "T": 2, "kept": [0]}]}', "mmtok 1: "),
        ('{"mmtok": [{"X": [4, 2], "V": [4, 2], "Z": [1, 3], "T": 2, "kept": [0]}]}', "mmtok 1: "),
        ('{"cdpruner": [{"X": [4, 2], "E": [5, 2], "text": [1, 2], "T": 2, "kept": [0]}]}', "cdpruner 1: "),
        ('{"visionzip": [{"states": [5, 2], "keys": [4, 2], "dominant": 1, "contextual": 1, "attention": "A(n)", '
         '"rows": [0]}]}', "4 keys of 5 states"),
        ('{"dart": [{"keys": [5, 4], "states": [5, 4], "heads": 3, "system": 1, "image": 3, "text": 1, "B": 2, '
         '"pivots": [1, 1], "kept": [0]}]}', "do not fit one another"),
        ('{"flow": [{"rel": "A(n)", "sem": [1, 5], "v": [4, 2], "T": 2, "kept": [0]}]}', "flow 1: "),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_where_it_is_wrong(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InvalidValue) as caught:
        list(goldens.run(path))
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_rules_are_listed_with_what_they_need() -> None:
    done = redrel("rules")
    assert done.exit_code == 0
    for word in ("divprune", "embeddings", "random (control)", "redrel_vlmeval.rules.tower"):
        assert word in done.output
