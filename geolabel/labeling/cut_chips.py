"""Cut chips from a scene: images at the scene's own gsd, what an inventory says of each as a whole, and their masks."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from geolabel.datasets.chips import DESCRIPTION, TABLE
from geolabel.engine.progress import Progress, Silent
from geolabel.errors import ChipError, OptionError
from geolabel.extraction.request import Reading
from geolabel.folders import replacing_folder
from geolabel.io.read.scenes import SceneReader
from geolabel.io.write.rasters import write_geotiff
from geolabel.labeling.reference_labels import Truth, read_truth
from geolabel.labels import IGNORE
from geolabel.radiometry import Stretch
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import UInt8Array

LEAST = 0.01
"""Share of a chip that a class must cover to label it; what lies between none and this says nothing clear."""

VALID = 0.5
"""Share of a chip that has to be valid, and judged."""


@dataclass(frozen=True)
class Cut:
    """A folder of chips, as it was written."""

    folder: Path
    classes: tuple[str, ...]
    chips: int
    unclear: int
    """Windows left out since a class covers less than `LEAST` of them, but something, or may do so."""
    shown: tuple[int, ...]
    """How many chips show each class."""


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
        See `geolabel.labeling.reference_labels.read_truth`. Polygons and rasters label every window, and become masks;
        the ground
        outside polygons is taken to show nothing, that outside a raster is not judged. A point labels one chip around
        it: its column ``label`` says 1 or 0, or what class it is.
    out
        Folder to make.
    size, overlap
        Pixels a side, and pixels that neighbouring chips share: by default a quarter of the side.
    layer, class_column, class_name, classes
        See `geolabel.labeling.reference_labels.read_truth`.
    overwrite
        Whether chips that were cut before may be replaced. What geolabel did not make in the folder stays.

    Raises
    ------
    OptionError
        If the size or the overlap cannot work.
    ChipError
        If the inventory meets no part of the scene.
    OutputError
        If the folder holds other things or may not be replaced, is an input, or cannot be written.
    """
    reading, out = reading or Reading(), Path(out)
    overlap = size // 4 if overlap is None else overlap
    if size < 32 or not 0 <= overlap < size:
        raise OptionError(f"chips of {size} px that share {overlap} px: give at least 32 px, and share less than that")
    reader = SceneReader(str(scene), bands=reading.bands, nodata=reading.nodata, gsd=reading.gsd)
    with reader, replacing_folder(out, overwrite=overwrite, inputs=(scene, inventory)) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        grid = reader.scene.grid if reading.working_gsd is None else reader.scene.grid.at_gsd(reading.working_gsd)
        truth = read_truth(
            Path(inventory),
            grid,
            layer=layer,
            class_column=class_column,
            class_name=class_name,
            classes=classes,
            scene=reader.scene.grid,
        )
        knife = _Knife(reader, grid, Stretch.from_sample(*reader.sample(), reading.stretch), truth)
        windows = list(truth.windows(size, overlap))
        rows, unclear = [], 0
        for window, labels in (progress or Silent()).track(windows, "chips", len(windows)):
            chip = knife.cut(window, labels)
            if chip is None:
                continue
            if chip.shows is None:
                unclear += 1
                continue
            name = f"{Path(str(scene)).stem}_{window.row:06d}_{window.col:06d}"
            image = folder / "images" / f"{name}.tif"
            write_geotiff(image, chip.rgb, grid.crop(window), description=f"chip of {scene}")
            if chip.mask is not None:
                Image.fromarray(chip.mask).save(folder / "masks" / f"{name}.png")
            rows.append((f"images/{name}.tif", chip.shows))
        if not rows:
            raise ChipError(
                f"no window of {size} px of {scene} is both valid and clear in {inventory}: give smaller chips"
            )
        _describe(folder, rows, truth.classes, grid, {"scene": str(scene), "inventory": str(inventory)})
    shown = tuple(int(n) for n in np.sum([shows for _, shows in rows], axis=0))
    return Cut(out, truth.classes, len(rows), unclear, shown)


@dataclass(frozen=True)
class _Chip:
    """A window that was cut."""

    rgb: UInt8Array
    mask: UInt8Array | None
    shows: tuple[bool, ...] | None
    """Which classes; None where that is unclear."""


@dataclass(frozen=True)
class _Knife:
    """What all chips of a scene are cut with."""

    reader: SceneReader
    grid: Grid
    stretch: Stretch
    truth: Truth

    def cut(self, window: Window, labels: tuple[bool, ...] | None) -> _Chip | None:
        """Image, mask and labels of a window; None where too little of it is valid or judged."""
        bands, valid = self.reader.read(window, self.grid)
        if valid.mean() < VALID:
            return None
        mask = self.truth.mask(window)
        if mask is not None:
            if (valid & (mask != IGNORE)).mean() < VALID:
                return None
            mask[~valid] = IGNORE
            shares = [float((mask[valid] == number).mean()) for number in range(1, len(self.truth.classes) + 1)]
            # what nobody has judged may show a class as well: enough of it leaves unclear whether a class is there
            open_share = float((mask[valid] == IGNORE).mean())
            clear = all(share >= LEAST or (share == 0 and open_share < LEAST) for share in shares)
            labels = tuple(share > 0 for share in shares) if clear else None
        return _Chip(self.stretch.apply(bands, valid), mask, labels)


def _describe(
    folder: Path, rows: list[tuple[str, tuple[bool, ...]]], classes: tuple[str, ...], grid: Grid, source: dict[str, str]
) -> None:
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *(["label"] if len(classes) == 1 else classes)])
        writer.writerows([image, *map(int, shows)] for image, shows in rows)
    facts = {"format": 1, "classes": classes, "gsd_m": round(grid.gsd, 6), **source}
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
