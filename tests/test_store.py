"""What was saved is what is loaded, from the npz alone and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from explain_box import ask_tiny
from hypothesis import given, strategies as st
from PIL import Image
from tiny_models import BLOCKS, TinyModel

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.explanation import compose
from redrel_vlmeval.explain.maps.flow import flow
from redrel_vlmeval.explain.maps.gradcam import Request, explain
from redrel_vlmeval.explain.maps.grid import Grid
from redrel_vlmeval.explain.store import Stored, load, own_name, plain, question_name, save


@pytest.fixture
def stored(llava: TinyModel, tmp_path: Path) -> Stored:
    asked = ask_tiny(llava, setting="l2_k5_l4_k0")
    Image.new("RGB", (1000, 500), (9, 8, 7)).save(tmp_path / "p.png")
    asked.pictures = [str(tmp_path / "p.png")]
    request = Request(("elementwise", "attn"), where=("decoder", "vision"), per_token=True, tower=True, seed=3)
    return compose(asked, explain(asked, request), flow(asked), request, model="tiny", question="what?")


def test_everything_comes_back(stored: Stored, tmp_path: Path) -> None:
    path = save(stored, tmp_path / "new" / "one")
    path.with_suffix(".json").unlink()
    back = load(path)
    assert set(back.arrays) == set(stored.arrays)
    for name, array in stored.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)
        assert back.arrays[name].dtype == (np.uint8 if name.startswith("picture") else np.float32)
    assert back.maps("decoder", "attn").shape == (3, BLOCKS, 16)
    assert back.layers("decoder", "attn") == [1, 2, 3, 4, 5]
    assert back.status("decoder", "attn")[0][-1] == "pruned"
    assert len(back.tokens) == 3
    assert back.arrays["picture/0"].shape == (384, 768, 3)
    assert back.arrays["flow/attention"].shape == (BLOCKS, 4, 3, 5)
    assert back.arrays["pixels/decoder/elementwise"].shape == (3, BLOCKS, 16)
    grid = Grid.from_json(back.manifest["grids"]["decoder"][0])
    assert grid.size == (1000, 500) and grid.inside().sum() == 8


def test_the_manifest_says_how_it_was_made(stored: Stored, tmp_path: Path) -> None:
    path = save(stored, tmp_path / "one.npz")
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["version"] == 1 and manifest["variant"] == "l2_k5_l4_k0" and manifest["model"] == "tiny"
    made = manifest["provenance"]
    assert made["request"]["seed"] == 3 and made["kernel"] == "sdpa" and made["dtype"] == "float32"
    assert {"torch", "transformers", "redrel_vlmeval"} <= set(made["versions"])
    assert sum(manifest["groups"].values()) == len(manifest["tokens"])
    assert manifest["tokens"].count(None) == manifest["groups"]["img"] == 16
    assert [len(kept) for _, kept in sorted(manifest["kept"].items())] == [5, 0]
    assert 0 <= manifest["flat_from"] <= BLOCKS and 0 < manifest["locality"] <= 1
    assert len(manifest["z"]) == 3


def test_no_torch_is_needed_to_load(stored: Stored, tmp_path: Path) -> None:
    path = save(stored, tmp_path / "one")
    code = "import sys; from pathlib import Path; from redrel_vlmeval.explain.maps import bands, grid;"
    code += "from redrel_vlmeval.explain.ask import spans;"
    code += "from redrel_vlmeval.explain.store import load;"
    code += f"found = load(Path({str(path)!r})); assert found.maps('decoder', 'attn').size;"
    code += "assert not {'torch', 'transformers', 'vlmeval'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_no_explanation_is_refused(stored: Stored, tmp_path: Path) -> None:
    with pytest.raises(ExplainError, match="no such file"):
        load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ExplainError, match="text.npz: no explanation"):
        load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    with pytest.raises(ExplainError, match="no explanation .those are .npz files"):
        load(tmp_path / "other.npz")
    stored.manifest["version"] = 2
    np.savez(tmp_path / "later.npz", manifest=np.array(json.dumps({"version": 2})))
    with pytest.raises(ExplainError, match="written by a later release"):
        load(tmp_path / "later.npz")
    with pytest.raises(ExplainError, match="no maps vision/attn; it holds decoder/attn, decoder/elementwise"):
        stored.maps("vision", "attn")
    for name, array in (("heat", np.ones(2)), ("maps/x", np.array(["a"]))):
        with pytest.raises(ExplainError, match=f"array '{name}'"):
            save(Stored({name: array}, {}), tmp_path / "bad")
    assert not list(tmp_path.glob("*.tmp"))


def test_names_are_file_names_anywhere() -> None:
    assert plain("llava_v1.5_7b") == "llava_v1.5_7b" and plain("a/b c:d") == "a-b-c-d" and plain("???") == "picture"


def test_ordinary_names_stay_as_they_are_and_no_two_questions_share_one() -> None:
    assert question_name("RedRelShapes_MINI", "12") == "RedRelShapes_MINI_12"
    benchmarks = ["X", "X_1", "x", "图", "表", "a b", "a-b", "a/b", own_name("a b"), "", "?", "b" * 300, "b" * 301]
    indices = [
        "1",
        "01",
        "1_2",
        "2",
        "图1",
        "表1",
        "flow",
        "1_flow",
        "a b",
        "a-b",
        "",
        " ",
        "-1",
        "1.0",
        "²",
        "9" * 300,
    ]
    pairs = [(benchmark, index) for benchmark in benchmarks for index in indices]
    names = {question_name(*pair): pair for pair in pairs}
    assert len(names) == len(pairs)
    assert all(name.isascii() and "/" not in name and len(name) < 210 for name in names)
    assert not any(name.endswith("_flow") for name in names), "that is where a benchmark's means lie"


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), unique=True, min_size=2, max_size=2))
def test_two_questions_have_two_names(pairs: list[tuple[str, str]]) -> None:
    assert question_name(*pairs[0]) != question_name(*pairs[1])
