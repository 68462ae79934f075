"""``make coverage``: for how many of the host's names ``<name>_trunc_l2_k8`` truncates right.

A class of the host is run on a tiny checkpoint of random weights in its own format, through the host's entry, its own
prompt and `generate`. It is right where later blocks really hold fewer tokens and keys, K = all is bit for bit the
untouched model, two pictures give the same logits under `l0_k0`, and every step of the answer is within 1e-4 of a
re-statement of the method that hides keys instead of dropping them and keeps the same tokens. On a CPU, in float32,
with sdpa in place of flash kernels. What was not run is counted apart: *read* is known from the code that calls the
model, *family* from models like it. A class that imports a package of its own is run where that is installed
(``PYTHONPATH=../LLaVA-NeXT``); LLaVA-OneVision's, where it is not, on a stand-in. So is InternVL's remote code, and
InternLM2's in it; over InternLM2 the code itself was run on transformers 4.49, with the same checks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
TOO = re.compile(
    r"Qwen2\.5-VL-7B-Instruct|Qwen3-VL-30B-A3B-Instruct|InternVL3_5-8B|llava_next_interleave_7b"
)  # these, too
MEANS = {
    "works": "truncates right",
    "note": "truncates, but",
    "refused": "is refused by name",
    "unknown": "is not judged",
}


@dataclass
class Line:
    """Names of one class that one row of ``classes.csv`` judges."""

    kind: str
    verdict: str
    why: str
    evidence: str
    names: list[str] = field(default_factory=list)
    found: str = ""  # of the run


def lines() -> list[Line]:
    """Every name of the host here, by class and verdict; APIs left out."""
    from redrel_vlmeval import checking

    found: dict[tuple[str, ...], Line] = {}
    for one in checking.verdicts():
        if one.why.startswith("an API"):
            continue
        key = (one.kind, one.verdict, one.why, one.evidence)
        found.setdefault(key, Line(*key)).names.append(one.name)
    order = list(MEANS)
    return sorted(found.values(), key=lambda line: (order.index(line.verdict), line.kind.lower(), line.why))


def run(line: Line) -> bool:
    """Try one name of a line, and those of special interest; whether that agrees with its verdict."""
    from redrel_vlmeval import trying
    from redrel_vlmeval.errors import one_line

    right = []
    some = [name for name in line.names if not name.startswith("redrel_")]  # those have tests of their own
    for name in [some[0], *filter(TOO.fullmatch, some[1:])]:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tried = trying.try_name(name)
            right.append(not tried.wrong)
            line.found = line.found or f"{tried.tokens[0]} to {tried.tokens[-1]}, {tried.apart:.0e}"
            print(f"{name}: {tried}", flush=True)
        except Exception as error:
            right.append(False)
            print(f"{name}: {one_line(error)}", flush=True)
    return all(right) == (line.verdict in ("works", "note") and not line.why.startswith("with transformers below"))


def page(found: Sequence[Line]) -> str:
    """The text of ``docs/models.md``."""
    from tabulate import tabulate

    total = sum(len(line.names) for line in found)
    counts: Counter[tuple[str, str]] = Counter()
    for line in found:
        counts[line.verdict, line.evidence if line.verdict in ("works", "note") else ""] += len(line.names)
    summary = [
        [f"{MEANS[verdict]}{': ' + evidence if evidence else ''}", counts[verdict, evidence]]
        for verdict in MEANS
        for evidence in ("measured", "read", "family", "")
        if counts[verdict, evidence]
    ]
    cells = [
        [f"`{line.kind}`", len(line.names), f"`{line.names[0]}`", line.verdict, line.evidence, line.found, line.why]
        for line in found
    ]
    heads = ["class", "names", "such as", "verdict", "evidence", "tokens, apart", "why"]
    kinds = len({line.kind for line in found})
    return "\n\n".join(
        [
            "# Models",
            __doc__.partition("\n\n")[2].strip(),
            f"The host's table has {total} names of models with weights at hand, in {kinds} classes. Of its names,",
            tabulate(summary, headers=["a variant", "names"], tablefmt="github"),
            "`redrel bases` says so name by name, `redrel bases --try NAME` runs one. *tokens, apart*: in the first\n"
            "and the last block of the run, and the largest difference of logits from the re-statement. What the\n"
            "variant's name means: [names](names.md).",
            rows(),
            "## Classes",
            tabulate(cells, headers=heads, tablefmt="github", disable_numparse=True),
        ]
    )


FIRST = """## Bases that are known before they are loaded

They have a row in `redrel_vlmeval/bases.py`: a layer that a base lacks is refused before anything is downloaded, a run
has a price where the tokens of a picture are known, and kept tokens are drawn on the picture, on the report's page and
by `redrel explain`, of several pictures each on its own. Each of these families is swept (with the answers of single
variants), explained (`flow` and `cam`) and placed on the picture on its host's class and a tiny checkpoint, by
`tests/test_first_class.py` (Qwen-VL by `tests/test_explain_qwen.py` and `tests/test_qwen_engine.py`,
[more](qwen-vl.md)). Refused by name:

* a sweep of any base that is asked to draw from more than the likeliest token, as a checkpoint's own generation config
  may say;
* `--tower` of InternVL3 of the hosts, whose tower does not attend through transformers' attention interface;
* maps of the vision tower or the projector, `--tower` and `--smooth` of LLaVA-OneVision of the package `llava`, which
  makes embeddings of pictures without gradients. Of it no tiles are drawn, but the picture as a whole."""


def rows() -> str:
    """The section on bases that have a row."""
    from tabulate import tabulate

    from redrel_vlmeval.bases import BASES, LAYOUTS

    cells = [
        [f"`{base.name}`", base.title, base.blocks, base.tokens or "by its size", LAYOUTS[base.layout]]
        for base in BASES.values()
        if not base.alias
    ]
    heads = ["base", "in papers", "blocks", "tokens of a picture", "a token is"]
    return f"{FIRST}\n\n{tabulate(cells, headers=heads, tablefmt='github', disable_numparse=True)}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the host's classes and write docs/models.md.")
    parser.add_argument("--host", type=Path, help="A checkout of VLMEvalKit in place of the installed host.")
    parser.add_argument(
        "--only", default="", help="Only classes whose name holds this; the page is printed, not written."
    )
    given = parser.parse_args()
    if given.host:
        sys.path.insert(0, str(given.host))
    import vlmeval.config  # noqa: F401

    from redrel_vlmeval import trying

    found = [line for line in lines() if given.only.lower() in line.kind.lower()]
    able = [line for line in found if trying.able(line.kind) and line.verdict in ("works", "note")]
    wrong = [line for line in able if line.evidence != "read" and not run(line)]
    for line in wrong:
        print(f"{line.kind}: {line.verdict} in classes.csv ({line.names[0]})", file=sys.stderr)
    if given.only or given.host:
        print(page(found))
    else:
        PAGE.write_text(page(found) + "\n", encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
