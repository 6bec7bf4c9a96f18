"""A picture of one place: the scene, the activation with the prompts, the masks, and the polygons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np

from geolabel.activation import LEVELS
from geolabel.masks import EDGE, FULL
from geolabel.prompts import PADDING, Prompts
from geolabel.scene import Grid
from geolabel.types import UInt8Array
from geolabel.viewing.preview import add_outlines, add_scale, lines_of, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = 4.6
"""Side of a panel, in inches."""

LETTERS = 100
"""Maximum characters of a line of the title."""


@dataclass(frozen=True)
class Place:
    """The surroundings of a place, all on one grid."""

    grid: Grid
    image: UInt8Array
    """(H, W, 3), RGB."""
    activation: UInt8Array | None
    """(H, W) 0..255; None for a method without a localizer."""
    threshold: int
    """Grey value that the activation has to exceed."""
    scores: UInt8Array
    """(H, W) 0..254"""
    prompts: Prompts
    """In pixels of the grid."""
    polygons: gpd.GeoDataFrame
    """See `geolabel.viewing.preview.write_preview`."""
    at: tuple[int, int]
    """Row and column of the place."""
    title: str


def write_place(path: Path, place: Place) -> None:
    """Draw a place and write the picture; the same input gives the same bytes.

    Parameters
    ----------
    path
        Ends with ``.png`` or ``.jpg``.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * PANEL_INCHES, 2 * PANEL_INCHES + 1), layout="constrained")
    figure.suptitle(fill(place.title, LETTERS), fontsize=11)
    (scene, activation), (masks, polygons) = figure.subplots(2, 2)
    for axes, name in (
        (scene, "scene"),
        (activation, f"activation, threshold {place.threshold}, and prompts"),
        (masks, "score of the masks"),
        (polygons, "polygons"),
    ):
        _add_scene(axes, place)
        axes.set_title(name, fontsize=10)
    add_scale(scene, place.grid, place.grid.width)
    _add_activation(activation, place)
    _add_scores(masks, place)
    add_outlines(polygons, place.grid, place.polygons, list(lines_of(place.polygons)))
    save_figure(figure, path)


def _add_scene(axes: Axes, place: Place) -> None:
    """The scene, with a ring around the place."""
    axes.set(xlim=(0, place.grid.width), ylim=(place.grid.height, 0), aspect="equal", xticks=(), yticks=())
    axes.imshow(place.image, extent=(0, place.grid.width, place.grid.height, 0))
    row, col = place.at
    for colour, width in (("black", 3.2), ("white", 1.6)):
        axes.plot(col + 0.5, row + 0.5, "o", ms=13, mfc="none", mec=colour, mew=width, zorder=9)


def _add_activation(axes: Axes, place: Place) -> None:
    """The activation over the scene, its contour at the threshold, and the boxes and points of the prompts."""
    from matplotlib.patches import Rectangle

    if place.activation is not None:
        _add_layer(axes, place, place.activation / LEVELS, place.threshold / LEVELS)
    for box, points, labels in zip(place.prompts.boxes, place.prompts.points, place.prompts.labels, strict=True):
        if not np.isnan(box).any():
            x0, y0, x1, y1 = box
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="cyan", lw=1.3))
        used = points[labels != PADDING]
        axes.plot(used[:, 0] + 0.5, used[:, 1] + 0.5, "+", color="cyan", ms=7, mew=1.4)


def _add_scores(axes: Axes, place: Place) -> None:
    _add_layer(axes, place, place.scores / FULL, EDGE / FULL)


def _add_layer(axes: Axes, place: Place, values: np.ndarray, level: float) -> None:
    """Values (H, W) 0..1 over the scene, more opaque where higher, and their contour at a level."""
    extent = (0, place.grid.width, place.grid.height, 0)
    axes.imshow(values, extent=extent, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(values * 0.9, 0, 0.75))
    if values.min() < level < values.max():
        axes.contour(
            np.arange(place.grid.width) + 0.5,
            np.arange(place.grid.height) + 0.5,
            values,
            [level],
            colors="white",
            linewidths=1,
        )
