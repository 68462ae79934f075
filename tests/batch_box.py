"""The host's real loop over questions of ours, for a model that is there already; and host classes over tiny models."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmms_box
import modelbox
import pandas as pd
import pytest
import torch
import transformers as tf

from redrel_vlmeval.host import Benchmark

DATA = "RedRelShapes"


class Log(list[Any]):
    """What looking ahead does not undo, as it does with a benchmark's own lists."""


class Questions:
    """A benchmark of the host whose questions are messages as they are given; it counts how often each is built."""

    dataset_name = DATA
    force_use_dataset_prompt = True

    def __init__(self, messages: Sequence[Any]) -> None:
        self.data = pd.DataFrame({"index": range(100, 100 + len(messages))})
        self.messages, self.built = list(messages), Log()

    def __len__(self) -> int:
        return len(self.data)

    def dump_image(self, line: Any) -> Any:
        raise AssertionError("no picture is the benchmark's")

    def build_prompt(self, line: Any) -> Any:
        self.built.append(line["index"])
        found = self.messages[int(line["index"]) - 100]
        return [dict(item) for item in found] if isinstance(found, list) else found


@contextmanager
def benchmark(name: str, count: int, data: Path) -> Iterator[Any]:
    """The first questions of a benchmark of the box as the host's own object, its table below ``data``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMUData", str(data))
        found = Benchmark(name, count)
        found.dataset.data = found.lines
        yield found.dataset


def model_of(classes: Any, base: Any, setting: str, batch: int) -> Any:
    """A model of its own around the torch model that all tests share."""
    return classes.TruncatedVLM(base, setting, batch=batch) if setting else base.again(batch)


def name_of(setting: str) -> str:
    return f"redrel_tiny_trunc_{setting}" if setting else "redrel_tiny"


def ask(model: Any, folder: Path, questions: Any, name: str = "redrel_tiny") -> list[Any]:
    """Answers in order, by the host's own loop."""
    modelbox.classes()
    from vlmeval.inference import infer_data

    folder.mkdir(parents=True, exist_ok=True)
    infer_data(model, name, str(folder), questions, str(folder / "out.pkl"))
    return list(pickle.loads((folder / "out.pkl").read_bytes()).values())


class Calls:
    """Counts prompts per call of a torch model's ``generate``, in a ``with`` block."""

    def __init__(self, model: Any, before: Callable[[torch.Tensor], None] = lambda ids: None) -> None:
        self.model, self.before, self.sizes = model, before, []

    def __enter__(self) -> Calls:
        own = type(self.model).generate.__get__(self.model)

        def generate(*args: Any, **kwargs: Any) -> Any:
            ids = args[0] if args else kwargs["input_ids"]
            self.sizes.append(len(ids))
            self.before(ids)
            return own(*args, **kwargs)

        self.model.generate = generate
        return self

    def __exit__(self, *_exc: object) -> None:
        del self.model.generate


def host_model(family: str, folder: Path) -> Any:
    """The host's class for ``family`` over a tiny checkpoint in its format, on the CPU; for InternVL-hf one alike."""
    modelbox.classes()
    from vlmeval.vlm.base import BaseModel
    from vlmeval.vlm.llava.llava import LLaVA_OneVision_HF
    from vlmeval.vlm.qwen2_vl.model import Qwen2VLChat
    from vlmeval.vlm.qwen3_vl.model import Qwen3VLChat

    class Like(BaseModel):
        INTERLEAVE = True

        def generate_inner(self, message: Any, dataset: str | None = None) -> str:
            items = [{"type": i["type"], ("text" if i["type"] == "text" else "url"): i["value"]} for i in message]
            turn = [{"role": "user", "content": items}]
            text = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            pictures = [tf.image_utils.load_image(i["url"]) for i in items if i["type"] == "image"]
            inputs = self.processor(images=pictures or None, text=text, return_tensors="pt")
            new = self.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            return str(self.processor.decode(new, skip_special_tokens=True))

    kinds = {"llava_onevision": LLaVA_OneVision_HF, "qwen2_5_vl": Qwen2VLChat, "qwen3_vl": Qwen3VLChat}
    kind = kinds.get(family, Like)
    lmms_box.save(folder, family)
    found = kind.__new__(kind)  # their own __init__ asks for a GPU
    BaseModel.__init__(found)
    found.processor = tf.AutoProcessor.from_pretrained(folder)
    found.model = tf.AutoModelForImageTextToText.from_pretrained(folder).eval()
    found.model_path, found.DEFAULT_IMAGE_TOKEN = str(folder), "<image>"
    found.generate_kwargs = {"max_new_tokens": 8, "top_p": 0.001, "top_k": 1, "temperature": 0.01, "do_sample": True}
    found.min_pixels = found.max_pixels = found.total_pixels = found.system_prompt = None
    found.verbose = found.post_process = found.use_vllm = found.use_lmdeploy = found.use_audio_in_video = False
    found.limit_mm_per_prompt = 9
    return found
