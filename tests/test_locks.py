"""The lock of a folder: held by one, and told rightly to all who ask."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from redrel_vlmeval.files import LOCK, Busy, is_held, only_one


def test_who_asks_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    """A sheet reads its cells in threads, and each asks whether a sweep writes here."""
    (tmp_path / LOCK).touch()
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(is_held, [tmp_path] * 2000))


def test_a_held_folder_is_held_for_all_who_ask_and_for_whoever_wants_it(tmp_path: Path) -> None:
    with only_one(tmp_path), ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_held, [tmp_path] * 20))
        with pytest.raises(Busy), only_one(tmp_path):
            pass
    assert not is_held(tmp_path) and not (tmp_path / LOCK).exists()
