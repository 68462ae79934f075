"""A model whose heads are divided over two processes keeps what one process keeps, or refuses by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from parallel_worker import answers
from tiny_models import build

HERE = Path(__file__).parent
SAME = [
    "l2_k5",
    "l2_k5_lowest",
    "l2_k5_random",
    "l2_k5_next",
    "l0_k0",
    "l1_r50_l3_k2",
    "l2_k4_rowmean",
    "l2_k5_official",
]
REFUSED = ["l2_k5_dart", "l2_k5_flow", "l2_k5_cls"]


@pytest.mark.skipif(not torch.distributed.is_available() or tf.__version__ < "5", reason="tp_plan on a CPU")
def test_two_processes_keep_what_one_keeps(tmp_path):
    tiny = build("llava")
    tiny.model.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(HERE / "parallel_worker.py"), str(tmp_path), *SAME, *REFUSED]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert both[0] == both[1]
    alone = json.loads(json.dumps(answers(tiny.model, SAME)))
    assert {setting: both[0][setting] for setting in SAME} == alone
    for setting in REFUSED:
        assert f"rule {setting[6:]!r} sees single heads" in both[0][setting]
