"""What one call of ``redrel explain`` is asked to do, and what can be said against it before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.draw import GROUPINGS, SCALES
from redrel_vlmeval.explain.maps import METHODS, OBJECTIVES, WHERE, Request


@dataclass(frozen=True)
class Job:
    """What to explain, and where its files go; see the options of ``redrel explain cam``."""

    model: str
    output: Path
    images: Sequence[Path] = ()
    questions: Sequence[str] = ()
    data: str | None = None
    limit: int | None = None
    answer: str | None = None
    compare: str | None = None
    request: Request = field(default_factory=Request)
    tested: bool = False
    scale: str = "shared"
    groups: str = "all"


def check(job: Job) -> None:
    """What can be said before a model is loaded.

    Raises:
        ExplainError: both or neither of pictures and benchmark, or what does not go together.
    """
    if bool(job.images) == bool(job.data):
        raise ExplainError(
            "give either --image with --question, or --data, " + ("not both" if job.data else "got none")
        )
    if bool(job.images) != bool(job.questions):
        raise ExplainError(
            "--image and --question belong together" if job.images else "--data brings its own questions"
        )
    if job.data and job.answer is not None:
        raise ExplainError("--answer is for one question; with --data every question has its own")
    if job.limit is not None and not job.data:
        raise ExplainError("--limit is for --data")
    if job.compare and len(job.questions) > 1:
        raise ExplainError("--compare is for one question; compare two questions without it")
    for given, known, name in (
        (job.request.methods, METHODS, "--methods"), (job.request.where, WHERE, "--where"),
        ((job.request.objective,), OBJECTIVES, "--objective"), ((job.scale,), SCALES, "--scale"),
        ((job.groups,), GROUPINGS, "--groups"),
    ):  # fmt: skip
        if not given or (unknown := [word for word in given if word not in known]):
            raise ExplainError(
                f"{name} {', '.join(map(repr, unknown)) if given else '(empty)'}: choose from {', '.join(known)}"
            )
