"""Undeclared nodata: margins of black or white, -9999, and implausible numbers.

They are looked for in a sample of the scene. Values that cannot be measurements are left out; values that may be are
reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray

BEYOND = 1e18
"""No sensor measures as much: numbers from here on, such as -3.4e38, 9.97e36 and 1e20, fill what was not measured."""

LOWEST = -99.0
"""A constant from here down, alone below all other values, is a fill, such as -9999 or -32768."""

MARGIN_SHARE, FILL_SHARE = 0.01, 0.001
"""Minimum share of the sample that a margin, or a fill, takes."""

SPARSE = 0.01
"""Minimum share of valid pixels of a scene without a warning."""

FEW_VALUES = 16
"""One band of integers with no more different values looks like labels."""

MIXED = 0.5
"""An alpha band is neither clear nor opaque in a smaller share of the scene."""

POOL = 4
"""Pixels of the sample, along each axis, of one cell of a margin."""

WHITE = (1.0, 255.0, 65535.0)
"""Values of white, besides the highest of a type of integers."""


@dataclass(frozen=True)
class Margin:
    """A region along the border where all bands have one value. A pixel belongs to it if it lies there and has it."""

    value: float
    cells: BoolArray
    """(h, w) cells that cover the scene, with those beside the region."""

    def hidden(self, bands: AnyArray, window: Window, shape: tuple[int, int]) -> BoolArray:
        """(height, width) pixels of the margin in a window of the scene at one of its sizes.

        Parameters
        ----------
        bands : (3, height, width)
        shape
            Height and width of the whole scene at that size.
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
    """A value that no band measures, to be taken for nodata."""
    warnings: tuple[str, ...] = ()


def examine(bands: AnyArray, valid: BoolArray, *, single: bool, stated: bool = False) -> Findings:
    """Look for undeclared nodata.

    Parameters
    ----------
    bands : (3, h, w)
        The whole scene at a smaller size.
    valid : (h, w)
        Pixels that hold data as far as is declared.
    single
        Whether one band serves as all three.
    stated
        Whether the user said which value is nodata; nothing is then left out.
    """
    warnings = []
    far = np.asarray(beyond(bands).any(axis=0))
    if far.any():
        value = bands[:, far].reshape(-1)[np.argmax(np.abs(bands[:, far].astype(np.float64)))]
        warnings.append(
            f"values such as {value:g}, in {_share(far)} of the scene, are no measurement: taken for nodata"
        )
    fill = None if stated else _fill(bands, valid)
    if fill is not None:
        filled = np.asarray((bands == fill).any(axis=0)) & valid
        warnings.append(
            f"the value {fill:g}, in {_share(filled)} of the scene, is far from all others: taken for nodata, as "
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
            f"the band holds nothing but {shown}, as masks and labels do: geolabel polygonize makes polygons of these, "
            "and an image is wanted here"
        )
    return Findings(margins, fill, tuple(warnings))


def is_opacity(values: AnyArray) -> bool:
    """Whether values may say how opaque pixels are: all or nothing nearly everywhere, as no infrared band is."""
    top = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    between = (values > 0) & (values < top)
    return bool(between.mean() < MIXED or len(np.unique(values)) <= FEW_VALUES)


def beyond(bands: AnyArray) -> BoolArray:
    """Where values are finite and out of all reach."""
    if bands.dtype.kind != "f":
        return np.zeros(bands.shape, bool)
    return np.asarray(np.isfinite(bands) & (np.abs(bands) >= BEYOND))


def _fill(bands: AnyArray, valid: BoolArray) -> float | None:
    """A lowest value that all bands share in places and that nothing comes near."""
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
    """Regions along the border that are black or white throughout, beside others that are not."""
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
    """The connected parts, large enough for a margin, that touch the border."""
    labels, count = ndimage.label(same, np.ones((3, 3)))
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    touching = np.zeros(count + 1, bool)
    touching[border] = True
    touching &= np.bincount(labels.reshape(-1), minlength=count + 1) >= MARGIN_SHARE / 4 * same.size
    touching[0] = False
    return np.asarray(touching[labels])


def _cells(region: BoolArray) -> BoolArray:
    """A region in coarser cells, with those around it."""
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
