"""A checkpoint in the real format loads and answers; whatever is wrong with one gives one clear error with the fix."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import checkpoints
import pytest
import torch
import transformers as tf
from checkpoints import save_llava
from safetensors.torch import load_file, save_file
from skimage.io import imsave
from transformers.utils import is_flash_attn_2_available

from redrel_vlmeval.models import checkpoint
from redrel_vlmeval.models.checkpoint import SMALL, choose_placement
from redrel_vlmeval.models.llava.checkpoint import read_config
from redrel_vlmeval.models.llava.core import LlavaCore

HUB = "llava-hf/llava-1.5-7b-hf"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save_llava(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "broken"))


pytestmark = pytest.mark.usefixtures("no_environment")
refused = partial(checkpoints.refused, LlavaCore)


def test_a_saved_checkpoint_loads_and_answers(whole, tmp_path):
    picture = torch.randint(0, 255, (30, 50, 3), dtype=torch.uint8).numpy()
    imsave(tmp_path / "a.png", picture, check_contrast=False)
    core = LlavaCore(str(whole), device="cpu", max_new_tokens=5)
    content = [{"type": "image", "value": str(tmp_path / "a.png")}, {"type": "text", "value": "What is it?"}]
    answer = core.reply(content)
    assert isinstance(answer, str) and answer == core.reply(content) == answer.strip()
    assert (core.dtype, core.device.type, core.per_image, core.weights) == (torch.float32, "cpu", 16, str(whole))
    assert not core.model.training and core.backend == "transformers LlavaForConditionalGeneration"
    assert core.generation["do_sample"] is False and core.generation["num_beams"] == 1


def test_weights_are_those_of_the_files_in_the_asked_precision(whole):
    core = LlavaCore(str(whole), device="cpu", dtype="bfloat16", attn="eager")
    saved = {name.split("layers.")[-1]: tensor for name, tensor in load_file(whole / "model.safetensors").items()}
    name = "3.self_attn.q_proj.weight"
    assert torch.equal(core.model.model.language_model.layers[3].self_attn.q_proj.weight, saved[name].bfloat16())
    assert {p.dtype for p in core.model.parameters()} == {torch.bfloat16}
    assert core.model.config._attn_implementation == "eager"


def test_revision_of_a_folder_follows_the_weights(folder):
    config = read_config(str(folder), None)
    assert config["model_type"] == "llava"
    size, first = checkpoint.weight_files(str(folder), None)
    assert size == (folder / "model.safetensors").stat().st_size and first.startswith("sha256:")
    weights = load_file(folder / "model.safetensors")
    weights[next(iter(weights))] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert checkpoint.weight_files(str(folder), None)[1] != first


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "nowhere", "a/b/c"])
def test_no_such_folder(path):
    refused(path, "no such folder", HUB)


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    refused(folder, "config.json", "save_pretrained", HUB)


@pytest.mark.parametrize("text", ["", '{"model_type": "llava"', "[1, 2]", "\u00ff"])
def test_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "config.json", "fetch it again")


def test_another_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    refused(folder, "'qwen2'", "expected LLaVA-1.5", HUB)


@pytest.mark.parametrize("name", ["nobody/no thing", "no:body/x", "nobody/-"])
def test_what_cannot_be_a_hub_name(name):
    refused(name, "no such folder", HUB)


@pytest.mark.parametrize("kind", ["llava", "llava_llama"])
def test_the_original_repositorys_format(folder, kind):
    original = {"model_type": kind, "mm_vision_tower": "openai/clip-vit-large-patch14-336", "hidden_size": 4096}
    (folder / "config.json").write_text(json.dumps(original))
    refused(folder, "original repository's format", HUB)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights", "incomplete")


def test_weights_that_lack_tensors(folder):
    weights = load_file(folder / "model.safetensors")
    gone = [name for name in weights if "layers.2.mlp" in name and "vision" not in name]
    save_file({k: v for k, v in weights.items() if k not in gone}, folder / "model.safetensors", {"format": "pt"})
    assert len(gone) == 3
    refused(folder, "lacks 3 weights", "layers.2.mlp")


def test_weights_of_another_size(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "model_path")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights(folder, share):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    refused(folder, "cannot be loaded", "etch it again")


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_missing_or_broken_preprocessor(folder, text):
    file = folder / "preprocessor_config.json"
    file.unlink() if text is None else file.write_text(text)
    refused(folder, "preprocessor_config.json", "etch it again")


def test_missing_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, "cannot be loaded", "etch it again")


@pytest.mark.parametrize("name", [HUB, "llava-hf/llava-1.5-13b-hf", "nobody/nothing"])
def test_hub_name_without_network(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(name, f"hf download {name}", "without one", "model_path")


def test_a_missing_shard_is_named(folder):
    model = tf.LlavaForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2 and LlavaCore(str(folder), device="cpu").per_image == 16
    shards[1].unlink()
    refused(folder, shards[1].name, "etch it again")


@pytest.mark.parametrize("kernel", ["nonsense", "flash_attention_2"])
def test_a_kernel_that_is_not_there(whole, kernel):
    if kernel == "flash_attention_2" and is_flash_attn_2_available():
        pytest.skip("flash-attn is installed")
    refused(whole, "cannot be loaded", attn=kernel)


def test_unknown_dtype(whole, monkeypatch):
    with pytest.raises(ValueError, match=r"'int4'.*REDREL_DTYPE.*float16, bfloat16, float32"):
        LlavaCore(str(whole), dtype="int4")
    monkeypatch.setenv("REDREL_DTYPE", "half")
    with pytest.raises(ValueError, match="'half'"):
        LlavaCore(str(whole))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none(whole, monkeypatch):
    with pytest.raises(ValueError, match=r"'cuda:1'.*REDREL_DEVICE.*'cpu'"):
        LlavaCore(str(whole), device="cuda:1")
    monkeypatch.setenv("REDREL_DEVICE", "cuda")
    with pytest.raises(ValueError, match="no CUDA GPU"):
        LlavaCore(str(whole))


def test_a_device_that_torch_does_not_know(whole):
    with pytest.raises(ValueError, match=r"'gpu0'.*REDREL_DEVICE"):
        LlavaCore(str(whole), device="gpu0")


@pytest.mark.parametrize("gpu", [False, True])
def test_placement_is_keyword_then_environment_then_choice(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    choice = choose_placement(None, None, SMALL)
    assert (choice.device, choice.dtype) == (("cuda", torch.float16) if gpu else ("cpu", torch.float32))
    assert choose_placement("cpu", None, SMALL).dtype == torch.float32
    assert choose_placement("cpu", None, SMALL + 1).dtype == torch.bfloat16
    assert choose_placement("cpu", "float16", SMALL + 1).dtype == torch.float16
    monkeypatch.setenv("REDREL_DEVICE", "cpu")
    monkeypatch.setenv("REDREL_DTYPE", "bfloat16")
    environment = choose_placement(None, None, 1)
    assert (environment.device, environment.dtype) == ("cpu", torch.bfloat16)
    assert choose_placement(None, "float32", SMALL + 1).dtype == torch.float32
    if gpu:
        assert choose_placement("cuda:0", None, 1).device == "cuda:0"
