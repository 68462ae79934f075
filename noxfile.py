"""``make test-matrix``: the parts that touch transformers, on its oldest and newest supported lines, each in its own
environment. The host is left out: it pins what it needs, and the engine, names and Qwen-VL's code do not need it."""

import re
from pathlib import Path

import nox

HERE = Path(__file__).parent
RELEASES = ["4.49.*", "4.57.*", "5.*"]
FREE = re.compile(r"(transformers|tokenizers|huggingface[-_]hub|numpy)==", re.IGNORECASE)  # bound to transformers' line
TESTS = [
    "tests/test_names.py",
    "tests/test_ranking.py",
    "tests/test_engine.py",
    "tests/test_engine_calls.py",
    "tests/test_fuzz_engine.py",
    "tests/test_rules.py",
    "tests/test_truncation_properties.py",
    "tests/test_efficiency.py",
    "tests/test_likelihood.py",
    "tests/test_tiny.py",
    "tests/test_sweep_engine.py",
    "tests/test_flash.py",
    "tests/test_gradcam.py",
    "tests/test_flow.py",
    "tests/test_explain_qwen.py",
    *sorted(str(path.relative_to(HERE)) for path in HERE.glob("tests/test_qwen_*.py")),
]

nox.options.sessions = ["matrix"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
@nox.parametrize("transformers", RELEASES)
def matrix(session: nox.Session, transformers: str) -> None:
    """Run the tests with one line of transformers; ``REDREL_QWEN_VL`` goes through to them."""
    pins = [line for line in (HERE / "constraints.txt").read_text().splitlines() if not FREE.match(line)]
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    session.install("-c", str(constraints), "-e", ".[test,qwen]", f"transformers=={transformers}")
    if "--install" not in session.posargs:
        session.run("python", "-m", "pytest", "-p", "no:cacheprovider", *(session.posargs or TESTS))
