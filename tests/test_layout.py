"""The house: which folder may import which, and only what a folder's front exports. It names folders, not files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "redrel_vlmeval"
# A folder, or a module at the root, imports only from what stands left of its own group.
ROWS = """
errors | files console | rules | names bases prompts methods | truncation host | models results | sweep sheets plugin |
explain lmms demo table checking | bench trying | cli | __main__
""".split("|")
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row.split()}
HOSTS = {"host", "plugin", "models"}  # may import the host: the door, and classes that inherit its base


def imported(path: Path) -> list[tuple[list[str], str]]:
    """(parts of the module, name) of every import, wherever it stands in the file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    return [(str(node.module).split("."), alias.name) for node in nodes for alias in node.names]


def faults(path: Path, inside: tuple[str, ...]) -> list[str]:
    """What is wrong with the imports of a file that stands, or would stand, at ``inside`` below the package."""
    found = []
    hosts = {"vlmeval": HOSTS, "lmms_eval": {"lmms"}}
    for (package, *deep), name in imported(path):
        if inside[0] not in hosts.get(package, {inside[0]}):
            found.append(f"{name}: {package} is known in {', '.join(hosts[package])}")
        if package != ROOT.name or inside[0] == "__init__":  # the root's own front may name everything
            continue
        target = (deep or [name])[0]
        if {target, inside[0]} == {"host", "lmms"}:
            found.append(f"{name}: host and lmms know nothing of one another")
        if target != inside[0] and not target.startswith("__") and LEVEL[target] >= LEVEL[inside[0]]:
            found.append(f"{name}: {target} does not stand above {inside[0]}")
        own = next((n for n, part in enumerate(deep) if inside[n : n + 1] != (part,)), len(deep))
        door = ROOT.joinpath(*deep[: own + 1])  # of the outermost folder that the importer does not stand in
        if own < len(deep) and door.is_dir():
            exported = ast.walk(ast.parse((door / "__init__.pyi").read_text("utf-8")))
            if len(deep) > own + 1 or name not in {node.asname for node in exported if isinstance(node, ast.alias)}:
                found.append(f"{name}: not exported by {'.'.join(deep[: own + 1])}")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way_and_through_the_front(path: Path) -> None:
    assert not faults(path, path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("wrong", ["cli import main", "results.reading import read", "results import nosuch"])
def test_a_planted_import_is_seen(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "x.py").write_text(f"def f():\n    from redrel_vlmeval.{wrong}\n")
    assert faults(tmp_path / "x.py", ("sheets", "tables", "x"))


@pytest.mark.parametrize(
    "room, wrong",
    [
        ("lmms", "redrel_vlmeval.host import Cell"),
        ("host", "redrel_vlmeval.lmms import manifests"),
        ("host", "lmms_eval.api.model import lmms"),
        ("lmms", "vlmeval.config import supported_VLM"),
    ],
)
def test_no_host_is_known_in_the_other_ones_room(tmp_path: Path, room: str, wrong: str) -> None:
    (tmp_path / "x.py").write_text(f"from {wrong}\n")
    assert faults(tmp_path / "x.py", (room, "x"))
