"""One call of ``generate`` for one prompt, captured; several of them as one call, padded on the left.

```
question 1   a b I I c d          . . a b I I c d  ->  e f </s> .     a b I I c d e f </s>
question 2   a b c d e f g        . a b c d e f g  ->  h i j  k       a b c d e f g h i j k
question 3   a b I I I I c d      a b I I I I c d  ->  l m </s> .     a b I I I I c d l m </s>
```
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from redrel_vlmeval.errors import RedrelError, TruncationError
from redrel_vlmeval.truncation import Decoder, find_decoder, replaced_generate

# [1, s], one entry per token of the prompt; a padded place has 0 in each but the ids
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
# one entry per picture, video, tile or patch: of several questions one behind the other
PER_PICTURE = (
    "pixel_values", "image_sizes", "image_grid_thw", "batch_num_images", "pixel_values_videos", "video_grid_thw",
    "second_per_grid_ts",
)  # fmt: skip
INPUTS = ("inputs", *PER_TOKEN, *PER_PICTURE)
# what an answer does not depend on the others for
SETTINGS = {
    "max_new_tokens", "min_new_tokens", "do_sample", "num_beams", "temperature", "top_p", "top_k", "use_cache",
    "repetition_penalty", "pad_token_id", "eos_token_id", "bos_token_id", "generation_config", "length_penalty",
    "stop_words_ids", "logits_to_keep",
}  # fmt: skip
# settings with which a row of a batch is not what it is alone, or no plain row of ids, and what they do nothing at
NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "max_time": None,
    "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0,
    "penalty_alpha": None, "prompt_lookup_num_tokens": None, "stop_strings": None, "guidance_scale": 1,
    "return_dict_in_generate": False, "watermarking_config": None, "dola_layers": None, "prefill_chunk_size": None,
    "sequence_bias": None, "cache_implementation": None,
}  # fmt: skip


class Alone(RedrelError):
    """A call that cannot be answered together with others; says why. No failure: it is answered by itself."""


class _Captured(BaseException):
    """Ends the class's own code at its ``generate``; no class that catches every ``Exception`` catches it."""


@dataclass
class Call:
    """One prompt as ``generate`` was given it.

    Attributes:
        tensors: of ``PER_TOKEN`` [1, s] and ``PER_PICTURE`` [n, ...], by name; lists as they came.
        settings: all other keywords; None is one of them, which overrules a generation config.
        positional: the ids came without a name.
        said: what is in force with them, in words: a class can change one config from question to question.
        seconds: that its class took to come to it.
    """

    tensors: dict[str, Any]
    settings: dict[str, Any]
    positional: bool
    said: str
    seconds: float = 0.0

    @classmethod
    def of(cls, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """What ``model.generate(*args, **kwargs)`` asks.

        Raises:
            Alone: it must be answered by itself.
        """
        given = {name: value for name, value in kwargs.items() if value is not None or name not in INPUTS}
        if "inputs" in given:
            args, given = (given.pop("inputs"), *args), given
        if args:
            given["input_ids"] = args[0]
        ids = given.get("input_ids")
        if len(args) > 1 or not isinstance(ids, torch.Tensor) or ids.ndim != 2:
            raise Alone("its class does not give generate() the ids of its prompt")
        if len(ids) != 1:
            raise Alone(f"its class gives generate() {len(ids)} prompts at once")
        tensors = {name: given.pop(name) for name in (*PER_TOKEN, *PER_PICTURE) if name in given}
        pad, stops = setting_of(given, model, "pad_token_id"), ends(model, given)
        if "attention_mask" not in tensors and pad is not None and pad not in stops and bool((ids == pad).any()):
            raise Alone("its prompt holds padding that no attention_mask tells of")
        tensors.setdefault("attention_mask", torch.ones_like(ids))
        for name in PER_TOKEN:
            if name in tensors and tuple(tensors[name].shape) != tuple(ids.shape):
                raise Alone(f"{name} {list(tensors[name].shape)} is not one number per token")
        if tensor := [name for name, value in given.items() if isinstance(value, torch.Tensor)]:
            raise Alone(f"generate({tensor[0]}=...) is not known to be one for each token, or for each picture")
        if other := sorted(n for n, value in given.items() if n not in SETTINGS and value not in (None, False)):
            raise Alone(f"generate({other[0]}=...) is not known to be answered alike in a batch")
        if getattr(tensors.get("pixel_values"), "ndim", 0) == 5 and "image_sizes" not in tensors:
            raise Alone("its pictures are laid out by question")
        _check_settings(in_force(model, given), ids.device.type)
        return cls(tensors, given, bool(args), repr(in_force(model, given)))

    def joins(self, other: Call) -> bool:
        """Whether both can be answered in one call."""
        if self.positional != other.positional or self.settings.keys() != other.settings.keys():
            return False
        if any(value != other.settings[name] for name, value in self.settings.items()):
            return False
        shared = [name for name in PER_PICTURE if name in self.tensors and name in other.tensors]
        pairs = [(self.tensors[name], other.tensors[name]) for name in shared]
        return all(_inner(mine) == _inner(its) for mine, its in pairs)

    def digest(self) -> list[Any]:
        """What tells whether a call asks the same; holds no pixels."""
        found: list[Any] = [self.positional, self.said]
        for name, value in sorted(self.tensors.items()):
            if name in PER_TOKEN:
                found.append((name, value.tolist()))
            elif isinstance(value, torch.Tensor):
                found.append((name, list(value.shape), value.dtype, float(value.double().sum())))
            else:
                found.append((name, value))
        return found


def _check_settings(settings: Any, device: str) -> None:
    """Refuse ways to generate that make of a row of a batch something else than it is alone.

    Raises:
        Alone: names the setting.
    """

    def setting(name: str) -> Any:
        return getattr(settings, name, None)

    for name, neutral in NEUTRAL.items():
        if setting(name) not in (None, neutral):
            raise Alone(f"generate({name}={setting(name)!r})")
    if draws(setting):
        raise Alone("its answers are drawn (do_sample): in a batch they would be other draws")
    if setting("max_new_tokens") is None:
        raise Alone("its answers have no limit of their own (max_new_tokens)")
    if torch.is_autocast_enabled(device):
        raise Alone("it generates under autocast")


def _inner(value: Any) -> Any:
    """What must agree for values of several questions to be one tensor; tiles per picture are filled up."""
    if not isinstance(value, torch.Tensor):
        return type(value)
    shape = tuple(value.shape[1:])
    return value.dtype, shape[1:] if value.ndim == 5 else shape


def captured(model: Any, ask: Callable[[], Any]) -> Call:
    """The call of ``model.generate`` that ``ask()`` leads to; the model is not run.

    Raises:
        Alone: none was made, or it cannot be answered with others. Whatever ``ask`` raises before.
    """
    found: list[Call | Alone] = []
    own, began = threading.get_ident(), time.perf_counter()

    def capture(original: Callable[..., Any]) -> Callable[..., Any]:
        def generate(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != own:  # what is raised here would end that thread alone, and `ask` wait for it
                return original(*args, **kwargs)
            try:
                found.append(Call.of(model, args, kwargs))
            except Alone as reason:
                found.append(reason)
            raise _Captured

        return generate

    try:
        with replaced_generate(model, capture):
            ask()
    except _Captured:
        if isinstance(found[0], Alone):
            raise found[0] from None
        found[0].seconds = time.perf_counter() - began
        return found[0]
    except Exception:
        if not found:
            raise
    if found:
        raise Alone("its class catches what ends its code at its generate()")
    raise Alone("its class does not call generate() of its torch model in the thread that asks")


def together(model: Any, calls: Sequence[Call]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one ``model.generate`` for all of them: see :func:`joined`.

    Raises:
        Alone: the model takes no batch of prompts.
    """
    if any(call.said != repr(in_force(model, call.settings)) for call in calls):
        raise Alone("its class changes its generation config from question to question")
    try:
        decoder = find_decoder(model)
    except TruncationError as error:  # a compiled model, or one that no variant could be made of
        raise Alone(str(error)) from error
    if decoder.entrance is not None:
        raise Alone(f"{type(model).__name__}.generate() hands its decoder embeddings, and gives answers alone")
    settings = calls[0].settings
    longest = max(call.tensors["input_ids"].shape[1] for call in calls) + setting_of(settings, model, "max_new_tokens")
    if decoder.trained is not None and longest > decoder.trained:
        raise Alone(f"beyond {decoder.trained} tokens its rotary angles are those of the longest prompt of a call")
    return joined(calls, padding(model, settings, decoder))


def generated(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """``model.generate`` for what :func:`together` has made: the padded prompts [b, w], and the same and what came.

    Raises:
        Alone: the model gives answers of another form. Whatever ``generate`` raises.
    """
    ids = args[0] if args else kwargs["input_ids"]
    output = model.generate(*args, **kwargs)
    if not isinstance(output, torch.Tensor) or not torch.equal(output[:, : ids.shape[1]], ids):
        raise Alone(f"{type(model).__name__}.generate() does not give prompts and answers")
    return ids, output


def joined(calls: Sequence[Call], pad: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one ``generate`` for all of them, prompts padded on the left with ``pad``."""
    length = max(call.tensors["input_ids"].shape[1] for call in calls)
    found: dict[str, Any] = {}
    for name in PER_TOKEN:
        if any(name in call.tensors for call in calls):
            rows = [call.tensors.get(name, torch.zeros_like(call.tensors["input_ids"])) for call in calls]
            found[name] = torch.cat([_padded(row, length, pad if name == "input_ids" else 0) for row in rows])
    for name in PER_PICTURE:
        parts = [call.tensors[name] for call in calls if name in call.tensors]
        if parts and isinstance(parts[0], torch.Tensor):
            found[name] = torch.cat(_filled(parts))
        elif parts:
            found[name] = [one for part in parts for one in part]
    args = (found.pop("input_ids"),) if calls[0].positional else ()
    return args, found | calls[0].settings


def _padded(row: torch.Tensor, length: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (length - row.shape[1], 0), value=value)


def _filled(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Pictures in tiles [n, t, 3, h, w] with as many tiles each, empty ones at the end; anything else as it is."""
    if parts[0].ndim != 5:
        return list(parts)
    most = max(part.shape[1] for part in parts)
    return [torch.nn.functional.pad(part, (0, 0) * 3 + (0, most - part.shape[1])) for part in parts]


def in_force(model: Any, given: Mapping[str, Any]) -> SimpleNamespace:
    """The settings of ``model.generate(**given)``.

    A keyword overrules a generation config that is given, also with None; that the model's own, where it says something
    else than a config says by itself.
    """
    config, own = given.get("generation_config"), getattr(model, "generation_config", None)
    usual = {} if config is None else _public(type(config)())
    said = {name: value for name, value in _public(config).items() if value != usual.get(name)}
    rest = {name: value for name, value in given.items() if name != "generation_config"}
    return SimpleNamespace(**usual | _public(own) | said | rest)


def _public(config: Any) -> dict[str, Any]:
    """A release's own notes aside, which it makes while it generates."""
    return {name: value for name, value in getattr(config, "__dict__", {}).items() if not name.startswith("_")}


def setting_of(given: Mapping[str, Any], model: Any, name: str) -> Any:
    """A setting of ``model.generate(**given)``, see :func:`in_force`, or None."""
    return getattr(in_force(model, given), name, None)


def draws(setting: Callable[[str], Any]) -> bool:
    """Whether answers are drawn, by a ``setting`` of each name; from the likeliest token alone (top_k = 1) none is."""
    return bool(setting("do_sample")) and setting("top_k") != 1


def ends(model: Any, settings: Mapping[str, Any]) -> set[int]:
    """Ids that end an answer of ``model.generate(**settings)``."""
    found = setting_of(settings, model, "eos_token_id")
    found = found.tolist() if isinstance(found, torch.Tensor) else found
    return set(found if isinstance(found, (list, tuple)) else [found]) - {None}


def answer_length(new: Sequence[int], stops: set[int]) -> int:
    """Tokens of an answer up to its end; behind it a row of a batch is padded."""
    return next((number for number, token in enumerate(new, 1) if token in stops), len(new))


def padding(model: Any, settings: dict[str, Any], decoder: Decoder) -> int:
    """The id to pad prompts with: none that stands for a picture."""
    wanted = [setting_of(settings, model, "pad_token_id"), *ends(model, settings), *range(9)]
    known = [int(token) for token in wanted if token is not None]
    return next(token for token in known if not bool(decoder.image_mask(torch.tensor([[token]])).any()))
