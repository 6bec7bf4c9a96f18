"""``geolabel synthesize``: a synthetic landslide scene with its truth, from a seed."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import click

from . import options
from .commands import command, option
from .inputs import check_outputs
from .terminal import announce, loading


@command(short_help="Make a synthetic scene with its truth.")
@click.argument("scene", type=click.Path(dir_okay=False))
@option(
    "--size",
    group="output",
    default="1024",
    show_default=True,
    metavar="N|HxW",
    help="Side, or height x width, in pixels.",
)
@option("--gsd", group="output", type=float, default=0.5, show_default=True, metavar="METRES", help="Pixel size.")
@option(
    "--seed",
    group="output",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Random seed: the same seed gives the same bytes.",
)
@option(
    "--epsg",
    group="output",
    type=int,
    default=32648,
    show_default=True,
    help="Projected CRS in metres; the location in it is invented.",
)
@option(
    "--pair",
    group="output",
    is_flag=True,
    help="Also write scene_before.tif, the place before its landslides, in another season and light, displaced by up "
    "to 3 px. The scene then also has new roads, pits and fields.",
)
@option(
    "--reactivated",
    group="output",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="SHARE",
    help="With --pair: how likely a landslide was there before, older and often shorter, 0 to 1; the truth then has a "
    "column activity.",
)
@options.overwrite
@options.discard_review
@options.as_json
@options.terminal
@click.pass_context
def synthesize(ctx: click.Context, /, scene: str, size: str, as_json: bool, **given: Any) -> None:
    """Write a synthetic landscape with landslides to SCENE, a GeoTIFF, and its truth beside it.

    \b
    scene.tif           the picture
    scene_truth.gpkg    outlines of the landslides
    scene_truth.tif     1 where a landslide is, else 0
    scene_classes.tif   land cover
    scene_dem.tif       heights in metres

    \b
    geolabel synthesize scene.tif --size 2048 --gsd 0.5 --seed 0
    geolabel synthesize scene.tif --pair
    """
    height, width = _parse_size(size)
    check_outputs(scene, overwrite=given["overwrite"])
    with loading(ctx, f"making a scene of {height} x {width} px"):
        from geolabel.labeling.synthesize import SceneFiles
        from geolabel.labeling.synthesize import synthesize as run_synthesize

        drawn = run_synthesize(scene, size=(height, width), **given)
    files = SceneFiles.beside(scene, pair=given["pair"])
    facts = {"landslides": drawn.count, "landslide_share": round(float(drawn.truth.mean()), 4)}
    announce({name: path for name, path in asdict(files).items() if path is not None} | facts, as_json=as_json)


def _parse_size(text: str) -> tuple[int, int]:
    from geolabel.errors import OptionError

    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not found:
        raise OptionError(f"size {text!r}: give a side such as 2048, or height and width such as 1024x2048")
    height, width = found.groups()
    return int(height), int(width or height)
