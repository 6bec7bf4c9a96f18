"""``geolabel segment``: everything in a scene, without classes."""

from __future__ import annotations

from typing import Any

import click

import geolabel

from . import options
from .commands import command, option
from .extract import GAPS
from .inputs import SCENE, MeasureType, check_outputs
from .terminal import announce, progress_bar, warn
from .workers import at_work, cluster_options


@command(short_help="Outline everything in a scene, without classes.")
@click.argument("scene", type=SCENE)
@option("-o", "--out", group="output", required=True, type=click.Path(dir_okay=False), help="GeoPackage to write.")
@options.scene_options
@option(
    "--points-per-side",
    group="method",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Points of the grid along each side of a tile; the segmenter is asked about each.",
)
@option(
    "--predicted-iou",
    group="sensitivity",
    type=click.FloatRange(0, 1),
    help="Predicted IoU that a mask has to exceed; default 0.88, less for the bundled network.",
)
@option(
    "--stability",
    group="sensitivity",
    type=click.FloatRange(0, 1),
    help="Minimum stability of a mask; default 0.95, less for the bundled network.",
)
@option(
    "--duplicate",
    group="sensitivity",
    rare=True,
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Of masks of a tile whose boxes have a larger IoU, only the best is kept.",
)
@option(
    "--same",
    group="sensitivity",
    rare=True,
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Minimum IoU, where two tiles overlap, of two masks of one object.",
)
@option(
    "--tile-size",
    group="machine",
    rare=True,
    type=click.IntRange(min=32),
    metavar="PX",
    help="Side of the tiles; default 512 for the bundled segmenter, 1024 for the official ones.",
)
@option(
    "--overlap",
    group="machine",
    rare=True,
    type=click.IntRange(min=0),
    metavar="PX",
    help="Pixels that neighbouring tiles share; default a quarter of the tile.",
)
@option(
    "--min-area",
    group="shape",
    type=MeasureType("m2", "px"),
    default="50px",
    show_default=True,
    help="Drop segments smaller than this.",
)
@option(
    "--simplify",
    group="shape",
    type=MeasureType("m", "px"),
    default="0.75px",
    show_default=True,
    help="Leave out corners of an outline that matter less than this.",
)
@option(
    "--smooth",
    group="shape",
    type=MeasureType("m", "px"),
    default=None,
    help="Round corners: cut every corner back by at most this length.",
)
@option(
    "--on-error",
    group="machine",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What a tile that cannot be read does: end the run, or leave a gap and exit code 3.",
)
@options.segmenter_options
@cluster_options
@options.run_options
@options.overwrite
@options.discard_review
@options.as_json
@options.terminal
@click.pass_context
def segment(
    ctx: click.Context,
    /,
    scene: str,
    out: str,
    run_dir: str | None,
    keep: bool,
    overwrite: bool,
    discard_review: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Outline everything in SCENE that the segmenter takes for an object, whatever it is.

    A grid of points is asked about in every tile. Segments keep one identity across tiles, and may overlap: a part and
    the whole are both there. They have no class.

    \b
    geolabel segment scene.tif --out segments.gpkg
    geolabel segment scene.tif --out segments.gpkg --sam vit_b
    """
    check_outputs(out, overwrite=overwrite, run_dir=run_dir)
    from . import summary

    everything = geolabel.GridPrompts(**{name: given.pop(name) for name in geolabel.GridPrompts.options()})
    request, report = options.Request.of(given), geolabel.Report()
    with progress_bar(ctx, "loading networks") as progress, at_work(given):
        geolabel.segment(
            scene,
            out=out,
            **vars(request),
            everything=everything,
            overwrite=overwrite,
            discard_review=discard_review,
            run_folder=geolabel.RunFolderOptions(run_dir, keep),
            progress=progress,
            report=report,
        )
    warn(ctx, report.gaps)
    figures = report.found | {"gaps": len(report.gaps)} | report.effort()
    announce({"output": out, **figures} if as_json else summary.of_segments(out, figures), as_json=as_json)
    return GAPS if report.gaps else 0
