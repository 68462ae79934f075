"""What ``make gpu`` checks before it times anything: the engine's and the rules' own tests, and rules against the CPU.

```
device_tests   pytest on the engine and the rules, models and prompts on the device     passed, failed by name
rules          every registered rule: eager on the CPU, alone | the device's kernel, in a padded batch of three
flash          flash_attention_2 where it is there: share of kept tokens that sdpa keeps, difference of logits
```
"""

from __future__ import annotations

import copy
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import torch

from redrel_vlmeval.bench import subjects
from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.models.gpus import gpus
from redrel_vlmeval.rules import known, suffix
from redrel_vlmeval.truncation import truncated

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/test_engine.py", "tests/test_rules.py")
QUICK = (  # of them, on a CPU, where the whole is run by `make test`
    "tests/test_engine.py::test_rules_and_rows", "tests/test_engine.py::test_right_padding",
    "tests/test_rules.py::test_all_tokens_are_the_untouched_model",
)  # fmt: skip
LAYOUTS = ("ttItttt", "tIt", "tttItttttttt")  # t: a token of text, I: a picture


def device_tests(device: str) -> dict[str, Any]:
    """The tests of the engine and the rules, with their models on ``device``: how many passed, what failed and why.

    Where its time is over, pytest is interrupted and says what it has done.
    """
    with tempfile.TemporaryDirectory(prefix="redrel-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += QUICK if device == "cpu" else TESTS
        failed, said, code = _tested(command, os.environ | {"REDREL_TEST_DEVICE": device})
        if not report.exists():
            raise RuntimeError(f"pytest ended with {code}: {said[-300:]}")
        cases = list(xml.parse(report).iter("testcase"))
    for case in cases:
        fault = next((part for part in case if part.tag in ("failure", "error")), None)
        if fault is not None:
            failed[f"{case.get('classname')}::{case.get('name')}"] = (fault.get("message") or "")[:300]
    skipped = sum(part.tag == "skipped" for case in cases for part in case)
    passed = re.search(r"(\d+) passed", said)  # the report has the one that was interrupted, too
    return {"passed": int(passed[1]) if passed else 0, "skipped": skipped, "failed": failed}


def _tested(command: list[str], variables: dict[str, str]) -> tuple[dict[str, str], str, int]:
    """What stopped pytest, if anything did; what it said, and its exit code."""
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as tests:
        try:
            said, stopped = tests.communicate()[0], {}
        except TimeoutError as over:
            tests.send_signal(signal.SIGINT)  # it writes its report
            said, stopped = tests.communicate(timeout=30)[0], {"pytest": str(over)}
        return stopped, said, tests.returncode


def rules(device: str) -> dict[str, Any]:
    """Rule -> share of the tokens it keeps on the CPU that it keeps on the device, too; or why it was not asked."""
    sys.path.insert(0, str(ROOT / "tests"))  # the tests' small models
    tiny = importlib.import_module("tiny_models").build("llava", "eager")
    reference = tiny.model.to("cpu")
    asked = [tiny.prompt(layout, seed) for seed, layout in enumerate(LAYOUTS)]
    batch = {name: value.to(device) for name, value in tiny.joined(asked).items()}
    model = copy.deepcopy(reference).to(device)
    subjects.set_kernel(model, "sdpa")
    found: dict[str, Any] = {}
    for name, rule in known(everywhere=True).items():
        stage = "l0_k4" if rule.before_block_1_only else "l2_k4"
        setting = f"{stage}{suffix(name)}"
        try:
            alone = [kept(reference, setting, inputs)[0] for inputs in asked]
            together = kept(model, setting, batch)
        except RedrelError as error:
            found[name] = f"not asked: {error}"[:200]
            continue
        same = [len(mine & its) / len(its) for mine, its in zip(together, alone, strict=True)]
        found[name] = sum(same) / len(same)
    return found


@torch.inference_mode()
def kept(model: Any, setting: str, inputs: dict[str, torch.Tensor]) -> list[set[int]]:
    """What each prompt keeps of its visual tokens."""
    with truncated(model, setting) as trace:
        model(**inputs)
    return [set(next(iter(prompt.kept.values()))) for prompt in trace.prompts]


def flash(subject: subjects.Subject, setting: str) -> dict[str, Any]:
    """A setting with flash_attention_2 against sdpa; ``left out`` says why where that kernel cannot run."""
    from transformers.utils import is_flash_attn_2_available

    model = subject.model
    if not gpus(model):
        return {"left out": "flash kernels run on a GPU only"}
    if not is_flash_attn_2_available():
        return {"left out": "the package flash-attn is not installed"}
    before, found = model.config._attn_implementation, {}
    for kernel in ("sdpa", "flash_attention_2"):
        subjects.set_kernel(model, kernel)
        try:
            with torch.inference_mode(), truncated(model, setting) as trace:
                logits = model(**subject.inputs, logits_to_keep=1).logits.float()
        finally:
            subjects.set_kernel(model, before)
        found[kernel] = (logits, set(next(iter(trace.last.kept.values()))))
    (slow, ours), (fast, its) = found.values()
    return {
        "setting": setting,
        "kept as with sdpa": len(ours & its) / len(ours),
        "largest difference of logits": float((slow - fast).abs().max()),
    }
