"""``geolabel predict``: a raster of scores from a scene."""

from __future__ import annotations

from typing import Any

import click

import geolabel

from . import options, scene_options
from .commands import command, complete_files, option
from .extract import GAPS
from .inputs import check_inputs, check_outputs, check_scenes, one_output
from .terminal import announce, progress_bar, warn
from .workers import at_work, cluster_options


@command(short_help="Score every pixel of a scene.")
@click.argument("scenes", nargs=-1, required=True, metavar="SCENE... [OUTPUT]", shell_complete=complete_files)
@option("-o", "--out", group="output", type=click.Path(dir_okay=False), help="GeoTIFF to write.")
@options.asset
@options.scene_options
@scene_options.prediction_options
@options.network_options
@cluster_options
@options.run_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    scenes: tuple[str, ...],
    out: str | None,
    prompts_from: str | None,
    run_dir: str | None,
    keep: bool,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Write the score of every pixel: a Cloud Optimized GeoTIFF of 0 to 254, nodata 255, threshold 127.

    geolabel polygonize turns the scores into polygons, with another threshold if needed. Several scenes need --out, and
    must share one grid. SCENE is as for geolabel extract.

    \b
    geolabel predict scene.tif --out scores.tif
    geolabel polygonize scores.tif --out slides.gpkg --threshold 0.6
    """
    output = scenes[1] if len(scenes) == 2 and not out else None
    target = one_output(output, out, "FILE.tif")
    check_scenes(scenes[:1] if output else scenes)
    check_outputs(target, overwrite=overwrite, run_dir=run_dir)
    from geolabel.io.read.scene_inputs import list_scenes

    from . import summary

    listed = list_scenes(scenes[:1] if output else scenes, asset=given["asset"])
    check_inputs(listed)
    request, report = options.Request.of(given), geolabel.Report()
    with progress_bar(ctx, "preparing") as progress, at_work(given):
        geolabel.predict(
            listed,
            out=target,
            **vars(request),
            prompts_from=prompts_from,
            overwrite=overwrite,
            run_dir=run_dir,
            keep=keep,
            progress=progress,
            report=report,
        )
    warn(ctx, report.gaps)
    figures = report.summary()
    announce({"output": target, **figures} if as_json else summary.of_scores(target, figures), as_json=as_json)
    return GAPS if report.gaps else 0
