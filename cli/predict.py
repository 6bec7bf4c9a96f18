"""``geolabel predict``: a scene to a raster of scores."""

from __future__ import annotations

from typing import Any

import click

from . import options
from .cluster import at_work, cluster_options
from .extract import GAPS
from .terminal import announce, progress_bar, warn


@click.command()
@click.argument("scene")
@click.argument("output", required=False, type=click.Path(dir_okay=False))
@click.option("-o", "--out", type=click.Path(dir_okay=False), help="GeoTIFF to write.")
@options.scene_options
@options.prediction_options
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
    scene: str,
    output: str | None,
    out: str | None,
    prompts_from: str | None,
    run_dir: str | None,
    keep: bool,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> int:
    r"""Score every pixel of SCENE: a Cloud Optimized GeoTIFF of 0 to 254, 255 outside, 127 at the edge of a landslide.

    geolabel polygonize turns the scores into polygons, with another threshold if need be.

    \b
    geolabel predict scene.tif --out scores.tif
    geolabel polygonize scores.tif --out slides.gpkg --threshold 0.6
    """
    from geolabel.errors import OptionError
    from geolabel.run.folder import Keeping
    from geolabel.run.outcome import Targets
    from geolabel.run.predict import run_predict
    from geolabel.run.request import prepare

    if out and output:
        raise OptionError(f"two outputs, {output} and {out}: give one")
    target = out or output
    if target is None:
        raise OptionError("no output: give --out FILE.tif")
    keeping = Keeping(run_dir, keep)
    targets = Targets.of(None, target, overwrite=overwrite, inputs=(scene, prompts_from), run_dir=run_dir)
    request = options.Request.of(given)
    with at_work(given):
        plan = prepare(scene, request.reading, request.networks, request.parameters)
        warn(ctx, plan.reader.warnings)
        with progress_bar(ctx) as progress:
            report = run_predict(plan, targets, prompts_from=prompts_from, keeping=keeping, progress=progress)
    warn(ctx, report.gaps)
    announce({"output": target, **report.summary()}, as_json=as_json)
    return GAPS if report.gaps else 0
