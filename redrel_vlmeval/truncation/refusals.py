"""What is refused before anything runs: settings that do not fit the decoder, and ways of generating."""

from __future__ import annotations

from typing import Any

from redrel_vlmeval.errors import InvalidValue, TruncationError
from redrel_vlmeval.names import VariantSpec
from redrel_vlmeval.rules import Rule, clip
from redrel_vlmeval.truncation.decoders import Decoder
from redrel_vlmeval.truncation.layout import layout_of
from redrel_vlmeval.truncation.seeing import OF_HEADS
from redrel_vlmeval.truncation.smaller import check_smaller


def check_spec(spec: object) -> None:
    """Refuse what is neither a name nor a spec.

    Raises:
        InvalidValue: says what ``truncated`` wants.
    """
    if not isinstance(spec, (str, VariantSpec)):
        raise InvalidValue(f"truncated(model, {spec!r}): give a setting such as 'l5_k128', or a VariantSpec")


def check_setting(spec: VariantSpec, decoder: Decoder, tokenizer: Any = None) -> None:
    """Refuse a setting without stages, with layers that the decoder lacks, or that its kernel cannot run.

    Raises:
        TruncationError: what is wrong, and what is possible instead.
    """
    blocks = len(decoder.blocks)
    if not spec.stages:
        raise TruncationError(f"{spec or 'empty spec'}: no stage, nothing to truncate (write l<L>_k<K>)")
    for stage in spec.stages:
        if stage.layer >= blocks:
            raise TruncationError(
                f"{spec}: layer {stage.layer} of {stage}, but the decoder has {blocks} blocks: L is 0 to {blocks - 1}"
            )
    if spec.official and decoder.kernel not in ("sdpa", "eager"):
        raise TruncationError(
            f"{spec}: official mode masks keys, which kernel {decoder.kernel!r} cannot; load with sdpa or eager"
        )
    if spec.positions == "new" and decoder.axes > 1:
        raise TruncationError(
            f"{spec}: pos-new counts tokens anew, but {type(decoder.root).__name__} places each by {decoder.axes} "
            "numbers, time, row and column; leave it out"
        )
    for stage in spec.stages:
        if not stage.empty:
            check_needs(spec, spec.rule_of(stage), decoder, tokenizer)
    if decoder.kernel.startswith(("flex", "paged")):
        raise TruncationError(
            f"{spec}: attention kernel {decoder.kernel!r} is not supported; load with sdpa, eager or flash_attention_2"
        )


def check_needs(spec: VariantSpec, rule: Rule, decoder: Decoder, tokenizer: Any = None) -> None:
    """Refuse a rule that needs what this model does not show.

    Raises:
        TruncationError: names the rule, and what it is that cannot be had.
    """
    seen = rule.needs & (OF_HEADS | {"tower"})
    if seen and decoder.divided:
        raise TruncationError(
            f"{spec}: rule {rule.name!r} sees single heads ({', '.join(sorted(seen))}), of which each process of a "
            "tensor parallel model (tp_plan) has its own; load it with device_map"
        )
    try:
        if "tower" in rule.needs:
            layout_of(decoder)
        if "smaller" in rule.needs:
            check_smaller(decoder)
        if "clip" in rule.needs:
            clip.given().check(decoder.tower())
        if "question" in rule.needs and tokenizer is None:
            raise TruncationError(
                "the question's words are not known here; they are in the hosts' runner, and in truncated(model, "
                "setting, tokenizer)"
            )
        if rule.needs & {"ones", "text_ones"} and decoder.rotary != "position_embeddings":
            raise TruncationError(
                f"{type(decoder.root).__name__}: its rotary tables are not laid out as rules that need 'ones' know them"
            )
    except (TruncationError, InvalidValue) as error:
        raise TruncationError(f"{spec}: rule {rule.name!r}: {error}") from error


def check_generation(spec: VariantSpec, decoder: Decoder, kwargs: dict[str, Any]) -> None:
    """Refuse generation that splits the prompt or crops the cache, asked by the call or the model's generation config.

    Raises:
        TruncationError: names the argument.
    """
    config = kwargs.get("generation_config") or getattr(decoder.root, "generation_config", None)
    cache = kwargs.get("cache_implementation") or getattr(config, "cache_implementation", None)
    if cache not in (None, "dynamic", "dynamic_full", "offloaded"):
        raise TruncationError(
            f"{spec}: generate(cache_implementation={cache!r}): blocks must be free to differ in length; leave it out"
        )
    uncached = kwargs.get("use_cache", getattr(config, "use_cache", True)) is False
    if uncached and kwargs.get("inputs_embeds") is not None:
        raise TruncationError(
            f"{spec}: generate(inputs_embeds=..., use_cache=False): without a cache later steps forget the prompt; "
            "leave it out"
        )
    for name in ("prefill_chunk_size", "assistant_model", "prompt_lookup_num_tokens"):
        value = kwargs.get(name) or getattr(config, name, None)
        if value is not None:
            raise TruncationError(
                f"{spec}: generate({name}=...) splits the prompt or crops the cache, which truncation does not support"
            )
