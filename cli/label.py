"""``geolabel label``: images to pseudo-labels, with any of the methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import geolabel
from geolabel.methods import METHODS

from . import options, prediction
from .cluster import at_work, cluster_options
from .commands import F, command, option
from .inputs import CHIPS_PATH, NETWORK
from .terminal import announce, progress_bar

LABELLING = {name: method for name, method in METHODS.items() if method.labels}
"""Methods that label folders of images."""

METHOD_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    option(
        "--localizer",
        group="method",
        type=NETWORK,
        metavar="NAME|FILE",
        help="apsam, s2c, cism: the network that makes the activation maps. Default: bundled.",
    ),
    option(
        "--class-name", group="input", help="apsam, s2c, cism: what label 1 of the chips means. Default: landslide."
    ),
    option(
        "--activation-threshold",
        group="sensitivity",
        rare=True,
        type=click.IntRange(0, 255),
        help="apsam, cism: grey value that the activation has to exceed. Default: 120; of cism 102.",
    ),
    option(
        "--prompts",
        group="method",
        rare=True,
        type=click.Choice(["box", "point", "both"]),
        help="apsam: what the segmenter is given of each object. Default: both.",
    ),
    option(
        "--selection",
        group="method",
        rare=True,
        type=click.Choice(["best_iou", "first", "whole", "single"]),
        help="apsam, s2c: which of the segmenter's candidates answers. Default: whole; of apsam with another "
        "segmenter than the bundled one best_iou.",
    ),
    option(
        "--agreed/--not-agreed",
        group="method",
        default=None,
        help="apsam: ignore pixels where mask and activation disagree. Default: with the bundled segmenter.",
    ),
    option(
        "--confidence",
        group="sensitivity",
        rare=True,
        type=click.FloatRange(0, 1),
        help="s2c: minimum stability times activation of a mask that counts. Default: 0.5; 0 with the bundled "
        "segmenter.",
    ),
    option(
        "--single-peak",
        group="method",
        rare=True,
        is_flag=True,
        default=None,
        help="s2c: ask about the highest place only.",
    ),
    option(
        "--single-scale",
        group="method",
        rare=True,
        is_flag=True,
        default=None,
        help="apsam, s2c, cism: one view of a chip instead of four scales and mirrored ones.",
    ),
    *prediction.CLUSTERING_OPTIONS,
    option(
        "--regions",
        group="output",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="alps: keep here what the segmenter finds, for another number of clusters or another share.",
    ),
    *prediction.GROUNDING_OPTIONS,
    option(
        "--threshold",
        group="sensitivity",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="diffuprompter: activation that counts. Default: 0.4.",
    ),
    option(
        "--attention-only",
        group="method",
        is_flag=True,
        default=None,
        help="diffuprompter: take the thresholded maps for labels and ask no segmenter.",
    ),
    option(
        "--seed",
        group="method",
        type=click.IntRange(min=0),
        help="alps, diffuprompter: random seed. Default: 0.",
    ),
)
"""Options of single methods, each named once, with the methods that have it. None is the method's own default."""


def method_options(command: F) -> F:
    """Add the options of all methods; which of them a method takes is seen from its settings."""
    for decorate in reversed(METHOD_OPTIONS):
        command = decorate(command)
    return command


def _summaries() -> str:
    # \b keeps click from filling the lines
    return "\b\n" + "\n".join(f"{name:<14}{method.summary}" for name, method in LABELLING.items())


@command(short_help="Make pseudo-labels of a folder of images.", epilog=_summaries())
@click.argument("chips", type=CHIPS_PATH)
@option(
    "-o",
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write.",
)
@option(
    "--method",
    group="method",
    required=True,
    type=click.Choice(list(LABELLING)),
    help="The published system to follow.",
)
@method_options
@options.networks_folder
@options.segmenter_options
@cluster_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def label(
    ctx: click.Context, /, chips: Path, out: Path, method: str, overwrite: bool, as_json: bool, **given: Any
) -> None:
    """Make pseudo-labels of the images in CHIPS.

    The folder that is written holds the images, a label map for each, their closed regions as COCO instances, and how
    they were made. A run that was stopped resumes with the same command.
    """
    from geolabel.folders import check_work

    check_work(out, overwrite=overwrite, inputs=[chips])
    with progress_bar(ctx, "loading networks") as progress, at_work(given):
        networks = options.networks_of(given)
        figures = geolabel.label(
            chips, out, method=method, networks=networks, overwrite=overwrite, progress=progress, **given
        )
    announce({"output": str(out)} | figures, as_json=as_json)
