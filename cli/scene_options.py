"""Options for processing a scene: the method with its settings, the tiles, and the shape of the polygons."""

from __future__ import annotations

import click

from geolabel.methods import METHODS

from .commands import F, option
from .inputs import VECTORS, MeasureType
from .settings import method_options

class_names = option(
    "--class",
    "class_names",
    group="method",
    multiple=True,
    metavar="NAME",
    help="Class to find, of those that the network knows; repeatable. Default: all.",
)


def scene_method(command: F) -> F:
    """Add ``--method`` over scenes, and the settings of the methods."""
    for decorate in (
        method_options("for_scenes"),
        option(
            "--method",
            group="method",
            type=click.Choice(list(METHODS)),
            help="Published method. Default: apsam, or student with --student. apsam prompts the segmenter with "
            "regions of the activation map, s2c with its peaks; cism uses the map alone. s2c and cism need a "
            "--localizer trained for them, alps needs --clusters, diffuprompter and sam3 take classes in words.",
        ),
    ):
        command = decorate(command)
    return command


def prediction_options(command: F) -> F:
    """Add the options for the steps from the scene to the mosaic of scores."""
    for decorate in (
        option(
            "--block-size",
            group="machine",
            rare=True,
            type=click.IntRange(min=1),
            default=2048,
            show_default=True,
            metavar="PX",
            help="Side of the blocks that the mosaic is stored in; results do not depend on it.",
        ),
        tile_options,
        option(
            "--prompts-from",
            group="input",
            type=VECTORS,
            metavar="FILE",
            help="Points and boxes to prompt the segmenter with, instead of those of the localizer, such as an "
            "edited output of extract, whose review is kept too.",
        ),
        scene_method,
        class_names,
    ):
        command = decorate(command)
    return command


def tile_options(command: F) -> F:
    """Add the options for tiles, and for tiles that cannot be read."""
    for decorate in (
        option(
            "--on-error",
            group="machine",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            show_default=True,
            help="If a tile cannot be read: end the run, or leave a gap and exit with 3.",
        ),
        option(
            "--overlap",
            group="machine",
            rare=True,
            type=click.IntRange(min=0),
            metavar="PX",
            help="Overlap of neighbouring tiles. Default: a quarter of the tile.",
        ),
        option(
            "--tile-size",
            group="machine",
            rare=True,
            type=click.IntRange(min=32),
            metavar="PX",
            help="Side of the tiles. Default: 512 for the bundled segmenter, 1024 for the official ones.",
        ),
    ):
        command = decorate(command)
    return command


def polygon_options(command: F) -> F:
    """Add the options that shape the polygons."""
    for decorate in (
        outline_options,
        option(
            "--split",
            group="shape",
            type=click.FloatRange(0, 1),
            metavar="N",
            help="Separate touching landslides at necks narrower than this share of the narrower landslide, such as "
            "0.4.",
        ),
        option(
            "--max-hole",
            group="shape",
            type=MeasureType("m2", "px"),
            default="50px",
            show_default=True,
            help="Fill holes up to this size.",
        ),
        option(
            "--min-area",
            group="shape",
            type=MeasureType("m2", "px"),
            default="50px",
            show_default=True,
            help="Drop landslides smaller than this.",
        ),
    ):
        command = decorate(command)
    return command


def outline_options(command: F) -> F:
    """Add the options that shape any outline."""
    for decorate in (
        option(
            "--smooth",
            group="shape",
            type=MeasureType("m", "px"),
            default=None,
            help="Round the corners of outlines, each by at most this length.",
        ),
        option(
            "--simplify",
            group="shape",
            type=MeasureType("m", "px"),
            default="0.75px",
            show_default=True,
            help="Tolerance of the simplification of outlines.",
        ),
    ):
        command = decorate(command)
    return command
