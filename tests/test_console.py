"""What is typed and what is shown at the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from redrel_vlmeval.console import bar, ending, numbers, words
from redrel_vlmeval.errors import InvalidValue


def test_lists_are_read_as_they_were_typed() -> None:
    assert numbers("--layers", " 8, 1-3,,2 ") == [8, 1, 2, 3, 2]
    assert numbers("--layers", "") == [] and words("a, b,,") == ("a", "b")


@pytest.mark.parametrize("text", ["x", "1-", "3-1", "1-2-3", "²", "１", "1.5", "1000000", "0-9999999", "9" * 5000])
def test_what_is_no_list_of_numbers_is_named(text: str) -> None:
    with pytest.raises(InvalidValue, match="--keep '.{1,30}' is neither a number to 999999 nor a range") as raised:
        numbers("--keep", text)
    assert len(str(raised.value)) < 160


def test_a_bar_in_a_file_is_a_line_each_tenth() -> None:
    console = Console(file=io.StringIO(), width=80)
    with bar(console, "starting", 40) as progress:
        progress.on()
        for done in range(2, 41):
            progress.to(done, "questions")
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.partition(",")[0] for line in lines if line.startswith("questions")][:9] == [
        f"questions {done}/40" for done in range(4, 40, 4)
    ]


@pytest.mark.parametrize("quiet, shown", [(True, True), (False, False)])
def test_a_bar_that_is_not_shown(quiet: bool, shown: bool) -> None:
    console = Console(file=io.StringIO(), quiet=quiet)
    with bar(console, "questions", 10, shown=shown) as progress:
        for _ in range(10):
            progress.on()
    assert not console.file.getvalue()  # type: ignore[attr-defined]


def test_a_command_ends_with_the_one_file_to_open() -> None:
    assert ending([]) == []
    assert ending(["a.csv", "b/page.html", "a.csv"]) == ["written: a.csv", "open this: b/page.html"]
    assert ending(["all/"]) == ["open this: all"]
    many = [f"out/{number}.{kind}" for number in range(3) for kind in ("pdf", "png")]
    assert ending([*many, "other/x.csv"]) == [
        "written: 5 files in out",
        "written: 1 file in other",
        "open this: out/0.png",
    ]
