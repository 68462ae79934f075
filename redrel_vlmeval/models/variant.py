"""``TruncatedVLM``: any host model with a known decoder, answering with fewer image tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vlmeval.dataset import DATASET_MODALITY, DATASET_TYPE
from vlmeval.vlm.base import BaseModel

from redrel_vlmeval import prompts
from redrel_vlmeval.models.holders import find_torch_model, unrecorded
from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.truncation import TruncationError, truncated
from redrel_vlmeval.truncation.decoders import replaced_generate


class TruncatedVLM(BaseModel):
    """A base model of the host whose every answer is made inside ``truncated(model, spec)``.

    Prompts, pictures and decoding are the base's own: only the decoder blocks see less. A prompt in the name replaces
    the text of multiple-choice questions, more beams the search; the pictures are the base's, before the text.

    Args:
        base: a model name the host knows, or a built model of the host.
        spec: a setting (``"l5_k128"``) or a whole variant name.
        table: where names are looked up; the host's own table when not given.
        kwargs: passed to the base's builder.

    Raises:
        KeyError: unknown base, or a malformed setting.
        TruncationError: the base holds no decoder that can be truncated, or not so deep.
    """

    def __init__(self, base: Any, spec: str, table: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__()
        parsed = parse(spec)
        name = base if isinstance(base, str) else parsed.base
        if parsed.base not in ("", name):
            raise KeyError(f"{spec!r} is a variant of {parsed.base!r}, not of base {name!r}; give the setting alone")
        self.spec = VariantSpec(
            name, parsed.stages, parsed.rule, parsed.row, parsed.official, parsed.prompt, parsed.beam
        )
        self._text: str | None = None  # of the question asked last, where the prompt is ours
        self.inner = self._build(base, table, kwargs) if isinstance(base, str) else base
        self.torch_model = find_torch_model(self.inner, str(self.spec))
        if self.spec.stages:
            with truncated(self.torch_model, self.spec):  # refuses now what it would refuse at the first question
                pass
        own = getattr(self.inner, "recorder", None)
        self.recorder = Recorder(self.torch_model, self.spec, own.facts if own else self._facts())

    @staticmethod
    def _build(base: str, table: Mapping[str, Any] | None, kwargs: dict[str, Any]) -> Any:
        if table is None:
            import vlmeval.config

            table = vlmeval.config.supported_VLM
        try:
            builder = table[base]
        except KeyError as error:
            raise KeyError(f"base {base!r}: {error.args[0] if error.args[:1] != (base,) else 'unknown'}") from error
        return builder(**kwargs)

    def _facts(self) -> dict[str, Any]:
        config = getattr(self.torch_model, "config", None)
        weights = getattr(config, "_name_or_path", None) or getattr(self.inner, "model_path", None)
        kind = type(self.inner)
        return {
            "backend": f"{kind.__module__}.{kind.__name__}",
            "weights": weights,
            "revision": getattr(config, "_commit_hash", None),
        }

    @property
    def INTERLEAVE(self) -> bool:
        return bool(getattr(self.inner, "INTERLEAVE", False))

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not built yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def preproc_content(self, inputs: Any) -> Any:
        return self.inner.preproc_content(inputs)

    def set_dump_image(self, dump_image_func: Callable[..., Any]) -> None:
        self.dump_image_func = dump_image_func
        self.inner.set_dump_image(dump_image_func)

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """As the base says; True under a prompt of our own.

        Raises:
            ValueError: a prompt of our own, and the benchmark is no multiple choice about pictures or text.
        """
        if self.spec.prompt == "stock":
            return bool(self.inner.use_custom_prompt(dataset))
        kind = None if dataset is None else f"{DATASET_TYPE(dataset)} on {DATASET_MODALITY(dataset).lower()}"
        if kind not in ("MCQ on image", "MCQ on text"):
            raise ValueError(
                f"{self.spec}: prompt {self.spec.prompt!r} is for multiple choice about pictures or text (MCQ); "
                f"benchmark {dataset!r} is {kind or 'not known'}; run it with the stock prompt"
            )
        return True

    def build_prompt(self, line: Any, dataset: str | None = None) -> Any:
        """The base's message; under a prompt of our own pictures, then text, as the base's stock prompt has them.

        Raises:
            ValueError: a prompt of our own for another kind of benchmark, or for a line without question or options.
        """
        if self.spec.prompt == "stock":
            return self.inner.build_prompt(line, dataset=dataset)
        self.use_custom_prompt(dataset)
        prompts.check_multiple_choice(line, dataset)
        self._text = prompts.question_text(self.spec.prompt, line)
        pictures = self.inner.dump_image(line, dataset)
        paths = [pictures] if isinstance(pictures, str) else pictures
        return [*({"type": "image", "value": path} for path in paths), {"type": "text", "value": self._text}]

    def generate_inner(self, message: Any, dataset: str | None = None) -> Any:
        self._check_asked(message, dataset)
        with self._answering():
            return self.inner.generate_inner(message, dataset)

    def chat_inner(self, message: Any, dataset: str | None = None) -> Any:
        if not hasattr(self.inner, "chat_inner"):
            raise TruncationError(f"{self.spec}: base {self.spec.base!r} has no multi-turn chat")
        self._check_asked([], dataset)
        with self._answering():
            return self.inner.chat_inner(message, dataset)

    def _check_asked(self, message: Any, dataset: str | None) -> None:
        """Some benchmarks ask in words of their own whatever a model says; under this name that row would be wrong.

        Raises:
            ValueError: a benchmark's question in other words than those of the name's prompt.
        """
        if self.spec.prompt == "stock" or dataset is None:
            return
        if self._text is None or self._text not in [item["value"] for item in message if item["type"] == "text"]:
            raise ValueError(
                f"{self.spec}: benchmark {dataset!r} asks in words of its own, not in those of prompt "
                f"{self.spec.prompt!r}; run it with the stock prompt"
            )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        room = answer_room(self.torch_model, prompts.answer_tokens(self.spec.prompt))
        with unrecorded(self.inner), beams(self.torch_model, self.spec.beam), room:
            if not self.spec.stages:
                with self.recorder.question():
                    yield
                return
            with truncated(self.torch_model, self.spec) as trace, self.recorder.question(trace):
                yield


@contextmanager
def beams(model: Any, count: int) -> Iterator[None]:
    """Within the context every ``model.generate`` is a beam search with ``count`` beams; 1 leaves it as it is."""
    if count == 1:
        yield
        return

    def search(generate: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: generate(*args, **(kwargs | {"num_beams": count, "do_sample": False}))

    with replaced_generate(model, search):
        yield


@contextmanager
def answer_room(model: Any, tokens: int) -> Iterator[None]:
    """Within the context every ``model.generate`` may make at least ``tokens`` new ones; 0 leaves it as it is."""
    if tokens == 0:
        yield
        return

    def longer(generate: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: generate(*args, **with_room(kwargs, model, tokens))

    with replaced_generate(model, longer):
        yield


def with_room(settings: dict[str, Any], model: Any, tokens: int) -> dict[str, Any]:
    """Keywords of ``generate`` with a limit raised to ``tokens`` new ones; a higher one is never lowered."""
    config = settings.get("generation_config") or getattr(model, "generation_config", None)
    limit = settings.get("max_new_tokens") or getattr(config, "max_new_tokens", None)
    if limit is None:  # a limit for prompt and answer together
        limit = settings.get("max_length") or getattr(config, "max_length", None) or 0
    elif limit >= tokens:
        return settings
    rest = {name: value for name, value in settings.items() if name != "max_length"}
    return rest | {"max_new_tokens": max(limit, tokens)}
