"""SmoothGrad of a variant: what is kept is chosen once, on the picture without noise, and all copies run with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import needs_host
from explain_box import ask_tiny
from test_explain_command import TINY, built, picture, said
from tiny_models import BLOCKS, TinyModel

from redrel_vlmeval.explain import command
from redrel_vlmeval.explain.job import Job
from redrel_vlmeval.explain.maps.formulas import noisy
from redrel_vlmeval.explain.maps.gradcam import Request, explain
from redrel_vlmeval.explain.maps.passes import run
from redrel_vlmeval.explain.maps.taken import Wanted
from redrel_vlmeval.explain.store import load

__all__ = ["built"]
CUT = f"{TINY}_trunc_l2_k8"
LOUD = Request(methods=("elementwise", "attn"), smooth=6, noise=2.0, seed=1, batch=4)


@pytest.mark.parametrize("setting", ["l2_k5", "l1_k7_l3_k3", "l2_k5_random", "l2_k5_rowmean", "l0_k6_uniform"])
def test_noisy_copies_keep_what_the_clean_picture_keeps(llava: TinyModel, setting: str) -> None:
    asked = ask_tiny(llava, setting=setting)
    plain, found = (explain(asked, request) for request in (replace(LOUD, smooth=0), LOUD))
    assert found.kept == plain.kept != {}
    last = sorted(found.kept[max(found.kept)])
    for maps in found.maps:
        for place, layer in enumerate(maps.layers):
            known = np.flatnonzero(np.isfinite(maps.values[0, place])).tolist()
            if layer > max(found.kept) and maps.status[0][place] == "ok":
                assert known == last, (maps.method, layer)
    assert not np.array_equal(found.maps[0].values[0, 0], plain.maps[0].values[0, 0]), "copies are noisy"


def test_the_choice_of_each_noisy_copy_would_be_another(llava: TinyModel) -> None:
    """Else the test above could not fail: without a settled choice copies keep tokens of their own."""
    asked = ask_tiny(llava, setting="l2_k5")
    held = {}
    for settled in (False, True):
        with run(asked, Wanted(), copies=6, edit=noisy(2.0, 1, range(6)), grad=False, settled=settled) as taken:
            held[settled] = {tuple(copy[BLOCKS - 1].tolist()) for copy in taken.held}
    assert len(held[True]) == 1 and len(held[False]) > 1


def test_the_answer_is_that_of_the_noisy_copy(llava: TinyModel) -> None:
    """The noise reaches the pass that is read, not the prefill that chooses."""
    asked = ask_tiny(llava, setting="l2_k5")
    with run(asked, Wanted(), copies=2, grad=False, settled=True) as taken:
        clean = taken.logits.clone()
    with run(asked, Wanted(), copies=2, edit=noisy(2.0, 1, range(2)), grad=False, settled=True) as taken:
        assert not torch.allclose(clean, taken.logits, atol=1e-3)


@needs_host
def test_a_smoothed_variant_has_all_of_its_map_on_what_it_keeps(built: None, tmp_path: Path) -> None:
    request = Request(methods=("elementwise",), where=("decoder",), smooth=8)
    kept = []
    for name, one in (("plain", replace(request, smooth=0)), ("smooth", request)):
        job = Job(TINY, tmp_path / name, [picture(tmp_path)], ["What color is the square?"], compare=CUT, request=one)
        code, text = said(command.cam, job)
        stored = load(tmp_path / name / f"{CUT}_a-picture.npz")
        kept.append(stored.manifest["kept"])
        assert code == 0 and np.isfinite(stored.maps("decoder", "elementwise")[0, 2:]).sum(1).tolist() == [8] * 6
        behind = [line.split()[-1] for line in text.splitlines() if line.split()[:1] == ["elementwise"]][2:]
        assert set(behind) <= {"100.0", "nan"} and "100.0" in behind
    assert kept[0] == kept[1]
