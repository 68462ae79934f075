"""What an import costs and needs: light modules stay light, and what is imported is declared."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "redrel_vlmeval"
# what can be used, and listed, without waiting for torch or the host; a folder with all of its modules
LIGHT = [
    "errors",
    "files",
    "names",
    "bases",
    "prompts",
    "rules",
    "methods",
    "plugin",
    "checking",
    "cli",
    "host",
    "results",
    "sheets",
    "explain.draw",
]
# the hosts, asked for by extra, and what comes with the second or with packages that a name is tried by
OPTIONAL = {"vlmeval", "lmms_eval", "tqdm", "sentencepiece"}
DISTRIBUTIONS = {
    "PIL": "pillow", "huggingface_hub": "huggingface-hub", "python_calamine": "python-calamine",
    "lazy_loader": "lazy-loader",
}  # fmt: skip


def modules(below: str = "") -> dict[str, Path]:
    """Module name below the package -> file; packages end in ``__init__``."""
    folder = ROOT / PACKAGE
    found = {".".join(path.relative_to(folder).with_suffix("").parts): path for path in sorted(folder.rglob("*.py"))}
    return {name: path for name, path in found.items() if f"{name}.".startswith(below)}


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_import_neither_torch_nor_the_host(room: str) -> None:
    names = [f"{PACKAGE}.{name.removesuffix('.__init__')}" for name in modules(f"{room}.")]
    assert names
    code = f"import sys, importlib\nfor name in {names}:\n    importlib.import_module(name)\n"
    code += "    heavy = [m for m in ('torch', 'transformers', 'vlmeval') if m in sys.modules]\n"
    code += "    assert not heavy, (name, heavy)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


def imports(tree: ast.AST) -> set[str]:
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


def test_what_is_imported_is_declared() -> None:
    """Every third-party package that the package imports is a requirement in setup.py."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = text[text.index("install_requires=[") : text.index("extras_require")]
    declared = {match[0].lower() for item in re.findall(r'"([^"]+)"', block) if (match := re.match(r"[\w-]+", item))}
    used = {name: where for where, path in modules().items() for name in imports(ast.parse(path.read_text("utf-8")))}
    ours = {PACKAGE, "_redrel_vlmeval_hook", "__future__", *sys.stdlib_module_names, *OPTIONAL}
    foreign = {name: where for name, where in used.items() if name not in ours}
    missing = {name: where for name, where in foreign.items() if DISTRIBUTIONS.get(name, name).lower() not in declared}
    assert not missing, f"imported, but not in install_requires: {missing}"
    assert {"torch", "pandas"} <= declared & set(used)


@pytest.mark.parametrize("folder", ["redrel_vlmeval", "tests", "tools", "."])
def test_files_stay_short(folder: str) -> None:
    files = (ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines >= 340}


def test_the_root_of_the_package_stays_small() -> None:
    assert len(list((ROOT / PACKAGE).glob("*.py"))) <= 10
