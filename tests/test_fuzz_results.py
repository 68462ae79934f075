"""Whatever a work-dir holds becomes tables and a page, or one line that says what is wrong; `make fuzz` tries more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import host_files as host
from hypothesis import HealthCheck, given, settings, strategies as st

from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.results.flips import flips
from redrel_vlmeval.results.reading import read
from redrel_vlmeval.sheets import writing
from redrel_vlmeval.sheets.page import assemble

MANY = settings(max_examples=int(os.environ.get("FUZZ", "15")), deadline=None, suppress_health_check=list(HealthCheck))
BASE, VARIANT = host.BASE, host.VARIANT


def whole() -> dict[str, bytes]:
    """Each file of a base and a variant on a multiple-choice and an OCRBench-like benchmark, by its path."""
    with TemporaryDirectory() as folder:
        out = Path(folder)
        host.pair(out)
        for model in (BASE, VARIANT):
            words = host.choices("yes,no,3,x").assign(answer=["['yes']", "['dog']", "['3']", "['x']"])
            host.predictions(out / model, model, "OCRBench", words)
            (out / model / f"{model}_OCRBench_score.json").write_text(json.dumps({"Final Score": 3, "Text": 3}))
            host.status(out / model, model, X={"status": "done", "judge_model": "exact_matching"},
                        OCRBench={"status": "done", "metrics": {"all": 3}})  # fmt: skip
        return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


FILES = whole()
NAMES = st.sampled_from(sorted(FILES))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["datasets", "X", "status", "metrics", "judge_model", "model_name", "eval_id", "argv", "skip_reason", "source_run",
     "error_message", "Final Score", "Text", "index", "model", "setting", "tokens", "kept", "versions", "run", "time",
     "images_per_block", "stale_pictures", "eval_format", "pred_format"]
)  # fmt: skip


def changed(content: bytes, field: str, value: object) -> bytes:
    """JSON text, line by line where it has several, with ``field`` replaced wherever it stands, or added."""

    def within(found: object) -> object:
        if isinstance(found, list):
            return [within(one) for one in found]
        if isinstance(found, dict):
            return {name: value if name == field else within(one) for name, one in found.items()}
        return found

    lines = []
    for line in content.decode(errors="surrogateescape").split("\n"):  # another damage can have made it a workbook
        try:
            found = within(json.loads(line))
        except ValueError:
            lines.append(line)
        else:
            lines.append(json.dumps(found | {field: value} if isinstance(found, dict) else found))
    return "\n".join(lines).encode(errors="surrogateescape")


@st.composite
def damages(draw: st.DrawFn) -> Callable[[dict[str, bytes]], None]:
    """One thing done to one file."""
    name, other, place = draw(NAMES), draw(NAMES), draw(st.integers(0, 400))
    kind = draw(st.sampled_from(["cut", "gone", "swap", "copy", "noise", "twice", "line", "number", "json", "json"]))
    noise, field, value = draw(st.binary(max_size=20)), draw(FIELDS), draw(JSON)
    number = draw(st.sampled_from([b"inf", b"-5", b"nan", b"1e400", b"", b"text", b"0.50", b"\xff"]))

    def damage(files: dict[str, bytes]) -> None:
        old = files.get(name, b"")
        lines = old.split(b"\n")
        if kind == "gone":
            files.pop(name, None)
        elif kind in ("swap", "copy"):
            files[name], files[other] = files.get(other, b""), old if kind == "swap" else files.get(other, b"")
        else:
            files[name] = {
                "cut": old[:place],
                "noise": old[:place] + noise + old[place + len(noise) :],
                "twice": old + old,
                "line": b"\n".join(lines[: place % len(lines) + 1] + lines[place % len(lines) :]),
                "number": old.replace(b"0.5", number).replace(b"0.75", number),
                "json": changed(old, field, value) if name.endswith(("json", "jsonl")) else old,
            }[kind]

    return damage


@MANY
@given(st.lists(damages(), min_size=1, max_size=3))
def test_a_damaged_work_dir_is_read_or_refused_in_words(done: list[Callable[[dict[str, bytes]], None]]) -> None:
    files = dict(FILES)
    for damage in done:
        damage(files)
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        try:
            found = read(folder)
        except RedrelError as error:
            assert folder in str(error)
            return
        for row in found.scores[found.scores["status"] == "failed"].to_dict("records"):
            assert row["reason"]
        assert len(found.comparisons) == found.scores["headline"].sum()
        flips(found, VARIANT, "X")
        writing.write(found, Path(folder, "sheet.md"))
        assert assemble.html(found)


def test_the_whole_work_dir_has_no_failure(tmp_path: Path) -> None:
    """What is damaged above is read without a word before."""
    for path, content in FILES.items():
        Path(tmp_path, path).parent.mkdir(exist_ok=True)
        Path(tmp_path, path).write_bytes(content)
    assert not read(tmp_path).failed
