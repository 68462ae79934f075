"""What ``redrel`` prints of an error: one line where it was made for people, else the traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from redrel_vlmeval import checking, cli, names
from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.files import WriteError


def of_a_library() -> None:
    int("no number")


def ours() -> None:
    raise WriteError("no room")


def wrong_name() -> None:
    names.parse("a_trunc_l5")


def stage() -> None:
    names.Stage(2, percent=120)


def lookup() -> None:
    names.Stage(2, keep={}["k"])


def shape() -> None:
    names.VariantSpec("x", ((1, 2),)).setting.encode("no such codec")


def file() -> None:
    open("/nowhere/at/all.txt")  # noqa: SIM115 (there is none)


def main(monkeypatch: pytest.MonkeyPatch, raising, *options: str) -> int:
    monkeypatch.setattr(checking, "check", lambda _name: raising())
    monkeypatch.setattr(sys, "argv", ["redrel", *options, "check", "x"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.mark.parametrize(
    ("raising", "said"), [(ours, "no room"), (stage, "r120: a percentage"), (file, "No such file")]
)
def test_errors_made_for_people_are_one_line(monkeypatch, capsys, raising, said) -> None:
    monkeypatch.delenv(cli.DEBUG, raising=False)
    assert main(monkeypatch, raising) == 2
    out = capsys.readouterr()
    assert out.err.startswith("redrel: ") and said in out.err and out.err.count("\n") == 1


def test_a_wrong_value_that_only_python_found_keeps_its_traceback(monkeypatch) -> None:
    monkeypatch.delenv(cli.DEBUG, raising=False)
    with pytest.raises(ValueError, match="invalid literal"):
        main(monkeypatch, of_a_library)


def told(raising) -> bool:
    try:
        raising()
    except Exception as error:
        return cli._for_people(error)
    return False


@pytest.mark.parametrize("raising", [ours, wrong_name, stage, file])
def test_errors_for_people(monkeypatch, raising) -> None:
    monkeypatch.setattr(sys, "argv", ["redrel", "check", "x"])
    assert told(raising)


@pytest.mark.parametrize("raising", [of_a_library, lookup, shape])
def test_faults_in_the_program(monkeypatch, raising) -> None:
    monkeypatch.setattr(sys, "argv", ["redrel", "check", "x"])
    assert not told(raising)


def test_nothing_of_the_hosts_runner_is_hidden(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["redrel", "run"])
    assert not told(stage) and not told(file) and told(ours)


@pytest.mark.parametrize("way", ["option", "variable"])
def test_on_demand_every_error_has_its_traceback(monkeypatch, way) -> None:
    monkeypatch.setenv(cli.DEBUG, "1" if way == "variable" else "0")
    with pytest.raises(WriteError, match="no room"):
        main(monkeypatch, ours, *["--debug"] * (way == "option"))


def test_the_help_tells_how() -> None:
    said = " ".join(CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "--debug" in said and "REDREL_DEBUG=1" in said


@pytest.mark.parametrize("words", [["--runner"], ["--runner="], ["--runner", ""], ["--runner=", "--model", "x"]])
def test_a_runner_without_a_name_is_refused(words: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["run", *words])
    assert done.exit_code == 2 and "needs the path of a checkout's run.py" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    "words",
    [
        ("sheet", "LONG"),
        ("sheet", ".", "-o", "LONG.pdf"),
        ("report", "LONG", "-o", "x.html"),
        ("figures", "LONG", "-o", "x"),
        ("sweep", "--model", "LONG", "--data", "LONG", "--layers", "LONG", "--keep", "1"),
    ],
)
def test_an_argument_of_thousands_of_characters_is_not_repeated(monkeypatch, capsys, words: tuple[str, ...]) -> None:
    monkeypatch.delenv(cli.DEBUG, raising=False)
    monkeypatch.setattr(sys, "argv", ["redrel", *(word.replace("LONG", "x" * 5000) for word in words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("redrel: ") and len(said) < 1000 and "xxx" in said


def each_command(found, path: tuple[str, ...] = ()):
    yield path
    for name, one in getattr(found, "commands", {}).items():
        yield from each_command(one, (*path, name))


@pytest.mark.parametrize("words", [*each_command(typer.main.get_command(cli.app))], ids=" ".join)
def test_no_flag_looks_as_if_it_took_a_value(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli.app, [*words, "--help"])
    if words != ("run",):  # whose arguments are the host's
        assert done.exit_code == 0 and "--help" in done.output and "bool" not in done.output


def test_the_hosts_word_about_a_missing_env_file_is_spared() -> None:
    code = "import sys, logging; sys.argv[1:] = ['check', 'l2_k8']; from redrel_vlmeval import cli\n"
    code += "try: cli.main()\nexcept SystemExit: pass\n"
    code += "for word in ('Did not detect the .env file at x, failed to load.', 'disk full'): logging.error(word)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "disk full" in done.stderr and ".env" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "--model", "redrel_tiny", "--data", "RedRelShapes", "--layers", "1", "--keep", "1", "--host", "lmms"),
        ("sweep", "--model", "redrel_llava_hf", "--data", "pope", "--layers", "1", "--keep", "1", "--dry-run"),
        ("table", "--base", "redrel_llava_hf.llava-hf-llava-1.5-7b-hf", "--methods", "FastV", "--budgets", "192",
         "--data", "pope"),
    ],
)  # fmt: skip
def test_a_sweep_of_lmms_eval_says_why_there_is_none(words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue, match=r"only the answers of its own run.*lmms_eval --config"):
        CliRunner().invoke(cli.app, words, catch_exceptions=False)
