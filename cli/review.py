"""``geolabel review``: compare, merge and export inventories, and sample them for a review."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from geolabel.errors import OptionError

from . import options
from .commands import F, group, option
from .inputs import INVENTORY, SCENE, VECTORS, check_outputs
from .terminal import announce, extent, loading, megabytes

if TYPE_CHECKING:
    from geolabel.review.accuracy import Estimated
    from geolabel.review.difference import Difference
    from geolabel.review.estimate import Estimate

DIFFERENT = 4
"""Exit code if there are differences or disagreements."""


_min_iou = option(
    "--min-iou",
    group="sensitivity",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Minimum intersection over union of two polygons that count as one landslide.",
)


def pictures(*, scene_required: bool = False) -> Callable[[F], F]:
    """Add the options for the images that an inventory is shown on."""

    def decorate(command: F) -> F:
        for add in (
            option(
                "--stretch",
                group="input",
                rare=True,
                default="p2-98",
                show_default=True,
                help="Radiometric stretch of each scene: percentiles pLOW-HIGH, values LOW,HIGH, or none.",
            ),
            option("--gsd", group="input", type=float, metavar="METRES", help="Pixel size of scenes without CRS."),
            option("--before-bands", group="input", help="Bands of --before for red, green and blue, as --bands."),
            option(
                "-b",
                "--bands",
                group="input",
                help="Bands of --scene for red, green and blue: numbers, descriptions or colours.",
            ),
            option(
                "--before",
                group="input",
                type=SCENE,
                multiple=True,
                help="Image from before the event, on any grid and in any CRS, to compare; repeatable.",
            ),
            option(
                "--scene",
                "scenes",
                group="input",
                type=SCENE,
                required=scene_required,
                multiple=True,
                help="Scene of SLIDES; repeatable, the first is on top.",
            ),
        ):
            command = add(command)
        return command

    return decorate


@group(short_help="Compare, merge and export reviewed inventories.")
def review() -> None:
    """Compare, merge and export reviewed inventories, and choose what to review."""


@review.command()
@click.argument("old", type=INVENTORY)
@click.argument("new", type=INVENTORY)
@option(
    "-o",
    "--out",
    group="output",
    type=click.Path(dir_okay=False),
    help="Also write the changes as a layer; the suffix names the format.",
)
@_min_iou
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
    """List the changes from the inventory OLD to NEW: polygons added, removed, or changed in outline, status or class.

    The exit code is 0 without changes and 4 with changes. Polygons are matched by their outlines; deleted polygons
    count as rejected.

    \b
    geolabel review diff first.gpkg second.gpkg
    geolabel review diff first.gpkg second.gpkg --out changes.gpkg
    """
    if overwrite and out is None:
        raise OptionError("--overwrite replaces the layer of changes: give its name with --out, or leave it out")
    with loading(ctx, "comparing"):
        import geolabel

        found = geolabel.diff(old, new, min_iou=min_iou, out=out, overwrite=overwrite)
    figures: dict[str, Any] = found.figures() | ({"output": out} if out else {})
    announce(figures if as_json else _changes(found, figures), as_json=as_json)
    return DIFFERENT if found else 0


def _changes(found: Difference, figures: dict[str, Any]) -> dict[str, str]:
    # Rows of the printed summary: numbers and areas of changed polygons.
    rows = {"same": str(figures["same"])}
    for kind, side in (("added", "new"), ("removed", "old"), ("changed", "new")):
        own = found.changes[found.changes["change"] == kind]
        area = f", {extent(float(own[f'{side}_area_m2'].sum()))}" if len(own) else ""
        rows[kind] = f"{len(own)}{area}"
    named = {name: figures[f"changed {name}"] for name in ("outline", "layer", "status", "class")}
    rows["changed"] += "".join(f"; {name} {count}" for name, count in named.items() if count)
    return rows | ({"output": figures["output"]} if "output" in figures else {})


@review.command()
@click.argument("inventories", type=INVENTORY, nargs=-1, required=True, metavar="INVENTORY INVENTORY...")
@options.vectors_out(required=True)
@_min_iou
@options.dst_crs
@options.overwrite
@options.discard_review
@options.as_json
@options.terminal
@click.pass_context
def merge(ctx: click.Context, /, inventories: tuple[str, ...], out: str, as_json: bool, **how: Any) -> int:
    """Merge inventories of one area, such as those of several reviewers.

    Reviewed polygons take precedence over unreviewed ones. Where reviewers disagree, the first INVENTORY is used, the
    column disagreement records the others, and the exit code is 4.

    \b
    geolabel review merge hers.gpkg his.gpkg --out both.gpkg
    """
    check_outputs(out, overwrite=how["overwrite"])
    with loading(ctx, "merging"):
        import geolabel

        figures = geolabel.merge(inventories, out, **how).figures()
    if as_json:
        announce(figures | {"output": out}, as_json=True)
    else:
        rows = {name: str(figures[name]) for name in ("landslides", "candidates", "rejected")}
        joined = f"{figures['joined']} polygons became part of a polygon of another inventory"
        announce(
            rows | {"joined": joined, "disagreements": str(figures["disagreements"]), "output": out}, as_json=False
        )
    return DIFFERENT if figures["disagreements"] else 0


@review.command()
@click.argument("slides", type=INVENTORY)
@pictures(scene_required=True)
@option("--nodata", group="input", type=float, help="Nodata value, instead of the files' own.")
@option("-o", "--out", group="output", required=True, type=click.Path(dir_okay=False), help="Page to write, .html.")
@option(
    "--megapixels",
    group="output",
    type=click.FloatRange(0, 60, min_open=True),
    default=12.0,
    show_default=True,
    help="Maximum size of each picture in megapixels; more shows large scenes in finer detail, in a larger file.",
)
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def view(
    ctx: click.Context, /, slides: str, scenes: tuple[str, ...], out: str, megapixels: float, as_json: bool, **how: Any
) -> None:
    """Write a web page for reviewing the polygons of SLIDES in a browser, offline.

    The page shows the scene, outlines coloured by confidence, and a table; keys accept and reject. It saves a reviewed
    file for --keep-reviewed of geolabel extract.

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


@review.command()
@click.argument("slides", type=INVENTORY)
@options.vectors_out(required=True)
@options.dst_crs
@option(
    "--reviewed-only",
    group="output",
    is_flag=True,
    help="Write only polygons that were accepted, edited or added.",
)
@options.overwrite
@options.discard_review
@options.as_json
@options.terminal
@click.pass_context
def export(ctx: click.Context, /, slides: str, out: str, as_json: bool, **how: Any) -> None:
    """Write SLIDES as it is after its review, in another format or CRS.

    Accepted candidates become landslides; rejected and deleted polygons are no landslides. Prompts and tiles are left
    out.

    \b
    geolabel review export slides.gpkg --out slides.parquet
    geolabel review export slides.gpkg --out slides.geojson --reviewed-only
    geolabel review export slides.gpkg --out slides.shp --dst-crs EPSG:4326
    """
    check_outputs(out, overwrite=how["overwrite"])
    with loading(ctx, "exporting"):
        import geolabel

        figures = geolabel.export(slides, out, **how).figures()
    if as_json:
        announce(figures | {"output": out}, as_json=True)
        return
    rows = {"landslides": f"{figures['landslides']}, {extent(figures['area_m2'])}; {figures['reviewed']} reviewed"}
    rows |= {name: str(figures[name]) for name in ("candidates", "rejected")}
    announce(rows | {"output": out}, as_json=False)


@review.command()
@click.argument("slides", type=INVENTORY)
@click.argument("files", nargs=-1, type=INVENTORY, metavar="[FILE]...")
@option("-o", "--out", group="output", required=True, type=click.Path(dir_okay=False), help="Item to write, .json.")
@option(
    "--network",
    "networks",
    group="input",
    type=INVENTORY,
    multiple=True,
    metavar="ITEM",
    help="Item of geolabel models stac to link to; repeatable.",
)
@option(
    "--date",
    group="input",
    metavar="YYYY-MM-DD",
    help="Date of the scene, or FIRST/LAST of several scenes. Default: that recorded in SLIDES.",
)
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def stac(ctx: click.Context, /, slides: str, files: tuple[str, ...], out: str, as_json: bool, **how: Any) -> None:
    """Write a STAC item of SLIDES and of each FILE that belongs to it, such as other formats, rasters and pictures.

    The item has footprint and date of the scene, versions and networks, and the size and checksum of every file. Paths
    are relative to the item.

    \b
    geolabel review stac slides.gpkg slides.parquet preview.png --out slides.json
    """
    check_outputs(out, overwrite=how["overwrite"])
    with loading(ctx, "reading"):
        import geolabel

        item = geolabel.stac_item(slides, files, out=out, **how)
    times = item["properties"]
    date = times["datetime"] or f"{times['start_datetime']} to {times['end_datetime']}"
    figures = {"output": out, "id": item["id"], "date": date, "assets": list(item["assets"])}
    announce(figures, as_json=as_json)


@review.command("next")
@click.argument("slides", type=INVENTORY)
@option(
    "--count",
    group="output",
    type=click.IntRange(min=1),
    help="Maximum number of windows. Default: 20; 60 with --estimate, including those of earlier calls.",
)
@option(
    "--estimate",
    group="method",
    is_flag=True,
    help="Draw a stratified random sample instead, for geolabel review estimate.",
)
@option("--seed", group="method", type=click.IntRange(min=0), help="With --estimate: random seed. Default: 0.")
@option(
    "--window",
    group="method",
    type=click.FloatRange(0, min_open=True),
    metavar="METRES",
    help="With --estimate: side of the windows outside polygons. Default: half a tile of the localizer.",
)
@option(
    "--aoi",
    group="input",
    type=VECTORS,
    metavar="FILE",
    help="With --estimate: polygons of the area that was searched. Default: the tiles of the localizer.",
)
@options.as_json
@options.terminal
@click.pass_context
def next_(ctx: click.Context, /, slides: str, count: int | None, estimate: bool, as_json: bool, **given: Any) -> None:
    """Choose windows of SLIDES to review first: around polygons that are uncertain, large and unlike the others.

    The windows are written to the layer review of SLIDES, a GeoPackage of geolabel extract, in the order of review.
    Called again, the command replaces windows that were not reviewed. Nothing else in the file changes.

    With --estimate, the layer review_sample holds a random sample: polygons to accept or reject, and windows outside
    polygons in which to draw missed landslides. Called again with a larger --count, the sample grows.

    \b
    geolabel review next slides.gpkg --count 20
    geolabel review next slides.gpkg --estimate --count 60
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen and not estimate:
        raise OptionError(f"--{next(iter(chosen))}: an option of --estimate; leave it out, or draw a sample")
    with loading(ctx, "choosing windows"):
        import geolabel

        if estimate:
            sample = geolabel.sample_review(slides, count=count or 60, **chosen)
            figures = sample.figures()
        else:
            figures = geolabel.next_windows(slides, count=count or 20).figures()
    layer = "review_sample" if estimate else "review"
    announce(figures if as_json else _windows(slides, layer, figures), as_json=as_json)


def _windows(slides: str, layer: str, figures: dict[str, Any]) -> dict[str, str]:
    # Rows of the printed summary: what was written, and how to proceed.
    rows = {"windows": f"{figures['windows']} new, {figures['kept']} kept, in the layer {layer}"}
    if "waiting" in figures:
        rows["show"] = f"{figures['shown']} of the {figures['waiting']} unreviewed polygons"
    else:
        rows["strata"] = "\n".join(f"{name}: {number}" for name, number in figures["strata"].items()) or "none"
    then = "; then geolabel review estimate" if layer == "review_sample" else ""
    return rows | {"next": f"open {slides} in QGIS, and review the layer {layer} in the order of rank{then}"}


@review.command()
@click.argument("slides", type=INVENTORY)
@option(
    "--aoi",
    group="input",
    type=VECTORS,
    metavar="FILE",
    help="Polygons of the area that was searched. Default: the tiles of the localizer.",
)
@options.as_json
@options.terminal
@click.pass_context
def estimate(ctx: click.Context, /, slides: str, aoi: str | None, as_json: bool) -> None:
    """Estimate how many unreviewed polygons of SLIDES are correct, and how many landslides were missed.

    Figures have 95 % intervals. They are based on the reviewed part of the sample of geolabel review next --estimate;
    without a sample, on all reviewed polygons. Missed landslides are estimated from windows outside polygons only.

    \b
    geolabel review estimate slides.gpkg
    """
    with loading(ctx, "estimating"):
        import geolabel

        found = geolabel.estimate_review(slides, aoi=aoi)
    announce(found.figures() if as_json else _estimate(found), as_json=as_json)


def _estimate(found: Estimate) -> dict[str, str]:
    # Rows of the printed summary.
    strata = [f"{one.name}: {one.right} of {one.reviewed} right; {one.rest} unreviewed" for one in found.strata]
    rows = {
        "reviewed": "\n".join(strata) or "no polygons",
        "from": "a stratified random sample" if found.sampled else "all reviewed polygons, without a random sample",
        "right": _counted(found.right, "unreviewed landslides"),
        "candidates": _counted(found.candidates, "unreviewed candidates that are landslides"),
        "missed": _counted(found.missed, f"landslides outside polygons, {found.added} of them added"),
    }
    if found.matrix is not None:
        accuracies = {"user's accuracy": found.matrix.users(0), "producer's accuracy": found.matrix.producers(0)}
        for name, one in (accuracies | {"overall accuracy": found.matrix.overall()}).items():
            rows[name] = f"{one.value:.2f} of the area ({one.low:.2f} to {one.high:.2f})"
        area = found.matrix.area_of(0)
        rows["area"] = f"{extent(area.value)} of landslide ({extent(area.low)} to {extent(area.high)})"
    return rows | ({"not known" if found.matrix is None else "note": "\n".join(found.notes)} if found.notes else {})


def _counted(one: Estimated | None, what: str) -> str:
    return "not known" if one is None else f"{one.value:.0f} {what} ({one.low:.0f} to {one.high:.0f})"
