"""Wheel, sdist and editable wheel: each registers by itself in a new environment, uninstalling leaves nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import lazy_loader
import pytest
from fakehost import ROOT, STUB_BENCHMARK, make_host, run

import redrel_vlmeval

HOOK_FILES = {"_redrel_vlmeval_hook.py", "redrel_vlmeval.pth", "redrel_vlmeval.start"}
NAME = "host_7b_trunc_l1_k2"
FOUND = STUB_BENCHMARK + f"import vlmeval.config as c; print({NAME!r} in c.supported_VLM)"
SHIPPED = ["*.py", "*.pth", "*.start", "*.toml", "*.in", "*.md", "LICENSE", "constraints.txt", "Makefile"]


def call(*args: str | Path, cwd: Path) -> str:
    """Run this interpreter and show what it said when it failed."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SOURCE_DATE_EPOCH")}
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is kept in the repository, so that builds leave no trace in it."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    hidden = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
    for folder in ("redrel_vlmeval", "patches", "configs", "docs", "tests"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, copy / folder, ignore=hidden)
    for pattern in SHIPPED:
        for path in ROOT.glob(pattern):
            shutil.copy2(path, copy)
    return copy


@pytest.fixture(scope="module")
def built(source) -> Path:
    """Folder with the sdist, and the wheel that was made from it."""
    call("-m", "build", "--no-isolation", "--outdir", source / "dist", source, cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def editable(source, built) -> Path:
    code = "import sys; from setuptools.build_meta import build_editable as b; print(b(sys.argv[1]))"
    out = source.parent / "editable"
    name = call("-c", code, out, cwd=source).splitlines()[-1]
    return out / name


@pytest.fixture
def environment(tmp_path) -> Path:
    """A new environment with nothing in it, not even pip, but for what the hook's own imports need."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    site = next((tmp_path / "env").rglob("site-packages"))
    shutil.copytree(Path(lazy_loader.__file__).parent, site / "lazy_loader")
    return tmp_path / "env"


def interpreter(environment: Path) -> Path:
    return environment / ("Scripts" if os.name == "nt" else "bin") / "python"


def listing(environment: Path) -> set[str]:
    return {str(path.relative_to(environment)) for path in environment.rglob("*") if path.suffix != ".pyc"}


def pip(environment: Path, *args: str | Path) -> None:
    call("-m", "pip", "--python", interpreter(environment), *args, cwd=environment)


def wheel_of(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_holds_the_hook_at_its_root_and_all_package_data(built):
    with zipfile.ZipFile(wheel_of(built)) as wheel:
        names = set(wheel.namelist())
        pth = wheel.read("redrel_vlmeval.pth").decode()
        metadata = wheel.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"redrel_vlmeval", f"redrel_vlmeval-{redrel_vlmeval.__version__}.dist-info", *HOOK_FILES}
    assert pth == "import _redrel_vlmeval_hook; _redrel_vlmeval_hook.install()\n"
    package = ROOT / "redrel_vlmeval"
    kept = [*package.rglob("*.py"), *package.rglob("*.pyi"), *package.rglob("*.csv"), package / "py.typed"]
    kept += (package / "models/tiny/checkpoint").glob("*")
    kept += [path for kind in ("j2", "css", "js") for path in package.rglob(f"*.{kind}")]
    assert any(path.name == "base.html.j2" for path in kept)
    assert {str(path.relative_to(ROOT)) for path in kept} <= names
    assert f"Version: {redrel_vlmeval.__version__}" in metadata and "Provides-Extra: ms" in metadata
    assert re.search(r"Requires-Dist: transformers(?=.*>=4\.48)(?=.*!=5\.0\.\*)", metadata)
    assert "Requires-Dist: ms-vlmeval; extra" in metadata and "Requires-Dist: vlmeval" not in metadata


def test_sdist_holds_what_the_repository_holds(built, source):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    ignored = {"dist", "build", "redrel_vlmeval.egg-info"}
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    kept = {str(path) for path in files if path.parts[0] not in ignored}
    assert kept.issuperset(HOOK_FILES) and inside.issuperset(kept)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_installing_registers_and_uninstalling_leaves_nothing(kind, request, environment, tmp_path):
    wheel = request.getfixturevalue("editable") if kind == "editable" else wheel_of(request.getfixturevalue("built"))
    host = make_host(tmp_path / "host")
    python = str(interpreter(environment))
    before = listing(environment)
    ask = f"import vlmeval.config as c; print({NAME!r} in c.supported_VLM)"
    assert run("-c", ask, host=host, python=python).stdout == "False\n"

    pip(environment, "install", "--no-deps", "--no-index", wheel)
    done = run("-c", FOUND, host=host, python=python)
    assert (done.stdout, done.stderr) == ("True\n", "")
    where = run("-c", "import redrel_vlmeval as r; print(r.__file__)", host=host, python=python).stdout
    assert where.startswith(str(environment)) == (kind == "wheel")
    lmms = "from importlib.metadata import entry_points as e; print([p.name for p in e(group='lmms_eval.models')])"
    assert run("-c", lmms, host=None, python=python).stdout == "['redrel']\n"
    added = {Path(name).name for name in listing(environment) - before}
    assert added >= {*HOOK_FILES, "redrel"}

    pip(environment, "uninstall", "--yes", "redrel-vlmeval")
    left = {name for name in listing(environment) - before if not name.endswith("__pycache__")}
    assert left == set()
    assert run("-c", lmms, host=None, python=python).stdout == "[]\n"
    done = run("-c", ask, host=host, python=python)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_interpreter_starts_quietly_when_an_editable_checkout_is_gone(editable, environment, tmp_path):
    """The hook module is copied, not pointed to: only a started host says that the package is missing, in one line."""
    pip(environment, "install", "--no-deps", "--no-index", editable)
    checkout = editable.parent.parent / "checkout"
    moved = checkout.rename(checkout.with_name("moved"))
    try:
        host = make_host(tmp_path / "host")
        quiet = run("-c", "print(1)", host=host, python=str(interpreter(environment)))
        asked = run("-c", "import vlmeval.config; print(2)", host=host, python=str(interpreter(environment)))
    finally:
        moved.rename(checkout)
    assert (quiet.stdout, quiet.stderr) == ("1\n", "")
    assert asked.stdout == "2\n" and asked.stderr.count("\n") == 1 and "redrel_vlmeval" in asked.stderr


def test_version_is_read_without_importing_the_package(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns("dist", "build", "checkpoint"))
    front = copy / "redrel_vlmeval/__init__.py"
    front.write_text(front.read_text().replace('"0.1.0"', '"9.8.7"') + "\nraise ImportError('imported')\n")
    assert call("setup.py", "--version", cwd=copy).splitlines()[-1] == "9.8.7"
