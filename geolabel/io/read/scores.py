"""Masks and scores from any source, read as a mosaic."""

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
from geolabel.seams import Spans
from geolabel.tiles import Window
from geolabel.types import AnyArray, UInt8Array

logger = logging.getLogger(__name__)

SAMPLE_PX = 1 << 16
"""Pixels that are looked at to find out what a raster holds."""

MOST = 0.9
"""A mask has a smaller share of landslide than this."""

TOLERANCE = 1e-3
"""How far scores may leave 0..1 before the raster is taken for something else; resampling overshoots by less."""


class ScoreRaster:
    """One band of a raster, as a mosaic on its own grid. It opens when first read and travels as its arguments.

    Floating-point bands, and those with a scale such as geolabel's own, hold scores 0..1. Any other band is a mask or
    holds labels; what reaches the threshold is an object of score 1.

    Parameters
    ----------
    path
        Anything that GDAL opens.
    band
        One-based.
    threshold
        Minimum value, after the band's scale, of a landslide's pixels.
    value
        Of a band of labels: the one value that counts, if it reaches the threshold; None for every value that does.
    nodata
        Value of pixels that are not valid, instead of the file's own.
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
        """Where the raster lies."""
        return self.reader.scene.grid

    @cached_property
    def scored(self) -> bool:
        """Whether the band holds scores 0..1, which objects have a mean and a maximum of.

        Raises
        ------
        OptionError
            If so, and the threshold is outside that range.
        """
        _ = self.reader.scene  # the band is there
        factor, offset = self._scaling
        scored = self._dtype.startswith("float") or factor != 1 or offset != 0
        if scored and not 0 < self.threshold <= 1:
            raise OptionError(f"threshold {self.threshold:g}: {self.reader.header.name} holds scores, so give 0 to 1")
        return scored

    @property
    def level(self) -> int:
        """Minimum score, 1..254, of a landslide's pixels in what `scores` returns."""
        return max(1, math.ceil(self.threshold * FULL)) if self.scored else FULL

    def read(self, window: Window, spans: Spans) -> Layers:  # noqa: ARG002
        """The scores; a raster has nothing beside them."""
        return Layers(self.scores(window))

    def scores(self, window: Window) -> UInt8Array:
        """(H, W) 0..254, or `geolabel.masks.OUTSIDE`; exact on either side of the threshold.

        Raises
        ------
        SceneError
            If the raster cannot be read, or holds values that are neither labels nor scores.
        """
        bands, valid = self.reader.read(window, self.grid)
        values = bands[0]
        if not self.scored:
            if self._nodata == 0:  # many a mask calls its background nodata
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
                f"band {self.band} of {self.reader.header.name} holds {low if low < 0 else high:g}, and scores lie "
                "between 0 and 1: give a raster of scores, or a mask or labels as integers"
            )
        scores = np.rint(np.clip(probability, 0, 1) * FULL).astype(np.uint8)
        above = probability >= self.threshold  # rounding takes no pixel across
        return np.where(above, np.maximum(scores, self.level), np.minimum(scores, self.level - 1)).astype(np.uint8)

    @property
    def _own(self) -> bool:
        """Whether the band is as geolabel writes scores; taken as they are, they give the same polygons again."""
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
    """The classes of a raster by name: bands of scores with descriptions, or values that a band of labels names.

    Parameters
    ----------
    band
        The only one to read; None for all bands of scores of several classes that geolabel wrote, and of any other
        raster for those that `classes` describe, else for `_labelled_band`.
    classes
        Those that are wanted; none for all.
    threshold, nodata, gsd
        See `ScoreRaster`.

    Raises
    ------
    OptionError
        If one of the classes is not in the raster.
    SceneError
        If the raster cannot be read, or is a picture.
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
    """Band of a raster with its labels or scores, if none is given.

    Raises
    ------
    SceneError
        If the raster is a picture. One whose bands are all the same, as painting programs save masks, is none.
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
            f"{header.name} is a picture of {len(plain)} bands: polygonize takes a mask, labels or scores, and "
            "geolabel extract finds landslides in pictures; if one band holds labels, name it with --band"
        )
    band = scene.bands[0] if same else plain[0]
    if not same:
        logger.warning("%s has %d bands: band %d is used; choose with --band", header.name, len(plain), band)
    return band


def check_share(raster: ScoreRaster) -> None:
    """Say so if nearly all of a raster of integers is landslide, as when it is a grey image and no mask."""
    if raster.scored:
        return
    bands, valid = raster.reader.sample(SAMPLE_PX)
    values = bands[0][valid]
    share = float((values >= raster.threshold).mean()) if values.size else 0.0
    if share > MOST and len(np.unique(values)) > FEW_VALUES:
        logger.warning(
            "%.0f %% of %s reach the threshold %g: a grey image is no mask; give a raster of labels, or a --threshold",
            100 * share,
            raster.reader.header.name,
            raster.threshold,
        )
