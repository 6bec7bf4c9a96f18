"""Options that lead from a scene to its scores: a method with its settings, and the tiles."""

from __future__ import annotations

import click

from geolabel.methods import METHODS

from .commands import F, option
from .inputs import VECTORS
from .settings import method_options


def prediction_options(command: F) -> F:
    """Add the options that lead from the scene to the mosaic of scores."""
    for decorate in (
        *reversed(TILE_OPTIONS),
        option(
            "--prompts-from",
            group="input",
            type=VECTORS,
            metavar="FILE",
            help="Points and boxes to ask about instead of those of the localizer, such as an edited output of "
            "extract, which keeps the review of that file too.",
        ),
        method_options("for_scenes"),
        option(
            "--method",
            group="method",
            type=click.Choice(list(METHODS)),
            help="The published system to follow. Default: apsam, or student with --student. apsam: contours of the "
            "map ask the segmenter; s2c: peaks do; cism: the map draws alone; these two need a --localizer of their "
            "own. alps needs none, but --clusters; diffuprompter needs none, but classes in words.",
        ),
        option(
            "--class",
            "class_names",
            group="method",
            multiple=True,
            metavar="NAME",
            help="Class to find, of those that the network knows; repeat it for several. Default: all.",
        ),
    ):
        command = decorate(command)
    return command


TILE_OPTIONS = (
    option(
        "--tile-size",
        group="machine",
        rare=True,
        type=click.IntRange(min=32),
        metavar="PX",
        help="Side of the tiles; default 512 for the bundled segmenter, 1024 for the official ones.",
    ),
    option(
        "--overlap",
        group="machine",
        rare=True,
        type=click.IntRange(min=0),
        metavar="PX",
        help="Pixels that neighbouring tiles share; default a quarter of the tile.",
    ),
    option(
        "--block-size",
        group="machine",
        rare=True,
        type=click.IntRange(min=1),
        default=2048,
        show_default=True,
        metavar="PX",
        help="Side of the blocks that the mosaic is kept in; no result depends on it.",
    ),
    option(
        "--on-error",
        group="machine",
        type=click.Choice(["fail", "skip"]),
        default="fail",
        show_default=True,
        help="What a tile that cannot be read does: end the run, or leave a gap and exit code 3.",
    ),
)
"""How a scene is cut into tiles, and what a tile that cannot be read does."""
