"""``make benchmarks``: its tables are such as the host takes, its page says what ran, and one of them really runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest
from checkpoints import import_host, needs_host

from tools import benchmarks

pytestmark = needs_host


def test_the_page_has_a_row_for_every_benchmark_and_none_failed():
    page = benchmarks.PAGE.read_text(encoding="utf-8")
    for case in benchmarks.CASES:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {case.name} "))
        assert case.kind in row and "failed" not in row and row.rstrip(" |").endswith("; 8 image tokens"), row


def test_names_are_the_hosts_own_or_tables_of_ones_own():
    import_host()
    import vlmeval.dataset as hosts

    known = {*hosts.SUPPORTED_DATASETS, *hosts.supported_video_datasets}
    for case in benchmarks.CASES:
        assert (case.name in known) is not case.name.startswith("RedRel"), case.name


@pytest.mark.parametrize("case", [case for case in benchmarks.CASES if case.lines()], ids=lambda case: case.name)
def test_every_table_has_questions_and_pictures(case):
    table = pd.DataFrame(case.lines())
    assert len(table) >= 2 and table["index"].is_unique and {"image", "question", "answer"} <= set(table.columns)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_of_them_runs(tmp_path):
    command = [sys.executable, benchmarks.__file__, "--only", "MMMU_DEV_VAL", "--keep", str(tmp_path / "kept")]
    environment = os.environ | {"PYTHONPATH": str(benchmarks.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| MMMU_DEV_VAL " in done.stdout and done.stdout.count("scored; 3 questions") == 2
