"""``TruncatedVLM``: any host model with a known decoder, answering with fewer image tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from vlmeval.dataset import DATASET_MODALITY, DATASET_TYPE

from redrel_vlmeval import prompts
from redrel_vlmeval.errors import InvalidValue, TruncationError, UnknownName
from redrel_vlmeval.host import build_base, pictures
from redrel_vlmeval.models.hosted import HostedModel
from redrel_vlmeval.models.likelihood import Ranker, find_tokenizer, spellings
from redrel_vlmeval.models.pictures import pictures_of
from redrel_vlmeval.models.recorder import Recorder, facts_of
from redrel_vlmeval.models.wrapping import answer_room, beams, find_torch_model, tokenizer_of, unrecorded, unswallowed
from redrel_vlmeval.names import parse
from redrel_vlmeval.truncation import Trace, find_decoder, replaced_generate, truncated

HOST_SETS = ("nframe", "fps", "VIDEO_LLM")  # what the host sets on a model for a benchmark of videos


class TruncatedVLM(HostedModel):
    """A base model of the host whose every answer is made inside ``truncated(model, spec)``.

    Prompts, pictures and decoding are the base's own: only the decoder blocks see less. A prompt in the name replaces
    the text of multiple-choice questions, more beams the search, and ``ppl`` ranks the options instead of generating;
    the pictures are the base's, before the text.

    Args:
        base: a model name the host knows, or a built model of the host.
        spec: a setting (``"l5_k128"``) or a whole variant name.
        table: where names are looked up; the host's own table when not given.
        batch: questions that are answered at once, see :mod:`~redrel_vlmeval.models.batching`.
        kwargs: passed to the base's builder.

    Raises:
        KeyError: unknown base, or a malformed setting.
        TruncationError: the base holds no decoder that can be truncated, or not so deep; where that is known of its
            class, nothing is built.
    """

    recorder: Recorder

    def __init__(
        self, base: Any, spec: str, table: Mapping[str, Any] | None = None, batch: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(batch)
        parsed = parse(spec)
        name = base if isinstance(base, str) else parsed.base
        if parsed.base not in ("", name):
            raise UnknownName(f"{spec!r} is a variant of {parsed.base!r}, not of base {name!r}; give the setting alone")
        self.spec = replace(parsed, base=name)
        self._asked: Asked | None = None
        self.inner = self._build(base, table, kwargs, str(self.spec)) if isinstance(base, str) else base
        self.torch_model = find_torch_model(self.inner, str(self.spec))
        self._heard = find_decoder(self.torch_model).heard(self.torch_model)
        self._tokenizer = find_tokenizer(self.inner, str(self.spec)) if self.spec.ppl else None
        with self.cut():  # refuses now what it would refuse at the first question
            pass
        self.recorder = Recorder(self.torch_model, self.spec, facts_of(self.inner, self.torch_model))

    @staticmethod
    def _build(base: str, table: Mapping[str, Any] | None, kwargs: dict[str, Any], name: str) -> Any:
        if table is None:
            import vlmeval.config

            table = vlmeval.config.supported_VLM
        try:
            builder = table[base]
        except KeyError as error:
            raise UnknownName(f"base {base!r}: {error.args[0] if error.args[:1] != (base,) else 'unknown'}") from error
        return build_base(name, base, builder, kwargs)

    @property
    def INTERLEAVE(self) -> bool:
        return bool(getattr(self.inner, "INTERLEAVE", False))

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not built yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """How many frames of a video are shown is the base's to know."""
        if name in HOST_SETS:
            setattr(self.inner, name, value)
        else:
            super().__setattr__(name, value)

    def preproc_content(self, inputs: Any) -> Any:
        return self.inner.preproc_content(inputs)

    def set_dump_image(self, dump_image_func: Callable[..., Any]) -> None:
        self.dump_image_func = dump_image_func
        self.inner.set_dump_image(dump_image_func)

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """As the base says; True where prompt or options are ours to know.

        Raises:
            ValueError: a prompt of our own or ranked options, and the benchmark is no multiple choice about pictures or
                text.
        """
        if not self._multiple_choice_only:
            return bool(self.inner.use_custom_prompt(dataset))
        kind = None if dataset is None else f"{DATASET_TYPE(dataset)} on {DATASET_MODALITY(dataset).lower()}"
        if kind not in ("MCQ on image", "MCQ on text"):
            what = "'ppl' ranks options, which is" if self.spec.ppl else f"prompt {self.spec.prompt!r} is"
            raise InvalidValue(
                f"{self.spec}: {what} for multiple choice about pictures or text (MCQ); benchmark {dataset!r} is "
                f"{kind or 'not known'}; run it {'without _ppl' if self.spec.ppl else 'with the stock prompt'}"
            )
        return True

    @property
    def _multiple_choice_only(self) -> bool:
        return self.spec.ppl or self.spec.prompt != "stock"

    def message_of(self, line: Any, dataset: Any, **given: Any) -> Any:
        """The base's message; under a prompt of our own pictures, then text, as the base's stock prompt has them.

        Raises:
            ValueError: a prompt of our own or ranked options for another kind of benchmark.
            Unaskable: for a line without question or options.
        """
        if not self._multiple_choice_only:
            return self.inner.build_prompt(line, dataset=dataset, **given)
        self.use_custom_prompt(dataset)
        prompts.check_multiple_choice(line, dataset)
        message = self._stock(line, dataset) if self.spec.prompt == "stock" else self._named(line, dataset)
        self._asked = Asked(_texts(message), list(prompts.options(line)))
        return message

    def _named(self, line: Any, dataset: str | None) -> list[dict[str, str]]:
        """The message of a prompt of our own."""
        text = prompts.question_text(self.spec.prompt, line)
        with pictures.decoded(line, dataset):
            shown = self.inner.dump_image(line, dataset)
        paths = [shown] if isinstance(shown, str) else shown
        return [*({"type": "image", "value": path} for path in paths), {"type": "text", "value": text}]

    def _stock(self, line: Any, dataset: str | None) -> Any:
        """The message that the host would build: by the base's class where it wants to, else by the benchmark's.

        Raises:
            ValueError: the host gave pictures by a function that belongs to no benchmark.
        """
        if self.inner.use_custom_prompt(dataset):
            return self.inner.build_prompt(line, dataset=dataset)
        benchmark = getattr(self.dump_image_func, "__self__", None)  # the host sets a method of the benchmark
        if benchmark is None or not hasattr(benchmark, "build_prompt"):
            raise InvalidValue(f"{self.spec}: benchmark {dataset!r} is not known, nor its stock prompt")
        return benchmark.build_prompt(line)

    def generate_inner(self, message: Any, dataset: str | None = None) -> Any:
        self._check_asked(message, dataset)
        if self.spec.ppl:
            return self._ranked_answer(message, dataset)
        with self._answering([message]):
            return self.inner.generate_inner(message, dataset)

    def chat_inner(self, message: Any, dataset: str | None = None) -> Any:
        if not hasattr(self.inner, "chat_inner"):
            raise TruncationError(f"{self.spec}: base {self.spec.base!r} has no multi-turn chat")
        with self._answering([turn["content"] for turn in message]):
            self._check_asked([], dataset)
            return self.inner.chat_inner(message, dataset)

    def _check_asked(self, message: Any, dataset: str | None) -> None:
        """Some benchmarks ask in words of their own whatever a model says; under this name that row would be wrong.

        Raises:
            ValueError: another question than the one that was built last.
        """
        if not self._multiple_choice_only or (dataset is None and not self.spec.ppl):
            return
        if self._asked is None or self._asked.texts != _texts(message):
            if dataset is None:
                raise InvalidValue(
                    f"{self.spec}: _ppl compares the options of a benchmark's question; give a benchmark"
                )
            ours = "of a line whose options are known" if self.spec.ppl else f"of prompt {self.spec.prompt!r}"
            raise InvalidValue(
                f"{self.spec}: benchmark {dataset!r} asks in words of its own, not in those {ours}; "
                f"run it {'without _ppl' if self.spec.ppl else 'with the stock prompt'}"
            )

    def _ranked_answer(self, message: Any, dataset: str | None) -> Any:
        """The base's answer, which is the likeliest option's letter.

        Raises:
            TruncationError: the base did not generate, or made something else of the letter.
        """
        name, letters = str(self.spec), self._asked.options if self._asked else []
        ranker = Ranker(self.torch_model, spellings(self._tokenizer, letters, name), name)
        with replaced_generate(self._heard, ranker.replace), self._answering([message]) as record:
            answer = self.inner.generate_inner(message, dataset)
            ranker.check_answer(answer, type(self.inner).__name__)
            record |= ranker.record
        return answer

    def decoding(self) -> Any:
        return self.torch_model

    def cut(self) -> AbstractContextManager[Trace | None]:
        return truncated(self.torch_model, self.spec, tokenizer_of(self.inner)) if self.spec.stages else nullcontext()

    @contextmanager
    def _answering(self, messages: list[Any]) -> Iterator[dict[str, Any]]:
        model, heard = self.torch_model, self._heard
        room = answer_room(heard, prompts.answer_tokens(self.spec.prompt))
        shown = [picture for message in messages for picture in pictures_of(message)]
        with (
            self.answering(messages), unrecorded(self.inner), beams(heard, self.spec.beam), room, self.cut() as trace,
            self.recorder.question(trace, shown) as record, unswallowed(model),
        ):  # fmt: skip
            yield record


@dataclass(frozen=True)
class Asked:
    """The question that was built last: its message's texts, and its options' letters."""

    texts: list[str]
    options: list[str]


def _texts(message: Any) -> list[str]:
    return [item["value"] for item in message if item["type"] == "text"]
