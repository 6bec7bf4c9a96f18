"""``geolabel study alps``: what pseudo-labels teach a student before the first mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from geolabel.errors import ChipError

from . import options, prediction
from .commands import F, command, option
from .inputs import Input
from .learn import LIBRARIES
from .terminal import announce, loading, progress_bar

FOLDER = click.Path(file_okay=False, path_type=Path)


def _clustering(command: F) -> F:
    for decorate in reversed(prediction.CLUSTERING_OPTIONS):
        command = decorate(command)
    return command


@command()
@click.argument("chips", type=Input(ChipError, file_okay=False, path_type=Path))
@option(
    "-o",
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the table, the plot and what was learned; a stopped study resumes there.",
)
@option(
    "--test", group="input", type=FOLDER, help="Chips with masks to judge on; default one in five of CHIPS, kept aside."
)
@option("--images", group="input", type=FOLDER, help="Images that pseudo-labels are made of; default those of CHIPS.")
@option("--before", group="input", type=FOLDER, help="Images of another set, which the row chained learns from first.")
@option(
    "--rows",
    group="method",
    metavar="NAME,...",
    help="Only these rows beside scratch: overall, backbone, head; gate 0.1, 0.3, 0.5, 0.7, 1.0; binary; "
    "chained; longer.",
)
@option(
    "--masks",
    group="method",
    default="50",
    show_default=True,
    callback=options.numbers(int),
    metavar="N,...",
    help="How many masks students are tuned on; as many chips that show nothing come with them.",
)
@option(
    "--seeds",
    group="method",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How often students are tuned, each time on other chips.",
)
@option(
    "--steps",
    group="method",
    type=click.IntRange(min=2),
    default=300,
    show_default=True,
    metavar="N",
    help="Of learning from pseudo-labels, and of tuning; the paper has 80000.",
)
@option(
    "--model",
    group="method",
    type=click.Choice(["resunet", "unet", "deeplabv3plus", "segformer"]),
    default="resunet",
    show_default=True,
    help="The student.",
)
@option(
    "--preset",
    group="method",
    type=click.Choice(["cpu", "paper"]),
    default="cpu",
    show_default=True,
    help="Numbers of the student and its training.",
)
@option(
    "--size", group="method", type=click.IntRange(min=64), metavar="PX", help="Side of the crops, a multiple of 32."
)
@option(
    "--crops", group="method", type=click.IntRange(min=2), metavar="N", help="Crops of a step; default the preset's."
)
@option(
    "--seed",
    group="method",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Random seed of the clusters.",
)
@option("--class-name", group="input", default="landslide", show_default=True, help="What label 1 of the chips means.")
@_clustering
@options.segmenter_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def alps(
    ctx: click.Context, /, chips: Path, out: Path, class_name: str, overwrite: bool, as_json: bool, **given: Any
) -> None:
    """What ALPS teaches a student before the first mask: its gate, its clusters, its steps.

    In each row a student learns from pseudo-labels, keeps some of its weights, and is tuned on a few masks of CHIPS.
    The row scratch is tuned alone; gains are over it, on the same chips. Every row takes as long as two trainings of
    its steps, and the first one asks the segmenter once about every image.

    \b
    geolabel study alps data/train --test data/val --masks 50,200 --seeds 3 --rows overall --out study/
    geolabel study alps data/train --test data/val --before other/ --out study/
    """
    options.check_training(out / "nothing", "sklearn", *LIBRARIES.get(given["model"], ()), overwrite=True)
    with loading(ctx):
        from geolabel.datasets.chips import read_chips
        from geolabel.evaluation.pretraining import TITLE, PretrainingStudy
        from geolabel.folders import check_work
        from geolabel.methods import METHODS
        from geolabel.training.students import StudentRequest

    check_work(out, overwrite=overwrite, inputs=[chips])
    networks = options.networks_of(given)
    learner = {name: given.pop(name) for name in ("model", "preset", "size")} | {"batch": given.pop("crops")}
    test, rows = given.pop("test"), given.pop("rows")
    kept = {name: given.pop(name) for name in ("before", "masks", "seeds", "steps")}
    images = given.pop("images") or chips
    with progress_bar(ctx) as progress:
        study = PretrainingStudy(
            read_chips(chips, class_name=class_name),
            images,
            out,
            networks,
            test=None if test is None else read_chips(test, class_name=class_name),
            rows=None if rows is None else tuple(name.strip() for name in rows.split(",")),
            settings=METHODS["alps"].settings(given),
            student=StudentRequest(**learner),
            overwrite=overwrite,
            progress=progress,
            **kept,
        )
        found = study.run()
    table = {f"{row.method}, {row.data}": row.figures for row in found.measured}
    announce({"table": str(out / f"{TITLE}.md"), "plot": str(out / f"{TITLE}.png"), **table}, as_json=as_json)
