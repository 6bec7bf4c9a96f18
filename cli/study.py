"""``geolabel study``: a method without one of its parts, or with other numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import grounding, options, pretraining
from .commands import F, group, option
from .inputs import CHIPS, NETWORK
from .terminal import announce, loading, progress_bar


@group(short_help="Leave out parts of a method, or change its numbers.")
def study() -> None:
    """Leave parts of a method out, or change its numbers, and see what becomes of it: a table and a plot.

    Any chips with labels and masks will do; the masks are compared with, and of all studies only that of alps learns
    from some of them.
    """


def _study_options(command: F) -> F:
    for decorate in (
        options.terminal,
        options.as_json,
        options.overwrite,
        options.segmenter_options,
        option(
            "--single-scale",
            group="method",
            is_flag=True,
            help="One view of a chip, instead of four scales and mirrored ones: fifteen times as fast.",
        ),
        option(
            "--class-name",
            group="input",
            default="landslide",
            show_default=True,
            help="What label 1 of the chips means.",
        ),
        option(
            "-o",
            "--out",
            group="output",
            required=True,
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder for the table, the plot and the figures; a stopped study resumes there.",
        ),
        click.argument("chips", type=CHIPS),
    ):
        command = decorate(command)
    return command


_localizer = option(
    "--localizer",
    group="method",
    type=NETWORK,
    default="bundled",
    show_default=True,
    metavar="NAME|FILE",
    help="The network that makes the activation maps.",
)
_epochs = option(
    "--epochs",
    group="method",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="How often every chip is seen in each training; default 8.",
)
_size = option(
    "--size",
    group="method",
    type=click.IntRange(min=32),
    metavar="PX",
    help="Side of the crops that each training sees; default 160.",
)
_init = option(
    "--init",
    group="method",
    default="none",
    show_default=True,
    metavar="bundled|FILE|NAME|none",
    help="What each training starts from, as train localizer takes it.",
)
_rows = option(
    "--row",
    "rows",
    group="method",
    multiple=True,
    metavar="NAME",
    help="Only this row of the table; give it several times for several.",
)
_seeds = option(
    "--seeds",
    group="method",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How often every variant is trained, each time drawn afresh.",
)


@study.command()
@_study_options
@_localizer
@click.pass_context
def threshold(ctx: click.Context, /, **given: Any) -> None:
    """Where APSAM's activation is cut: pseudo-labels at grey values from 40 to 220."""
    _run(ctx, "threshold", given)


@study.command()
@_study_options
@_localizer
@click.pass_context
def prompts(ctx: click.Context, /, **given: Any) -> None:
    """What APSAM gives the segmenter: points, boxes, or both."""
    _run(ctx, "prompts", given)


@study.command()
@_study_options
@_localizer
@click.pass_context
def everything(ctx: click.Context, /, **given: Any) -> None:
    """What a grid of eight by eight points finds without a map, beside APSAM."""
    _run(ctx, "everything", given)


@study.command()
@_study_options
@_epochs
@_size
@option(
    "--points-per-side",
    group="method",
    type=click.IntRange(min=1),
    metavar="N",
    help="Points of the grid that segments come from, along each side of a chip; default 12.",
)
@_init
@_rows
@_seeds
@click.pass_context
def s2c(ctx: click.Context, /, **given: Any) -> None:
    """What the terms of S2C add to the class activation; trains nine networks."""
    _run(ctx, "s2c", given)


@study.command()
@_study_options
@_epochs
@_size
@_init
@_rows
@_seeds
@click.pass_context
def cism(ctx: click.Context, /, **given: Any) -> None:
    """What the modules and losses of CISM add to the class activation; trains eleven networks."""
    _run(ctx, "cism", given)


study.add_command(grounding.diffuprompter)
study.add_command(pretraining.alps)


def _run(ctx: click.Context, name: Any, given: dict[str, Any]) -> None:
    chips, out, class_name, as_json = (given.pop(key) for key in ("chips", "out", "class_name", "as_json"))
    if name in ("s2c", "cism"):
        options.check_training(out / "nothing", overwrite=True)
    with loading(ctx):
        from geolabel.datasets.chips import read_chips
        from geolabel.evaluation.studies import Study
        from geolabel.folders import check_work

    check_work(out, overwrite=given["overwrite"], inputs=[chips])
    networks = options.networks_of(given)
    with progress_bar(ctx) as progress:
        found = Study(name, read_chips(chips, class_name=class_name), out, networks, progress=progress, **given).run()
    rows = {row.method: row.figures for row in found.measured}
    announce({"table": str(out / f"{name}.md"), "plot": str(out / f"{name}.png"), **rows}, as_json=as_json)
