"""Tables as markdown and as LaTeX (booktabs): whatever a cell holds, the table stays a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil

import numpy as np
import pandas as pd
from tabulate import tabulate

from redrel_vlmeval.sheets.tables import Column, Table, cells as texts_of

# Lines of a table on one page of LaTeX, and rows of a long table in running text; a csv has all.
PAGE = 40
MOST = 200
# LaTeX wraps the texts of a column whose longest has more characters than this; of one text a page is shown at most.
LINE = 60
WHOLE_PAGE = 2000
GREY = r"\textcolor[HTML]{595959}"
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "-": "-", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
}  # fmt: skip
HEAD = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage[a4paper,landscape,margin=12mm]{geometry}
\usepackage{array,booktabs,graphicx,xcolor}
\begin{document}
"""


def markdown(tables: Iterable[Table]) -> str:
    """Pipe tables that render, each with its remarks and the meaning of its columns; grey rows are in italics."""
    return "\n".join(map(_markdown, tables))


def _markdown(table: Table) -> str:
    rows = []
    for position, cells in enumerate(texts_of(table.frame.iloc[:MOST], table.layout)):
        marked = [_star(_plain(cell), (position, str(name)) in table.bold, position in table.grey)
                  for name, cell in zip(table.frame.columns, cells, strict=True)]  # fmt: skip
        rows.append(marked)
    headers = [_plain(str(column)) for column in table.frame.columns]
    body = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True) if rows else ""
    told = [*table.remarks, *_cut(table)]
    notes = (f"- **{_plain(name)}**: {_plain(text)}" for name, text in table.notes.items())
    blocks = [f"## {table.name}", f"{_plain(table.caption)}.", body, *map(_plain, told)]
    blocks += ["\n".join(notes)] if rows else []
    return "\n\n".join(block for block in blocks if block) + "\n"


def _plain(text: str) -> str:
    text = " ".join(text.split())
    for mark in "\\`*_[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def _star(text: str, bold: bool, grey: bool) -> str:
    return f"**{text}**" if bold and text else f"*{text}*" if grey and text else text


def _cut(table: Table) -> list[str]:
    rest = len(table.frame) - MOST
    return [f"{rest} more rows: '-o FOLDER/' writes all of them to {table.file}.csv"] if rest > 0 else []


def document(tables: Iterable[Table]) -> str:
    """A LaTeX document of its own, to be compiled as it is or copied from."""
    return HEAD + "\n".join(latex(table) for table in tables) + "\\end{document}\n"


def latex(table: Table) -> str:
    r"""One table for ``\input``: needs array, booktabs, graphicx and xcolor; best in bold, printed rows grey.

    A verdict is told in two words, as its delta, interval and p stand beside it; long texts are wrapped, not cut.
    """
    columns = table.layout
    shown = texts_of(_without_sentences(table).iloc[:MOST], columns, WHOLE_PAGE)
    rows = [_tex_row(table, position, cells) for position, cells in enumerate(shown)]
    told = [*table.remarks, *_cut(table)]
    below = "".join(f"\n\\par\\smallskip {{\\footnotesize {tex(line)}.}}" for line in told)
    title = f"% {table.name}\n"
    if not rows:
        return f"{title}\\section*{{{tex(table.name)}}}\n{tex(table.caption)}.{below}\n\\clearpage\n"
    heading = " & ".join(tex(column.title) for column in columns) + r" \\"
    align = "".join(_align(table, column, texts) for column, *texts in zip(columns, *shown, strict=True))
    parts = []
    for start, end in _pages(shown):
        caption = tex(f"{table.name}: {table.caption}") + (", continued" if start else "")
        body = "\n".join(rows[start:end])
        parts.append(
            f"\\begin{{table}}[p]\n\\centering\n\\caption{{{caption}.}}\n\\resizebox{{\\ifdim\\width>\\linewidth"
            f"\\linewidth\\else\\width\\fi}}{{!}}{{%\n\\begin{{tabular}}{{{align}}}\n\\toprule\n{heading}\n\\midrule\n"
            f"{body}\n\\bottomrule\n\\end{{tabular}}}}{below if end == len(rows) else ''}\n\\end{{table}}\n"
        )
    return title + "".join(parts) + "\\clearpage\n"


def _without_sentences(table: Table) -> pd.DataFrame:
    """The frame with verdicts in two words; why there is no test stays whole."""
    frame = table.frame
    for column in (one for one in table.layout if one.statistic == "verdict"):
        told = [(table.outcome(row, column.of), text) for row, text in enumerate(frame[column.name])]
        frame = frame.assign(**{column.name: [said.words if said and not said.why else text for said, text in told]})
    return frame


def _align(table: Table, column: Column, texts: list[str]) -> str:
    if _numeric(table, column.name):
        return "r"
    return r">{\raggedright\arraybackslash}p{95mm}" if max(map(len, texts)) > LINE else "l"


def _pages(shown: list[list[str]]) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of each page."""
    start = used = 0
    for position, cells in enumerate(shown):
        lines = max(ceil(len(cell) / LINE) or 1 for cell in cells)
        if used and used + lines > PAGE:
            yield start, position
            start, used = position, 0
        used += lines
    yield start, len(shown)


def _tex_row(table: Table, position: int, cells: list[str]) -> str:
    shown = []
    for name, cell in zip(table.frame.columns, cells, strict=True):
        text = tex(cell)
        if text and (position, str(name)) in table.bold:
            text = f"\\textbf{{{text}}}"
        shown.append(f"{GREY}{{{text}}}" if text and position in table.grey else text)
    return " & ".join(shown) + r" \\"


def _numeric(table: Table, name: str) -> bool:
    values = table.frame[name].dropna()
    return bool(len(values)) and all(isinstance(value, (int, float, np.number)) for value in values)


def tex(text: str) -> str:
    """Text with nothing that LaTeX acts on; a character that its default fonts lack becomes its code, [U+4E2D]."""
    found = []
    for sign in " ".join(text.split()):
        known = ord(sign) < 127 and sign.isprintable() or sign.isalpha() and 0xC0 <= ord(sign) < 0x180
        found.append(_TEX.get(sign, sign) if known else f"[U+{ord(sign):04X}]")
    return "".join(found)
