"""Commands of README and docs are run; their names, options, links and the file tree are compared with the disk."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from redrel_vlmeval.cli import app
from redrel_vlmeval.demo import show
from redrel_vlmeval.lmms.door import DOORS
from redrel_vlmeval.names import parse

needs_host = pytest.mark.skipif(
    importlib.util.find_spec("vlmeval") is None, reason="needs a host (vlmeval): redrel demo runs it"
)
pytestmark = pytest.mark.timeout(900)  # all commands of a page are one test
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# the README first: commands of docs go on from what its own have left
PAGES = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = {Path("README.md"): README} | PAGES
PAGES[Path("CONTRIBUTING.md")] = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    return [line.split("  #")[0].split(" # ")[0].strip() for line in lines if line.strip()]


COMMANDS = [command for text in PAGES.values() for command in commands(text)]
RUNNABLE = list(
    dict.fromkeys(command for command in COMMANDS if command.startswith(("redrel ", "cp ", "export ", "python my_")))
)
# Python that a page says to save: a block that begins with a file's name
SAVED = {
    name: block
    for text in PAGES.values()
    for block, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", text, re.S)
}
SAVED_YAML = {
    name: block
    for text in PAGES.values()
    for block, name in re.findall(r"```yaml\n(# (\w+\.yaml)\n.*?)```", text, re.S)
}
OTHERS = (
    ". .venv/bin/activate",
    "make ",
    "pip install ",
    "hf download ",
    "torchrun ",
    "python run.py ",
    "python -m vlmeval ",
    "python -m lmms_eval ",
)
INLINE = [one for text in PAGES.values() for one in re.findall(r"`(redrel [a-z][^`]*)`", text)]


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def anchors(text: str) -> set[str]:
    """What headings can be linked to by: lower case, spaces as dashes, no other signs."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[page]))


def test_the_pages_have_their_commands() -> None:
    assert {"make demo", "make test", ". .venv/bin/activate"} <= set(commands(README))
    assert any(c.startswith("redrel sheet") for c in commands(README))
    assert any(c.startswith("redrel bench") for c in RUNNABLE) and len(RUNNABLE) > 10
    others = [c for c in COMMANDS if c not in RUNNABLE and not c.startswith(OTHERS)]
    assert not others, f"the pages have commands that no test looks at: {others}"


def test_the_programs_are_known_before_they_are_called() -> None:
    found = commands(README)
    first = next(number for number, command in enumerate(found) if command.startswith("redrel "))
    assert found[:first].count("make demo") == 1 and found[first - 1] == ". .venv/bin/activate"
    assert ".venv/bin/redrel" in (ROOT / "Makefile").read_text()


def test_the_readme_says_the_times_that_the_demo_says() -> None:
    said = []
    for quick, questions in ((False, 700), (True, 140)):
        asked = show.SUBJECTS["redrel_tiny"].plan(quick).values()
        total = sum(len(names) for names in asked) * questions
        said += re.findall("about (.*?)s? on", show.duration(total, 0, show.SUBJECTS["redrel_tiny"].each, len(asked)))
    assert said == ["8 minute", "1 minute"]
    assert "for about 8 minutes on two idle cores" in README.replace("\n", " ") and "demo in about a minute" in README


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r'@echo "make (\S+)', MAKEFILE)


@pytest.mark.parametrize("target", sorted({*TARGETS, *(c.split()[1] for c in COMMANDS if c.startswith("make "))}))
def test_make_targets_can_be_made(target: str, tmp_path: Path) -> None:
    """Make itself reads them, in a folder where nothing is installed: every prerequisite has a rule, no rule two."""
    assert target in TARGETS, f"make help does not name {target}"
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    for needed in ("setup.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / needed).touch()
    done = subprocess.run(["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m lmms_eval")])
def test_lmms_eval_commands_name_real_ids_and_settings(command: str) -> None:
    words = shlex.split(command)
    given = {name.lstrip("-"): value for name, value in zip(words[3::2], words[4::2], strict=False)}
    runs = [given | {"log_samples": "--log_samples" in words, "output_path": "--output_path" in words}]
    if "config" in given:
        runs = yaml.safe_load(SAVED_YAML[given["config"]])
    for run in runs:
        assert run["model"] in DOORS
        arguments = dict(pair.split("=") for pair in run["model_args"].split(","))
        assert "pretrained" in arguments and ("trunc" not in arguments or parse(arguments["trunc"]).stages)
        assert run["log_samples"] and run["output_path"]  # else redrel sheet has nothing to test


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("python run.py", "python -m vlmeval"))])
def test_runner_commands_name_real_variants_and_options(command: str) -> None:
    words = shlex.split(command)
    if "--config" in words:
        assert (ROOT / words[words.index("--config") + 1]).is_file()
        assert [w for w in words if w.startswith("--")] == ["--config", "--judge"]
        return
    models = words[words.index("--model") + 1 : words.index("--data")]
    assert [str(parse(m)) for m in models] == models
    assert any(parse(m).stages for m in models)
    assert [w for w in words if w.startswith("--")] == ["--model", "--data", "--judge"]


@pytest.mark.parametrize("command", sorted({*INLINE, *(c for c in RUNNABLE if c.startswith("redrel "))}))
def test_subcommands_and_options_exist(command: str) -> None:
    """Those that are only mentioned, too."""
    found = typer.main.get_command(app)
    words = shlex.split(command)[1:]
    while hasattr(found, "commands") and words:
        assert words[0] in found.commands, f"{command}: no {words[0]}"
        found = found.commands[words.pop(0)]
    of_runner = {"--runner", "--model", "--data", "--judge", "--work-dir"} if found.name == "run" else set()
    known = {name for option in found.params for name in option.opts} | of_runner
    assert {word for word in words if re.match("--?[a-z]", word)} <= known


def linked(page: Path, address: str) -> bool:
    """Whether there is what ``page`` names: a file, and where one is named a heading in it. The paper is elsewhere."""
    if address == "https://arxiv.org/abs/2406.06579":
        return True
    name, _, anchor = address.partition("#")
    path = Path(os.path.normpath(page.parent / name)) if name else page
    return (ROOT / path).is_file() and (not anchor or anchor in anchors(PAGES.get(path, "")))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    assert links(page)
    assert not [address for address in links(page) if not linked(page, address)]
    assert not linked(page, "nothing.md") and not linked(page, "#no-such-heading")


def test_the_readme_is_short_and_leads_to_every_page_and_figure() -> None:
    assert len(README.splitlines()) <= 270
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".png")}
    assert len(ours) > 8 and {link.partition("#")[0] for link in links(Path("README.md"))} >= ours


class Place:
    """A folder in which commands are run one after the other, as in a clone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outputs = folder, folder / "outputs"
        self.said: dict[str, str] = {}
        scripts = Path(sys.executable).parent
        self.environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        self.environment.pop("LMUData", None)
        for name, text in SAVED.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "LMU").mkdir()  # in place of ~/LMUData, which belongs to whoever runs the tests

    def run(self, wanted: list[str], sweeps: int | None = None) -> None:
        """Run commands as they are printed, but for ``sweeps``: the questions of a sweep that names no limit."""
        for command in wanted:
            words = shlex.split(command)
            if sweeps is not None and command.startswith("redrel sweep") and "--limit" not in words:
                words += ["--limit", str(sweeps)]
            if words[0] == "export":
                name, _, value = words[1].partition("=")
                self.environment[name] = value
                self.said[command] = ""
                continue
            data = {} if " demo " in command else {"LMUData": str(self.folder / "LMU")}
            settings = {"cwd": self.folder, "env": self.environment | data, "capture_output": True, "text": True}
            done = subprocess.run(words, **settings, timeout=580)
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            self.said[command] = done.stdout


@pytest.fixture(scope="module")
def after_demo(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """What ``make demo`` leaves, by the quick demo, whose pictures are the first of the whole one's."""
    place = Place(tmp_path_factory.mktemp("clone"))
    place.run([command for command in RUNNABLE if " demo " in command])
    shutil.copytree(place.outputs / "quick", place.outputs / "demo")
    pictures = place.outputs / "demo" / "LMUData" / "images"
    (pictures / "RedRelShapes_MINI").rename(pictures / "RedRelShapes")
    return place


@pytest.fixture(scope="module")
def after_readme(after_demo: Place) -> Place:
    after_demo.run([command for command in RUNNABLE if command in commands(README) and " demo " not in command])
    return after_demo


@needs_host
def test_the_demo_leaves_its_files(after_demo: Place) -> None:
    made = {path.name for path in (after_demo.outputs / "quick").iterdir()}
    assert {"sheet.xlsx", "sheet.csv", "sheet.md", "page.html", "accuracy_against_keep.png"} <= made


@needs_host
def test_the_readmes_commands_run_in_order_as_printed(after_readme: Place) -> None:
    outputs = after_readme.outputs
    assert (outputs / "leaderboard.xlsx").stat().st_size > 5000
    (swept,) = [said for command, said in after_readme.said.items() if "--budget" in command]
    # a cliff layer, which --limit 40 would not show
    assert re.search(r"^attention +0 +at least 6, at most 6 ", swept, re.M), swept
    explained = sorted((outputs / "explained").glob("redrel_tiny_trunc_l2_k8_RedRelShapes_MINI_*.html"))
    assert len(explained) == 3
    assert f"explained/{explained[0].name}" in (outputs / "linked.html").read_text(encoding="utf-8")


@needs_host
def test_the_docs_commands_go_on_from_the_readmes(after_readme: Place) -> None:
    quick = [command for command in RUNNABLE if not command.startswith("redrel bench")]
    after_readme.run([command for command in quick if command not in after_readme.said], sweeps=12)
    assert set(after_readme.said) == set(quick)
    assert (after_readme.outputs / "drawn" / "redrel_tiny_picture_decoder_elementwise.png").stat().st_size > 5000
    left = {path.name for path in after_readme.folder.iterdir()} - {"__pycache__"}  # which git ignores
    assert left == {"LMU", "outputs", *SAVED}


@needs_host
@pytest.mark.slow
def test_the_docs_benches_run(tmp_path: Path) -> None:
    Place(tmp_path).run([command for command in RUNNABLE if command.startswith("redrel bench")])


def test_the_file_tree_is_the_disk() -> None:
    page = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    tree = page.split("## Files")[1].split("```")[1]
    shown: set[str] = set()
    for line in tree.strip().splitlines():
        name = line.split()[0]
        shown.add(f"redrel_vlmeval/{name}" if line.startswith("  ") else name)
    package = {
        f"redrel_vlmeval/{p.name}{'/' * p.is_dir()}"
        for p in (ROOT / "redrel_vlmeval").iterdir()
        if not p.name.startswith("__")
    }
    package.discard("redrel_vlmeval/py.typed")
    assert {name for name in shown if name.startswith("redrel_vlmeval/") and name != "redrel_vlmeval/"} == package
    for name in shown:
        assert (ROOT / name).exists(), f"docs/development.md shows {name}, which does not exist"
