"""``geolabel qgis``: a QGIS project, and the QGIS plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from geolabel.errors import OptionError

from . import options
from .commands import group, option
from .inputs import INVENTORY, check_outputs
from .review import pictures
from .terminal import announce, loading


@group(short_help="Write a QGIS project, or install the QGIS plugin.")
def qgis() -> None:
    """Write a QGIS project, or install the plugin of geolabel in QGIS."""


@qgis.command()
@click.argument("slides", type=INVENTORY)
@pictures()
@option(
    "-o",
    "--out",
    group="output",
    type=click.Path(dir_okay=False),
    help="Project to write, .qgz. Default: beside SLIDES, with the same name.",
)
@option(
    "--overwrite", group="output", is_flag=True, help="Replace a project that was not changed since geolabel wrote it."
)
@options.as_json
@options.terminal
@click.pass_context
def project(
    ctx: click.Context, /, slides: str, scenes: tuple[str, ...], out: str | None, as_json: bool, **how: Any
) -> None:
    """Write a QGIS project with the layers of SLIDES on the scene, in one group with their styles.

    Paths in the project are relative, so a folder with the project, SLIDES and the scene can be moved. A project that
    was saved in QGIS is never replaced.

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
    """Install the plugin of geolabel in a QGIS profile: algorithms of the Processing toolbox.

    The plugin calls the command line of this environment; to use another one, name it in QGIS under Settings, Options,
    Processing, Providers, geolabel. Only files that this command wrote are replaced.

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
    """Remove the plugin of geolabel from a QGIS profile.

    \b
    geolabel qgis uninstall
    """
    import geolabel

    announce(geolabel.uninstall_plugin(profile=profile), as_json=as_json)
