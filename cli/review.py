"""``geolabel review``: compare inventories, and write a page to review one in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from geolabel.errors import VectorError

from . import options
from .commands import group, option
from .inputs import SCENE, Input, check_outputs
from .terminal import announce, extent, loading, megabytes

if TYPE_CHECKING:
    from geolabel.review.difference import Difference

INVENTORY = Input(VectorError, dir_okay=False)

DIFFERENT = 4
"""Exit code where something differs, or people disagree."""


@group(short_help="Use what a person decided about polygons.")
def review() -> None:
    """Use what a person decided about the polygons of an inventory."""


@review.command()
@click.argument("old", type=INVENTORY)
@click.argument("new", type=INVENTORY)
@option(
    "-o",
    "--out",
    group="output",
    type=click.Path(dir_okay=False),
    help="Also write the changes as a layer, in the format that the suffix names.",
)
@option(
    "--min-iou",
    group="sensitivity",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Minimum intersection over union of two polygons that are one landslide.",
)
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def diff(
    ctx: click.Context,
    /,
    old: str,
    new: str,
    out: str | None,
    min_iou: float,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Say what changed from the inventory OLD to NEW: polygons added, removed, or changed in outline, status or class.

    The exit code is 0 where nothing changed and 4 where something did. Polygons are paired by their outlines; what a
    person deleted counts as rejected.

    \b
    geolabel review diff first.gpkg second.gpkg
    geolabel review diff first.gpkg second.gpkg --out changes.gpkg
    """
    with loading(ctx, "comparing"):
        import geolabel

        found = geolabel.diff(old, new, min_iou=min_iou, out=out, overwrite=overwrite)
    figures: dict[str, Any] = found.figures() | ({"output": out} if out else {})
    announce(figures if as_json else _changes(found, figures), as_json=as_json)
    return DIFFERENT if found else 0


def _changes(found: Difference, figures: dict[str, Any]) -> dict[str, str]:
    # Rows for a person: what became of the polygons, and of how much ground.
    rows = {"same": str(figures["same"])}
    for kind, side in (("added", "new"), ("removed", "old"), ("changed", "new")):
        own = found.changes[found.changes["change"] == kind]
        area = f", {extent(float(own[f'{side}_area_m2'].sum()))}" if len(own) else ""
        rows[kind] = f"{len(own)}{area}"
    named = {name: figures[f"changed {name}"] for name in ("outline", "layer", "status", "class")}
    rows["changed"] += "".join(f"; {name} {count}" for name, count in named.items() if count)
    return rows | ({"output": figures["output"]} if "output" in figures else {})


@review.command()
@click.argument("slides", type=INVENTORY)
@option(
    "--scene",
    "scenes",
    group="input",
    type=SCENE,
    required=True,
    multiple=True,
    help="The scene that SLIDES were found in; may be repeated, the first is on top.",
)
@option(
    "--before",
    group="input",
    type=SCENE,
    multiple=True,
    help="A scene of the time before, of any grid and CRS, to swipe between both; may be repeated.",
)
@option("-b", "--bands", group="input", help="Red, green and blue of --scene: band numbers, descriptions or colours.")
@option("--before-bands", group="input", help="The same of --before.")
@option("--nodata", group="input", type=float, help="Value that marks pixels without data, instead of the files' own.")
@option("--gsd", group="input", type=float, metavar="METRES", help="Pixel size of scenes without CRS.")
@option(
    "--stretch",
    group="input",
    rare=True,
    default="p2-98",
    show_default=True,
    help="Radiometric stretch of each scene: pLOW-HIGH percentiles, LOW,HIGH values, or none.",
)
@option("-o", "--out", group="output", required=True, type=click.Path(dir_okay=False), help="Page to write, .html.")
@option(
    "--megapixels",
    group="output",
    type=click.FloatRange(0, 60, min_open=True),
    default=12.0,
    show_default=True,
    help="Maximum size of each picture; more shows large scenes finer, and makes a larger file.",
)
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def view(
    ctx: click.Context, /, slides: str, scenes: tuple[str, ...], out: str, megapixels: float, as_json: bool, **how: Any
) -> None:
    """Write a page on which a person reviews the polygons of SLIDES in a browser, without a network.

    The page shows the scene, outlines coloured by confidence, and a table; keys accept and reject. It downloads the
    reviewed file, which extract reads with --keep-reviewed.

    \b
    geolabel review view slides.gpkg --scene scene.tif --out slides.html
    geolabel review view slides.gpkg --scene after.tif --before before.tif --out slides.html
    """
    check_outputs(out, overwrite=how["overwrite"])
    with loading(ctx, "drawing"):
        import geolabel

        figures = geolabel.view(slides, scenes, out, max_pixels=max(1, round(megapixels * 1e6)), **how)
    if as_json:
        announce({"output": out, **figures}, as_json=True)
        return
    announce(
        {
            "polygons": str(figures["polygons"]),
            "pixels": f"{figures['gsd_m']:g} m",
            "output": f"{out}, {megabytes(figures['bytes'])}",
            "next": f"open {out} in a browser; extract --keep-reviewed reads the file that it downloads",
        },
        as_json=False,
    )
