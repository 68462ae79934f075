"""``redrel sweep --dry-run``: what the plan would cost, one by one and with everything shared; nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval import bases
from redrel_vlmeval.bases import Base, BlockShape
from redrel_vlmeval.host import HostMissing, benchmark
from redrel_vlmeval.sweep.asking import HostSource
from redrel_vlmeval.sweep.plan import Plan, Prompt, cost

# Text tokens are only known once a question is asked; these are typical of a short multiple-choice question.
TEXT = {"before": 36, "after": 64}


def check_data(data: str, console: Console) -> None:
    """Refuse a benchmark that the host does not know; where there is no host to ask, say so.

    Raises:
        InvalidValue: no such benchmark.
    """
    try:
        benchmark.check(data)
    except HostMissing:
        console.print(f"no VLMEvalKit here, so whether there is a benchmark {data} was not checked", highlight=False)


def show(plan: Plan, console: Console) -> None:
    """Print variants, FLOPs and the saving.

    Raises:
        PlanError: a base or a benchmark that cannot be had.
    """
    base = bases.row(plan.base)
    prompt, blocks, shape, source = _known(base) if base is not None and base.tokens else _asked(plan)
    plan.check_depth(blocks)
    found = cost(plan.specs, prompt, blocks, shape)
    count = f"{plan.limit} questions" if plan.limit else "all questions"
    console.print(f"{len(plan.specs)} variants of {plan.base} and the base itself, on {count} of {plan.data}:")
    console.print(", ".join(_shortened([str(spec) for spec in plan.specs])), soft_wrap=True, highlight=False)
    console.print(
        f"a prompt of {prompt.before} + {prompt.images} image + {prompt.after} tokens ({source}), {blocks} blocks",
        soft_wrap=True,
        highlight=False,
    )
    share = found.flops_shared / found.flops_one_by_one
    size, unit = unit_of(found.flops_one_by_one)
    lines = [
        ["one by one", f"{found.flops_one_by_one / size:.4g}", f"{found.tokens_one_by_one:,}", "1"],
        ["in one sweep", f"{found.flops_shared / size:.4g}", f"{found.tokens_shared:,}", f"{share:.3f}"],
    ]
    heads = ["prefill of one question", f"{unit}, decoder", "tokens x blocks", "ratio"]
    print(tabulate(lines, headers=heads, disable_numparse=True, colalign=("left", "right", "right", "right")))
    console.print(
        f"expected saving: {100 * (1 - share):.0f} % of the decoder's prefill FLOPs, "
        f"{100 * (1 - found.tokens_shared / found.tokens_one_by_one):.0f} % of tokens x blocks, and "
        f"{len(plan.specs)} of {len(plan.specs) + 1} runs of the vision tower"
    )


def unit_of(flops: float) -> tuple[float, str]:
    """The unit in which a number of FLOPs has one to three digits before the point, and its name."""
    units = [(1e9, "GFLOPs"), (1e12, "TFLOPs"), (1e15, "PFLOPs")]
    return next((one for one in units if flops < 1000 * one[0]), units[-1])


def _shortened(names: Sequence[str], most: int = 12) -> list[str]:
    return [*names] if len(names) <= most else [*names[: most - 1], "...", names[-1]]


def _known(base: Base) -> tuple[Prompt, int, BlockShape, str]:
    return Prompt(TEXT["before"], base.tokens or 0, TEXT["after"]), base.blocks, base.shape, "text tokens assumed"


def _asked(plan: Plan) -> tuple[Prompt, int, BlockShape, str]:
    """From the model itself: its first question with a picture is asked once, untouched."""
    from redrel_vlmeval.models import find_torch_model
    from redrel_vlmeval.truncation import find_decoder

    source = HostSource(plan.data, plan.limit)
    source.read()
    source.load(plan)
    torch_model = find_torch_model(source.model, plan.base)
    decoder = find_decoder(torch_model)
    messages = (source.message(position) for position in range(len(source.indices)))
    message = next((said for said in messages if any(item["type"] == "image" for item in said)), None)
    if message is None:
        return Prompt(0, 0, TEXT["after"]), len(decoder.blocks), decoder.shape, "no question has a picture"
    prompt = _measure(source.model, torch_model, decoder, message, plan.data)
    return prompt, len(decoder.blocks), decoder.shape, "the first question with a picture"


def _measure(model: Any, torch_model: Any, decoder: Any, message: Any, data: str) -> Prompt:
    """Tokens of a prompt, read from the ids of the first forward call."""
    seen: list[Prompt] = []

    def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = decoder.read_call(args, kwargs)
        if seen or call.input_ids is None:
            return
        image = decoder.image_mask(call.input_ids[:1])[0]
        count = int(image.sum())
        first = int(image.int().argmax()) if count else 0
        seen.append(Prompt(first, count, len(image) - count - first))

    handle = torch_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        model.generate(message=message, dataset=data)
    finally:
        handle.remove()
    return seen[0]
