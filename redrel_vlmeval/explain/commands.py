"""``redrel explain``: flow, cam and draw; each imports its stage when called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redrel_vlmeval.console import App, ending, numbers, words
from redrel_vlmeval.errors import InvalidValue

app = App(
    help="Where an answer comes from: information flow, and maps for every layer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# what flow and cam have in common
ModelName = Annotated[str, typer.Option("--model", help="A model name of the host, a variant's too.")]
Images = Annotated[
    list[Path] | None, typer.Option("--image", help="A picture, with --question; several are one prompt.")
]
Questions = Annotated[list[str] | None, typer.Option("--question", help="About the picture.")]
Data = Annotated[str | None, typer.Option("--data", help="A benchmark of the host, in place of --image.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only its first N questions.")]
Answer = Annotated[str | None, typer.Option("--answer", help="Explain this answer, not the model's own.")]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder for all files; the same call resumes.")]
Objective = Annotated[str, typer.Option(help="What is differentiated: logit, logprob or contrast (to the best other).")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Less memory, more time; the same result.")]
Groups = Annotated[str, typer.Option(help="Groups of tokens in curves: all, or the paper's three (paper).")]
HERE = Path("outputs/explain")


@app.command("flow")
def explain_flow(
    model: ModelName, image: Images = None, question: Questions = None, data: Data = None, limit: Limit = None,
    answer: Answer = None, output: Folder = HERE, objective: Objective = "logit", checkpointing: Checkpointing = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0, groups: Groups = "all",
) -> None:  # fmt: skip
    """Attention and gradient shares and the margin after a cut, over the layers, as curves (Figs. 1, 2b)."""
    from redrel_vlmeval.explain import command
    from redrel_vlmeval.explain.maps import Request

    request = Request(objective=objective, checkpointing=checkpointing, seed=seed)
    job = command.Job(model, output, image or (), question or (), data, limit, answer, request=request, groups=groups)
    raise typer.Exit(command.flows(job))


@app.command("cam")
def explain_cam(
    model: ModelName, image: Images = None,
    question: Annotated[
        list[str] | None, typer.Option("--question", help="About the picture; a second one is compared (Fig. 8).")
    ] = None,
    data: Data = None, limit: Limit = None, answer: Answer = None, output: Folder = HERE,
    methods: Annotated[
        str,
        typer.Option(
            help="Some of elementwise, gradcam, attn, attn_grad, gradcam_official.", show_default="all but the last"
        ),
    ] = "elementwise,gradcam,attn,attn_grad",
    layers: Annotated[str | None, typer.Option(help="Layers, such as 1-8,16; all if not given.")] = None,
    where: Annotated[str, typer.Option(help="Some of decoder, vision, projector.")] = "decoder,vision",
    compare: Annotated[str | None, typer.Option(help="Explain the same answer under this model too (Fig. 9).")] = None,
    objective: Objective = "logit",
    per_token: Annotated[bool, typer.Option("--per-token", help="A map for each answer token.")] = False,
    cards: Annotated[bool, typer.Option("--cards", help="Test maps: deletion, insertion, shuffled weights.")] = False,
    smooth: Annotated[int, typer.Option(min=0, help="SmoothGrad: mean over so many noisy copies.")] = 0,
    noise: Annotated[float, typer.Option(min=0, help="Noise, as a share of the pixels' range.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise and of the tests.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Noisy copies in one pass; fewer need less memory.")] = 8,
    tower: Annotated[bool, typer.Option("--tower", help="Carry maps through the vision tower to the patches.")] = False,
    row: Annotated[str | None, typer.Option(help="Also where these words, or the token at a position, attend.")] = None,
    checkpointing: Checkpointing = False,
    scale: Annotated[str, typer.Option(help="Colours: shared by all panels, or of each layer.")] = "shared",
) -> None:  # fmt: skip
    """Grad-CAM and kin for every layer, from one pass (Figs. 3, 4, 8, 9): npz, manifest, figures, an offline page."""
    from redrel_vlmeval.explain import command
    from redrel_vlmeval.explain.maps import Request

    request = Request(
        words(methods), words(where), _layers(layers), objective, None, per_token, checkpointing,
        smooth, noise, seed, batch, tower, row,
    )  # fmt: skip
    job = command.Job(
        model, output, image or (), question or (), data, limit, answer, compare, request, cards, scale
    )  # fmt: skip
    raise typer.Exit(command.cam(job))


@app.command("draw")
def explain_draw(
    files: Annotated[list[Path], typer.Argument(help="An .npz of flow or cam; several are compared.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A folder, or one .html, .png or .pdf; else beside the .npz.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Only these.")] = None,
    where: Annotated[str | None, typer.Option(help="Only these: decoder, vision, projector.")] = None,
    layers: Annotated[str | None, typer.Option(help="Such as 1-8,16.")] = None,
    token: Annotated[int | None, typer.Option(min=1, help="One answer token; the mean of all if not given.")] = None,
    picture: Annotated[int, typer.Option(min=1, help="Which picture of the question.")] = 1,
    scale: Annotated[str, typer.Option(help="Colours: shared by all panels, or of each layer.")] = "shared",
    width: Annotated[float, typer.Option(min=1.5, max=20, help="Width of a figure, in inches.")] = 3.45,
    groups: Annotated[
        str | None, typer.Option(help="Groups of tokens in curves: all or paper; as made if not given.")
    ] = None,
) -> None:
    """Figures and page again from the .npz alone, without torch and without the model."""
    from redrel_vlmeval.explain.draw import drawing

    written = drawing.draw(
        files, output, where=where and words(where), methods=methods and words(methods), layers=_layers(layers),
        token=None if token is None else token - 1, picture=picture - 1, scale=scale, width=width, groups=groups,
    )  # fmt: skip
    for line in ending(written):
        typer.echo(line)


def _layers(text: str | None) -> tuple[int, ...] | None:
    """``1-3,8`` -> 1, 2, 3, 8; None stays None.

    Raises:
        InvalidValue: anything else, or nothing.
    """
    found = None if text is None else tuple(dict.fromkeys(numbers("--layers", text, 9999)))
    if found == ():
        raise InvalidValue(f"--layers {text!r}: name at least one")
    return found
