"""Options of the methods: what leads from a scene to its scores, and what single methods are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from geolabel.methods import METHODS

from .commands import F, option
from .inputs import VECTORS, WEIGHTS

CLUSTERING_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    option(
        "--clusters",
        group="method",
        metavar="K|auto|FILE",
        help="alps: how many clusters, auto to find out, or clusters that were made before. Default: auto.",
    ),
    option(
        "--max-share",
        group="sensitivity",
        type=click.FloatRange(0, 1, min_open=True),
        help="alps: leave out what covers more of an image, as background; a landslide that fills a chip goes "
        "with it. Default: 0.3; 0.7 of the bundled network, whose tiles are small.",
    ),
    option(
        "--points-per-side",
        group="method",
        type=click.IntRange(min=1),
        help="alps: points of the grid along each side of an image. Default: 32.",
    ),
    option(
        "--predicted-iou",
        group="sensitivity",
        type=click.FloatRange(0, 1),
        help="alps: predicted IoU that a mask has to exceed. Default: 0.88, less for the bundled network.",
    ),
    option(
        "--stability",
        group="sensitivity",
        type=click.FloatRange(0, 1),
        help="alps: minimum stability of a mask. Default: 0.95, less for the bundled network.",
    ),
    option(
        "--passes",
        group="method",
        rare=True,
        type=click.IntRange(min=1),
        help="alps: how often k-means sees all masks. Default: 3.",
    ),
    option(
        "--normalised",
        group="method",
        rare=True,
        is_flag=True,
        default=None,
        help="alps: cluster the directions of features, whatever their lengths.",
    ),
)
"""How ALPS finds objects and clusters them; None is the method's own default."""

GROUNDING_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    option(
        "--classes",
        group="method",
        rare=True,
        metavar="NAME[/SYNONYM...],...",
        help="diffuprompter: what to look for, in words, such as landslide/mudslide,airplane. Default: landslide.",
    ),
    option(
        "--diffusion",
        group="method",
        rare=True,
        metavar="FOLDER|OWNER/NAME",
        help="diffuprompter: a Stable Diffusion 1.x, from a folder or from the Hugging Face hub. Default: "
        "stable-diffusion-v1-5/stable-diffusion-v1-5, 4 GB.",
    ),
    option(
        "--template",
        group="method",
        rare=True,
        help="diffuprompter: the text that the class stands in. Default: Photo of a {}.",
    ),
    option(
        "--timestep",
        group="method",
        rare=True,
        type=click.IntRange(min=0),
        help="diffuprompter: step of the noise schedule that noise is added at, of 1000. Default: 40.",
    ),
    option(
        "--draws",
        group="method",
        rare=True,
        type=click.IntRange(min=1),
        help="diffuprompter: maps of independent noise that are averaged. Default: 50.",
    ),
    option(
        "--crf",
        group="method",
        rare=True,
        is_flag=True,
        default=None,
        help="diffuprompter, and cism where chips are labelled: draw the maps along the edges of the image "
        "with a dense CRF.",
    ),
)
"""What a diffusion network is asked; None is the method's own default."""

SCENE_OPTIONS = (
    "activation_floor",
    "activation_threshold",
    "classes",
    "cluster_names",
    "clusters",
    "confidence",
    "crf",
    "diffusion",
    "draws",
    "gate",
    "min_quality",
    "prompts",
    "selection",
    "student",
    "template",
    "timestep",
)
"""Names of the options of `prediction_options` that single methods have; None is the method's own default."""


def prediction_options(command: F) -> F:
    """Add the options that lead from the scene to the mosaic of scores."""
    for decorate in (
        *reversed(GROUNDING_OPTIONS),
        option(
            "--on-error",
            group="machine",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            show_default=True,
            help="What a tile that cannot be read does: end the run, or leave a gap and exit code 3.",
        ),
        option(
            "--min-quality",
            group="sensitivity",
            rare=True,
            type=click.FloatRange(0, 1),
            help="Minimum predicted IoU x stability of a mask that counts; not with cism or a student. Default: 0.",
        ),
        option(
            "--activation-threshold",
            group="sensitivity",
            rare=True,
            type=click.IntRange(0, 255),
            help="apsam, s2c, diffuprompter: grey value that the activation has to exceed. Default: 120; 102 with "
            "diffuprompter.",
        ),
        option(
            "--activation-floor",
            group="sensitivity",
            rare=True,
            type=click.IntRange(0, 255),
            help="apsam: grey value that the activation of every pixel of a landslide has to exceed, but for what a "
            "prompt of a person asks for. Default: 100 with the bundled localizer, else 0.",
        ),
        option(
            "--gate",
            group="sensitivity",
            type=click.FloatRange(0, 1),
            help="Minimum class probability around an activation that is followed up; not with alps or a student. "
            "Default: 0.5.",
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
            "--overlap",
            group="machine",
            rare=True,
            type=click.IntRange(min=0),
            metavar="PX",
            help="Pixels that neighbouring tiles share; default a quarter of the tile.",
        ),
        option(
            "--tile-size",
            group="machine",
            rare=True,
            type=click.IntRange(min=32),
            metavar="PX",
            help="Side of the tiles; default 512 for the bundled segmenter, 1024 for the official ones.",
        ),
        option(
            "--selection",
            group="method",
            rare=True,
            type=click.Choice(["best_iou", "first", "whole", "single", "overlap"]),
            help="apsam, s2c, diffuprompter: which of the segmenter's candidates answers a prompt; overlap is the one "
            "most like the activation. Default: best_iou; overlap with diffuprompter.",
        ),
        option(
            "--prompts-from",
            group="input",
            type=VECTORS,
            metavar="FILE",
            help="Points and boxes to ask about instead of those of the localizer, such as an edited output of "
            "extract, which keeps the review of that file too.",
        ),
        option(
            "--prompts",
            group="method",
            rare=True,
            type=click.Choice(["box", "point", "both"]),
            help="apsam, s2c, diffuprompter: what the segmenter is given of each object. Default: both.",
        ),
        option(
            "--student",
            group="method",
            type=WEIGHTS,
            metavar="FILE",
            help="A student of geolabel train student, which draws by itself: no localizer, no segmenter.",
        ),
        option(
            "--confidence",
            group="sensitivity",
            rare=True,
            type=click.FloatRange(0, 1),
            help="s2c: minimum stability x activation of a mask that counts. Default: 0.5; 0 with the bundled "
            "segmenter.",
        ),
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
        option(
            "--cluster-name",
            "cluster_names",
            group="method",
            rare=True,
            multiple=True,
            metavar="NAME",
            help="alps: name of the clusters to find; repeat it for several. Default: landslide.",
        ),
        option(
            "--clusters",
            group="method",
            rare=True,
            type=click.Path(),
            metavar="FILE",
            help="alps: named clusters, or the folder of pseudo-labels that holds them.",
        ),
    ):
        command = decorate(command)
    return command
