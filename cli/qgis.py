"""``geolabel qgis``: a project for QGIS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from geolabel.errors import VectorError

from . import options
from .commands import group, option
from .inputs import SCENE, Input, check_outputs
from .terminal import announce, loading

SLIDES = Input(VectorError, dir_okay=False)


@group(short_help="Write a project for QGIS.")
def qgis() -> None:
    """Work with QGIS."""


@qgis.command()
@click.argument("slides", type=SLIDES)
@option(
    "--scene",
    "scenes",
    group="input",
    type=SCENE,
    multiple=True,
    help="File of the scene that SLIDES were found in; may be repeated, the first is on top.",
)
@option(
    "--before",
    group="input",
    type=SCENE,
    multiple=True,
    help="File of the time before, not ticked at first; may be repeated.",
)
@option("-b", "--bands", group="input", help="Red, green and blue of --scene: band numbers, descriptions or colours.")
@option("--before-bands", group="input", help="The same of --before.")
@option("--gsd", group="input", type=float, metavar="METRES", help="Pixel size of scenes without CRS.")
@option(
    "--stretch",
    group="input",
    rare=True,
    default="p2-98",
    show_default=True,
    help="Radiometric stretch of each scene: pLOW-HIGH percentiles, LOW,HIGH values, or none.",
)
@option(
    "-o",
    "--out",
    group="output",
    type=click.Path(dir_okay=False),
    help="Project to write, .qgz. Default: beside SLIDES, with the same name.",
)
@option("--overwrite", group="output", is_flag=True, help="Replace the project if it is as geolabel wrote it.")
@options.as_json
@options.terminal
@click.pass_context
def project(
    ctx: click.Context, /, slides: str, scenes: tuple[str, ...], out: str | None, as_json: bool, **how: Any
) -> None:
    """Write a project of QGIS that shows the layers of SLIDES on the scene, in one group with their styles.

    Paths in the project are relative, so that a folder that holds the project, SLIDES and the scene can be moved. A
    project that was saved in QGIS is never replaced.

    \b
    geolabel qgis project slides.gpkg --scene scene.tif
    geolabel qgis project slides.gpkg --scene after.tif --before before.tif --out review.qgz
    """
    target = out or str(Path(slides).with_suffix(".qgz"))
    check_outputs(target, overwrite=how["overwrite"])
    with loading(ctx, "reading"):
        import geolabel

        figures = geolabel.write_project(slides, target, scene=scenes, **how)
    announce(
        {"output": target, **figures} if as_json else figures | {"output": target, "next": f"open {target} in QGIS"},
        as_json=as_json,
    )
