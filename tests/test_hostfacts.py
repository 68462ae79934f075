"""Which host runs, and from which commit, is read from files; both layouts of git work trees are known."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from redrel_vlmeval.host import facts


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git itself")
def test_the_commit_is_what_git_says(tmp_path: Path) -> None:
    def git(*words: str, where: Path = tmp_path / "main") -> str:
        same = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *same, *words], cwd=where, check=True, capture_output=True, text=True).stdout

    main, linked = tmp_path / "main", tmp_path / "linked"
    main.mkdir()
    git("init", "-q")
    assert facts.commit(main) is None, "nothing is committed yet"
    git("commit", "-q", "--allow-empty", "-m", "one")
    first = git("rev-parse", "HEAD").strip()
    assert facts.commit(main) == first
    git("worktree", "add", "-q", str(linked))
    git("commit", "-q", "--allow-empty", "-m", "two", where=linked)
    assert facts.commit(linked) == git("rev-parse", "HEAD", where=linked).strip() != first
    git("pack-refs", "--all")
    assert facts.commit(main) == first
    git("checkout", "-q", "--detach")
    assert facts.commit(main) == first
    assert facts.commit(tmp_path) is None


def test_the_running_host_is_told_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where ms-vlmeval is installed and a checkout is what runs."""
    (tmp_path / "vlmeval").mkdir()
    (tmp_path / "vlmeval" / "__init__.py").write_text("__version__ = '0.2rc1'\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("3a3d236a\n")
    monkeypatch.delitem(sys.modules, "vlmeval", raising=False)
    assert facts.host() == {"host": None, "host_version": None, "commit": None}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "vlmeval", __import__("vlmeval"))
    assert facts.host() == {"host": "upstream", "host_version": "0.2rc1", "commit": "3a3d236a"}


def test_secrets_are_left_out_of_arguments() -> None:
    assert facts.arguments(["--judge-key", "s", "--key=s", "--api-token=t", "--keys", "2"]) == (
        "--judge-key ... --key=... --api-token=... --keys 2"
    )


@pytest.mark.parametrize("text, said", [
    ("", "an error without a text"), ("'answer'", "a missing column or key 'answer'"),
    ('"it\'s"', '"it\'s"'), ("  CUDA  out of\nmemory ", "CUDA out of memory"),
])  # fmt: skip
def test_what_a_host_notes_of_an_error_is_put_in_words(text: str, said: str) -> None:
    assert said in facts.noted(text) and len(facts.noted("x" * 5000)) == 300
