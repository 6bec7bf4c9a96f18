"""``geolabel info``: a scene as geolabel reads it, or the contents of an inventory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import geolabel
from geolabel.errors import OptionError, VectorError

from . import options
from .commands import command, option
from .inputs import SCENE
from .terminal import announce, extent, loading, warn

if TYPE_CHECKING:
    from geolabel.io.read.scenes import SceneReader
    from geolabel.radiometry import Stretch
    from geolabel.review.summary import Group, Summary

INVENTORIES = (".gpkg", ".geojson", ".shp", ".fgb", ".kml", ".kmz", ".parquet", ".geoparquet", ".zip")
"""Suffixes of files that may be inventories; JSON may be a STAC item."""

EITHER = (".gpkg", ".zip")
"""Suffixes of files that may be scenes too."""

OF_INVENTORIES = ("plot", "overwrite")


@command(short_help="Describe a scene or an inventory.")
@click.argument("scene", type=SCENE, metavar="FILE")
@options.reading_options
@option(
    "--plot",
    group="output",
    type=click.Path(dir_okay=False),
    help="Draw the size-frequency distribution of an inventory: .png, .svg or .pdf.",
)
@option("--overwrite", group="output", is_flag=True, help="Replace the plot if it exists.")
@options.as_json
@options.terminal
@click.pass_context
def info(ctx: click.Context, /, scene: str, as_json: bool, **given: Any) -> None:
    """Describe a scene as geolabel reads it, or an inventory of polygons.

    For a scene: grid, bands, valid pixels, stretch and working grid. For an inventory: counts and areas by layer, class
    and review status, and the size-frequency distribution with a power law fitted to its tail.

    \b
    geolabel info scene.tif
    geolabel info slides.gpkg --plot sizes.png
    """
    of_inventory = _is_inventory(scene)
    for name in given:
        chosen = ctx.get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT)
        if chosen and (name in OF_INVENTORIES) != of_inventory:
            kind, other = ("an inventory", "scenes") if of_inventory else ("a scene", "inventories")
            raise OptionError(f"--{name.replace('_', '-')}: an option of {other}, and {scene} is {kind}; leave it out")
    mine = {name: value for name, value in given.items() if (name in OF_INVENTORIES) == of_inventory}
    if of_inventory:
        _describe_inventory(ctx, scene, as_json=as_json, **mine)
    else:
        _describe_scene(ctx, scene, as_json=as_json, **mine)


def _is_inventory(path: str) -> bool:
    """Whether a file holds polygons instead of pixels."""
    if not path.lower().endswith(INVENTORIES):
        return False
    if not path.lower().endswith(EITHER):
        return True
    from geolabel.io.read.features import spatial_layers
    from geolabel.io.read.sources import rasters_inside

    if path.lower().endswith(".zip") and rasters_inside(Path(path)):
        return False  # a delivery, whose footprints may be vectors
    try:
        return bool(spatial_layers(path))
    except VectorError:
        return False


def _describe_inventory(ctx: click.Context, path: str, *, as_json: bool, plot: str | None, overwrite: bool) -> None:
    if overwrite and plot is None:
        raise OptionError("--overwrite replaces the plot: give its name with --plot, or leave it out")
    with loading(ctx, "reading"):
        found = geolabel.summarize(path, plot=plot, overwrite=overwrite)
    figures = {"inventory": path} | found.figures() | ({"plot": plot} if plot else {})
    announce(figures if as_json else _inventory(path, found, plot), as_json=as_json)


def _inventory(path: str, found: Summary, plot: str | None) -> dict[str, str]:
    # Rows of the printed summary.
    rows = {"inventory": path, "crs": found.crs or "none"}
    rows |= {name: _group(one) for name, one in found.layers.items()}
    rows |= {"class": _groups(found.classes), "review": _groups(found.states)}
    size = found.figures()["area_quartiles_m2"]
    if size:
        rows["area"] = f"{extent(size[0])} to {extent(size[-1])}, median {extent(size[2])}"
    law = found.power_law
    if law is None:
        rows["power law"] = "not fitted: too few landslides, or all of one size"
    else:
        sure = "plausible" if law.plausible else "ruled out"
        rows["power law"] = (
            f"exponent {law.exponent:.2f} ± {law.error:.2f} from {extent(law.min_area_m2)} on "
            f"({law.count} landslides); {sure}, p {law.p:.2f}"
        )
    return rows | ({"plot": plot} if plot else {})


def _groups(groups: Mapping[str, Group]) -> str:
    return "\n".join(f"{name}: {_group(one)}" for name, one in groups.items()) or "none"


def _group(one: Group) -> str:
    return f"{one.count}, {extent(one.area_m2)}" if one.count else "0"


def _describe_scene(
    ctx: click.Context,
    scene: str,
    *,
    bands: str | None,
    nodata: float | None,
    gsd: float | None,
    time: str | None,
    working_gsd: float | None,
    stretch: str,
    as_json: bool,
) -> None:
    from geolabel.io.read.scenes import SceneReader
    from geolabel.radiometry import Stretch

    geolabel.Reading(gsd=gsd, working_gsd=working_gsd, stretch=stretch)  # validates values before pixels are read
    with SceneReader(scene, bands=bands, nodata=nodata, gsd=gsd, time=time) as stored:
        sample, valid = stored.sample()
        reader, valid = stored.examined(sample, valid)
        with reader:
            values = _facts(reader, Stretch.from_sample(sample, valid, stretch), float(valid.mean()), working_gsd)
            warn(ctx, reader.warnings)
    announce(values, as_json=as_json)


def _facts(reader: SceneReader, fitted: Stretch, valid: float, working_gsd: float | None) -> dict[str, Any]:
    from geolabel.models.loading import bundled_gsd_range

    scene, header = reader.scene, reader.header
    grid = scene.grid
    working = grid.working(bundled_gsd_range()) if working_gsd is None else grid.at_gsd(working_gsd)
    nodata = [value if reader.nodata is None else reader.nodata for value in header.nodata]
    return {
        "scene": scene.name,
        "width": grid.width,
        "height": grid.height,
        "crs": None if grid.crs is None else grid.crs.name,
        "transform": list(grid.transform)[:6],
        "gsd_m": round(grid.gsd, 4),
        "pixel_m": [round(side, 4) for side in grid.pixel_size_m()],
        "dtype": scene.dtype,
        "band_count": scene.band_count,
        "bands": list(scene.bands),
        "descriptions": [header.descriptions[band - 1] for band in scene.bands],
        "colours": [header.colours[band - 1] for band in scene.bands],
        "nodata": [_plain(nodata[band - 1]) for band in scene.bands],
        "alpha_bands": list(header.alpha),
        "mask": any(header.masked),
        "valid_share": round(valid, 4),
        "stretch": fitted.spec,
        "stretch_low": list(fitted.low),
        "stretch_high": list(fitted.high),
        "working_gsd_m": round(working.gsd, 4),
        "working_width": working.width,
        "working_height": working.height,
        "event_date": scene.event_date,
        "warnings": list(reader.warnings),
    }


def _plain(number: float | None) -> float | str | None:
    """A number that JSON can represent."""
    return number if number is None or math.isfinite(number) else str(number)
