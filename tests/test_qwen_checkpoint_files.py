"""A Qwen-VL checkpoint loads with the weights of its files, or there is one clear error with the fix."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from functools import partial
from pathlib import Path

import checkpoints
import pytest
import torch
import transformers
from qwen_checkpoint import random_weights, save_weights, tiny_config, write_checkpoint
from safetensors.torch import load_file, save_file

from redrel_vlmeval.models.checkpoint import SMALL, CheckpointError
from redrel_vlmeval.models.qwen import checkpoint, compat, weights as qwen_weights
from redrel_vlmeval.models.qwen.checkpoint import PINNED, choose_revision, place
from redrel_vlmeval.models.qwen.core import QwenCore

HUB = "Qwen/Qwen-VL"
RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])
# releases that make c_proj.weight anew after loading it
CHANGES_WEIGHTS = RELEASE >= (5, 10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("files") / "whole")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "broken"))


pytestmark = pytest.mark.usefixtures("no_environment")
refused = partial(checkpoints.refused, QwenCore)


def stored(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return random_weights(tiny_config(3, 128, 4, 2048, dtype), 0, dtype)


# what loads


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_every_weight_is_that_of_the_files_in_the_asked_precision(tmp_path, kind, dtype, saved):
    folder = write_checkpoint(tmp_path / "loads", weights=kind, dtype=saved)
    core = QwenCore(str(folder), device="cpu", dtype=str(dtype).removeprefix("torch."), max_new_tokens=2)
    weights = core.model.state_dict()
    expected = stored(saved)
    assert set(weights) == set(expected) and core.dtype == dtype and not core.model.training
    assert all(torch.equal(weights[name], expected[name].to(dtype)) for name in expected)
    assert isinstance(core.reply([{"type": "text", "value": "Hi"}]), str)


def test_the_revision_follows_the_weights(folder):
    first = QwenCore(str(folder), device="cpu").revision
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    second = QwenCore(str(folder), device="cpu").revision
    assert first.startswith("sha256:") and second.startswith("sha256:") and first != second


def test_one_line_says_that_code_of_others_runs(whole, caplog):
    with caplog.at_level(logging.WARNING, logger="redrel_vlmeval"):
        core = QwenCore(str(whole), device="cpu")
    (record,) = [r for r in caplog.records if r.name == "redrel_vlmeval"]
    said = record.getMessage()
    assert f"{whole}@{core.revision}" in said and "its own code runs" in said and "asked for" in said


def test_tables_in_the_files_are_no_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    weights["transformer.h.1.attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert QwenCore(str(folder), device="cpu").dtype == torch.float32


# what is compared after loading


@pytest.mark.skipif(not CHANGES_WEIGHTS, reason=f"transformers {transformers.__version__} keeps the weights it loads")
def test_weights_that_transformers_makes_anew_are_noticed(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "unmended")  # a folder of its own: its code has not been mended before

    def mend_all_but_weights(model):
        owner = next(kind for kind in model.__mro__ if "_init_weights" in vars(kind))
        own = owner._init_weights
        mend(model)
        owner._init_weights = own

    mend = compat.mend
    monkeypatch.setattr(compat, "mend", mend_all_but_weights)
    refused(folder, "weight differs", f"transformers {transformers.__version__} changes weights")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "name", ["transformer.h.1.attn.c_proj.weight", "transformer.ln_f.weight", "lm_head.weight",
             "transformer.visual.conv1.weight", "transformer.h.2.attn.c_attn.bias"],
)  # fmt: skip
def test_the_first_weight_that_differs_is_named(tmp_path, kind, name):
    folder = write_checkpoint(tmp_path / "changed", weights=kind)
    core = QwenCore(str(folder), device="cpu")
    qwen_weights.check_weights("here", folder, core.model)
    with torch.no_grad():
        core.model.get_parameter(name)[-1] += 1e-3
    with pytest.raises(CheckpointError, match=rf"here: after loading, {name} differs"):
        qwen_weights.check_weights("here", folder, core.model)


def test_little_of_the_files_is_read(whole, monkeypatch):
    rows = {name: [row.numel() for _, row in found] for name, found in qwen_weights.stored_rows(whole)}
    assert set(rows) == set(stored())
    assert rows["lm_head.weight"] == [128] * 3 and rows["transformer.ln_f.weight"] == [128]


# what is refused


@pytest.mark.parametrize("version, fine", [("5.0.0", False), ("5.0.1.dev0", False), ("5.0.0rc2", False), ("5.0", False),
                                           ("5.10.0", True), ("4.50.0", True), ("5.1.0", True)])  # fmt: skip
def test_transformers_5_0_is_refused_by_name(monkeypatch, version, fine):
    # by this name: old releases put another module in their place while they run
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    if fine:
        checkpoint.check_environment(HUB)
        return
    with pytest.raises(CheckpointError, match=rf"{HUB}: transformers {version} .*wrong weights.*5\.0\.\*"):
        checkpoint.check_environment(HUB)


@pytest.mark.parametrize("package", ["tiktoken", "einops", "torchvision"])
def test_a_missing_package_is_named_with_the_extra(whole, monkeypatch, package):
    find = checkpoint.importlib.util.find_spec
    gone = lambda name, *args: None if name == package else find(name, *args)  # noqa: E731
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", gone)
    refused(whole, package, 'pip install "redrel-vlmeval[qwen]"')


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "nowhere", "a/b/c"])
def test_no_such_folder(path):
    refused(path, "no such folder", HUB)


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    refused(folder, "config.json", HUB)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llava"},
        {"model_type": "qwen2_vl"},
        {"visual": None},
        {"architectures": None, "model_type": None},
    ],
)
def test_another_architecture(folder, changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    refused(folder, "architecture", "expected Qwen-VL", HUB)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_int4_checkpoints(folder, method):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, method, "Int4", "use Qwen/Qwen-VL-Chat")


@pytest.mark.parametrize("name", ["modeling_qwen.py", "visual.py", "qwen.tiktoken", "generation_config.json"])
def test_an_incomplete_folder(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name} is missing", "fetch it again")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights", "incomplete")


def test_a_missing_shard_and_a_broken_index(tmp_path):
    folder = write_checkpoint(tmp_path / "shards", weights="bin")
    shard = sorted(folder.glob("*.bin"))[1]
    shard.unlink()
    refused(folder, f"{shard.name} is missing", "fetch it again")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    refused(folder, "no index of weights", "etch it again")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_truncated_weights(tmp_path, kind, share):
    folder = write_checkpoint(tmp_path / "cut", weights=kind)
    file = max(folder.glob("*.safetensors" if kind == "safetensors" else "*.bin"))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    refused(folder, "cannot be loaded", "etch it again")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_of_other_names(tmp_path, kind):
    folder = write_checkpoint(tmp_path / "names", weights=kind)
    weights = {name.replace("attn.c_attn", "self_attn.qkv"): tensor for name, tensor in stored().items()}
    save_weights(folder, weights, kind)
    refused(folder, "lacks 6 weights", "h.0.attn.c_attn", "6 of other names", "h.0.self_attn.qkv")


def test_weights_without_a_place(folder):
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.attn.c_attn.lora_A.weight"] = torch.ones(2, 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "1 weights have no place", "lora_A", "merge")


def test_weights_of_another_size(folder):
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "cannot be loaded")


def test_code_that_fails(tmp_path):
    folder = write_checkpoint(tmp_path / "failing")  # older releases know a folder's modules by its name alone
    (folder / "visual.py").write_text("raise RuntimeError('not today')\n")
    refused(folder, "cannot be loaded", "not today")


@pytest.mark.parametrize(
    "change",
    ["QWenTokenizer.tokenize = lambda self, text, **kwargs: [text]",
     "QWenTokenizer.tokenize = lambda self, text, own=QWenTokenizer.tokenize, **kwargs: own(self, text)"],
)  # fmt: skip
def test_a_tokenizer_that_transformers_does_not_let_work(tmp_path, change):
    """As on 5.1: unknown ids; or the text's own way to name special tokens is lost."""
    folder = write_checkpoint(tmp_path / "words")
    with open(folder / "tokenization_qwen.py", "a") as code:
        code.write(f"\n{change}\n")
    refused(folder, f"tokenizer does not work with transformers {transformers.__version__}")


def test_a_chat_needs_a_chat_checkpoint(whole):
    refused(whole, "no chat model", "use Qwen/Qwen-VL-Chat", chat=True)


def test_attention_is_chosen_from_two(whole):
    with pytest.raises(ValueError, match=r"'flash_attention_2'.*'sdpa' or 'eager'"):
        QwenCore(str(whole), device="cpu", attn="flash_attention_2")


# hub names


def test_hub_names_are_pinned_and_can_be_moved(whole):
    assert choose_revision(HUB, None) == PINNED[HUB]
    assert choose_revision("Qwen/Qwen-VL-Chat", "main") == "main"
    assert choose_revision(str(whole), None) is None
    assert choose_revision("somebody/a-finetune", "abc") == "abc"
    with pytest.raises(CheckpointError, match=r"somebody/a-finetune: its own code runs.*revision=<commit>"):
        choose_revision("somebody/a-finetune", None)


@pytest.mark.parametrize("name", [HUB, "Qwen/Qwen-VL-Chat"])
def test_a_hub_name_without_network(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(name, f"hf download {name} --revision {PINNED[name]}", "without one", "model_path")


def test_a_hub_name_in_the_cache_loads_its_pinned_revision_without_network(whole, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(whole, tmp_path / "models--Qwen--Qwen-VL" / "snapshots" / PINNED[HUB])
    core = QwenCore(HUB, device="cpu")
    assert (core.weights, core.revision) == (HUB, PINNED[HUB])
    refused(HUB, "hf download Qwen/Qwen-VL --revision 1234", revision="1234")


# where it runs


@pytest.mark.parametrize("capability, dtype", [((8, 0), torch.bfloat16), ((7, 0), torch.float16)])
def test_a_gpu_runs_in_bfloat16_if_it_can(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: capability)
    assert (place(None, None, SMALL + 1).device, place(None, None, SMALL + 1).dtype) == ("cuda", dtype)
    assert place("cpu", None, SMALL).dtype == torch.float32
    assert place("cpu", None, SMALL + 1).dtype == torch.bfloat16
    assert place(None, "float32", 1).dtype == torch.float32


def test_an_untrained_model_has_the_asked_size_and_runs(whole):
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64,
             "vocab_size": 300, "visual": {"width": 32, "layers": 1, "heads": 2, "mlp_ratio": 1.0}}  # fmt: skip
    model = checkpoint.untrained_qwen(str(whole), sizes, "cpu", torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and not model.training
    assert len(model.transformer.h) == 2 and model.config.visual["image_size"] == 448
    assert torch.get_default_dtype() == torch.float32
    with torch.no_grad():
        assert model(torch.arange(5)[None]).logits.shape == (1, 5, 300)
        assert model.generate(torch.arange(5)[None], max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_the_modules_of_a_checkpoint_are_its_own(whole, folder):
    one, other = (QwenCore(str(path), device="cpu").model for path in (whole, folder))
    assert type(one).__module__ in sys.modules and type(one).__module__ != type(other).__module__
