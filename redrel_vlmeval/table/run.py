"""``redrel table``: the cells that are missing, with one sweep for each benchmark; then the table as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from redrel_vlmeval import bases, results, sheets
from redrel_vlmeval.console import ending
from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.files import Busy, usable
from redrel_vlmeval.host import HostMissing
from redrel_vlmeval.results import Asked, asked as asking
from redrel_vlmeval.sheets import page, terminal
from redrel_vlmeval.sweep import plan as sweeping, preview, run as sweep
from redrel_vlmeval.table import plan

FILES = ("table.xlsx", "table.csv", "table.md", "table.tex")
PAGE = "table.html"


@dataclass(frozen=True)
class Request:
    """The command line of ``redrel table``."""

    preset: str | None = None
    base: str | None = None
    methods: str | None = None
    budgets: str | None = None
    data: str | None = None
    limit: int | None = None
    work_dir: Path = Path("outputs")
    memory: str | None = None
    batch: int | None = None
    judge: str = "exact_matching"
    dry_run: bool = False


def run(request: Request) -> int:
    """Everything of the table; the exit code: 1 where a cell failed.

    Raises:
        TableError, PlanError: arguments that mean nothing. HostMissing, Busy: as for a sweep.
    """
    wanted = plan.read(request.preset, request.base, request.methods, request.budgets, request.data)
    asked = wanted.asked
    for data in asked.data:  # each setting is refused by name before anything is loaded
        sweeping.read_plan(asked.base, data, limit=request.limit, settings=",".join(asked.settings))
    sweep.read_memory(request.memory)
    console = Console()
    say = partial(console.print, soft_wrap=True, highlight=False)
    work_dir = request.work_dir.absolute()
    left = plan.missing(asked, _there(work_dir))
    for line in (*wanted.left_out, *_counts(asked, left)):
        say(line)
    if request.dry_run:
        _price(wanted, left, request.limit, console)
        return 0
    usable(work_dir, "--work-dir")
    asking.write(work_dir, asked)
    failed: dict[tuple[str, str], str] = {}
    for data, settings in left.items():
        if settings:
            say(f"\n{data}:")
            code = _sweep(request, asked, data, settings, failed, console)
            if code == sweep.INTERRUPTED:
                return code
    found = results.read(work_dir)
    told = show(found, asked, console)
    for (setting, data), reason in failed.items():
        say(f"failed: {asked.model(setting)} on {data}: {reason}", style="red")
    own = {asked.model(setting) for setting in ["", *asked.settings]}
    bad = [cell for cell in found.failed if cell[0] in own and cell[1] in asked.data]
    for model, data, reason in bad:
        say(f"failed: {model} on {data}: {reason}", style="red")
    for line in ending(told):
        say(line)
    return int(bool(failed or bad))


def _there(work_dir: Path) -> results.Results | None:
    """Results so far, None where a folder has none yet."""
    try:
        return results.read(work_dir)
    except results.ResultsError:  # nothing found; a damaged cell is a failed one and raises nothing
        return None


def show(found: results.Results, asked: Asked, console: Console) -> list[Path]:
    """Print the table and write it in every format; the files."""
    folder = found.folder
    for table in sheets.field(found):
        print()
        print(terminal.plain(table.printed or table, terminal.terminal_width()))
    written = [sheets.write_tables(sheets.field(found), folder / name) for name in FILES]
    return [*written, page.write(found, folder / PAGE)]


def _counts(asked: Asked, left: dict[str, tuple[str, ...]]) -> list[str]:
    """How much there is, and how much of it is missing, benchmark by benchmark."""
    settings = len(asked.settings)
    lines = [
        f"{asked.base}: {len(asked.lines)} rows, {settings} settings and the base, on {len(asked.data)} benchmarks"
    ]
    for data, missing in left.items():
        lines.append(f"  {data}: {settings + 1 - len(missing)} of {settings + 1} cells are there")
    return lines


def _sweep(
    request: Request, asked: Asked, data: str, settings: Sequence[str], failed: dict[tuple[str, str], str],
    console: Console,
) -> int:  # fmt: skip
    """One pass over a benchmark for its missing ``settings``; one that cannot run is noted, and the rest goes on."""
    left = [setting for setting in settings if setting]
    if not left:  # the base alone is missing: any setting brings it along
        left = asked.settings[:1]
    while left:
        one = sweep.Request(
            asked.base, data, limit=request.limit, work_dir=request.work_dir, memory=request.memory,
            batch=request.batch, judge=request.judge, settings=",".join(left), base_there="" not in settings,
        )  # fmt: skip
        try:
            return sweep.run(one, lambda *_: 0)
        except (HostMissing, Busy):
            raise
        except RedrelError as error:
            culprit = next((s for s in left if str(error).startswith((f"{asked.model(s)}: ", f"{s}: "))), None)
            for setting in left if culprit is None else [culprit]:
                failed[setting, data] = str(error)
            console.print(f"failed: {culprit or data}: {error}", style="red", soft_wrap=True, highlight=False)
            left = [] if culprit is None else [setting for setting in left if setting != culprit]
    return 1


def _price(wanted: plan.Wanted, left: dict[str, tuple[str, ...]], limit: int | None, console: Console) -> None:
    """FLOPs, hours and memory of what is missing, or why there is no price."""
    say, asked = partial(console.print, soft_wrap=True, highlight=False), wanted.asked
    base = bases.row(asked.base)
    tokens = wanted.tokens if base is None or base.tokens is None else base.tokens
    if base is None or tokens is None:
        unknown = "its sizes are not known here" if base is None else "a picture's tokens depend on the picture's size"
        say(f"no price: {unknown}. The table itself runs all the same")
        return
    prompt = sweeping.Prompt(preview.TEXT["before"], tokens, preview.TEXT["after"])
    own = "" if base.tokens else f"; {tokens} as papers print them: a picture's own number depends on its size"
    asked_of = f"{prompt.before} + {tokens} image + {prompt.after} tokens, {base.blocks} blocks"
    say(f"a prompt of {asked_of} (text assumed{own})")
    hours, most = 0.0, 0
    for data, settings in left.items():
        if not settings:
            continue
        names = ",".join(setting for setting in settings if setting) or asked.settings[0]
        specs = sweeping.read_plan(asked.base, data, settings=names).specs
        cost = sweeping.cost(specs, prompt, base.blocks, base.shape)
        size, unit = preview.unit_of(cost.flops_shared)
        each = preview.hours(cost.flops_shared, limit or 1000)
        hours, most = hours + each, max(most, cost.tokens_shared)
        share = cost.flops_shared / cost.flops_one_by_one
        say(
            f"  {data}: {cost.flops_shared / size:.4g} {unit} a question in one pass, {share:.3f} of one by one; "
            f"{each:.2g} hours for {limit or '1,000'} questions"
        )
    weights, whole = (value / 2**30 for value in preview.memory(base, prompt))
    keys = 2 * 2 * base.shape.kv_heads * base.shape.head_dim * most / 2**30
    say(
        f"hours: {hours:.2g} in all, prefill alone, where a GPU does {preview.DONE / 1e12:.0f} TFLOP/s in fact; "
        f"memory: {weights:.1f} GiB for the decoder's weights in float16, {whole:.2g} GiB for a prompt's keys and "
        f"values, and up to {keys:.2g} GiB for those of all settings at once, less with --memory"
    )
