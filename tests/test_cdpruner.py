"""CDPruner with the CLIP whose vision tower a LLaVA has, and its refusals; the formula is in test_rules_methods.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import IMAGE, VISION, TinyModel, build

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.rules import clip
from redrel_vlmeval.rules.clip import Clip, asked_words
from redrel_vlmeval.rules.text import determinantal, relevance, rescaled
from redrel_vlmeval.truncation import truncated

TEXT = {"vocab_size": 130, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1}
TEXT |= {
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


class Words:
    """A tokenizer of numbers: ``7 8`` is tokens 7 and 8, between the marks of beginning and end for CLIP."""

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=[1, *map(int, text.split()), 2])

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[TinyModel, Clip]]:
    """A LLaVA with the vision tower of a CLIP."""
    torch.manual_seed(5)
    model = tf.CLIPModel(tf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)).eval()
    tiny = build("llava")
    tower = tiny.model.model.vision_tower
    named = {name.rpartition("vision_model.")[2]: value for name, value in model.vision_model.state_dict().items()}
    missing = tower.load_state_dict(
        {name: named[name.rpartition("vision_model.")[2]] for name in tower.state_dict()}, strict=True
    )
    assert not missing.missing_keys
    yield tiny, Clip("tiny", model, Words())


@pytest.fixture
def given(made: tuple[TinyModel, Clip], monkeypatch: pytest.MonkeyPatch) -> tuple[TinyModel, Clip]:
    monkeypatch.setenv(clip.VARIABLE, "tiny")
    monkeypatch.setattr(clip, "_loaded", lambda name: made[1])
    return made


@torch.no_grad()
@pytest.mark.parametrize("words", [3, 14])  # of 9 places: one text, and two
def test_it_is_the_formula_on_what_the_models_own_modules_give(given: tuple[TinyModel, Clip], words: int) -> None:
    tiny, own = given
    inputs = tiny.prompt("ttI" + "t" * words, 3)
    with truncated(tiny.model, "l0_k5_cdpruner", Words()) as trace:
        tiny.model(**inputs)
    ids = inputs["input_ids"][0]
    asked = [1, *ids[int((ids == IMAGE).nonzero()[-1]) + 1 :].tolist(), 2]
    padded = asked + [0] * (-len(asked) % 9 if len(asked) > 9 else 0)
    texts = []
    for first in range(0, len(padded), 9):
        row = torch.tensor([padded[first : first + 9]])
        real = torch.tensor([[int(place < len(asked)) for place in range(first, first + row.shape[1])]])
        texts.append(own.model.text_projection(own.model.text_model(row, attention_mask=real).pooler_output))
    states = own.model.vision_model(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
    patches = own.model.visual_projection(own.model.vision_model.post_layernorm(states))
    x = tiny.model.model.multi_modal_projector(states)
    expected = determinantal(x, rescaled(relevance(patches, torch.cat(texts))), 5)
    assert trace.last.kept[0] == sorted(expected.tolist())


@torch.no_grad()
def test_alone_as_in_a_batch_and_beyond_the_rank(given: tuple[TinyModel, Clip]) -> None:
    tiny, _ = given
    alone = [tiny.batch([text], seed) for seed, text in enumerate(["ttItttt", "ttIttItt"])]
    found = []
    for inputs in [tiny.joined(alone), *alone]:
        with truncated(tiny.model, "l0_k15_cdpruner", Words()) as trace:
            tiny.model(**inputs)
        found += [prompt.kept[0] for prompt in trace.prompts]
    assert found[:2] == found[2:] and all(len(set(kept)) == 15 for kept in found)
    same = alone[0] | {"pixel_values": torch.zeros_like(alone[0]["pixel_values"])}
    with truncated(tiny.model, "l0_k15_cdpruner", Words()) as trace:
        tiny.model(**same)
    assert len(set(trace.last.kept[0])) == 15


def refused(tiny: TinyModel, tokenizer: Any = None) -> str:
    with pytest.raises(TruncationError) as caught:
        truncated(tiny.model, "l0_k5_cdpruner", tokenizer).__enter__()
    return str(caught.value)


def test_what_is_missing_is_refused_by_name(
    given: tuple[TinyModel, Clip], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny, own = given
    assert "rule 'cdpruner': the question's words are not known here" in refused(tiny)
    assert "the model's vision tower is not this CLIP's" in refused(build("llava_mistral"), Words())
    monkeypatch.undo()
    monkeypatch.delenv(clip.VARIABLE, raising=False)
    assert "set REDREL_CLIP" in (said := refused(tiny, Words())) and "rule 'dpp-text' goes by" in said
    monkeypatch.setenv(clip.VARIABLE, str(tmp_path / "nowhere"))
    assert f"REDREL_CLIP={tmp_path / 'nowhere'}: no CLIP" in refused(tiny, Words())


def test_a_checkpoint_is_loaded_from_its_folder(made: tuple[TinyModel, Clip], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 5}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    made[1].model.save_pretrained(tmp_path)
    tf.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(tmp_path)
    found = clip._loaded(str(tmp_path))
    v = torch.randn(4, VISION["hidden_size"])
    assert torch.allclose(found.patches(v), made[1].patches(v), atol=1e-6)
    assert found.segments("cat", v.device).shape == (1, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\nWhat is it?\nAnswer the question using a single word or phrase. ASSISTANT:", "What is it?"),
        (
            "What?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly. [/INST]",
            "What? A. x B. y",
        ),
        ("Who is the assistant here? assistant\n", "Who is the assistant here?"),
        ("\n ASSISTANT:", ""),
    ],
)
def test_the_call_for_a_short_answer_is_no_part_of_the_question(text: str, words: str) -> None:
    assert asked_words(text) == words


def test_a_sweep_refuses_it_by_name(given: tuple[TinyModel, Clip]) -> None:
    from sweepbox import compare

    from redrel_vlmeval.names import parse

    with pytest.raises(TruncationError, match="rule 'cdpruner': the question's words are not known here"):
        compare(given[0].model, given[0].prompt("ttItttt"), [parse("base_trunc_l0_k3_cdpruner")])
