"""Draw geometries on the pixels of a grid, window by window: the same pixels whichever window they are drawn in."""

from __future__ import annotations

import warnings

import numpy as np
import shapely
from affine import Affine
from rasterio import features
from rasterio.errors import NotGeoreferencedWarning

from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import AnyArray


def in_pixels(geometries: AnyArray, grid: Grid) -> AnyArray:
    """Geometries (N,) in pixels of the grid: a shift by whole pixels then moves every window's part exactly."""
    a, b, c, d, e, f = tuple(~grid.transform)[:6]
    return np.asarray(shapely.transform(geometries, lambda points: points @ [[a, d], [b, e]] + [c, f]))


def rasterize(tree: shapely.STRtree, values: AnyArray, window: Window) -> AnyArray:
    """(height, width) value of the polygon on each pixel whose middle it covers, later ones on top; 0 where none is.

    Parameters
    ----------
    tree
        Of N polygons in pixels, see `in_pixels`.
    values : (N,)
        Whole numbers, of the type of the result.
    """
    drawn = np.zeros((window.height, window.width), values.dtype)
    found = np.sort(tree.query(shapely.box(window.col, window.row, window.right, window.bottom)))
    if len(found):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pixel coordinates, on purpose
            place = Affine.translation(window.col, window.row)
            features.rasterize(zip(tree.geometries[found], values[found], strict=True), out=drawn, transform=place)
    return drawn
