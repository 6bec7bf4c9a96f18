"""Undeclared nodata: margins of black or white, -9999, and implausible numbers.

They are searched for in a sample of the scene. Values that cannot be measurements are excluded; values that could be
are reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray

BEYOND = 1e18
"""Larger numbers are fill values, not measurements, such as -3.4e38, 9.97e36 and 1e20."""

LOWEST = -99.0
"""A constant this low, far below all other values, is a fill value, such as -9999 or -32768."""

MARGIN_SHARE, FILL_SHARE = 0.01, 0.001
"""Minimum share of the sample for a margin or a fill value."""

SPARSE = 0.01
"""Minimum share of valid pixels; below it, a warning is given."""

FEW_VALUES = 16
"""A single integer band with at most this many distinct values looks like labels."""

MIXED = 0.5
"""Maximum share of an alpha band that is neither transparent nor opaque."""

POOL = 4
"""Side in sample pixels of one cell of a margin."""

WHITE = (1.0, 255.0, 65535.0)
"""White values, besides the maximum of an integer type."""


@dataclass(frozen=True)
class Margin:
    """A region along the border where all bands have one value. A pixel is in it by position and value."""

    value: float
    cells: BoolArray
    """(h, w) cells that cover the scene: the region and its neighbours."""

    def hidden(self, bands: AnyArray, window: Window, shape: tuple[int, int]) -> BoolArray:
        """(height, width) pixels of the margin in a window of the scene at some resolution.

        Parameters
        ----------
        bands : (3, height, width)
        shape
            Height and width of the whole scene at that resolution.
        """
        height, width = self.cells.shape
        rows = (window.row + np.arange(window.height)) * height // shape[0]
        cols = (window.col + np.arange(window.width)) * width // shape[1]
        inside: BoolArray = self.cells[np.ix_(rows, cols)] & (bands == self.value).all(axis=0)
        return inside


@dataclass(frozen=True)
class Findings:
    """Undeclared nodata found in a sample."""

    margins: tuple[Margin, ...] = ()
    fill: float | None = None
    """A fill value in any band, to be treated as nodata."""
    warnings: tuple[str, ...] = ()


def examine(bands: AnyArray, valid: BoolArray, *, single: bool, stated: bool = False) -> Findings:
    """Search for undeclared nodata.

    Parameters
    ----------
    bands : (3, h, w)
        The whole scene at a smaller size.
    valid : (h, w)
        Pixels that hold data according to the file.
    single
        Whether one band is used as all three.
    stated
        Whether the user gave the nodata value; then nothing is excluded.
    """
    warnings = []
    far = np.asarray(beyond(bands).any(axis=0))
    if far.any():
        value = bands[:, far].reshape(-1)[np.argmax(np.abs(bands[:, far].astype(np.float64)))]
        warnings.append(
            f"values such as {value:g}, in {_share(far)} of the scene, cannot be measurements: treated as nodata"
        )
    fill = None if stated else _fill(bands, valid)
    if fill is not None:
        filled = np.asarray((bands == fill).any(axis=0)) & valid
        warnings.append(
            f"the value {fill:g}, in {_share(filled)} of the scene, is far from all others: treated as nodata, as "
            f"with --nodata {fill:g}"
        )
        valid = valid & ~filled
    margins = () if stated else _margins(bands, valid)
    for margin in margins:
        hidden = margin.hidden(bands, Window(0, 0, *valid.shape), valid.shape) & valid
        warnings.append(
            f"a margin of {margin.value:g} in all bands, {_share(hidden)} of the scene, is left out; if it is ground, "
            "give a --nodata that the scene does not hold, such as -1"
        )
        valid = valid & ~hidden
    if not stated and not margins:
        warnings += _doubtful(bands, valid)
    if valid.any() and valid.mean() < SPARSE:
        warnings.append(f"only {_share(valid)} of the scene holds data")
    if single and bands.dtype.kind in "iu" and 0 < len(values := np.unique(bands[0][valid])) <= FEW_VALUES:
        shown = ", ".join([*map(str, values[:4].tolist()), *(["..."] if len(values) > 4 else [])])
        warnings.append(
            f"the band holds nothing but {shown}, like masks and labels: polygonize turns these into polygons; "
            "an image is needed here"
        )
    return Findings(margins, fill, tuple(warnings))


def is_opacity(values: AnyArray) -> bool:
    """Whether values may be opacity: all or nothing nearly everywhere, unlike infrared."""
    top = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    between = (values > 0) & (values < top)
    return bool(between.mean() < MIXED or len(np.unique(values)) <= FEW_VALUES)


def beyond(bands: AnyArray) -> BoolArray:
    """Where values are finite but implausibly large."""
    if bands.dtype.kind != "f":
        return np.zeros(bands.shape, bool)
    return np.asarray(np.isfinite(bands) & (np.abs(bands) >= BEYOND))


def _fill(bands: AnyArray, valid: BoolArray) -> float | None:
    """A lowest value that all bands share, far below all others."""
    values = bands[:, valid]
    if not values.size or values.min() > LOWEST:
        return None
    lowest = values.min()
    rest = values[values > lowest]
    everywhere = (values == lowest).all(axis=0).mean()
    if everywhere < FILL_SHARE or not rest.size or float(rest.min()) <= float(lowest) / 10:
        return None
    return float(lowest)


def _margins(bands: AnyArray, valid: BoolArray) -> tuple[Margin, ...]:
    """Regions along the border that are uniformly black or white, beside others that are not."""
    top = float(np.iinfo(bands.dtype).max) if bands.dtype.kind in "iu" else np.inf
    highest = float(bands[:, valid].max(initial=0))
    white = [value for value in {*WHITE, top} if value == highest]
    found = []
    for value in (0.0, *white):
        same = (bands == value).all(axis=0) & valid
        region = _along_border(same)
        if region.mean() >= MARGIN_SHARE and (valid & ~same).mean() >= MARGIN_SHARE:
            found.append(Margin(value, _cells(region)))
    return tuple(found)


def _along_border(same: BoolArray) -> BoolArray:
    """The connected parts that touch the border and are large enough for a margin."""
    labels, count = ndimage.label(same, np.ones((3, 3)))
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    touching = np.zeros(count + 1, bool)
    touching[border] = True
    touching &= np.bincount(labels.reshape(-1), minlength=count + 1) >= MARGIN_SHARE / 4 * same.size
    touching[0] = False
    return np.asarray(touching[labels])


def _cells(region: BoolArray) -> BoolArray:
    """A region in coarser cells, with its neighbours."""
    height, width = (-(-size // POOL) for size in region.shape)
    rows, cols = (np.arange(size) * cells // size for size, cells in zip(region.shape, (height, width), strict=True))
    cells = np.zeros((height, width), bool)
    at = np.nonzero(region)
    cells[rows[at[0]], cols[at[1]]] = True
    return np.asarray(ndimage.binary_dilation(cells, np.ones((3, 3))))


def _doubtful(bands: AnyArray, valid: BoolArray) -> list[str]:
    """The maximum of 16 bits, if far above all other values: a fill value, or saturation."""
    top = {"u2": 65535, "i2": 32767}.get(bands.dtype.str[1:])
    if top is None or not valid.any():
        return []
    same = (bands == top).all(axis=0) & valid
    rest = bands[:, valid & ~same]
    if same.mean() < FILL_SHARE or not rest.size or rest.max() > 0.8 * top:
        return []
    return [f"the value {top}, in {_share(same)} of the scene, may be nodata: give --nodata {top} if it is"]


def _share(pixels: BoolArray) -> str:
    return f"{100 * pixels.mean():.2g} %"
