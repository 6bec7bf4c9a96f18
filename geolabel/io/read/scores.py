"""Masks and scores from any raster, read as a mosaic."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from geolabel.errors import OptionError, SceneError
from geolabel.io.read.headers import product_of
from geolabel.io.read.label_rasters import named_values
from geolabel.io.read.scenes import SceneReader
from geolabel.labels import choose_classes
from geolabel.masks import FULL
from geolabel.mosaic import Layers, mark_outside
from geolabel.nodata import FEW_VALUES
from geolabel.scene import Grid
from geolabel.spans import Spans
from geolabel.tiles import Window
from geolabel.types import AnyArray, UInt8Array

logger = logging.getLogger(__name__)

SAMPLE_PX = 1 << 16
"""Maximum pixels examined to determine what a raster holds."""

MOST = 0.9
"""Maximum share of landslide in a mask; above it, a warning is logged."""

TOLERANCE = 1e-3
"""Tolerance for scores outside 0..1, which resampling causes."""


class ScoreRaster:
    """One band of a raster, as a mosaic on its own grid. Opened on first use and pickled by its arguments.

    Floating-point bands, and bands with a scale such as geolabel's, hold scores 0..1. Any other band is a mask or holds
    labels; pixels that reach the threshold form objects of score 1.

    Parameters
    ----------
    path
        Anything that GDAL opens.
    band
        One-based.
    threshold
        Minimum value of a landslide's pixels, after the band's scale.
    value
        For labels: the only value to use, if it reaches the threshold; None for every value that does.
    nodata
        Value of pixels that are not valid, overriding the file's.
    gsd
        Metres per pixel of a raster without CRS.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        band: int = 1,
        threshold: float = 0.5,
        value: int | None = None,
        nodata: float | None = None,
        gsd: float | None = None,
    ) -> None:
        self.reader = SceneReader(path, bands=(band,), nodata=nodata, gsd=gsd)
        self.band = band
        self.threshold = threshold
        self.value = value

    @property
    def grid(self) -> Grid:
        """Grid of the raster."""
        return self.reader.scene.grid

    @cached_property
    def scored(self) -> bool:
        """Whether the band holds scores 0..1, so that objects have a mean and a maximum score.

        Raises
        ------
        OptionError
            If it does, and the threshold is outside that range.
        """
        _ = self.reader.scene  # raises if the band is missing
        factor, offset = self._scaling
        scored = self._dtype.startswith("float") or factor != 1 or offset != 0
        if scored and not 0 < self.threshold <= 1:
            raise OptionError(f"threshold {self.threshold:g}: {self.reader.header.name} holds scores, so give 0 to 1")
        return scored

    @property
    def level(self) -> int:
        """Minimum score (1..254) of a landslide's pixels in what `scores` returns."""
        return max(1, math.ceil(self.threshold * FULL)) if self.scored else FULL

    def read(self, window: Window, spans: Spans) -> Layers:  # noqa: ARG002
        """The scores; a raster has no other layers."""
        return Layers(self.scores(window))

    def scores(self, window: Window) -> UInt8Array:
        """Scores (H, W), 0..254 or `geolabel.masks.OUTSIDE`; exact on either side of the threshold.

        Raises
        ------
        SceneError
            If the raster cannot be read, or holds values that are neither labels nor scores.
        """
        bands, valid = self.reader.read(window, self.grid)
        values = bands[0]
        if not self.scored:
            if self._nodata == 0:  # many masks declare their background as nodata
                valid = valid | (values == 0)
            found = values >= self.threshold
            if self.value is not None:
                found &= values == self.value
            scores = np.where(found, np.uint8(FULL), np.uint8(0))
        elif self._own:
            scores = values
        else:
            scores = self._quantise(np.where(valid, values, 0))
        return mark_outside(scores, valid)

    def _quantise(self, values: AnyArray) -> UInt8Array:
        factor, offset = self._scaling
        probability = values * factor + offset
        low, high = probability.min(initial=0), probability.max(initial=0)
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise SceneError(
                f"band {self.band} of {self.reader.header.name} holds {low if low < 0 else high:g}, but scores are "
                "between 0 and 1: give a raster of scores, or a mask or labels as integers"
            )
        scores = np.rint(np.clip(probability, 0, 1) * FULL).astype(np.uint8)
        above = probability >= self.threshold  # rounding must not move a pixel across the threshold
        return np.where(above, np.maximum(scores, self.level), np.minimum(scores, self.level - 1)).astype(np.uint8)

    @property
    def _own(self) -> bool:
        """Whether the band was written by geolabel; its scores are used unchanged, so polygons are reproduced."""
        factor, offset = self._scaling
        return self._dtype == "uint8" and factor == 1 / FULL and offset == 0

    @property
    def _dtype(self) -> str:
        return self.reader.header.dtypes[self.band - 1]

    @property
    def _scaling(self) -> tuple[float, float]:
        return self.reader.header.scaling[self.band - 1]

    @property
    def _nodata(self) -> float | None:
        return self.reader.header.nodata[self.band - 1] if self.reader.nodata is None else self.reader.nodata


def class_rasters(
    path: str | os.PathLike[str],
    *,
    band: int | None = None,
    classes: Sequence[str] = (),
    threshold: float = 0.5,
    nodata: float | None = None,
    gsd: float | None = None,
) -> dict[str, ScoreRaster]:
    """The classes of a raster by name: score bands with descriptions, or named values of a label band.

    Parameters
    ----------
    band
        The only band to read; None for all score bands of several classes written by geolabel, and otherwise for the
        band that `classes` describes, else for `_labelled_band`.
    classes
        Classes to read; none for all.
    threshold, nodata, gsd
        See `ScoreRaster`.

    Raises
    ------
    OptionError
        If one of the classes is not in the raster.
    SceneError
        If the raster cannot be read, or is an image.
    """

    def raster(number: int, value: int | None = None) -> ScoreRaster:
        return ScoreRaster(path, band=number, threshold=threshold, value=value, nodata=nodata, gsd=gsd)

    with SceneReader(path, nodata=nodata, gsd=gsd) as reader:
        header = reader.header
    described = {name: number for number, name in enumerate(header.descriptions, 1) if name}
    own = product_of(header) == "score" and len(described) > 1
    if band is None and (own or any(name in described for name in classes)):
        return {name: raster(described[name]) for name in choose_classes(list(described), classes, header.name)}
    band = _labelled_band(path, nodata=nodata, gsd=gsd) if band is None else band
    named = {name: value for value, name in named_values(os.fspath(path), band).items() if value >= threshold}
    if len(named) > 1:
        return {name: raster(band, named[name]) for name in choose_classes(list(named), classes, header.name)}
    alone = next((name for name, number in described.items() if own and number == band), "landslide")
    return {name: raster(band) for name in choose_classes([alone], classes, header.name)}


def _labelled_band(path: str | os.PathLike[str], *, nodata: float | None = None, gsd: float | None = None) -> int:
    """Default band of a raster with its labels or scores.

    Raises
    ------
    SceneError
        If the raster is an image. Identical bands, as painting programs save masks, are not an image.
    """
    with SceneReader(path, nodata=nodata, gsd=gsd) as reader:
        header, scene = reader.header, reader.scene
        plain = [band for band in range(1, header.count + 1) if band not in header.alpha]
        if len(plain) == 1:
            return plain[0]
        bands, valid = reader.sample(SAMPLE_PX)
    same = (bands == bands[:1]).all()
    various = bands.dtype.kind in "iu" and len(np.unique(bands[:, valid])) > FEW_VALUES
    if len(plain) > 2 and various and not same:
        raise SceneError(
            f"{header.name} is an image of {len(plain)} bands: polygonize takes a mask, labels or scores, and "
            "geolabel extract detects landslides in images; if one band holds labels, name it with --band"
        )
    band = scene.bands[0] if same else plain[0]
    if not same:
        logger.warning("%s has %d bands: band %d is used; choose with --band", header.name, len(plain), band)
    return band


def check_share(raster: ScoreRaster) -> None:
    """Warn if nearly all of an integer raster is landslide, as when it is a grey image instead of a mask."""
    if raster.scored:
        return
    bands, valid = raster.reader.sample(SAMPLE_PX)
    values = bands[0][valid]
    share = float((values >= raster.threshold).mean()) if values.size else 0.0
    if share > MOST and len(np.unique(values)) > FEW_VALUES:
        logger.warning(
            "%.0f %% of %s reach the threshold %g: a grey image is not a mask; give labels or a --threshold",
            100 * share,
            raster.reader.header.name,
            raster.threshold,
        )
