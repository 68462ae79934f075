"""``redrel sweep --dry-run``: what the plan would cost, one by one and with everything shared; nothing is run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval import bases
from redrel_vlmeval.bases import Base
from redrel_vlmeval.host import HostMissing, benchmark
from redrel_vlmeval.sweep.plan import Plan, Prompt, continued_flops, cost

# Text tokens are only known once a question is asked; these are typical of a short multiple-choice question.
TEXT = {"before": 36, "after": 64}
DONE = 1e14  # FLOP per second; of the order of what an A100 reaches at prefill in float16


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
    """Print how many variants, and what they cost: FLOPs, hours, memory; or why there is no price."""
    count = f"{plan.limit} questions" if plan.limit else "all questions"
    say = partial(console.print, soft_wrap=True, highlight=False)
    say(f"{len(plan.specs)} variants of {plan.base} and the base itself, on {count} of {plan.data}:")
    say(plan.words)
    base = bases.row(plan.base)
    if base is None or base.tokens is None:
        unknown = "its sizes are not known here" if base is None else "a picture's tokens depend on the picture's size"
        say(f"no price: {unknown}. The sweep itself runs all the same")
        return
    prompt = typical_prompt(base.tokens)
    tokens = f"{prompt.before} + {prompt.images} image + {prompt.after} tokens (text assumed)"
    say(f"a prompt of {tokens}, {base.blocks} blocks")
    found = cost(plan.specs, prompt, base.blocks, base.shape)
    share = found.flops_shared / found.flops_one_by_one
    size, unit = unit_of(found.flops_one_by_one)
    lines = [
        ["one by one", *_priced(found.flops_one_by_one, size), f"{found.tokens_one_by_one:,}", "1"],
        ["in one sweep", *_priced(found.flops_shared, size), f"{found.tokens_shared:,}", f"{share:.3f}"],
    ]
    heads = ["prefill of one question", f"{unit}, decoder", "hours per 1,000", "tokens x blocks", "ratio"]
    print(tabulate(lines, headers=heads, disable_numparse=True, colalign=("left", *["right"] * 4)))
    say(f"hours: prefill alone, where a GPU does {DONE / 1e12:.0f} TFLOP/s in fact (two for each multiply-add)")
    weights, held = (f"{size / 2**30:.1f} GiB" for size in memory(base, prompt))
    say(f"memory: {weights} for the decoder's weights in float16, {held} for the keys and values of a whole prompt")
    say(
        f"expected saving: {100 * (1 - share):.0f} % of the decoder's prefill FLOPs, "
        f"{100 * (1 - found.tokens_shared / found.tokens_one_by_one):.0f} % of tokens x blocks, and "
        f"{len(plan.specs)} of {len(plan.specs) + 1} runs of the vision tower"
    )


def _priced(flops: float, size: float) -> tuple[str, str]:
    """FLOPs of one question in units of ``size``, and hours for a thousand questions."""
    return f"{flops / size:.4g}", f"{hours(flops, 1000):.2g}"


def hours(flops: float, questions: int) -> float:
    """Of a GPU, for so many questions of ``flops`` multiply-adds each, two operations for each of these."""
    return 2 * flops * questions / DONE / 3600


def memory(base: Base, prompt: Prompt) -> tuple[int, int]:
    """Bytes in float16: of the decoder's blocks, and of the keys and values of one whole prompt in all of them."""
    keys = base.shape.kv_heads * base.shape.head_dim
    return decoder_bytes(base), 2 * base.blocks * 2 * keys * prompt.kept(prompt.images)


def decoder_bytes(base: Base) -> int:
    """Bytes of the weights of all blocks in float16."""
    every = replace(base.shape, ffn=base.shape.held or base.shape.ffn)
    return 2 * base.blocks * continued_flops(1, 0, every)  # each weight is used once for a token, sent to all experts


def typical_prompt(images: int) -> Prompt:
    """A short multiple-choice question about one picture of ``images`` tokens."""
    return Prompt(TEXT["before"], images, TEXT["after"])


def unit_of(flops: float) -> tuple[float, str]:
    """The unit in which a number of FLOPs has one to three digits before the point, and its name."""
    units = [(1e9, "GFLOPs"), (1e12, "TFLOPs"), (1e15, "PFLOPs")]
    return next((one for one in units if flops < 1000 * one[0]), units[-1])
