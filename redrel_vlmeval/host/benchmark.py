"""The one way to the host's questions and models: a benchmark's lines, read and asked as the host's own runner does."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redrel_vlmeval.errors import InvalidValue, RedrelError, one_line
from redrel_vlmeval.host import pictures, question
from redrel_vlmeval.host.runner import host_folder

LOCALISED = 2**30  # bytes of a TSV above which the host reads a copy of its own, <name>_local.tsv


def models() -> Any:
    """The host's model table (name -> builder), imported with our names and our benchmark in it.

    Raises:
        HostMissing: no VLMEvalKit.
    """
    host_folder()
    import _redrel_vlmeval_hook as hook

    hook.install(strict=True)
    # Upstream calls a missing file .env an error, before anything of ours is said; it holds keys of judges.
    logging.getLogger().addFilter(_says_something)
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing the host asks the network
    return importlib.import_module("vlmeval.config").supported_VLM  # the hook answers this import


def _says_something(record: logging.LogRecord) -> bool:
    return record.funcName != "load_env"


def known() -> list[str]:
    """Names of the benchmarks that the host lists, videos too.

    Raises:
        HostMissing: no VLMEvalKit.
    """
    models()
    dataset = importlib.import_module("vlmeval.dataset")
    return [*dataset.SUPPORTED_DATASETS, *getattr(dataset, "supported_video_datasets", ())]


def own_table(name: str) -> Path:
    """Where a benchmark of the user's own lies, if there is one of that name."""
    return Path(importlib.import_module("vlmeval.smp").LMUDataRoot()) / f"{name}.tsv"


def check(name: str) -> None:
    """Refuse a benchmark that the host does not know, before anything is loaded or made.

    Raises:
        HostMissing: no VLMEvalKit. InvalidValue: no such benchmark, and no TSV of that name; says what may be meant.
    """
    if name not in known() and not own_table(name).exists():
        raise InvalidValue(_unknown(name))


def _unknown(name: str) -> str:
    if own_table(name).exists():
        return f"--data {name}: the host makes no benchmark of {own_table(name)}: it has no column 'question'"
    listed = {other.lower(): other for other in known()}
    near = [listed[other] for other in difflib.get_close_matches(name.lower(), listed, n=3)]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"--data {name}: the host has no such benchmark, and no {name}.tsv is in LMUData{hint}"


class Benchmark:
    """A benchmark of the host, cut to its first ``limit`` lines.

    A position is a line's number in ``lines``, counted from 0; an index is the host's own word for it.

    Attributes:
        name: as ``--data`` names it.
        dataset: the host's object; a benchmark that knows more than the host asks gives it as methods of this object
            (``regions``).
        lines: DataFrame, one line per question, whose column ``index`` holds the indices.

    Raises:
        HostMissing: no VLMEvalKit.
        InvalidValue: unknown to the host, without questions, or a file that the host cannot read; says which.
    """

    def __init__(self, name: str, limit: int | None = None) -> None:
        models()
        self.name, self.dataset = name, _built(name)
        self.lines = self.dataset.data.iloc[:limit]
        self.indices: list[Any] = list(self.lines["index"])
        if not self.indices:
            raise InvalidValue(f"--data {name}: the benchmark has no questions")

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def kind(self) -> str:
        """What is asked about, and how: ``IMAGE MCQ``, ``TEXT MCQ``, ``IMAGE VQA``, ``VIDEO MCQ``, ``IMAGE MT`` .."""
        return f"{getattr(self.dataset, 'MODALITY', 'IMAGE')} {getattr(self.dataset, 'TYPE', '')}".strip()

    def prepare(self, model: Any) -> None:
        """What the host gives a model before the first question: the benchmark's way to its pictures."""
        if hasattr(self.dataset, "dump_image"):
            model.set_dump_image(self.dataset.dump_image)

    def ask(self, model: Any, name: str, folder: Path) -> dict[Any, Any]:
        """Index -> answer of a built model, by the host's own loop over single questions, unmodified.

        ``name`` is the model's in what the host writes into ``folder``, which is there.
        """
        infer = importlib.import_module("vlmeval.inference").infer_data
        file, whole = folder / "answers.pkl", self.dataset.data
        self.dataset.data = self.lines
        try:
            infer(model, name, str(folder), self.dataset, str(file))
        finally:
            self.dataset.data = whole
        return dict(importlib.import_module("vlmeval.smp").load(str(file)))

    def message(self, model: Any, position: int) -> list[dict[str, Any]]:
        """The message of a line for ``model`` (see :meth:`prepare`), as ``vlmeval.inference.infer_data`` builds it.

        Its pictures are the table's own: what the host keeps under their names of an earlier table is decoded anew.

        Raises:
            What the host raises for a line that it cannot ask; ``InvalidValue`` where another picture lies in the way.
        """
        line = self.lines.iloc[position]
        if "image" in line and hasattr(self.dataset, "dump_image"):
            pictures.renew(self.dataset, line)
        return list(question.message_of(self.dataset, model, line, self.name))

    def digest(self, position: int) -> str:
        """16 hexadecimal digits of everything the benchmark says about a question: its words, options and pictures."""
        line = self.lines.iloc[position]
        found = hashlib.sha256("\x1f".join(f"{key}={line[key]}" for key in line.index).encode("utf-8", "surrogatepass"))
        if "image" not in line:  # the pictures stand in files of their own, which can change as well
            for path in self._files(line):
                found.update(hashlib.sha256(path.read_bytes()).digest())
        return found.hexdigest()[:16]

    def _files(self, line: Any) -> Iterator[Path]:
        """Files of the column ``image_path`` that are there: absolute, or in the host's folder of this benchmark."""
        named = line.get("image_path", [])
        root = getattr(self.dataset, "img_root", "")
        for path in named if isinstance(named, list) else [named]:
            places = (Path(str(path)), Path(root, str(path)))
            yield from [place for place in places if place.is_file()][:1]


def _built(name: str) -> Any:
    """The host's object.

    Raises:
        InvalidValue: none, or the table cannot be read.
    """
    _check_copy(name)
    try:
        found = importlib.import_module("vlmeval.dataset").build_dataset(name)
    except (RedrelError, OSError):  # of a disk or of a download: says itself what is wrong
        raise
    except Exception as error:  # whatever the host or pandas makes of a file that is no such table
        raise InvalidValue(
            f"--data {name}: the host cannot read its table ({one_line(error)}); "
            "it needs tab-separated columns such as index, image, question, A, B, answer"
        ) from error
    if found is None:
        raise InvalidValue(_unknown(name))
    return found


def _check_copy(name: str) -> None:
    """Refuse the host's copy of a large table that is older than the table: it would ask what stood there before.

    Raises:
        InvalidValue: names the copy.
    """
    table = own_table(name)
    copy = table.with_name(f"{name}_local.tsv")
    if not (table.is_file() and copy.is_file()) or os.environ.get("FORCE_LOCAL"):
        return
    if table.stat().st_size > LOCALISED and copy.stat().st_mtime < table.stat().st_mtime:
        raise InvalidValue(
            f"--data {name}: {table} is newer than {copy}, the copy that the host reads: "
            f"delete the copy and {table.parent / 'images' / name}, or set FORCE_LOCAL=1 once those pictures are gone"
        )
