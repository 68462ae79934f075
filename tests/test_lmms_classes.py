"""lmms-eval's classes on tiny checkpoints: tokens leave, K = all is the base, a batch is real, a failure ends all."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image

from redrel_vlmeval import trying
from redrel_vlmeval.errors import RedrelError, TruncationError
from redrel_vlmeval.lmms.door import DOORS
from redrel_vlmeval.models.tiny import scenes
from redrel_vlmeval.trying import llava_package

if importlib.util.find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed: pip install redrel-vlmeval[lmms]", allow_module_level=True)

import lmms_box
import numpy as np
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model

from redrel_vlmeval.lmms import models

# id -> checkpoint, what it is loaded with beside
CLASSES = {
    "redrel_llava_hf": ("llava", "device_map=cpu,dtype=float32"),
    "redrel_llava_hf onevision": ("llava_onevision", "device_map=cpu,dtype=float32"),
    "redrel_llava_onevision": ("llava_package", "device_map=auto"),
    "redrel_qwen2_5_vl": ("qwen2_5_vl", "device_map=cpu,min_pixels=3136,max_pixels=12544"),
    "redrel_qwen3_vl": ("qwen3_vl", "device_map=cpu,min_pixels=4096,max_pixels=16384"),
    "redrel_internvl_hf": ("internvl", "device_map=cpu,max_patches=2"),
    "redrel_huggingface": ("llava", "device_map=cpu"),
}
ALONE = "redrel_llava_onevision"  # the harness's class refuses batches
QUESTIONS = ["What color is the triangle?", "What shape is the red one? Answer with the letter.", "Yes or no?"]
SIZES = [(96, 96), (60, 120), (96, 48)]
each = pytest.mark.parametrize("which", CLASSES)


def test_no_id_is_left_out() -> None:
    assert {which.split()[0] for which in CLASSES} == set(DOORS)


@pytest.fixture(autouse=True)
def lent(request: pytest.FixtureRequest) -> Iterator[None]:
    """For the class that is made for them, a stand-in of the package ``llava`` and of half precision on a GPU."""
    if getattr(request.node, "callspec", None) is None or request.node.callspec.params.get("which") != ALONE:
        yield
        return
    with trying.on_cpu(), llava_package.lent(), mock.patch.dict(sys.modules), mock.patch.dict(vars(models)):
        sys.modules.pop(DOORS[ALONE].source, None)
        vars(models).pop(ALONE, None)
        yield


def picture(number: int) -> Image.Image:
    """A scene, cut to a size of its own."""
    things = scenes.make_scene(np.random.default_rng(number))
    return scenes.render(things).resize(SIZES[number])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def folder(family: str) -> Path:
        return lmms_box.save(root / family, family)

    return folder


def load(folders: Any, which: str, trunc: str = "", batch: int = 1) -> Any:
    family, more = CLASSES[which]
    words = [f"pretrained={folders(family)}", more, f"trunc={trunc}" if trunc else ""]
    arguments = ",".join(filter(None, words))
    return get_model(which.split()[0]).create_from_arg_string(arguments, {"batch_size": batch, "device": "cpu"})


def ask(model: Any, pictures: tuple[int, ...] = (0, 1, 2)) -> list[Any]:
    """The harness's way: documents in its table, requests with everything but the pictures."""
    model.task_dict["shapes"] = {"test": [(picture(number), QUESTIONS[number]) for number in range(3)]}

    def messages(document: Any) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": document[0]}, {"type": "text", "text": document[1]}]
        return [{"role": "user", "content": content}]

    def request(number: int) -> Instance:
        settings = {"max_new_tokens": 6, "temperature": 0, "do_sample": False}
        given = (QUESTIONS[number], messages, settings, number, "shapes", "test")
        if model.is_simple:
            given = (QUESTIONS[number], settings, lambda document: [document[0]], number, "shapes", "test")
        metadata = {"task": "shapes", "doc_id": number, "repeats": 1}
        return Instance("generate_until", given, 0, metadata)

    return model.generate_until([request(number) for number in pictures])


def costs(results: list[Any]) -> list[dict[str, Any]]:
    return [result.token_counts.to_dict()["redrel"] for result in results]


@each
def test_tokens_leave_the_blocks_and_the_harness_logs_it(folders: Any, which: str) -> None:
    for cost in costs(ask(load(folders, which, "l4_k2"))):
        whole = cost["image_tokens"]
        assert whole > 2 and cost["images_per_block"] == [whole] * 4 + [2] * (len(cost["tokens"]) - 4)
        assert cost["tokens"][-1] == cost["prompt_tokens"] - whole + 2
        assert cost["kv_bytes_measured"] == cost["kv_bytes"] < cost["kv_bytes_untouched"]
        assert cost["mode"] == "dropped" and cost["batch"] == 1


@each
def test_all_tokens_kept_is_the_base(folders: Any, which: str) -> None:
    base, kept = ask(load(folders, which)), ask(load(folders, which, "l4_k9999"))
    assert [result.text for result in base] == [result.text for result in kept]
    assert len({result.text for result in base}) > 1, "the model says the same to everything"
    assert {cost["mode"] for cost in costs(base) + costs(kept)} == {"untouched"}


@pytest.mark.parametrize("which", [which for which in CLASSES if which != ALONE])
def test_a_batch_answers_as_its_questions_do_alone(folders: Any, which: str) -> None:
    alone, batch = ask(load(folders, which, "l4_k2")), ask(load(folders, which, "l4_k2", batch=3))
    assert [result.text for result in alone] == [result.text for result in batch]
    for one, many in zip(costs(alone), costs(batch), strict=True):
        assert many["batch"] == 3
        for name in ("prompt_tokens", "image_tokens", "tokens", "kept", "new_tokens"):
            assert one[name] == many[name], name


@each
def test_a_failure_in_generate_is_raised(folders: Any, which: str) -> None:
    def broken(*_: object) -> None:
        raise TruncationError("broken on purpose")

    for batch in (1, 2)[: 1 + (which != ALONE)]:
        model = load(folders, which, "l4_k2", batch)
        model.model.register_forward_pre_hook(broken)
        with pytest.raises(TruncationError, match="on purpose"):
            ask(model)
        assert "generate" not in vars(model.model)  # nothing stays behind
    with pytest.raises(TruncationError, match="l40"):
        load(folders, which, "l40_k2")


@pytest.mark.parametrize("which", [ALONE])
def test_a_class_that_answers_one_by_one_refuses_a_batch(folders: Any, which: str) -> None:
    with pytest.raises(AssertionError, match="batch"):
        load(folders, which, "l4_k2", batch=2)


@pytest.mark.parametrize(
    "trunc, says",
    [
        ("l40_k2", "l40"),
        ("l4", "K is missing"),
        ("l4_k2_p-cqm", "VLMEvalKit"),
        ("l4_k2_ppl", "VLMEvalKit"),
        ("mine_trunc_l4_k2", "the setting alone"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_when_the_model_is_made(folders: Any, trunc: str, says: str) -> None:
    with pytest.raises(RedrelError, match=says):
        load(folders, "redrel_llava_hf", trunc)


def test_likelihood_of_given_answers_is_refused(folders: Any) -> None:
    with pytest.raises(TruncationError, match="loglikelihood"):
        load(folders, "redrel_llava_hf", "l4_k2").loglikelihood([])
    assert load(folders, "redrel_llava_hf").loglikelihood([]) == []


def test_onevision_of_the_authors_says_which_package_it_wants(folders: Any) -> None:
    with pytest.raises(RedrelError, match="redrel_llava_hf"):
        get_model("redrel_llava_onevision").create_from_arg_string("pretrained=lmms-lab/llava-onevision-qwen2-7b-ov")


def test_beams_of_a_setting_are_searched(folders: Any) -> None:
    model = load(folders, "redrel_llava_hf", "l4_k2_beam2")
    seen = []
    own = model.model.generate
    model.model.generate = lambda *args, **kwargs: seen.append(kwargs["num_beams"]) or own(*args, **kwargs)
    assert [cost["images_per_block"][-1] for cost in costs(ask(model))] == [2] * 3
    assert seen == [2] * 3
