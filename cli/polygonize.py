"""``geolabel polygonize``: landslide polygons from a mask or score raster."""

from __future__ import annotations

from typing import Any

import click

from . import options, scene_options
from .commands import command, option
from .inputs import SCENE, check_outputs, one_output
from .terminal import announce, loading, progress_bar


@command(short_help="Turn a mask or scores into polygons.")
@click.argument("raster", type=SCENE)
@click.argument("output", required=False, type=click.Path(dir_okay=False))
@options.vectors_out()
@option(
    "--band",
    group="input",
    type=click.IntRange(min=1),
    help="Number of the band to read. Default: the only one, or all bands of predict.",
)
@option(
    "--class",
    "classes",
    group="input",
    multiple=True,
    metavar="NAME",
    help="Class to write; repeatable. A class is a band, by its description, or a value, by its band tag class_K. "
    "Default: all.",
)
@option(
    "--threshold",
    group="sensitivity",
    type=float,
    default=0.5,
    show_default=True,
    help="Minimum value of the pixels of a landslide.",
)
@option("--nodata", group="input", type=float, help="Nodata value, instead of the file's own.")
@option(
    "--gsd",
    group="input",
    type=float,
    metavar="METRES",
    help="Pixel size of a raster without CRS, such as a plain PNG.",
)
@option(
    "--block-size",
    group="machine",
    rare=True,
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    metavar="PX",
    help="Side of the blocks to read at a time; results do not depend on it.",
)
@scene_options.polygon_options
@options.dst_crs
@options.overwrite
@options.discard_review
@options.as_json
@options.terminal
@click.pass_context
def polygonize(
    ctx: click.Context, /, raster: str, output: str | None, out: str | None, as_json: bool, **given: Any
) -> None:
    """Turn RASTER, a mask or scores from any source, into polygons, as geolabel extract writes them.

    Floating-point bands, and bands with a scale, hold scores from 0 to 1. Integer bands are masks or labels: with the
    default threshold all values above 0 are landslide, and touching labels are joined. Several classes, as bands of
    geolabel predict or as values named by band tags class_K, give polygons of each class.

    \b
    geolabel polygonize mask.tif --out slides.gpkg
    geolabel polygonize scores.tif --out slides.gpkg --threshold 0.4 --min-area 400m2
    """
    target = one_output(output, out, "FILE.gpkg")
    check_outputs(target, overwrite=given["overwrite"])
    with loading(ctx, "loading libraries"):
        from geolabel.extraction.polygonize import polygonize as run_polygonize

        from .summary import of_polygons

    chosen = {name: value for name, value in given.items() if value is not None}
    with progress_bar(ctx) as progress:
        found = run_polygonize(raster, out=target, progress=progress, **chosen)
    area = float(found["area_m2"].sum())
    figures = {"output": target, "landslides": len(found), "area_m2": area}
    announce(figures if as_json else of_polygons(target, figures), as_json=as_json)
