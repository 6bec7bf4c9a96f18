"""``geolabel explain``: why a place is a landslide or not."""

from __future__ import annotations

from typing import Any

import click

import geolabel
from geolabel.errors import OptionError

from . import options, scene_options
from .commands import command, complete_files, option
from .extract import evidence_options, take_evidence
from .inputs import check_inputs, check_outputs, check_scenes, parse_place
from .terminal import announce, progress_bar


@command(short_help="Explain why a place is a landslide or not.")
@click.argument("scenes", nargs=-1, required=True, metavar="SCENE...", shell_complete=complete_files)
@option("--at", group="input", required=True, metavar="X,Y", help="Coordinates of the place, in the CRS of the scene.")
@option(
    "--at-crs",
    group="input",
    metavar="CRS",
    help="CRS of --at, such as EPSG:4326 for longitude,latitude.",
)
@option(
    "-o",
    "--out",
    group="output",
    type=click.Path(dir_okay=False),
    help="Picture to draw, .png or .jpg: the scene, the activation with the prompts, the masks, the polygons.",
)
@options.asset
@options.scene_options
@evidence_options
@scene_options.class_names
@scene_options.scene_method
@scene_options.tile_options
@options.score_threshold
@options.min_confidence
@scene_options.polygon_options
@options.network_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def explain(
    ctx: click.Context,
    /,
    scenes: tuple[str, ...],
    at: str,
    at_crs: str | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Show what each step of geolabel extract finds at one place of SCENE, and which step decides.

    Give the options of the extract run to explain. Prompts and masks are numbered within the part of the scene around
    the place.

    \b
    geolabel explain scene.tif --at 500120,2999850 --out place.png
    geolabel explain scene.tif --at 105.0012,27.1185 --at-crs EPSG:4326
    """
    place = parse_place(at)
    if overwrite and out is None:
        raise OptionError("--overwrite replaces the picture: give its name with --out, or leave it out")
    check_scenes(scenes)
    check_outputs(out, overwrite=overwrite)
    from geolabel.io.read.scene_inputs import list_scenes

    from .summary import of_place

    listed = list_scenes(scenes, asset=given["asset"])
    check_inputs(listed)
    evidence = take_evidence(given)
    request = options.Request.of(given)
    with progress_bar(ctx, "preparing") as progress:
        found = geolabel.explain(
            listed,
            place,
            at_crs=at_crs,
            out=out,
            **vars(request),
            **evidence,
            overwrite=overwrite,
            progress=progress,
        )
    announce(found if as_json else of_place(found, out), as_json=as_json)
