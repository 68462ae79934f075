"""Batches for the harness's classes that answer one question at a time, from prompts made as those make them."""

from __future__ import annotations

import time
from typing import Any

from lmms_eval import utils
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from redrel_vlmeval.models import answer_length

# Of a picture or a video, where a class has such attributes: keywords of its processor.
_MEDIA = ("min_patches", "max_patches", "num_frames", "fps")


class Batching:
    """Mixed in between :class:`Truncating` and such a class; a batch of one stays with the class itself."""

    # what the harness's class has
    task_dict: Any
    model: Any
    tokenizer: Any
    device: Any
    rank: int
    use_cache: bool
    eot_token_id: int
    cache_hook: Any
    _image_processor: Any

    def __init__(self, batch_size: int | str = 1, **kwargs: Any) -> None:
        super().__init__(batch_size=1, **kwargs)  # type: ignore[call-arg]  # one of them refuses any other
        self.batch_size_per_gpu = int(batch_size)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        if self.batch_size_per_gpu == 1:
            return super().generate_until(requests)  # type: ignore[misc]
        alike = utils.Collator(
            [request.args for request in requests],
            lambda given: (-len(given[0]), given[0]),
            group_fn=lambda given: given[2],
            grouping=True,
        )
        results: list[GenerationResult] = []
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")  # type: ignore[attr-defined]
        began, made = time.time(), 0
        for chunk in alike.get_batched(n=self.batch_size_per_gpu):
            answers = self._batch(chunk)
            results += answers
            made += sum(answer.token_counts.output_tokens for answer in answers)
            progress.update(len(answers))
        progress.close()
        seconds = time.time() - began
        log_metrics(seconds, made, made / seconds if seconds else 0)
        return alike.get_original(results)  # type: ignore[no-any-return]

    def _batch(self, chunk: Any) -> list[GenerationResult]:
        """Answers to some requests whose settings of ``generate`` are the same."""
        _, makers, settings, documents, tasks, splits = zip(*chunk, strict=True)
        asked = zip(makers, documents, tasks, splits, strict=True)
        chats = [ChatMessages(messages=make(self.task_dict[task][split][doc])) for make, doc, task, split in asked]
        texts, inputs = self._inputs(chats)
        chosen = {name: settings[0].get(name) for name in ("temperature", "top_p")}
        sampled = (chosen["temperature"] or 0) > 0
        ids = self.model.generate(
            **inputs,
            do_sample=sampled,
            temperature=chosen["temperature"] if sampled else None,
            top_p=chosen["top_p"],
            num_beams=settings[0].get("num_beams", 1),
            max_new_tokens=settings[0].get("max_new_tokens", 1024),
            use_cache=self.use_cache,
            pad_token_id=getattr(self, "pad_token_id", self.eot_token_id),
            eos_token_id=self.eot_token_id,
        )
        answers = ids[:, inputs["input_ids"].shape[1] :]
        spoken = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        lengths = [answer_length(answer.tolist(), {self.eot_token_id}) for answer in answers]
        for text, setting, answer in zip(texts, settings, spoken, strict=True):
            self.cache_hook.add_partial("generate_until", (text, setting), answer)
        return [
            GenerationResult(answer, TokenCounts(output_tokens=length))
            for answer, length in zip(spoken, lengths, strict=True)
        ]

    def _inputs(self, chats: list[ChatMessages]) -> tuple[list[str], Any]:
        """Prompts as the class makes them, and what the model is given of them: ids [b, s] padded on the left."""
        processor = getattr(self, "processor", None) or self._image_processor
        messages = [chat.model_dump()["messages"] for chat in chats]
        texts = [processor.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages]
        pictures, videos = ([item for chat in chats for item in chat.extract_media()[kind]] for kind in (0, 1))
        own = {name: getattr(self, name) for name in _MEDIA if getattr(self, name, None) is not None}
        if "num_frames" in own or "fps" in own:
            own["do_sample_frames"] = True
        inputs = processor(
            images=pictures or None, videos=videos or None, text=texts, padding=True, return_tensors="pt", **own
        )
        return texts, inputs.to(self.device, self.model.dtype)
