"""One direction of dependence: the package's imports are read and compared with the order written here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "redrel_vlmeval"

# A module imports only what stands above it. A new module has to be placed here; `name.*` takes a whole folder.
ORDER = """
names palette locking writing hostfacts
truncation.errors truncation.views truncation.ranking truncation.trace truncation.prompt truncation.adapter
truncation.attending truncation.native truncation.fused truncation.decoders
truncation.refusals truncation.engine
gpus efficiency
prompts
models.checkpoint models.pictures models.question models.recorder models.holders
models.llava_input models.llava_core
models.qwen_compat models.qwen_kernel models.qwen_weights models.qwen_checkpoint models.qwen_core
models.llava models.qwen_vl models.decoding models.likelihood models.variant
registry hostrun checking
sweep.shared sweep.continuation sweep.memory sweep.decoding sweep.letters sweep.sweeper
benchmarks tables outputs records provenance questions pairing results
statistics comparisons flips grids
published blind
boards.columns boards.table boards.leaders boards.paper boards.persample boards.details boards.every
texts markup jsonboard workbook sheets
pages.render
figures
explain.errors explain.spans explain.bands explain.grid explain.store
explain.view explain.lettering explain.camfigures explain.flowfigures explain.arcfigures explain.comparing
explain.page explain.drawing
explain.asking explain.modes explain.objectives explain.formulas explain.taken
explain.passes explain.pixels explain.tower explain.gradcam explain.flow explain.faithfulness
explain.cards explain.explanation
noninferiority cliffs gridfigures
sweep.plan sweep.store sweep.distributed sweep.asking sweep.work sweep.hostfiles sweep.evaluate
sweep.preview sweep.outcome sweep.run
report.places report.board report.curves report.changes report.pictures report.explained report.page
benchmodels bench benchtable sweepbench benchexplain
demo.scenes demo.blank demo.lessons demo.train demo.benchmark demo.kept demo.evidence demo.show
attach
explain.items explain.testing explain.job explain.tables explain.command explain.app
cli
__main__
""".split()

# what can be used, and listed, without waiting for torch or the host
LIGHT = """
names writing hostfacts prompts registry attach hostrun checking
benchmarks tables outputs records provenance questions pairing results statistics
comparisons flips grids published blind boards.every texts markup jsonboard workbook sheets pages.render figures
noninferiority cliffs gridfigures report.page cli explain.spans explain.bands explain.grid explain.store
explain.view explain.lettering explain.camfigures explain.flowfigures explain.arcfigures explain.comparing
explain.page explain.drawing
""".split()
OPTIONAL = {"vlmeval"}  # the host: either of two distributions, asked for by extra
DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "python_calamine": "python-calamine"}


def modules() -> dict[str, Path]:
    """Module name below the package -> file; packages end in ``__init__``."""
    folder = ROOT / PACKAGE
    return {".".join(path.relative_to(folder).with_suffix("").parts): path for path in sorted(folder.rglob("*.py"))}


def place(module: str) -> int:
    """Position in ORDER; a package counts as its last module.

    Raises:
        LookupError: the module stands nowhere.
    """
    if module in ORDER:
        return ORDER.index(module)
    parts = module.split(".")
    if len(parts) > 1 and f"{parts[0]}.*" in ORDER:
        return ORDER.index(f"{parts[0]}.*")
    inside = [position for position, entry in enumerate(ORDER) if entry.startswith(f"{module}.")]
    if not inside:
        raise LookupError(f"module {module!r} has no place in ORDER of {Path(__file__).name}")
    return inside[-1]


def imports(tree: ast.AST, inside: str, top_level_only: bool = False) -> list[str]:
    """Absolute names of what is imported, ``from x import y`` as ``x.y``; ``inside`` is the importer's package."""
    nodes = tree.body if top_level_only else ast.walk(tree)  # type: ignore[attr-defined]
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            found += [f"{source}.{alias.name}" for alias in node.names]
    return found


def own_imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that ``module`` imports, ``x.y.CONSTANT`` cut back to the module that holds it."""
    inside = ".".join([PACKAGE, *module.split(".")[:-1]])
    own = set()
    for name in imports(ast.parse(path.read_text(encoding="utf-8")), inside):
        parts = name.split(".")
        while parts and parts[0] == PACKAGE:
            target = ".".join(parts[1:])
            if target in known or f"{target}.__init__" in known:
                own.add(target)
                break
            parts.pop()
    return own - {""}


def test_the_walk_sees_the_package():
    assert {"names", "registry", "truncation.engine", "demo.scenes", "__init__"} <= set(modules())
    assert "names" in own_imports("registry", modules()["registry"], modules())


@pytest.mark.parametrize("module", sorted(modules()))
def test_module_imports_only_from_above(module):
    known = modules()
    package = module.removesuffix("__init__").rstrip(".")
    for target in own_imports(module, known[module], known):
        if module == "__init__" or (module.endswith("__init__") and target.startswith(f"{package}.")):
            continue  # a package's own front may name its parts
        wrong = f"{module} imports {target}, which stands below it in ORDER"
        assert place(target) < place(package if module.endswith("__init__") else module), wrong


@pytest.mark.parametrize("module", sorted(name for name in modules() if not name.endswith("__init__")))
def test_every_module_has_a_place(module):
    assert place(module) >= 0


WRONG = [("from redrel_vlmeval import cli", "cli"), ("from . import registry", "registry")]


@pytest.mark.parametrize("source, wrong", WRONG)
def test_a_wrong_import_would_be_seen(tmp_path, source, wrong):
    path = tmp_path / "names.py"
    path.write_text(f"def f():\n    {source}\n")
    known = modules() | {"cli": path}
    assert own_imports("names", path, known) == {wrong}
    assert place(wrong) > place("names")


def test_an_unknown_module_would_be_seen():
    with pytest.raises(LookupError, match="newcomer"):
        place("newcomer")


def test_light_modules_import_neither_torch_nor_the_host():
    present = [f"{PACKAGE}.{name}" for name in LIGHT if name in modules()]
    assert len(present) >= 4
    code = f"import sys, importlib\nfor name in {present}:\n    importlib.import_module(name)\n"
    code += "    heavy = [m for m in ('torch', 'transformers', 'vlmeval') if m in sys.modules]\n"
    code += "    assert not heavy, (name, heavy)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_is_imported_is_declared():
    """Every third-party package that the package imports is a requirement in setup.py."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = text[text.index("install_requires=[") : text.index("extras_require")]
    declared = {re.match(r"[A-Za-z0-9_-]+", item)[0].lower() for item in re.findall(r'"([^"]+)"', block)}
    used = {}
    for module, path in modules().items():
        for name in imports(ast.parse(path.read_text(encoding="utf-8")), PACKAGE):
            used.setdefault(name.split(".")[0], module)
    ours = {PACKAGE, "_redrel_vlmeval_hook", "__future__", *sys.stdlib_module_names, *OPTIONAL}
    foreign = {name: module for name, module in used.items() if name not in ours}
    missing = {name: where for name, where in foreign.items() if DISTRIBUTIONS.get(name, name).lower() not in declared}
    assert not missing, f"imported, but not in install_requires: {missing}"
    assert {"torch", "pandas"} <= declared & set(used)


@pytest.mark.parametrize("folder", ["redrel_vlmeval", "tests", "."])
def test_files_stay_short(folder):
    files = (ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines >= 340}
