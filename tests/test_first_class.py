"""Bases with a row of their own, each on its host's class and a tiny checkpoint: swept, explained, placed, drawn."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers as tf
from checkpoints import host_table, needs_host
from PIL import Image

from redrel_vlmeval import trying
from redrel_vlmeval.bases import BASES, LAYOUTS
from redrel_vlmeval.errors import ExplainError, TruncationError
from redrel_vlmeval.explain.ask import ask_host
from redrel_vlmeval.explain.maps import Request, explain, grids
from redrel_vlmeval.explain.maps.flow import flow
from redrel_vlmeval.explain.maps.passes import run
from redrel_vlmeval.explain.maps.taken import Wanted
from redrel_vlmeval.models import TruncatedVLM, find_torch_model, recorded, told
from redrel_vlmeval.models.layouts import tokens_of_each
from redrel_vlmeval.names import parse
from redrel_vlmeval.sweep import Sweeper
from redrel_vlmeval.truncation import find_decoder, truncated
from redrel_vlmeval.trying.checkpoints import PACKAGES
from tools import coverage

pytestmark = needs_host
# name -> visual tokens, rows and columns of the picture as a whole, and those of its tiles, of 300 x 200 pixels
LAID = {
    "InternVL3-8B": (7 * 16, (4, 4), 6 * [(4, 4)]),
    "llava_onevision_qwen2_7b_ov": (3 * 17, (4, 4), []),
    "Qwen2.5-VL-7B-Instruct": (6 * 9, (6, 9), []),
    "llava_next_vicuna_7b": (64 + 10 * 17, (8, 8), [(10, 16)]),
    "llava_v1.5_7b": (64, (8, 8), []),
    "llava-onevision-qwen2-7b-ov-hf": (64 + 10 * 17, (8, 8), [(10, 16)]),
    "Qwen2-VL-7B-Instruct": (6 * 9, (6, 9), []),
    "Qwen3-VL-8B-Instruct": (6 * 9, (6, 9), []),
    "SmolVLM2": (5 * 16, (4, 4), 4 * [(4, 4)]),
    "Gemma3-4B": (16, (4, 4), []),
}
QUICK = ("InternVL3-8B", "Qwen2.5-VL-7B-Instruct", "llava_next_vicuna_7b")
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAID]
SETTINGS = ("l2_k8", "l0_k0", "l1_k5_random")


@pytest.fixture(scope="module")
def table():
    return host_table()


def shortly(model, *args, _generate=tf.GenerationMixin.generate, **kwargs):
    """As host's classes ask, who may ask for thousands of tokens; it is under ``generate`` of the package llava too."""
    return _generate(model, *args, **(kwargs | {"max_new_tokens": 5}))


@pytest.fixture(scope="module", params=EACH)
def built(request, table, tmp_path_factory):
    """The name, its model of the host, and a question to it."""
    with building(request.param, table, tmp_path_factory.mktemp("first")) as found:
        yield found


@contextmanager
def building(name, table, folder):
    kind = trying.kind_of(name)
    weights = folder / Path(str(table[name].keywords.get("model_path", name))).name
    weights.mkdir()
    with trying.on_cpu(), PACKAGES.get(kind, nullcontext)():
        host = table[name](**trying.make(kind, name, weights))
        said = [{"type": "image", "value": trying.draw(folder)[0]}, {"type": "text", "value": "What is it?"}]
        with patch.object(tf.GenerationMixin, "generate", shortly):
            yield name, host, said


def test_the_page_of_models_names_every_base_with_a_row():
    assert f"\n\n{coverage.rows()}\n\n" in coverage.PAGE.read_text(encoding="utf-8")
    assert {base.layout for base in BASES.values()} == set(LAYOUTS) and set(LAID) < set(BASES)


def test_a_sweep_says_what_single_variants_say(built):
    name, host, said = built
    specs = [parse(f"{name}_trunc_{setting}") for setting in SETTINGS]
    found = Sweeper(host, specs).answer(said, "MMStar")
    model = find_torch_model(host, name)
    for setting in SETTINGS:
        with truncated(model, setting) as trace:
            alone = host.generate([dict(item) for item in said], dataset="MMStar")
        assert found[setting].text == alone, setting
        assert found[setting].record["kept"] == {str(layer): kept for layer, kept in trace.last.kept.items()}


@pytest.mark.parametrize("setting", ["", "l2_k8"])
def test_its_answer_is_explained_and_lies_on_the_picture(built, setting):
    name, host, said = built
    asked = ask_host(TruncatedVLM(host, setting) if setting else host, said, "MMStar")
    tokens, whole, _ = LAID[name]
    assert len(asked.spans().image) == tokens and len(asked.answer) >= 1 and asked.greedy
    (grid,) = grids(asked)
    assert grid.shape == whole and grid.size == (300, 200)
    shares = flow(asked, cuts=not setting)
    np.testing.assert_allclose(shares.attention.sum(-1), 1, atol=1e-5)
    (found, *_) = explain(asked, Request(("elementwise",))).maps
    kept = tokens if not setting else 8
    assert [int(np.isfinite(row).sum()) for row in found.values[0]] == [tokens, tokens, kept, kept, kept]
    assert not np.isnan(grid.picture(found.values[0, 0])).all()


def test_an_answer_of_a_model_whose_prompt_attends_both_ways(table, tmp_path):
    with building("paligemma-3b-mix-448", table, tmp_path) as (name, host, said):
        settings = ("l2_k8", "l0_k0", "l1_k0")
        found = Sweeper(host, [parse(f"{name}_trunc_{setting}") for setting in settings]).answer(said, "MMStar")
        for setting in settings:
            variant = TruncatedVLM(host, setting)
            assert found[setting].text == variant.generate([dict(item) for item in said], dataset="MMStar")
        asked = ask_host(variant, said, "MMStar")
        said_at_once = []
        with truncated(asked.model, "l1_k0"):
            for length in range(len(asked.answer)):  # prompt and answer so far, the answer's tokens of their own type
                whole = replace(asked, answer=asked.answer[: length or 1]).sequence()
                given = asked.inputs if length == 0 else whole
                said_at_once.append(asked.called(**given, use_cache=False).logits[0, -1])
        with run(asked, Wanted((), (0,)), grad=False) as taken:
            torch.testing.assert_close(taken.logits[0], torch.stack(said_at_once), atol=1e-4, rtol=1e-4)
        types = asked.inputs["token_type_ids"].clone()
        types[0, 0] = 1  # the answer's tokens then count as the prompt's
        mixed = replace(asked, spec=None, inputs=asked.inputs | {"token_type_ids": types})
        with pytest.raises(ExplainError, match="its prompt attends to the answer"):
            flow(mixed, cuts=False)


def places(view):
    _, _, first, rows, cols, stride, *_ = view
    return [first + row * stride + column for row in range(rows) for column in range(cols)]


def said_of(*pictures):
    """A question about these."""
    shown = [{"type": "image", "value": str(picture)} for picture in pictures]
    return [*shown, {"type": "text", "value": "What is it?"}]


def entering(host, *pictures):
    """What enters block 1 at the visual tokens of a question, [n, D], with the tower's attention out of the way."""
    for name, module in find_torch_model(host, "base").named_modules():
        if "vis" in name and name.endswith(("attn.out_proj", "attn.proj")):
            torch.nn.init.zeros_(module.weight)
    decoder, seen = find_decoder(find_torch_model(host, "base")), []
    handle = decoder.blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    asked = ask_host(host, said_of(*pictures), "MMStar")
    handle.remove()
    return asked, seen[0][0, asked.spans().image].float()


def laid(asked):
    """Views of the record of a question."""
    given = told(asked.decoder, asked.inputs, asked.inputs["input_ids"][0])
    return recorded(asked.decoder, given, len(asked.spans().image), asked.pictures)["views"]


def black(folder, number, size, spot=None):
    """A white picture, with or without a black spot, and its file."""
    picture = Image.new("RGB", size, "white")
    if spot is not None:
        picture.paste("black", (spot[0] - 3, spot[1] - 3, spot[0] + 3, spot[1] + 3))
    picture.save(folder / f"{number}.png")
    return folder / f"{number}.png"


def check_spot(name, views, moved, size, spot):
    """Of tokens in the whole and in the tiles the one that ``moved`` most lies on the spot."""
    for kind in {view[1] for view in views}:
        parts = [view for view in views if view[1] == kind]
        best = max((place for view in parts for place in places(view)), key=lambda place: moved[place])
        (view,) = (view for view in parts if best in places(view))
        _, _, first, rows, cols, stride, left, top, right, bottom = view
        row, column = divmod(best - first, stride)
        across, down = (right - left) * size[0] / cols, (bottom - top) * size[1] / rows
        x, y = left * size[0] + column * across, top * size[1] + row * down
        assert x - 3 <= spot[0] <= x + across + 3 and y - 3 <= spot[1] <= y + down + 3, (name, kind, row, column)


def test_a_picture_ends_where_its_last_tile_stands_behind_the_id_of_all_last_ones():
    runs = [(4, 11), (4, 12), (4, 7), (4, 7), (4, 11), (4, 12), (4, 7)]  # SmolVLM: <row_1_col_1>, .., <global>
    assert tokens_of_each({"runs": runs}, 28, [(9, 9)] * 3, "x") == [12, 4, 12]
    assert tokens_of_each({"runs": [(28, 5), (8, 5)]}, 36, [(9, 9)] * 2, "x") == [28, 8]  # InternVL: <img>
    assert tokens_of_each({}, 28, [(9, 9)], "x") == [28]
    with pytest.raises(ExplainError, match="the tiles of 2 pictures are not told apart"):
        tokens_of_each({"runs": runs}, 28, [(9, 9)] * 2, "x")


SPOTS = [(23, 31), (263, 44), (141, 167)]


@pytest.mark.parametrize("spot", SPOTS)
def test_the_token_that_a_spot_moves_most_lies_on_it(built, tmp_path, spot):
    name, host, _ = built
    (asked, one), (_, other) = (
        entering(host, black(tmp_path, *each)) for each in (("a", (300, 200)), ("b", (300, 200), spot))
    )
    check_spot(name, laid(asked), (one - other).norm(dim=-1), (300, 200), spot)


def test_the_tokens_of_two_pictures_lie_each_on_its_own(built, tmp_path):
    name, host, _ = built
    first, size, spot = black(tmp_path, "first", (300, 200), (40, 30)), (200, 400), (150, 90)
    (asked, one), (_, other) = (
        entering(host, first, black(tmp_path, *each)) for each in (("a", size), ("b", size, spot))
    )
    moved, found = (one - other).norm(dim=-1), laid(asked)
    numbers = [place for view in found for place in places(view)]
    assert len(set(numbers)) == len(numbers) and {view[0] for view in found} == {0, 1}
    mine = [view for view in found if view[0] == 1]
    assert moved[[place for view in found if view[0] == 0 for place in places(view)]].max() == 0
    check_spot(name, mine, moved, size, spot)
    whole, tiles = LAID[name][1:]
    own = [(view[3], view[4]) for view in found if view[0] == 0]
    assert own == [whole, *tiles]
    grids_ = grids(ask_host(host, said_of(first, tmp_path / "a.png"), "MMStar"))
    assert [grid.size for grid in grids_] == [(300, 200), size] and grids_[1].index.min() > grids_[0].index.min()


def test_its_tokens_lie_on_the_picture_in_the_record(built):
    name, host, said = built
    asked = ask_host(host, said, "MMStar")
    tokens, whole, tiles = LAID[name]
    found = laid(asked)
    assert [(view[3], view[4]) for view in found] == [whole, *tiles] and {view[0] for view in found} == {0}
    numbers = [place for view in found for place in places(view)]
    ends = sum(rows for rows, _ in tiles) if "next" in name or name.endswith("-hf") else 0
    assert len(set(numbers)) == len(numbers) and set(numbers) <= set(range(tokens))
    assert len(numbers) == tokens - ends or name.startswith("llava_onevision")


def test_what_is_made_before_the_decoder_is_called_is_refused_by_name(built):
    name, host, said = built
    if not name.startswith("llava_onevision"):
        pytest.skip("its tower is part of the call, or can be run again")
    asked = ask_host(host, said, "MMStar")
    with pytest.raises(ExplainError, match="makes embeddings of its pictures.*vision cannot be looked into"):
        explain(asked, Request(("elementwise",), where=("vision",)))
    with pytest.raises(ExplainError, match="a changed picture"):
        explain(asked, Request(("elementwise",), smooth=2))


@pytest.mark.parametrize("setting", ["", "l2_k8"])
def test_maps_of_the_tower_of_a_model_that_hands_embeddings_on(built, setting):
    name, host, said = built
    if not name.startswith("InternVL3"):
        pytest.skip("its tower is part of the call, or cannot be run again")
    asked = ask_host(TruncatedVLM(host, setting) if setting else host, said, "MMStar")
    tokens, whole, tiles = LAID[name]
    found = explain(asked, Request(("elementwise",), where=("vision", "projector", "decoder")))
    vision, projector, decoder = found.maps
    assert vision.values.shape == (1, 2, (len(tiles) + 1) * 64) and projector.values.shape == (1, 1, tokens)
    assert {state for one in (vision, projector) for state in one.status[0]} == {"ok"}
    (grid,) = grids(asked, "vision")
    assert grid.shape == (8, 8) and grid.index.min() == len(tiles) * 64  # the whole picture is the last tile
    if not setting:
        # the rows that a projector makes are what enters block 1: their gradient, found from embeddings alone
        image, answer = asked.spans().image, torch.tensor(asked.answer)[:, None]
        with torch.enable_grad():
            rows = asked.sequence()["inputs_embeds"].clone().requires_grad_()
            logits = asked.called(**(asked.given(asked.sequence()) | {"inputs_embeds": rows})).logits
            z = logits[0, torch.from_numpy(asked.spans().predict)].gather(1, answer).sum()
            (gradient,) = torch.autograd.grad(z, rows)
        wanted = (gradient * rows).sum(-1)[0, image].relu().detach()
        np.testing.assert_allclose(projector.values[0, 0], wanted, atol=1e-5, rtol=1e-3)
    # a picture with noise in it: none at all changes nothing, some does, and decoder maps follow
    plain, noisy = (explain(asked, Request(("elementwise",), smooth=2, noise=noise)).maps[0] for noise in (0.0, 0.3))
    np.testing.assert_allclose(plain.values, decoder.values, atol=1e-5, rtol=1e-4)
    assert np.nanmax(np.abs(noisy.values - plain.values)) > 1e-3
    with pytest.raises(TruncationError, match="does not go through transformers' attention interface"):
        explain(asked, Request(("elementwise",), tower=True))
