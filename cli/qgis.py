"""``geolabel qgis``: a project for QGIS, and its plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from geolabel.errors import OptionError

from . import options
from .commands import group, option
from .inputs import INVENTORY, SCENE, check_outputs
from .terminal import announce, loading


@group(short_help="Write a project for QGIS, or install its plugin.")
def qgis() -> None:
    """Write a project that QGIS opens, or put the plugin of geolabel into QGIS."""


@qgis.command()
@click.argument("slides", type=INVENTORY)
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
    for bands, shown, name in (("bands", scenes, "--scene"), ("before_bands", how["before"], "--before")):
        if how[bands] and not shown:
            option_name = bands.replace("_", "-")
            raise OptionError(f"--{option_name} {how[bands]}: bands of {name}; give that too, or leave this out")
    target = out or str(Path(slides).with_suffix(".qgz"))
    check_outputs(target, overwrite=how["overwrite"])
    with loading(ctx, "reading"):
        import geolabel

        figures = geolabel.write_project(slides, target, scene=scenes, **how)
    announce(
        {"output": target, **figures} if as_json else figures | {"output": target, "next": f"open {target} in QGIS"},
        as_json=as_json,
    )


_profile = option(
    "--profile", group="output", default="default", show_default=True, metavar="NAME", help="Profile of QGIS."
)


@qgis.command()
@_profile
@options.as_json
@options.terminal
def install(*, profile: str, as_json: bool) -> None:
    """Put the plugin of geolabel into a profile of QGIS: algorithms of the Processing toolbox.

    They call the command line of this environment; another one can be named in QGIS, in Settings, Options, Processing,
    Providers, geolabel. Only files that this command wrote are replaced.

    \b
    geolabel qgis install
    geolabel qgis install --profile fieldwork
    """
    import geolabel

    figures = geolabel.install_plugin(profile=profile)
    steps = "in QGIS, open Plugins, Manage and Install Plugins, Installed, and tick geolabel"
    announce(figures if as_json else figures | {"next": steps}, as_json=as_json)


@qgis.command()
@_profile
@options.as_json
@options.terminal
def uninstall(*, profile: str, as_json: bool) -> None:
    """Remove the plugin of geolabel from a profile of QGIS.

    \b
    geolabel qgis uninstall
    """
    import geolabel

    announce(geolabel.uninstall_plugin(profile=profile), as_json=as_json)
