"""``geolabel info``: what geolabel understood of a scene."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from . import options
from .commands import command
from .inputs import SCENE
from .terminal import announce, warn

if TYPE_CHECKING:
    from geolabel.io.read.scenes import SceneReader
    from geolabel.radiometry import Stretch


@command(short_help="Say what geolabel understands of a scene.")
@click.argument("scene", type=SCENE)
@options.reading_options
@options.as_json
@options.terminal
@click.pass_context
def info(
    ctx: click.Context,
    scene: str,
    bands: str | None,
    nodata: float | None,
    gsd: float | None,
    time: str | None,
    working_gsd: float | None,
    stretch: str,
    as_json: bool,
) -> None:
    """Say what geolabel understands of SCENE: its grid, bands, validity, stretch, and the grid it would work on."""
    from geolabel.errors import OptionError
    from geolabel.io.read.scenes import SceneReader
    from geolabel.radiometry import Stretch, parse_stretch

    if working_gsd is not None and not 0 < working_gsd < float("inf"):
        raise OptionError(f"--working-gsd {working_gsd}: it has to be a positive number of metres")
    parse_stretch(stretch)  # a wrong option should not wait for the sample
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
    """A number that JSON has a form for."""
    return number if number is None or math.isfinite(number) else str(number)
