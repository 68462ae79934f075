"""Commands whose help shows a flag as ``--quick``, not as ``--quick <bool>``, which reads as if it took a value."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> Any:
        return _bare(super().get_params(ctx))


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> Any:
        return _bare(super().get_params(ctx))


def _bare(params: Any) -> Any:
    for one in params:
        if getattr(one, "is_flag", False):
            one.metavar = ""
    return params


class App(typer.Typer):
    """A ``Typer`` of such commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Any:
        return super().command(name, cls=_Command, **settings)
