"""A picture of an inventory: the scene, outlines by confidence, a scale bar, a north arrow and a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from affine import Affine

from geolabel.errors import SceneError
from geolabel.io.read.review import REJECTED
from geolabel.io.styles import GREEN, GREY, LIMITS, WARM
from geolabel.outputs import check_target, saving
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import AnyArray
from geolabel.viewing.backdrop import Backdrop, Source, frame_of, paint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Formats of pictures."""

MAX_PIXELS = 2_000_000
"""Maximum number of pixels of the scene in a picture, some 1400 x 1400."""

DPI = 100

SIDES_PX = 700, 1600
"""Minimum and maximum length of the scene's longer side in the picture, in pixels; small scenes are enlarged."""

BELOW_PX = 44
"""Height of a line of the legend, and of the margin above the scene."""

WHITE = "255,255,255"

DASHES = (0, (4, 2.5))

GROUND = "0.35"
"""Grey of a picture without a scene."""

STEPS = (1, 2, 5)
"""Lengths of a scale bar, times a power of ten."""

ON_EARTH_M = 50.0
"""Length in metres of the step by which the direction of north is found."""


@dataclass(frozen=True)
class Line:
    """How outlines of one kind are drawn, and what the legend calls them."""

    label: str
    colour: str
    """Red, green and blue, as in `geolabel.io.styles`."""
    width: float = 1.6
    """Width in points."""
    dashed: bool = False

    @property
    def rgb(self) -> tuple[float, float, float]:
        """The colour as matplotlib takes it."""
        red, green, blue = (int(part) / 255 for part in self.colour.split(","))
        return red, green, blue


@dataclass(frozen=True)
class Ground:
    """How ground that is left out of a result is drawn, and what the legend calls it."""

    label: str
    hatch: str
    """Hatch as matplotlib takes it."""
    colour: str


MASKED_GROUND = Ground("masked", "////", "white")
EXCLUDED_GROUND = Ground("excluded", "....", "#9ecae1")


def write_preview(
    path: str | Path,
    polygons: gpd.GeoDataFrame,
    sources: Sequence[Source],
    *,
    title: str,
    grounds: Mapping[Ground, gpd.GeoDataFrame] = MappingProxyType({}),
    overwrite: bool = False,
) -> None:
    """Draw an inventory and write the picture; the same input gives the same bytes.

    Parameters
    ----------
    path
        Ends with ``.png`` or ``.jpg``.
    polygons
        With the columns ``confidence``, ``status`` and ``layer``, if known.
    sources
        Scenes to draw on, the first on top; none for a plain background.
    title
        Title above the picture.
    grounds
        Polygons of masked or excluded ground, in the CRS of `polygons`.

    Raises
    ------
    OutputError
        If the picture cannot be written.
    SceneError
        If a scene cannot be read, or polygons without a scene have no size.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite, suffixes=SUFFIXES)
    grids = [source.grid for source in sources]
    frame = frame_of(grids, polygons.crs, MAX_PIXELS) if grids else frame_around(polygons)
    shown = {ground: table for ground, table in grounds.items() if len(table)}
    figure = draw(paint(sources, frame) if grids else None, frame, polygons, title, shown)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, PNG or JPEG by its suffix; the same input gives the same bytes.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    kind = "png" if path.suffix.lower() == ".png" else "jpg"
    settings: dict[str, Any] = {"metadata": {"Software": None}}
    if kind == "jpg":
        settings = {"pil_kwargs": {"quality": 88, "optimize": True}}
    with saving(path) as part:
        figure.savefig(part, format=kind, dpi=DPI, **settings)


def together_of(layers: Mapping[str, gpd.GeoDataFrame], crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    """Polygons of several layers in one table, with the name of each one's layer in the column ``layer``.

    Parameters
    ----------
    crs
        CRS of the table, and of every layer that has polygons and a CRS.
    """
    filled = {name: table for name, table in layers.items() if len(table)}
    shapes = [table.geometry.to_numpy() for table in filled.values()]
    values = {
        column: [value for table in filled.values() for value in table.get(column, [None] * len(table))]
        for column in ("confidence", "status")
    }
    layer = [name for name, table in filled.items() for _ in range(len(table))]
    return gpd.GeoDataFrame({**values, "layer": layer}, geometry=np.concatenate([[], *shapes]), crs=crs)


def frame_around(polygons: gpd.GeoDataFrame) -> Grid:
    """A grid around polygons, for a picture without a scene.

    Raises
    ------
    SceneError
        If there are none, or they have no CRS.
    """
    if not len(polygons) or polygons.crs is None:
        missing = "polygon" if not len(polygons) else "CRS"
        raise SceneError(f"a picture without a scene shows where polygons are, and there is no {missing}: give --scene")
    left, bottom, right, top = polygons.total_bounds
    margin = max(right - left, top - bottom, 1e-9) / 20
    left, bottom, right, top = left - margin, bottom - margin, right + margin, top + margin
    unit = Grid(pyproj.CRS(polygons.crs), Affine((right - left) / 100, 0, left, 0, (bottom - top) / 100, top), 100, 100)
    across, down = (100 * side for side in unit.pixel_size_m())
    step = max(across, down) / SIDES_PX[1]
    height, width = max(1, round(down / step)), max(1, round(across / step))
    return Grid(unit.crs, Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top), height, width)


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw(
    backdrop: Backdrop | None,
    frame: Grid,
    polygons: gpd.GeoDataFrame,
    title: str,
    grounds: Mapping[Ground, gpd.GeoDataFrame],
) -> Figure:
    """Draw the picture.

    Parameters
    ----------
    backdrop
        On `frame`; None for a plain background.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    side = max(frame.height, frame.width)
    scale = min(max(side, SIDES_PX[0]), SIDES_PX[1]) / side
    wide, tall = max(frame.width * scale, 420), frame.height * scale
    lines = lines_of(polygons)
    columns = max(1, int(wide // 150))
    below = BELOW_PX / 2 * (1 + math.ceil(max(1, len(lines) + len(grounds)) / columns))
    height = tall + BELOW_PX + below
    figure = Figure(figsize=(wide / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, below / height, 1, tall / height))
    axes.axis("off")
    axes.set(xlim=(0, frame.width), ylim=(frame.height, 0), aspect="equal")
    if backdrop is not None:
        shown = np.dstack([backdrop.image, backdrop.valid * np.uint8(255)])
        axes.imshow(shown, extent=(0, frame.width, frame.height, 0), interpolation="auto")
    else:
        axes.add_patch(Rectangle((0, 0), frame.width, frame.height, fc=GROUND, ec="none"))
    _add_grounds(axes, frame, grounds)
    add_outlines(axes, frame, polygons, list(lines))
    add_scale(axes, frame, wide / scale)
    _add_north(axes, frame)
    figure.text(8 / wide, 1 - 14 / height, title, fontsize=12, va="top")
    _add_legend(figure, lines, list(grounds), columns)
    return figure


def lines_of(polygons: gpd.GeoDataFrame) -> dict[Line, int]:
    """Lines that a picture of polygons needs, in the order of the legend, and the number of polygons of each."""
    kinds = [_line(*row) for row in _rows(polygons)]
    order = [*(_grade(k) for k in range(len(WARM) - 1, -1, -1)), UNKNOWN, CANDIDATE, ACCEPTED_LINE, REJECTED_LINE]
    return {line: kinds.count(line) for line in order if line in kinds}


UNKNOWN = Line("confidence unknown", WHITE)
CANDIDATE = Line("candidate", WARM[0], 1.2, dashed=True)
ACCEPTED_LINE = Line("accepted", GREEN, 2.2)
REJECTED_LINE = Line("rejected", GREY[0], 1.0, dashed=True)


def _grade(k: int) -> Line:
    return Line(f"confidence {LIMITS[k]:g} to {LIMITS[k + 1]:g}", WARM[k])


def _rows(polygons: gpd.GeoDataFrame) -> list[tuple[float, str, str]]:
    """Confidence, status and layer of each polygon."""
    count = len(polygons)
    missing = [None] * count
    confidence = [math.nan if pd.isna(value) else float(value) for value in polygons.get("confidence", missing)]
    status = [str(value).lower() for value in polygons.get("status", missing)]
    layer = [str(value) for value in polygons.get("layer", missing)]
    return list(zip(confidence, status, layer, strict=True))


def _line(confidence: float, status: str, layer: str) -> Line:
    if status == "accepted":
        return ACCEPTED_LINE
    if status == "rejected" or layer == REJECTED:
        return REJECTED_LINE
    if layer == "candidates":
        return CANDIDATE
    return UNKNOWN if math.isnan(confidence) else grade_of(confidence)


def grade_of(confidence: float) -> Line:
    """The line of a landslide with a confidence, as in QGIS."""
    return _grade(int(np.clip(np.searchsorted(LIMITS, confidence, side="right") - 1, 0, len(WARM) - 1)))


def add_outlines(axes: Axes, frame: Grid, polygons: gpd.GeoDataFrame, lines: Sequence[Line]) -> None:
    """Draw the outlines of polygons on axes in pixels of a grid."""
    from matplotlib.patches import PathPatch

    kinds = [_line(*row) for row in _rows(polygons)]
    for line in reversed(lines):  # the most confident last, on top
        own = np.array([kind == line for kind in kinds], bool)
        outline = outline_of(polygons.geometry.to_numpy()[own], ~frame.transform)
        style = DASHES if line.dashed else "solid"
        if not line.dashed:
            axes.add_patch(PathPatch(outline, fill=False, lw=line.width + 1.4, ec=(0, 0, 0, 0.6), joinstyle="round"))
        axes.add_patch(PathPatch(outline, fill=False, lw=line.width, ec=line.rgb, ls=style, joinstyle="round"))


def _add_grounds(axes: Axes, frame: Grid, grounds: Mapping[Ground, gpd.GeoDataFrame]) -> None:
    """Hatch ground on axes in pixels of a grid, so that the scene below it stays visible."""
    from matplotlib.patches import PathPatch

    for ground, table in grounds.items():
        outline = outline_of(shapely.normalize(table.geometry.to_numpy()), ~frame.transform)  # holes run the other way
        axes.add_patch(PathPatch(outline, fc=(0, 0, 0, 0.25), ec=ground.colour, hatch=ground.hatch, lw=0.6))


def outline_of(shapes: AnyArray, to_pixels: Affine) -> Outline:
    """All rings of polygons as one path, through a transform."""
    from matplotlib.path import Path as Outline

    rings = shapely.get_rings(shapely.get_parts(shapely.force_2d(shapes)))
    xy, owner = shapely.get_coordinates(rings, return_index=True)
    codes = np.full(len(xy), Outline.LINETO, np.uint8)
    first = np.searchsorted(owner, np.arange(len(rings)))
    codes[first] = Outline.MOVETO
    codes[np.append(first[1:], len(xy))[: len(rings)] - 1] = Outline.CLOSEPOLY
    return Outline(np.stack(to_pixels * xy.T, axis=1), codes) if len(xy) else Outline(np.zeros((0, 2)))


def bar_of(frame: Grid, wanted_px: float, row: int) -> tuple[float, float]:
    """A round length in metres, and its length in pixels along a row of a grid, at most `wanted_px`."""
    middle = frame.crop(Window(min(max(row, 0), frame.height - 1), 0, 1, frame.width))
    across, _ = middle.pixel_size_m()
    digits = 10.0 ** math.floor(math.log10(wanted_px * across))
    metres = max(step * digits for step in STEPS if step * digits <= wanted_px * across)
    return metres, metres / across


def add_scale(axes: Axes, frame: Grid, width: float) -> None:
    """Draw a scale bar at the lower left; `width` is the width of the axes in pixels of the grid."""
    from matplotlib.patches import Rectangle

    margin = width / 60
    metres, length = bar_of(frame, width / 5, int(frame.height - margin))
    text = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    bottom, thick, rim = frame.height - margin, width / 220, width / 700
    casing = (margin - rim, bottom - thick - rim), length + 2 * rim, thick + 2 * rim  # dark ground hides the black half
    axes.add_patch(Rectangle(*casing, fc="white", ec="none"))
    for start, colour in ((0.0, "black"), (0.5, "white")):
        place = (margin + start * length, bottom - thick)
        axes.add_patch(Rectangle(place, length / 2, thick, fc=colour, ec="black", lw=1))
    _write(axes, margin + length / 2, bottom - thick - width / 200, text, va="bottom")


def north_of(frame: Grid) -> tuple[float, float] | None:
    """The direction of north from the centre of a grid, as columns and rows of a unit step; None if it is not known."""
    if frame.crs is None or frame.crs.geodetic_crs is None:
        return None
    to_degrees = pyproj.Transformer.from_crs(frame.crs, frame.crs.geodetic_crs, always_xy=True)
    geod = frame.crs.get_geod() or pyproj.Geod(ellps="WGS84")
    lon, lat = to_degrees.transform(*frame.center)
    lon, lat, _ = geod.fwd(lon, lat, 0, ON_EARTH_M)
    col, row = ~frame.transform * to_degrees.transform(lon, lat, direction="INVERSE")
    across, down = frame.pixel_size_m()
    east, south = (col - frame.width / 2) * across, (row - frame.height / 2) * down
    length = math.hypot(east, south)
    return (east / length, south / length) if length > 0 and math.isfinite(length) else None


def _add_north(axes: Axes, frame: Grid) -> None:
    from matplotlib import patheffects

    north = north_of(frame)
    if north is None:
        return
    casing = [patheffects.Stroke(linewidth=4.5, foreground="black", alpha=0.7), patheffects.Normal()]
    size = max(frame.width, frame.height) / 28
    x, y = frame.width - 2 * size, 2 * size
    tail, head = (x - north[0] * size, y - north[1] * size), (x + north[0] * size, y + north[1] * size)
    style = {"arrowstyle": "-|>", "color": "white", "lw": 2, "mutation_scale": 16, "path_effects": casing}
    axes.annotate("", head, tail, arrowprops=style)
    _write(axes, x - north[0] * 1.55 * size, y - north[1] * 1.55 * size, "N", va="center")


def _write(axes: Axes, x: float, y: float, text: str, *, va: str) -> None:
    from matplotlib import patheffects

    casing = [patheffects.Stroke(linewidth=2.6, foreground="black", alpha=0.75), patheffects.Normal()]
    axes.text(x, y, text, color="white", fontsize=10, weight="bold", ha="center", va=va, path_effects=casing)


def _add_legend(figure: Figure, lines: dict[Line, int], grounds: Sequence[Ground], columns: int) -> None:
    from matplotlib import patheffects
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    casing = [patheffects.Stroke(linewidth=3.4, foreground="black", alpha=0.7), patheffects.Normal()]
    handles: list[Artist] = []
    for line, count in lines.items():
        handle = Line2D([], [], color=line.rgb, label=f"{line.label} ({count})", linewidth=line.width + 0.6)
        handle.set(linestyle=DASHES if line.dashed else "solid", path_effects=casing)
        handles.append(handle)
    handles += [Patch(fc="0.35", ec=one.colour, hatch=one.hatch, lw=0.6, label=one.label) for one in grounds]
    if handles:
        figure.legend(handles=handles, loc="lower left", ncols=columns, fontsize=9, frameon=False, borderaxespad=0.3)
