"""One process of a tensor parallel LLaVA: ``parallel_worker.py FOLDER SETTING...`` prints what it kept and said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers as tf
from tiny_models import build

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation import truncated


def answers(model, settings):
    """Setting -> kept tokens and answer, or the refusal."""
    found = {}
    for setting in settings:
        try:
            with truncated(model, setting) as trace:
                said = model.generate(**build("llava").prompt(), max_new_tokens=3, do_sample=False)
            found[setting] = [trace.prompts[-1].kept, said[0, -3:].tolist()]
        except TruncationError as error:
            found[setting] = str(error)
    return found


if __name__ == "__main__":
    folder, *settings = sys.argv[1:]
    kwargs = {"dtype" if tf.__version__ >= "5" else "torch_dtype": torch.float32}
    model = tf.LlavaForConditionalGeneration.from_pretrained(folder, tp_plan="auto", **kwargs).eval()
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(answers(model, settings)))
    dist.destroy_process_group()
