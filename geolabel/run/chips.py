"""Cut chips from a scene: images at the scene's own gsd, what an inventory says of each as a whole, and their masks."""

from __future__ import annotations

import csv
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import shapely
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from geolabel.datasets.chips import DESCRIPTION, TABLE
from geolabel.errors import ChipError, OptionError, OutputError
from geolabel.io.features import read_features
from geolabel.io.geotiffs import write_geotiff
from geolabel.io.opening import reading
from geolabel.io.scenes import SceneReader
from geolabel.labels import IGNORE
from geolabel.radiometry import Stretch
from geolabel.run.report import Progress, Silent
from geolabel.run.request import Reading
from geolabel.scene import Grid
from geolabel.tiles import TileGrid, Window, window_around
from geolabel.types import AnyArray, UInt8Array

RASTERS = (".tif", ".tiff", ".vrt", ".img", ".png")

LEAST = 0.01
"""Share of a chip that a class must cover to label it; what lies between none and this says nothing clear."""

VALID = 0.5
"""Share of a chip that has to be valid."""

LABEL_COLUMNS = ("label", "class")
"""Attributes that may say what a point or a polygon is."""


@dataclass(frozen=True)
class Cut:
    """A folder of chips, as it was written."""

    folder: Path
    classes: tuple[str, ...]
    chips: int
    unclear: int
    """Windows left out since a class covers less than `LEAST` of them, but something."""
    shown: tuple[int, ...]
    """How many chips show each class."""


class _Truth(Protocol):
    """What is known of a scene: the windows to cut, and what each shows."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, tuple[bool, ...] | None]]:
        """Windows, and their labels where these do not follow from the mask."""
        ...

    def mask(self, window: Window) -> UInt8Array | None:
        """(H, W) numbers of classes; None where nothing is known of single pixels."""
        ...


def cut_chips(
    scene: str | Path,
    inventory: str | Path,
    out: str | Path,
    *,
    reading: Reading | None = None,
    size: int = 256,
    overlap: int | None = None,
    layer: str | None = None,
    class_column: str | None = None,
    class_name: str = "landslide",
    classes: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Cut:
    """Cut a scene into chips and label each as a whole.

    The chips are GeoTIFFs of 8 bits, stretched once for the whole scene, at its own gsd or the working gsd asked for.
    Objects lie in them wherever the grid of windows happens to cut, not in their middle.

    Parameters
    ----------
    inventory
        Polygons or points of a vector file, or a raster whose values are numbers of classes. Polygons and rasters label
        every window, and become masks; the ground outside is taken to show nothing. A point labels one chip around it:
        its column ``label`` says 1 or 0, or what class it is.
    out
        Folder to make.
    size, overlap
        Pixels a side, and pixels that neighbouring chips share: by default a quarter of the side.
    layer, class_column
        Of the vector file; the column is `LABEL_COLUMNS` by default, if there is one.
    class_name
        Of features without a class, and of the value 1 of a raster that does not name its values.
    classes
        Only these, of those that the inventory has; all by default.
    overwrite
        Whether a folder that was cut before may be replaced; any other never is.

    Raises
    ------
    OptionError
        If the size or the overlap cannot work.
    ChipError
        If the inventory meets no part of the scene.
    OutputError
        If the folder exists or cannot be written.
    """
    reading, out = reading or Reading(), Path(out)
    overlap = size // 4 if overlap is None else overlap
    if size < 32 or not 0 <= overlap < size:
        raise OptionError(f"chips of {size} px that share {overlap} px: give at least 32 px, and share less than that")
    reader = SceneReader(str(scene), bands=reading.bands, nodata=reading.nodata, gsd=reading.gsd)
    grid = reader.scene.grid if reading.working_gsd is None else reader.scene.grid.at_gsd(reading.working_gsd)
    truth = _read_truth(Path(inventory), grid, layer, class_column, class_name, classes)
    stretch = Stretch.from_sample(*reader.sample(), reading.stretch)
    replaced = overwrite and (out / DESCRIPTION).is_file()
    if out.exists() and not replaced:
        raise OutputError(f"{out} exists: give another name, or --overwrite where it is a folder of chips")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        (part / "images").mkdir(parents=True)
        (part / "masks").mkdir()
        rows, unclear = [], 0
        windows = list(truth.windows(size, overlap))
        for window, labels in (progress or Silent()).track(windows, "chips", len(windows)):
            found = _cut(reader, grid, stretch, truth, window, labels)
            if found is None:
                continue
            rgb, mask, shows = found
            if shows is None:
                unclear += 1
                continue
            name = f"{Path(str(scene)).stem}_{window.row:06d}_{window.col:06d}"
            write_geotiff(part / "images" / f"{name}.tif", rgb, grid.crop(window), description=f"chip of {scene}")
            if mask is not None:
                Image.fromarray(mask).save(part / "masks" / f"{name}.png")
            rows.append((f"images/{name}.tif", shows))
        if not rows:
            raise ChipError(
                f"no window of {size} px of {scene} is both valid and clear in {inventory}: give smaller chips"
            )
        _describe(part, rows, truth.classes, grid, {"scene": str(scene), "inventory": str(inventory)})
        if replaced:
            shutil.rmtree(out)
        part.replace(out)
    except OSError as error:
        raise OutputError(f"{out} could not be written: {error}; is the disk full?") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        reader.close()
    shown = tuple(int(n) for n in np.sum([shows for _, shows in rows], axis=0))
    return Cut(out, truth.classes, len(rows), unclear, shown)


def _cut(
    reader: SceneReader, grid: Grid, stretch: Stretch, truth: _Truth, window: Window, labels: tuple[bool, ...] | None
) -> tuple[UInt8Array, UInt8Array | None, tuple[bool, ...] | None] | None:
    """Image, mask and labels of a window; no labels where it is unclear what it shows, None where it is not valid."""
    bands, valid = reader.read(window, grid)
    if valid.mean() < VALID:
        return None
    mask = truth.mask(window)
    if mask is not None:
        mask[~valid] = IGNORE
        shares = [float((mask[valid] == number).mean()) for number in range(1, len(truth.classes) + 1)]
        clear = all(share == 0 or share >= LEAST for share in shares)
        labels = tuple(share > 0 for share in shares) if clear else None
    return stretch.apply(bands, valid), mask, labels


def _describe(
    folder: Path, rows: list[tuple[str, tuple[bool, ...]]], classes: tuple[str, ...], grid: Grid, source: dict[str, str]
) -> None:
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *(["label"] if len(classes) == 1 else classes)])
        writer.writerows([image, *map(int, shows)] for image, shows in rows)
    facts = {"format": 1, "classes": classes, "gsd_m": round(grid.gsd, 6), **source}
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


# --- what is known of the scene --------------------------------------------------------------------------------------


def _read_truth(
    path: Path, grid: Grid, layer: str | None, column: str | None, class_name: str, only: Sequence[str]
) -> _Truth:
    if path.suffix.lower() in RASTERS:
        return _Raster.open(path, grid, class_name, only)
    features = read_features(path, grid.crs, layer)
    if column is not None and column not in features:
        raise OptionError(f"{path} has no column {column!r}: it has {', '.join(map(str, features.columns))}")
    column = column or next((name for name in LABEL_COLUMNS if name in features), None)
    labels = [class_name] * len(features) if column is None else [_label(v, class_name) for v in features[column]]
    if only:
        labels = [label if label in only else "" for label in labels]
    classes = tuple(sorted({label for label in labels if label}))
    if not classes:
        raise ChipError(f"{path} holds no {' or '.join(only) or class_name}: an inventory needs one at least")
    a, b, c, d, e, f = tuple(~grid.transform)[:6]
    shapes = np.asarray(shapely.transform(features.geometry.to_numpy(), lambda p: p @ [[a, d], [b, e]] + [c, f]))
    numbers = np.array([classes.index(label) + 1 if label else 0 for label in labels])
    kinds = {kind.removeprefix("Multi") for kind in features.geometry.geom_type}
    if kinds == {"Point"}:
        return _Points(classes, grid, shapely.get_parts(shapes), numbers)
    if kinds != {"Polygon"}:
        raise ChipError(f"{path} holds {', '.join(sorted(kinds))}: give polygons, points, or a raster of classes")
    return _Polygons(classes, grid, shapes, numbers)


def _label(value: object, class_name: str) -> str:
    """Class of a feature; empty for none."""
    text = str(value).strip()
    if text.lower() in ("", "0", "0.0", "none", "nan", "background", "false"):
        return ""
    return class_name if text.lower() in ("1", "1.0", "true") else text


@dataclass(frozen=True)
class _Polygons:
    classes: tuple[str, ...]
    grid: Grid
    shapes: AnyArray
    """In pixels of the grid."""
    numbers: AnyArray

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, None]]:
        return _grid_windows(self.grid, size, overlap)

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.shapes)

    def mask(self, window: Window) -> UInt8Array:
        mask = np.zeros((window.height, window.width), np.uint8)
        near = np.sort(self._tree.query(shapely.box(window.col, window.row, window.right, window.bottom)))
        if len(near):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pixel coordinates, on purpose
                place = Affine.translation(window.col, window.row)
                rasterize(zip(self.shapes[near], self.numbers[near], strict=True), out=mask, transform=place)
        return mask


@dataclass(frozen=True)
class _Points:
    classes: tuple[str, ...]
    grid: Grid
    points: AnyArray
    """In pixels of the grid."""
    numbers: AnyArray

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, tuple[bool, ...]]]:  # noqa: ARG002
        seen: dict[Window, set[int]] = {}
        for point, number in zip(self.points, self.numbers, strict=True):
            if 0 <= point.y < self.grid.height and 0 <= point.x < self.grid.width:
                window = window_around(point.y, point.x, size, self.grid.height, self.grid.width)
                seen.setdefault(window, set()).add(int(number))
        for window, numbers in sorted(seen.items()):
            yield window, tuple(k in numbers for k in range(1, len(self.classes) + 1))

    def mask(self, window: Window) -> None:  # noqa: ARG002
        return None


@dataclass(frozen=True)
class _Raster:
    classes: tuple[str, ...]
    grid: Grid
    path: Path
    values: tuple[int, ...]
    """Value of each class; `IGNORE` is not known, all else background."""

    @classmethod
    def open(cls, path: Path, grid: Grid, class_name: str, only: Sequence[str]) -> _Raster:
        try:
            with reading(str(path)) as dataset:
                tags = dataset.tags(1)
                found = {
                    int(v) for _, block in dataset.block_windows(1) for v in np.unique(dataset.read(1, window=block))
                }
        except RasterioError as error:
            raise ChipError(f"{path} cannot be read: {error}") from error
        found -= {0, IGNORE}
        names = {int(key[6:]): name for key, name in tags.items() if re.fullmatch(r"class_\d+", key)}
        names = names or ({1: class_name} if found == {1} else {k: f"class_{k}" for k in found})
        wanted = {name: value for value, name in sorted(names.items()) if (name in only if only else value)}
        if not wanted:
            raise ChipError(f"{path} holds {', '.join(names.values()) or 'nothing but 0'}: no class to label chips by")
        return cls(tuple(wanted), grid, path, tuple(wanted.values()))

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, None]]:
        return _grid_windows(self.grid, size, overlap)

    def mask(self, window: Window) -> UInt8Array:
        place = RasterWindow(window.col, window.row, window.width, window.height)
        with reading(str(self.path)) as dataset:
            same = (dataset.height, dataset.width) == (self.grid.height, self.grid.width)
            if same and dataset.transform.almost_equals(self.grid.transform):
                values = dataset.read(1, window=place)
            else:
                crs = None if self.grid.crs is None else CRS.from_wkt(self.grid.crs.to_wkt())
                size = {"height": self.grid.height, "width": self.grid.width, "transform": self.grid.transform}
                with WarpedVRT(dataset, crs=crs, resampling=Resampling.nearest, nodata=IGNORE, **size) as warped:
                    values = warped.read(1, window=place)
        table = np.zeros(256, np.uint8)
        table[list(self.values)] = np.arange(1, len(self.values) + 1)
        table[IGNORE] = IGNORE
        mask: UInt8Array = table[values.astype(np.uint8)]
        return mask


def _grid_windows(grid: Grid, size: int, overlap: int) -> Iterator[tuple[Window, None]]:
    tiles = TileGrid(grid.height, grid.width, size, overlap)
    return ((tiles[k], None) for k in range(len(tiles)))
