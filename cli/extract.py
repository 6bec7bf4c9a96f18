"""``geolabel extract``: landslide polygons from scenes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

import geolabel
from geolabel.errors import WeightsError
from geolabel.extraction.supplements import Supplements
from geolabel.models.measured_accuracy import of_bundled

from . import options, scene_options
from .commands import F, command, complete_files, option
from .inputs import MASK, SCENE, VECTORS, MeasureType, check_inputs, check_outputs, check_scenes, one_output
from .terminal import announce, loading, progress_bar, warn
from .workers import at_work, cluster_options

EVIDENCE = tuple(field.name for field in fields(Supplements))
"""Options for supplementary data: the fields of `Supplements`."""

_WRITTEN = (
    "prompts_from",
    "keep_reviewed",
    "score_out",
    "mask_out",
    "preview",
    "dst_crs",
    "overwrite",
    "discard_review",
)
"""Options passed to `geolabel.extract` unchanged."""

GAPS = 3
"""Exit code of a run that finished with gaps."""


def _quality() -> str:
    # generated from the figures beside the weights, since they change with the networks
    try:
        return f"The bundled networks: {of_bundled().sentence()}"
    except WeightsError:
        return ""


def evidence_options(command: F) -> F:
    """Add the options for supplementary data: the fields of `Supplements`."""
    for decorate in (
        option(
            "--cut/--no-cut",
            group="evidence",
            rare=True,
            default=True,
            show_default=True,
            help="With --before or --dem: cut ground that is not landslide out of the polygons; or judge polygons as "
            "a whole.",
        ),
        option(
            "--register/--no-register",
            group="evidence",
            rare=True,
            default=True,
            show_default=True,
            help="With --before: register it to the scene, up to 32 px; or trust its position.",
        ),
        option(
            "--event-before",
            group="evidence",
            rare=True,
            metavar="DATE",
            help="Latest date of the event, for the column event_before. Default: the date of the scene.",
        ),
        option(
            "--event-after",
            group="evidence",
            rare=True,
            metavar="DATE",
            help="Earliest date of the event, for the column event_after. Default: the date of --before.",
        ),
        option(
            "--before-mask",
            group="evidence",
            type=MASK,
            metavar="FILE|URI",
            multiple=True,
            help="With --before: as --mask, for the image from before the event. Repeatable: one for each of several "
            "images, or none.",
        ),
        option(
            "--before",
            group="evidence",
            type=SCENE,
            metavar="FILE|URI",
            multiple=True,
            help="Image from before the event, on any grid and in any CRS: polygons that were bare then and have not "
            "changed become candidates. Repeatable: the next image fills where the first is not valid.",
        ),
        option(
            "--exclude",
            group="evidence",
            type=VECTORS,
            metavar="FILE",
            help="Polygons of ground without landslides, such as water: landslides with at least half of their area "
            "on it become candidates.",
        ),
        option(
            "--min-slope",
            group="evidence",
            type=MeasureType("deg"),
            help="With --dem: minimum mean slope of a landslide; gentler polygons become candidates.",
        ),
        option(
            "--dem",
            group="evidence",
            type=SCENE,
            metavar="FILE|URI",
            help="Height model in metres, on any grid and in any CRS: adds slope, aspect and relief to the polygons.",
        ),
    ):
        command = decorate(command)
    return command


def take_evidence(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `evidence_options` out of those given; contradictions are refused here."""
    evidence = {name: given.pop(name) for name in EVIDENCE}
    Supplements(**evidence)
    return evidence


@command(short_help="Find the landslides of scenes and write them as polygons.", epilog=_quality())
@click.argument("scenes", nargs=-1, required=True, metavar="SCENE... [OUTPUT]", shell_complete=complete_files)
@options.vectors_out()
@option(
    "--score-out",
    group="output",
    type=click.Path(dir_okay=False),
    help="Also write the scores, a Cloud Optimized GeoTIFF.",
)
@option(
    "--mask-out",
    group="output",
    type=click.Path(dir_okay=False),
    help="Also write the mask, a Cloud Optimized GeoTIFF.",
)
@option(
    "--preview",
    group="output",
    type=click.Path(dir_okay=False),
    help="Also draw a picture, .png or .jpg: the scene, outlines by confidence, a scale bar and a north arrow.",
)
@option(
    "--dst-crs",
    group="output",
    metavar="CRS",
    help="CRS of the polygons, such as EPSG:32648; required where scenes have different CRSs.",
)
@option(
    "--keep-reviewed",
    group="input",
    type=VECTORS,
    metavar="FILE",
    help="A reviewed output of extract: accepted, edited and added polygons are kept unchanged; rejected and "
    "deleted ones do not come back. It may be the output itself, with --overwrite.",
)
@options.asset
@options.scene_options
@evidence_options
@scene_options.prediction_options
@options.score_threshold
@options.min_confidence
@scene_options.polygon_options
@options.network_options
@cluster_options
@options.run_options
@option("--dry-run", group="output", is_flag=True, help="Print an estimate of tiles, memory and time; write nothing.")
@options.overwrite
@options.discard_review
@options.as_json
@options.terminal
@click.pass_context
def extract(
    ctx: click.Context,
    /,
    scenes: tuple[str, ...],
    out: str | None,
    run_dir: str | None,
    keep: bool,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Find the landslides of one or several SCENEs and write them as polygons.

    SCENE is a raster (a GeoTIFF, a VRT, a URL), a folder or archive of Sentinel-2, Landsat or PlanetScope, a layer of
    map tiles, a pattern in quotes, a text file with one scene per line, a table of pairs (pairs.csv:
    scene,before,before_mask,mask), or a JSON file of STAC items. Scenes on one grid are processed as one mosaic, the
    first on top; polygons of scenes on different grids are merged where they overlap. The GeoPackage (OUTPUT, or --out)
    has layers of landslides, candidates (less likely to be landslides), prompts and tiles, each with a QGIS style.

    \b
    geolabel extract scene.tif --out slides.gpkg
    geolabel extract a.tif b.tif 'folder/*.tif' --out slides.gpkg
    geolabel extract S2A_MSIL2A_NAME.SAFE --out slides.gpkg
    geolabel extract 'https://host/{z}/{x}/{y}.png' --aoi area.gpkg --gsd 0.6 --out slides.gpkg
    geolabel extract after.tif --out slides.gpkg --before before.tif
    geolabel extract scene.tif --out slides.gpkg --dem heights.tif --min-slope 10deg --exclude water.gpkg
    geolabel extract scene.tif --out slides.gpkg --overwrite --keep-reviewed slides.gpkg
    geolabel extract scene.tif --out again.gpkg --prompts-from slides.gpkg
    """
    named, target = _split(scenes, out, needed=not dry_run)
    check_scenes(named)
    asked, evidence = {name: given.pop(name) for name in _WRITTEN}, take_evidence(given)
    rasters = asked["score_out"], asked["mask_out"], asked["preview"]
    check_outputs(target, *rasters, overwrite=asked["overwrite"], run_dir=run_dir)
    from geolabel.io.read.scene_inputs import list_scenes

    from . import summary

    listed = list_scenes(named, asset=given["asset"])
    check_inputs(listed)
    request = options.Request.of(given)
    if dry_run:
        with loading(ctx), at_work(given):
            figures = geolabel.estimate(listed, dst_crs=asked["dst_crs"], **vars(request), **evidence)
        announce(figures if as_json else summary.of_estimate(figures), as_json=as_json)
        return 0
    report = geolabel.Report()
    with progress_bar(ctx, "preparing") as progress, at_work(given):
        geolabel.extract(
            listed,
            out=target,
            **vars(request),
            **evidence,
            **asked,
            run_folder=geolabel.RunFolderOptions(run_dir, keep),
            progress=progress,
            report=report,
        )
    warn(ctx, report.gaps)
    figures = report.summary()
    announce(
        {"output": target, **figures} if as_json else summary.of_extraction(target, figures, dense=report.dense),
        as_json=as_json,
    )
    return GAPS if report.gaps else 0


_OUTPUTS = (".gpkg", ".fgb", ".parquet", ".shp", ".kmz")
"""Suffixes of outputs among the arguments; GeoJSON may be a STAC item, and an archive may hold a scene."""


def _split(scenes: tuple[str, ...], out: str | None, *, needed: bool) -> tuple[tuple[str, ...], str | None]:
    """The scenes, and the output, which may be the last argument.

    Raises
    ------
    OptionError
        If two outputs are given, or none if one is needed.
    """
    *others, last = scenes
    output = last if others and last.lower().endswith(_OUTPUTS) else None
    if needed or (output and out):
        other = others and last.lower().endswith((".geojson", ".kml"))
        one_output(output, out, f"FILE.gpkg instead of {last}" if other else "FILE.gpkg")
    return (tuple(others), output) if output else (scenes, out)
