"""Chips as datasets of torchgeo, for its samplers, intersections and trainers; needs torchgeo.

A sampler of torchgeo cuts windows of any size from a `GeoChips`, and ``chips & other`` combines them with elevation or
images of other dates. `geolabel.training.train.train` and the labels of `geolabel.methods` take one as they take the
chips or label maps that it is made of: by number.

Trainings here do not sample by place, for two reasons. A stopped training resumes with the same bytes, so the crops of
a step follow from its number alone, while a sampler of torchgeo is an iterator with its own state. And chips need no
georeference: most sets are plain images, and a training machine may lack a raster library, so that torchgeo, which
imports seven of them, stays an extra.

Chips themselves are not cut by torchgeo's samplers. `geolabel.labeling.cut_chips` takes whole pixels of the scene's own
grid, even if it is rotated or has no CRS, knows which of them are valid, stretches them once for the whole scene,
and reads untrusted files under the checks of `geolabel.io.read.opening`; a raster dataset of torchgeo warps to a
north-up grid in a CRS, does not distinguish nodata from ground, and opens any file it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import torch
from affine import Affine
from torchgeo.datasets import GeoDataset

from geolabel.chips import Chip
from geolabel.datasets.chips import ChipDataset, PaintedChips
from geolabel.datasets.examples import PaintedExamples, PaintedSubset
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.errors import ChipError, SceneError
from geolabel.io.read.scenes import SceneReader
from geolabel.labels import IGNORE
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import BoolArray, UInt8Array


class GeoChips(GeoDataset):
    """Georeferenced chips, by place.

    Parameters
    ----------
    chips
        See `geolabel.datasets.chips.read_chips`; GeoTIFFs of one CRS and pixel size, north up.
    painted
        Label maps of images of the same names, such as the pseudo-labels of these chips, which then serve as masks;
        None for the chips' own masks.
    transforms
        Applied to every sample of a place, as in torchgeo. Trainings change the colours of crops themselves and
        refuse a set with transforms.

    Raises
    ------
    ChipError
        If a chip has no CRS, is rotated, has another CRS or pixel size than the first, or no label map.

    Examples
    --------
    >>> from torchgeo.samplers import RandomGeoSampler
    >>> chips = GeoChips(read_chips("chips/"))  # doctest: +SKIP
    >>> sampler = RandomGeoSampler(chips, size=128)  # doctest: +SKIP
    >>> train(chips, "trained/", LocalizerRequest())  # doctest: +SKIP
    """

    def __init__(
        self,
        chips: ChipDataset,
        painted: PseudoLabels | PaintedChips | None = None,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        paths = [str(path) for path in chips.paths]
        self.paths = paths
        self.transforms = transforms
        self._chips, self._given = chips, painted
        self._number = {} if painted is None else {name: k for k, name in enumerate(painted.names)}
        missing = [name for name in chips.names if painted is not None and name not in self._number]
        if missing:
            raise ChipError(
                f"{len(missing)} of {len(chips)} chips have no label map, such as {missing[0]}: label them with "
                "geolabel label, or leave them out"
            )
        self._grids = [_grid(path) for path in paths]
        first = self._grids[0]
        self._res = (first.transform.a, -first.transform.e)
        others = [path for path, grid in zip(paths, self._grids, strict=True) if not _alike(grid, first)]
        if others:
            raise ChipError(f"{others[0]} has another CRS or pixel size than {paths[0]}: make one set of each")
        always = pd.IntervalIndex.from_arrays(
            [pd.Timestamp.min] * len(chips), [pd.Timestamp.max] * len(chips), closed="both", name="datetime"
        )
        boxes = [grid.outline for grid in self._grids]
        self.index = gpd.GeoDataFrame({"filepath": paths}, index=always, geometry=boxes, crs=first.crs)

    def __getitem__(self, query: Any) -> dict[str, Any]:
        """Sample of a rectangle: ``image`` (3, H, W) float 0..255, ``label`` (C,) float, ``mask`` (H, W) long.

        Where chips overlap, the first one is used; where there is none, the image is 0 and the mask 255. A class is in
        the label if a chip that intersects the rectangle shows it. The sample has no mask if no chip has one.

        Raises
        ------
        IndexError
            If no chip reaches there.
        ChipError
            If a chip cannot be read, or these chips were reprojected, as happens to the second of an intersection.
        """
        x, y, _ = self._disambiguate_slice(query)
        if self.crs != self._grids[0].crs:
            raise ChipError(f"chips stay in their CRS, {self._grids[0].crs}: write chips & other, not other & chips")
        frame = Affine(self._res[0], 0, x.start, 0, -self._res[1], y.stop)
        height, width = round((y.stop - y.start) / self._res[1]), round((x.stop - x.start) / self._res[0])
        image, mask = np.zeros((height, width, 3), np.uint8), np.full((height, width), IGNORE, np.uint8)
        near = np.sort(self.index.sindex.query(shapely.box(x.start, y.start, x.stop, y.stop)))
        reach = [(int(k), _place(self._grids[k], frame)) for k in near]
        query_window = Window(0, 0, height, width)
        hits = [(k, place) for k, place in reach if query_window.intersection(place) is not None]
        if not hits:
            raise IndexError(f"no chip reaches into {query}: the chips are in {self.bounds}")
        masks = []
        for k, place in reversed(hits):
            shared = query_window.shared(place)
            rgb, values = self._read(k)
            image[shared.slices] = rgb[shared.within(place)]
            if values is not None:
                mask[shared.slices] = values[shared.within(place)]
                masks.append(k)
        sample: dict[str, Any] = {
            "crs": self.crs,
            "bounds": query,
            "image": torch.from_numpy(image).permute(2, 0, 1).float(),
            "label": torch.from_numpy(self._chips.labels[[k for k, _ in hits]].any(axis=0)).float(),
        }
        if masks:
            sample["mask"] = torch.from_numpy(mask).long()
        return sample if self.transforms is None else self.transforms(sample)

    def _read(self, index: int) -> tuple[Any, Any]:
        if self._given is None:
            chip = self._chips.chip(index)
            return chip.rgb, chip.mask
        return self._chips.rgb(index), self._given[self._number[self._chips.names[index]]].values

    # --- by number: what trainings and labels ask for ----------------------------------------------------------------

    @property
    def by_number(self) -> ChipDataset:
        """The chips without their places."""
        return self._chips

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self._chips.classes

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every chip."""
        return self._chips.names

    @property
    def labels(self) -> BoolArray:
        """(N, C) which chip shows which class."""
        return self._chips.labels

    @property
    def sources(self) -> Sequence[Path]:
        """The folders of the chips, which must not be an output."""
        return self._chips.sources

    @property
    def gsd(self) -> float | None:
        """Metres per pixel."""
        return self._chips.gsd

    @property
    def painted(self) -> PaintedExamples:
        """The chips with label maps: those given, or the chips' own masks."""
        if self._given is None:
            return PaintedChips(self._chips)
        if tuple(self._given.names) == self.names:
            return self._given
        return PaintedSubset(self._given, np.asarray([self._number[name] for name in self.names], np.int64))

    def chip(self, index: int) -> Chip:
        """Read one chip."""
        return self._chips.chip(index)

    def rgb(self, index: int) -> UInt8Array:
        """Read the image (H, W, 3) of one chip, without its mask."""
        return self._chips.rgb(index)


def _grid(path: str) -> Grid:
    try:
        with SceneReader(path) as reader:
            grid = reader.scene.grid
    except SceneError as error:
        raise ChipError(f"{path} is not georeferenced ({error}): give chips that are GeoTIFFs") from error
    t = grid.transform
    if grid.crs is None or t.b or t.d or t.a < 0 or t.e > 0:
        raise ChipError(f"{path} is rotated or has no CRS: torchgeo takes rasters that are north up")
    return grid


def _alike(grid: Grid, other: Grid) -> bool:
    ours, theirs = ((one.transform.a, one.transform.e) for one in (grid, other))
    return grid.crs == other.crs and bool(np.allclose(ours, theirs, rtol=1e-6, atol=0))


def _place(grid: Grid, frame: Affine) -> Window:
    """Window of a grid in a frame of the same pixel size, in whole pixels."""
    col, row = ~frame * (grid.transform * (0, 0))
    return Window(round(row), round(col), grid.height, grid.width)
