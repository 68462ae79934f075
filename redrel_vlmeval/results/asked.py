"""Which table a folder of results is for: ``table.json``, written by ``redrel table`` and read by whoever shows it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from redrel_vlmeval.files import write_whole
from redrel_vlmeval.names import MARK
from redrel_vlmeval.results.reading import ResultsError

FILE = "table.json"


@dataclass(frozen=True)
class Line:
    """A row: a method, or a control, at a budget as papers write it; several ``settings`` are draws of one rule."""

    method: str
    budget: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """The lines of one base, by budget, on the benchmarks ``data``."""

    base: str
    data: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def settings(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys(setting for line in self.lines for setting in line.settings))

    def model(self, setting: str) -> str:
        """The name that the host knows a setting by; '' is the base's."""
        return f"{self.base}{MARK}{setting}" if setting else self.base


def write(folder: Path, asked: Asked) -> Path:
    """Leave word in the folder."""
    return write_whole(folder / FILE, json.dumps(asdict(asked), indent=1).encode())


def read(folder: Path) -> Asked | None:
    """What was asked for in the folder, None where nothing was.

    Raises:
        ResultsError: the file is not one of ours.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        lines = tuple(Line(line["method"], line["budget"], tuple(line["settings"])) for line in value["lines"])
        return Asked(value["base"], tuple(value["data"]), lines)
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: not written by redrel table ({error}); delete it") from error
