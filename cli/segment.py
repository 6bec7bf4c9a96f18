"""``geolabel segment``: outlines of everything in a scene, without classes."""

from __future__ import annotations

from typing import Any

import click

import geolabel
from geolabel.settings.methods import GridSettings

from . import options, scene_options
from .commands import command, option
from .extract import GAPS
from .inputs import SCENE, MeasureType, check_outputs
from .settings import record_options
from .terminal import announce, progress_bar, warn
from .workers import at_work, cluster_options


@command(short_help="Outline everything in a scene, without classes.")
@click.argument("scene", type=SCENE)
@options.vectors_out(required=True)
@options.scene_options
@record_options(GridSettings)
@scene_options.tile_options
@option(
    "--min-area",
    group="shape",
    type=MeasureType("m2", "px"),
    default="50px",
    show_default=True,
    help="Drop segments smaller than this.",
)
@scene_options.outline_options
@options.segmenter_options
@cluster_options
@options.run_options
@options.dst_crs
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
    dst_crs: str | None,
    overwrite: bool,
    discard_review: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Outline every object that the segmenter finds in SCENE.

    The prompts are a grid of points in every tile. Segments are joined across tiles and have no class; they may
    overlap, as a part and its whole are both written.

    \b
    geolabel segment scene.tif --out segments.gpkg
    geolabel segment scene.tif --out segments.gpkg --sam vit_b
    """
    check_outputs(out, overwrite=overwrite, run_dir=run_dir)
    from . import summary

    everything = geolabel.GridPrompts(**{name: given.pop(name) for name in geolabel.GridPrompts.options()})
    request, report = options.Request.of(given), geolabel.Report()
    with progress_bar(ctx, "preparing") as progress, at_work(given):
        geolabel.segment(
            scene,
            out=out,
            **vars(request),
            everything=everything,
            dst_crs=dst_crs,
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
