"""``TruncatedVLM``: any host model with a known decoder, answering with fewer image tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from vlmeval.vlm.base import BaseModel

from redrel_vlmeval.models.recorder import Recorder
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.truncation import TruncationError, truncated
from redrel_vlmeval.truncation.decoders import find_decoder, replaced_generate


class TruncatedVLM(BaseModel):
    """A base model of the host whose every answer is made inside ``truncated(model, spec)``.

    Prompts, pictures and decoding are the base's own: only the decoder blocks see less.

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
        if self.spec.prompt != "stock":
            raise KeyError(
                f"{self.spec}: prompt {self.spec.prompt!r} is not available yet; "
                "leave the suffix out for the stock prompt"
            )
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
        return bool(self.inner.use_custom_prompt(dataset))

    def build_prompt(self, line: Any, dataset: str | None = None) -> Any:
        return self.inner.build_prompt(line, dataset=dataset)

    def generate_inner(self, message: Any, dataset: str | None = None) -> Any:
        with self._answering():
            return self.inner.generate_inner(message, dataset)

    def chat_inner(self, message: Any, dataset: str | None = None) -> Any:
        if not hasattr(self.inner, "chat_inner"):
            raise TruncationError(f"{self.spec}: base {self.spec.base!r} has no multi-turn chat")
        with self._answering():
            return self.inner.chat_inner(message, dataset)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        with unrecorded(self.inner), beams(self.torch_model, self.spec.beam):
            if not self.spec.stages:
                with self.recorder.question():
                    yield
                return
            with truncated(self.torch_model, self.spec) as trace, self.recorder.question(trace):
                yield


@contextmanager
def unrecorded(base: Any) -> Iterator[None]:
    """Within the context ``base`` writes no records of its own: the variant around it does."""
    own = getattr(base, "recorder", None)
    if own is None:
        yield
        return
    base.recorder = None
    try:
        yield
    finally:
        base.recorder = own


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


def find_torch_model(holder: Any, variant: str) -> nn.Module:
    """The one torch model with a known decoder among the attributes of a host model.

    Raises:
        TruncationError: there is none (an API model, an unknown decoder); the reason of each candidate is given.
    """
    reasons = []
    for name, value in vars(holder).items():
        if isinstance(value, nn.Module):
            try:
                find_decoder(value)
                return value
            except TruncationError as error:
                reasons.append(f"{name}: {error}")
    what = "; ".join(reasons) or "it holds no torch model (is it an API?)"
    raise TruncationError(f"{variant}: {type(holder).__name__} cannot be truncated: {what}")
