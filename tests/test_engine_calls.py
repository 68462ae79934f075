"""The engine around odd models and odd calls: wrappers, deep copies, threads, compiled models, nonsense."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from tiny_models import TinyModel, build

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation import truncated


class Wrapper(torch.nn.Module):
    """A model around another, as PEFT's are: its own forward goes past the other's hooks."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = inner

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.base_model.forward(*args, **kwargs)

    def generate(self, *args: object, **kwargs: object) -> object:
        return self.base_model.generate(*args, **kwargs)


def test_a_wrapper_is_truncated_as_what_it_wraps(llava: TinyModel) -> None:
    inputs = llava.prompt("ttItt", 1)
    wrapped = Wrapper(llava.model)
    with torch.no_grad():
        with truncated(llava.model, "l2_k4"):
            want = llava.model.generate(**inputs, max_new_tokens=3, do_sample=False)
            logits = llava.model(**inputs).logits
        with truncated(wrapped, "l2_k4") as trace:
            assert torch.equal(wrapped.generate(**inputs, max_new_tokens=3, do_sample=False), want)
            assert torch.equal(wrapped(**inputs).logits, logits)
    assert [prompt.images[-1] for prompt in trace.prompts] == [4, 4]


def test_a_deep_copy_made_inside_is_a_model_of_its_own(llava: TinyModel) -> None:
    inputs = llava.prompt("ttItt", 1)
    with torch.no_grad():
        plain = llava.model(**inputs).logits
        with truncated(llava.model, "l2_k4"):
            copied = copy.deepcopy(llava.model)
            assert torch.equal(copied(**inputs).logits, plain)
        for weight in copied.parameters():
            weight.zero_()
        assert copied.generate(**inputs, max_new_tokens=2, do_sample=False)[0, -2:].tolist() == [0, 0]
        with truncated(copied, "l2_k4") as trace:
            copied(**inputs)
    assert trace.last.images[-1] == 4 and torch.equal(llava.model(**inputs).logits, plain)


def test_a_model_pickled_inside_is_the_untouched_one() -> None:
    tiny = build("llava")  # none of whose hooks are of transformers, which put on hooks that no pickle takes
    inputs = tiny.prompt("ttItt", 1)
    with truncated(tiny.model, "l0_k8-visionzip_l2_k4-next"):
        written = pickle.dumps(tiny.model)
    with torch.no_grad():
        assert torch.equal(pickle.loads(written)(**inputs).logits, tiny.model(**inputs).logits)


def test_two_threads_are_never_answered_with_each_others_choice(llava: TinyModel) -> None:
    prompts = [llava.prompt("ttttItttt", 3), llava.prompt("ttttItttt", 3)]
    prompts[1]["pixel_values"] = prompts[1]["pixel_values"] + 1
    wanted = []
    for one in prompts:
        with torch.no_grad(), truncated(llava.model, "l2_k4"):
            wanted.append(llava.model(**one).logits)
    said: list[object] = []

    def ask(number: int) -> None:
        for _ in range(20):
            try:
                with torch.no_grad():
                    said.append(torch.allclose(llava.model(**prompts[number]).logits, wanted[number], atol=1e-3))
            except TruncationError as error:
                said.append("another thread is inside" in str(error))

    with truncated(llava.model, "l2_k4"):
        threads = [threading.Thread(target=ask, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(said) == 40 and all(said)


@pytest.mark.parametrize("spec", [None, 5, b"l2_k4", ["l2_k4"]])
def test_what_is_no_setting_is_refused_in_words(llava: TinyModel, spec: object) -> None:
    with pytest.raises(ValueError, match=r"truncated\(model, .*\): give a setting such as 'l5_k128'"):
        truncated(llava.model, spec).__enter__()


def _forward(part: torch.nn.Module) -> None:
    part.forward = torch.compile(part.forward)


@pytest.mark.parametrize(
    "what", ["the model", "its call", "its forward", "a block", "a block's call", "the tower's forward"]
)
def test_a_compiled_model_is_refused_by_that_name(llava: TinyModel, what: str) -> None:
    model, blocks = llava.model, llava.model.model.language_model.layers
    if what == "the model":
        model = torch.compile(model)
    elif what == "a block":
        blocks[3] = torch.compile(blocks[3])
    elif what.endswith("call"):
        (blocks[3] if "block" in what else model).compile()
    else:
        _forward(model.model.vision_tower if "tower" in what else model)
    with pytest.raises(TruncationError, match="compiled by torch.compile"):
        truncated(model, "l2_k4").__enter__()
    assert not any(part._forward_pre_hooks for part in llava.model.modules())
