"""Whatever stands in an explanation's .npz, ``redrel explain draw`` draws it or says in one line what is wrong.

``FUZZ=2000 pytest tests/test_fuzz_npz.py`` tries more.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import explain_files
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from redrel_vlmeval.errors import ExplainError, RedrelError
from redrel_vlmeval.explain.draw import arcfigures, camfigures, flowfigures, page, view
from redrel_vlmeval.explain.store import Stored, load, save

MANY = settings(
    max_examples=int(os.environ.get("FUZZ", "60")), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TESTED = {"auc": 0.1, "random": 0.2, "oracle": None}
CARD = {"where": "decoder", "method": "attn", "layer": 1, "points_at": "asked", "deletion": TESTED}
CARD |= {"question_swap": {"rank": 0.5, "same_peak": True}}
CARD |= {"randomisation": [{"blocks": 1, "rank": None, "same_peak": False}]}
MAPS = explain_files.truncated(layers=3, side=2, keep=(0, 1), cards=[CARD], locality=0.5)
FLOW = explain_files.flow(layers=3, side=2)


def parts(stored: Stored) -> dict[str, bytes]:
    """The members of a file's zip."""
    with TemporaryDirectory() as folder, zipfile.ZipFile(save(stored, Path(folder) / "x.npz")) as file:
        return {name: file.read(name) for name in file.namelist()}


def whole(stored: Stored) -> bytes:
    with TemporaryDirectory() as folder:
        return save(stored, Path(folder) / "x.npz").read_bytes()


KINDS = {"maps": MAPS, "flow": FLOW}
MEMBERS = {kind: parts(stored) for kind, stored in KINDS.items()}
WHOLE = {kind: whole(stored) for kind, stored in KINDS.items()}


def packed(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def array(values: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(values), allow_pickle=True)
    return stream.getvalue()


def drawn(content: bytes) -> None:
    """Everything that ``explain draw`` makes of a file, or the one line that says why not."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        path.write_bytes(content)
        try:
            stored = load(path)
        except ExplainError as error:
            assert str(path) in str(error) and len(str(error)) < 600
            return
        try:
            page.html([stored])
            for where, method in view.pairs(stored):
                camfigures.grid(stored, where, method)
            if any(name.startswith("flow/") for name in stored.arrays):
                flowfigures.curves(stored)
                arcfigures.arcs(stored)
        except RedrelError as error:
            assert len(str(error)) < 600


@MANY
@given(st.sampled_from(["maps", "flow"]), st.integers(0, 10**6), st.integers(0, 10**6), st.binary(max_size=8))
def test_bytes_that_are_gone_or_changed(kind: str, start: int, length: int, new: bytes) -> None:
    content = WHOLE[kind]
    start %= len(content)
    drawn(content[:start] + new + content[start + length % 200 :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value inside a manifest."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, item in inner for place in places(item, (*way, key)))]


def changed(manifest: Any, way: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy of the manifest with ``change`` made to what holds the last of ``way``, and to its key."""
    held = {"manifest": deepcopy(manifest)}
    inner: Any = held
    keys = ("manifest", *way)
    for key in keys[:-1]:
        inner = inner[key]
    change(inner, keys[-1])
    return held.get("manifest")


@MANY
@given(st.sampled_from(["maps", "flow"]), st.integers(0, 10**6), st.booleans(), JSON)
def test_a_manifest_with_a_field_less_or_another(kind: str, number: int, gone: bool, new: Any) -> None:
    members = dict(MEMBERS[kind])
    manifest = json.loads(str(np.lib.format.read_array(io.BytesIO(members["manifest.npy"]))))
    ways = places(manifest)
    way = ways[number % len(ways)]
    text = json.dumps(changed(manifest, way, lambda held, key: held.pop(key) if gone else held.__setitem__(key, new)))
    drawn(packed(members | {"manifest.npy": array(text)}))


VALUES = st.sampled_from([0.0, 1.5, -1, "nan", "inf"])
SHAPES = st.lists(st.integers(0, 4), max_size=4)
DTYPES = st.sampled_from(["float32", "float64", "uint8", "int64", "complex64", "U3", "O", "M8[s]", ">f4"])


@MANY
@given(st.sampled_from(["maps", "flow"]), st.integers(0, 50), SHAPES, DTYPES, VALUES)
def test_an_array_of_another_shape_or_kind(kind: str, number: int, shape: list[int], dtype: str, value: Any) -> None:
    names = sorted(MEMBERS[kind])
    with np.errstate(invalid="ignore"):
        new = np.full(shape, np.float64(value)).astype("int64" if dtype == "M8[s]" else dtype)
    drawn(packed(MEMBERS[kind] | {names[number % len(names)]: array(new.astype(dtype))}))


@pytest.mark.parametrize("kind", ["maps", "flow"])
def test_each_array_that_is_missing_is_named(kind: str, tmp_path: Path) -> None:
    for gone in MEMBERS[kind]:
        (tmp_path / "x.npz").write_bytes(packed({name: data for name, data in MEMBERS[kind].items() if name != gone}))
        needed = gone.startswith(("maps/", "flow/attention"))
        if needed:
            with pytest.raises(ExplainError, match=f"x.npz: array {gone.removesuffix('.npy')}: missing"):
                load(tmp_path / "x.npz")
        drawn((tmp_path / "x.npz").read_bytes())


def test_what_a_file_claims_to_hold_is_not_unpacked(tmp_path: Path) -> None:
    """A header that names 40 TB, and a member that names 3 GB, cost nothing."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**6)})
    drawn(packed(MEMBERS["maps"] | {"maps/decoder/attn.npy": header.getvalue()}))
    content = bytearray(packed(MEMBERS["maps"]))
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (3 * 2**30).to_bytes(4, "little")
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ExplainError, match="x.npz: damaged: array .*bytes; at most"):
        load(tmp_path / "x.npz")


def test_a_whole_file_is_drawn() -> None:
    for kind in KINDS:
        assert load_of(WHOLE[kind]).manifest["model"]
        drawn(WHOLE[kind])


def load_of(content: bytes) -> Stored:
    with TemporaryDirectory() as folder:
        (Path(folder) / "x.npz").write_bytes(content)
        return load(Path(folder) / "x.npz")
