"""Random prompts, stages, rows and paddings: every position of every prompt, alone, in a batch and by the oracle."""

from __future__ import annotations

import os
from functools import cache

import torch
from hypothesis import given, settings, strategies as st
from oracle import Oracle
from tiny_models import FAMILIES, IMAGE, TinyModel, build

from redrel_vlmeval.names import Stage, VariantSpec
from redrel_vlmeval.truncation import truncated

ROWS = ("last", "rowimg", "rowmean", "rowtext")
MANY = int(os.environ.get("FUZZ", "30"))
built = cache(build)  # read only: truncated() leaves no trace


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[str, str], VariantSpec, list[str], str, int]:
    """A family and a kernel, one to three stages, prompts that may begin and end with a picture, and a padding."""
    family = draw(st.sampled_from(sorted(FAMILIES))), draw(st.sampled_from(["sdpa", "eager"]))
    layers = sorted(draw(st.sets(st.integers(1, 4), min_size=1, max_size=3)))
    keeps = sorted(draw(st.lists(st.integers(0, 12), min_size=len(layers), max_size=len(layers))), reverse=True)
    rule = draw(st.sampled_from(["attention", "attention", "lowest"]))
    stages = tuple(Stage(layer, keep) for layer, keep in zip(layers, keeps, strict=True))
    layout = st.text("ttI", min_size=2, max_size=6).filter(lambda text: text.count("I") < 3)
    prompts = draw(st.lists(layout, min_size=1, max_size=3))
    spec = VariantSpec("", stages, rule, draw(st.sampled_from(ROWS)))
    return family, spec, prompts, draw(st.sampled_from(["left", "right"])), draw(st.integers(0, 99))


def run(tiny: TinyModel, spec: VariantSpec, inputs: dict) -> tuple[list[dict[int, list[int]]], torch.Tensor]:
    """Kept tokens of each prompt, and logits [b, s, vocabulary]."""
    with torch.no_grad(), truncated(tiny.model, spec) as trace:
        logits = tiny.model(**inputs).logits
    return [prompt.kept for prompt in trace.prompts], logits


@settings(deadline=None, max_examples=MANY)
@given(cases())
def test_every_position_is_the_same_alone_and_in_a_batch(case: tuple) -> None:
    family, spec, layouts, side, seed = case
    tiny = built(*family)
    alone = [tiny.prompt(layout, seed + number) for number, layout in enumerate(layouts)]
    batch = tiny.joined(alone, side)
    kept, logits = run(tiny, spec, batch)
    for row, inputs in enumerate(alone):
        own, whole = run(tiny, spec, inputs)
        assert own[0] == kept[row]
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(logits[row][real], whole[0], atol=2e-4, rtol=1e-3)


@settings(deadline=None, max_examples=MANY)
@given(cases())
def test_what_stays_is_what_masks_would_leave(case: tuple) -> None:
    family, spec, layouts, side, seed = case
    tiny = built(*family)
    batch = tiny.joined([tiny.prompt(layout, seed + number) for number, layout in enumerate(layouts)], side)
    kept, logits = run(tiny, spec, batch)
    oracle = Oracle(tiny, {s.layer: s.keep for s in spec.stages}, spec.rule, spec.row)
    with torch.no_grad(), oracle.applied():
        wanted = tiny.model(**batch).logits
    image = (batch["input_ids"] == IMAGE) & batch["attention_mask"].bool()
    for row, own in enumerate(kept):
        places = image[row].nonzero()[:, 0]
        for layer, numbers in own.items():
            assert places[numbers].tolist() == oracle.kept[layer][row]
        stays = batch["attention_mask"][row].bool() & ~image[row]
        stays[places[own[max(own)]] if own else places] = True
        torch.testing.assert_close(logits[row][stays], wanted[row][stays], atol=2e-4, rtol=1e-3)


def test_a_prompt_may_end_with_a_picture_whose_end_is_dropped(llava: TinyModel) -> None:
    """The second stage ranks by the last token that is still there, not by one that is gone, nor by a filler."""
    for seed in range(6):
        prompt = llava.prompt("tttI", seed)
        batch = llava.joined([prompt, llava.prompt("t" * 30, seed)], "left")
        alone, _ = run(llava, VariantSpec("", (Stage(1, 4), Stage(2, 1))), prompt)
        both, _ = run(llava, VariantSpec("", (Stage(1, 4), Stage(2, 1))), batch)
        assert alone[0] == both[0] and set(alone[0][2]) < set(alone[0][1])
