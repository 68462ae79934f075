"""A stranger's rule, installed as a package: every command and the unmodified runner know it, and agree about it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from checkpoints import needs_host
from test_rules import KEYNORM
from test_stock_runner import DATA, HOST, Workplace

pytestmark = [needs_host, pytest.mark.timeout(900), pytest.mark.slow]
MODEL = "redrel_tiny_trunc_l2_k8_keynorm"


def install(site: Path) -> None:
    """What pip leaves of a package with the entry point: its module, and its metadata."""
    site.mkdir()
    (site / "strangers_rules.py").write_text(KEYNORM)
    info = site / "strangers_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[redrel_vlmeval.rules]\nkeynorm = strangers_rules\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("stranger")
    install(folder / "site")
    return Workplace(folder)


def command(place: Workplace, *args: str) -> str:
    """``python ARGS`` with the stranger's package on the path; it has to end well."""
    path = f"{place.data.parent / 'site'}:{Path(__file__).parents[1]}"
    settings = {"env": place.environment(PYTHONPATH=path), "cwd": place.data, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_the_runner_the_sweep_and_every_reader_know_it(place: Workplace) -> None:
    out, redrel = str(place.work), ["-m", "redrel_vlmeval"]
    assert "the 8 whose keys of block L are shortest" in command(place, *redrel, "check", MODEL)
    judge = ["--judge", "exact_matching", "--work-dir", out]
    command(place, *HOST, "--model", "redrel_tiny", MODEL, "--data", DATA, *judge)
    place.assert_done(MODEL)
    alone = place.predictions(MODEL)
    records = place.records(MODEL)
    assert all(len(record["kept"]["2"]) == 8 for record in records if record["image_tokens"])
    assert len({json.dumps(record["rules"]) for record in records}) == 1 and len(records[0]["rules"]["keynorm"]) == 16

    assert MODEL in command(place, *redrel, "sheet", out, "-o", str(place.work / "s.csv"))
    assert set(pd.read_csv(place.work / "s.csv")["rule"].dropna()) == {"keynorm"}
    command(place, *redrel, "figures", out, "-o", str(place.work / "figures"))
    assert list((place.work / "figures").rglob("*.png"))
    explained = str(place.work / "explained")
    command(place, *redrel, "explain", "cam", "--model", MODEL, "--data", DATA, "--limit", "1", "-o", explained)
    assert list(Path(explained).rglob("*.npz"))

    swept = str(place.data.parent / "swept")
    grid = ["--layers", "2", "--keep", "8", "--rules", "keynorm,random"]
    command(place, *redrel, "sweep", "--model", "redrel_tiny", "--data", DATA, *grid, "--work-dir", swept)
    place.work = Path(swept)
    assert place.predictions(MODEL) == alone
