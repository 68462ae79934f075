"""The control that makes the picture itself smaller, against the picture made smaller by hand."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from hypothesis import given, strategies as st
from tiny_models import FAMILIES, IMAGE, TinyModel, build
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from redrel_vlmeval.errors import InvalidValue, TruncationError
from redrel_vlmeval.names import nearest, parse
from redrel_vlmeval.rules.controls import smaller_grid
from redrel_vlmeval.truncation import truncated

NATIVE = [name for name in ("qwen2_vl", "qwen2_5_vl") if name in FAMILIES]
TILED = [name for name in ("llava_next", "llava_onevision", "qwen3_vl") if name in FAMILIES]


def cubic(pictures: torch.Tensor, *size: int) -> torch.Tensor:
    return interpolate(pictures, size, mode="bicubic", antialias=True)


def entering(tiny: TinyModel, setting: str, inputs: dict[str, torch.Tensor]) -> tuple[list[int], torch.Tensor]:
    """Kept tokens of one prompt, and what enters block 1, [s', D]."""
    found: list[torch.Tensor] = []
    decoder = tiny.model.model.language_model
    with torch.no_grad(), truncated(tiny.model, setting) as trace:
        hook = decoder.layers[0].input_layernorm.register_forward_pre_hook(lambda _m, args: found.append(args[0][0]))
        tiny.model(**inputs)
        hook.remove()
    return trace.last.kept[0], found[0]


@torch.no_grad()
def test_a_tower_of_one_size_sees_the_thumbnail_enlarged(llava: TinyModel) -> None:
    """16 tokens of 4 x 4 become 2 x 3: the model that is given those six tokens answers alike."""
    inputs = llava.prompt("ttItttt", 5)
    with truncated(llava.model, "l0_k6_downsample_pos-new") as trace:
        logits = llava.model(**inputs).logits[0, -1]
    model = llava.model.model
    blurred = cubic(cubic(inputs["pixel_values"], 2 * 6, 3 * 6), 24, 24)
    tower = model.vision_tower(blurred, output_hidden_states=True).hidden_states[-2][:, 1:]
    tokens = model.multi_modal_projector(tower)[0].T.view(1, -1, 4, 4)
    small = adaptive_avg_pool2d(tokens, (2, 3))[0].flatten(1).T
    ids = inputs["input_ids"][0]
    words = model.language_model.embed_tokens(ids[ids != IMAGE])
    first = int((ids == IMAGE).nonzero()[0])
    hidden = model.language_model(inputs_embeds=torch.cat([words[:first], small, words[first:]])[None])[0]
    assert torch.allclose(llava.model.lm_head(hidden)[0, -1], logits, atol=1e-4)
    assert trace.last.images == [6] * trace.blocks and trace.last.kept[0] == [4, 6, 7, 12, 14, 15]


@pytest.mark.skipif(not NATIVE, reason="this release's Qwen-VL shows no pictures apart")
@pytest.mark.parametrize("family", NATIVE)
@torch.no_grad()
def test_a_tower_of_any_size_sees_fewer_patches(family: str) -> None:
    """The second of two pictures of a prompt; the host's processor lays the small one out in patches."""
    tiny = build(family)
    processor = tf.Qwen2VLImageProcessor(
        patch_size=4, do_resize=False, do_rescale=False, do_normalize=False, do_convert_rgb=False
    )
    pictures = [torch.rand(3, 8 * rows, 8 * columns) for rows, columns in ((2, 2), (4, 6))]
    given = [processor(images=[one], return_tensors="pt") for one in pictures]
    together = {name: torch.cat([one[name] for one in given]) for name in ("pixel_values", "image_grid_thw")}
    ids = [1, 5, 97, *[IMAGE] * 4, 96, 6, 97, *[IMAGE] * 24, 96, 7, 8]
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    inputs |= {"mm_token_type_ids": (inputs["input_ids"] == IMAGE).int()} | together
    kept, hidden = entering(tiny, "l0_k7_downsample", inputs)  # 1 of 4 and 6 of 24
    assert kept[0] == 3 and [one - 4 for one in kept[1:]] == [7, 9, 11, 19, 21, 23]
    small = processor(images=[cubic(pictures[1][None], 2 * 8, 3 * 8)[0]], return_tensors="pt")
    tokens = tiny.model.model.get_image_features(small["pixel_values"], small["image_grid_thw"])
    tokens = getattr(tokens, "pooler_output", tokens)[0]
    assert torch.allclose(hidden[7:13], tokens, atol=1e-4)  # behind 3 words, 1 token and 3 words


@pytest.mark.skipif("qwen2_vl" not in FAMILIES, reason="this release's Qwen-VL shows no pictures apart")
def test_a_video_is_refused() -> None:
    tiny = build("qwen2_vl")
    inputs = tiny.prompt("ttItt") | {"pixel_values": torch.randn(32, 96), "image_grid_thw": torch.tensor([[2, 4, 4]])}
    ids = torch.tensor([[1, 97, *[IMAGE] * 8, 96, 5]])
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE).int()}
    with torch.no_grad(), truncated(tiny.model, "l0_k2_downsample"), pytest.raises(TruncationError, match="video"):
        tiny.model(**inputs)


@pytest.mark.parametrize("family", TILED)
def test_other_layouts_are_refused_by_name(family: str) -> None:
    tiny = build(family)
    with pytest.raises(TruncationError, match=f"rule 'downsample': {family}: .*possible for llava, internvl"):
        truncated(tiny.model, "l0_k4_downsample").__enter__()


def test_behind_block_1_it_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="l2_k8: rule 'downsample' changes what enters block 1, so it is for l0 alone"):
        parse("x_trunc_l2_k8_downsample")
    assert nearest("x_trunc_l2_k8_downsampl") == "x_trunc_l0_k8_downsample"
    with pytest.raises(KeyError, match="l0 alone"):
        parse("x_trunc_l0_k8-random_l2_k4-downsample")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 300))
def test_a_smaller_picture_has_about_the_proportions(rows: int, columns: int, count: int) -> None:
    count = min(count, rows * columns)
    pairs = {(r, count // r) for r in range(1, rows + 1) if count % r == 0 and count // r <= columns}
    able = {pair for pair in pairs if 0.5 <= pair[0] / pair[1] * columns / rows <= 2}
    if able:
        assert smaller_grid((rows, columns), count) in able
    else:
        with pytest.raises(InvalidValue, match=rf"{rows} x {columns} tokens cannot be made one of {count}; "):
            smaller_grid((rows, columns), count)


def test_a_count_that_is_no_grid_names_those_that_are(llava: TinyModel) -> None:
    with (
        torch.no_grad(),
        truncated(llava.model, "l0_k7_downsample"),
        pytest.raises(TruncationError, match="rule 'downsample'.*cannot be made one of 7; near it are 6 and 8"),
    ):
        llava.model(**llava.prompt("ttItt"))
