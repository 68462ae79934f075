"""``redrel rules`` and ``redrel methods``: which rules and methods there are, and what rules keep of one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redrel_vlmeval.bases import TINY
from redrel_vlmeval.console import ending
from redrel_vlmeval.errors import InvalidValue


def list_rules(
    goldens: Annotated[
        Path | None, typer.Option(help="Run this file of golden vectors instead; exit code 1 if one differs.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw what each rule keeps of this picture instead; with --question and -o.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="About the picture.")] = None,
    model: Annotated[str, typer.Option(help="The base whose image tokens are drawn.")] = TINY,
    keep: Annotated[int | None, typer.Option(min=1, help="Tokens kept; a quarter of them if not given.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The .png or .pdf to write.")] = None,
) -> None:
    """The rules that choose visual tokens, your own among them: name, what it keeps and needs, where it is from."""
    from redrel_vlmeval import rules

    drawing = (picture, question, output)
    if any(one is not None for one in (*drawing, keep)):
        if picture is None or question is None or output is None or goldens is not None:
            raise InvalidValue("a drawing takes --picture, --question and -o, all three, and no --goldens")
        from redrel_vlmeval.explain import keeping

        for refusal in keeping.draw(picture, question, model, output, keep):
            typer.echo(refusal)
        for line in ending([output]):
            typer.echo(line)
        return
    if goldens is None:
        typer.echo(rules.listing.table())
        return
    results = []
    for case, difference in rules.goldens.run(goldens):
        results.append(not difference)
        typer.echo(f"{case}: {difference or 'same'}")
    typer.echo(f"{sum(results)} of {len(results)} vectors")
    raise typer.Exit(int(not all(results)))


def list_methods(
    names: Annotated[list[str] | None, typer.Argument(help="Only these, such as FastV; all if not given.")] = None,
) -> None:
    """Published methods as settings per budget: paper, licence of the authors' code, what is exact and what is not."""
    from redrel_vlmeval import methods

    for method in map(methods.find, names or methods.known()):
        typer.echo(methods.text(method))
