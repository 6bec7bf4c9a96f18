"""Cut chips from a scene: images at the scene's gsd, labels from an inventory, and masks."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geolabel.datasets.chips import DESCRIPTION, TABLE
from geolabel.engine import executors, worker
from geolabel.engine.run_folder import SUFFIX, RunFolderOptions, opened
from geolabel.engine.tasks import Effort, Pass, Progress, Silent, Work
from geolabel.errors import ChipError, OptionError
from geolabel.extraction.request import Reading
from geolabel.extraction.work import scene_mark
from geolabel.folders import check_folder, claim, replacing_folder
from geolabel.io.read.fingerprints import fingerprint
from geolabel.io.read.masks import hidden_share, open_masks
from geolabel.io.read.scenes import SceneReader
from geolabel.io.records import Store
from geolabel.io.write.rasters import write_geotiff
from geolabel.labeling.reference_labels import Truth, read_truth
from geolabel.labels import IGNORE
from geolabel.radiometry import Stretch
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import AnyArray, UInt8Array

_MIN_SHARE = 0.01
"""Minimum share of a chip covered by a class for a positive label; smaller positive shares are ambiguous."""

_MIN_VALID = 0.5
"""Minimum share of a chip that is valid and labelled."""

_TASK_PIXELS = 1 << 21
"""Pixels of the windows of a task: 32 of 256 px."""


@dataclass(frozen=True)
class ChipFolder:
    """A written folder of chips."""

    folder: Path
    classes: tuple[str, ...]
    chips: int
    unclear: int
    """Windows dropped because a class covers less than `_MIN_SHARE` of them, but may be present."""
    shown: tuple[int, ...]
    """Number of chips that show each class."""


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
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
) -> ChipFolder:
    """Cut a scene into chips and label each as a whole.

    The chips are 8-bit GeoTIFFs with one stretch for the whole scene, at its gsd or the given working gsd. Objects may
    be anywhere in them, since windows are on a regular grid.

    Parameters
    ----------
    reading
        How the scene is read; masked pixels are not valid, and unlabelled in the masks of chips. An area, bounds or an
        asset are refused.
    inventory
        See `geolabel.labeling.reference_labels.read_truth`. Polygons and rasters label every window, and become masks;
        the ground
        outside polygons is assumed to show nothing, ground outside a raster is unknown. A point labels one chip around
        it: its column ``label`` is 1 or 0, or its class.
    out
        Folder to create.
    size, overlap
        Side in pixels, and overlap of neighbouring chips: by default a quarter of the side.
    layer, class_column, class_name, classes
        See `geolabel.labeling.reference_labels.read_truth`.
    overwrite
        Whether earlier chips may be replaced. Files in the folder that geolabel did not write are kept.
    run_folder
        Folder for the records of the run, from which the same call resumes; by default beside `out`.
    progress
        Follows the run.

    Raises
    ------
    OptionError
        If the size or the overlap is invalid.
    ChipError
        If the inventory covers no part of the scene.
    OutputError
        If the folder contains other files or may not be replaced, is an input, or cannot be written.
    """
    reading, out = reading or Reading(), Path(out)
    overlap = size // 4 if overlap is None else overlap
    if size < 32 or not 0 <= overlap < size:
        raise OptionError(f"chips of {size} px that share {overlap} px: give at least 32 px, and share less than that")
    run_folder = run_folder or RunFolderOptions()
    unused = [name for name in ("aoi", "bounds", "asset") if getattr(reading, name) is not None]
    if unused:
        raise OptionError(f"{unused[0]} {getattr(reading, unused[0])}: chips are cut from the whole of one scene")
    check_folder(out, (scene, inventory, *reading.inputs))
    claim(out, overwrite=overwrite)
    asked = {"layer": layer, "class_column": class_column, "class_name": class_name, "classes": list(classes)}
    with SceneReader(
        str(scene), bands=reading.bands, nodata=reading.nodata, gsd=reading.gsd, time=reading.time
    ) as opened_scene:
        grid = opened_scene.scene.grid
        grid = grid if reading.working_gsd is None else grid.at_gsd(reading.working_gsd)
        masks = open_masks(reading.masks, [grid], "--mask", gsd=grid.unit_m)
        reader = opened_scene.without(masks) if masks else opened_scene
        hidden_share(reader, grid, "--mask")
        truth = read_truth(
            Path(inventory),
            grid,
            layer=layer,
            class_column=class_column,
            class_name=class_name,
            classes=classes,
            scene=reader.scene.grid,
        )
        key = _run_key(reader, Path(inventory), reading, asked | {"size": size, "overlap": overlap})
        root = run_folder.run_dir or out.absolute().with_name(out.absolute().name + SUFFIX)
        cutter = _ChipCutter(reader, grid, Stretch.from_sample(*reader.sample(), reading.stretch), truth)
        windows = list(truth.windows(size, overlap))
        count = max(1, _TASK_PIXELS // size**2)
        batches = [windows[k : k + count] for k in range(0, len(windows), count)]
        with opened(run_folder, root, key, overwrite=overwrite) as run:
            work = Work(_Cutting(cutter, run.store), Effort(), progress or Silent()).inside(run)
            found = list(work.each(CHIPS, list(enumerate(batches))))
            rows: list[tuple[str, tuple[bool, ...]]] = []
            if any(isinstance(shows, tuple) for batch in found for shows in batch):
                with replacing_folder(out, overwrite=overwrite, inputs=(scene, inventory, *reading.inputs)) as folder:
                    source = {"scene": str(scene), "inventory": str(inventory)}
                    pairs = [list(zip(*both, strict=True)) for both in zip(batches, found, strict=True)]
                    rows = _write(work, folder, source, pairs)
    if not rows:
        raise ChipError(f"no window of {size} px of {scene} is both valid and clear in {inventory}: give smaller chips")
    shown = tuple(int(n) for n in np.sum([shows for _, shows in rows], axis=0))
    unclear = sum(batch.count(_UNCLEAR) for batch in found)
    return ChipFolder(out, truth.classes, len(rows), unclear, shown)


def _run_key(reader: SceneReader, inventory: Path, reading: Reading, asked: dict[str, Any]) -> dict[str, Any]:
    """Everything that chips depend on, as plain values."""
    beside = [path for path in inventory.parent.iterdir() if path.stem == inventory.stem]
    marks = sorted([path.name, status.st_size, status.st_mtime_ns] for path in beside for status in [path.stat()])
    values = {
        "scene": (scene_mark(reader) or {})
        | {"bands": list(reader.scene.bands), "nodata": reader.nodata}
        | ({"masks": [fingerprint(mask.reader.reader) for mask in reader.masks]} if reader.masks else {}),
        "inventory": {"path": str(inventory.absolute()), "files": marks},
        "reading": {name: getattr(reading, name) for name in ("gsd", "working_gsd", "stretch")},
        "chips": asked,
        "versions": executors.where_networks_run(worker.versions),
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


_UNCLEAR = "unclear"
"""Marks a window whose classes are ambiguous."""

Shows = tuple[bool, ...] | str | None
"""The classes of a window; `_UNCLEAR`; None if too little of it is valid or labelled."""


@dataclass(frozen=True)
class _Chip:
    """A cut window."""

    rgb: UInt8Array
    mask: UInt8Array | None
    shows: tuple[bool, ...] | None
    """Its classes; None if ambiguous."""


@dataclass(frozen=True)
class _ChipCutter:
    """Inputs for all chips of a scene."""

    reader: SceneReader
    grid: Grid
    stretch: Stretch
    truth: Truth

    def cut(self, window: Window, labels: tuple[bool, ...] | None) -> _Chip | None:
        """Image, mask and labels of a window; None if too little of it is valid or labelled."""
        bands, valid = self.reader.read(window, self.grid)
        if valid.mean() < _MIN_VALID:
            return None
        mask = self.truth.mask(window)
        if mask is not None:
            if (valid & (mask != IGNORE)).mean() < _MIN_VALID:
                return None
            mask[~valid] = IGNORE
            shares = [float((mask[valid] == number).mean()) for number in range(1, len(self.truth.classes) + 1)]
            # unlabelled pixels may show a class as well: too many of them make its presence ambiguous
            open_share = float((mask[valid] == IGNORE).mean())
            clear = all(share >= _MIN_SHARE or (share == 0 and open_share < _MIN_SHARE) for share in shares)
            labels = tuple(share > 0 for share in shares) if clear else None
        return _Chip(self.stretch.apply(bands, valid), mask, labels)


@dataclass(frozen=True)
class _Cutting:
    """Inputs for a batch of windows."""

    cutter: _ChipCutter
    store: Store


def _cut(run: _Cutting, job: tuple[int, list[tuple[Window, tuple[bool, ...] | None]]]) -> list[Shows]:
    """Cut a batch of windows, and store those that are chips."""
    number, windows = job
    arrays: dict[str, AnyArray] = {"windows": np.asarray([astuple(window) for window, _ in windows], np.int64)}
    found: list[Shows] = []
    for k, (window, labels) in enumerate(windows):
        chip = run.cutter.cut(window, labels)
        found.append(None if chip is None else _UNCLEAR if chip.shows is None else chip.shows)
        if chip is not None and chip.shows is not None:
            arrays[f"rgb{k}"] = chip.rgb
            if chip.mask is not None:
                arrays[f"mask{k}"] = chip.mask
    run.store.write("pixels", number, arrays)
    return found


def _where(_: Any, job: tuple[int, list[Any]]) -> str:
    return f"{len(job[1])} windows, from {job[1][0][0]} on"


CHIPS = Pass("chips", _cut, list[Shows], _where, pixels="pixels")


@dataclass(frozen=True)
class _Writing:
    """Inputs for writing a batch of chips."""

    store: Store
    grid: Grid
    folder: Path
    scene: str

    def name(self, window: Window) -> str:
        """Name of a chip."""
        return f"{Path(self.scene).stem}_{window.row:06d}_{window.col:06d}"


def _write_batch(run: _Writing, job: tuple[int, list[tuple[int, Window]]]) -> None:
    """Write the chips of a batch, given by their places in the batch and their windows."""
    number, chips = job
    arrays = run.store.read("pixels", number)
    own = run.folder / f"batch-{number}"  # writers clean up leftovers of others in their folder
    own.mkdir()
    for k, window in chips:
        name = run.name(window)
        image = own / f"{name}.tif"
        write_geotiff(image, arrays[f"rgb{k}"], run.grid.crop(window), description=f"chip of {run.scene}")
        image.replace(run.folder / "images" / image.name)
        if f"mask{k}" in arrays:
            Image.fromarray(arrays[f"mask{k}"]).save(run.folder / "masks" / f"{name}.png")
    own.rmdir()


_WRITE = Pass("write", _write_batch, None)


def _write(
    work: Work[_Cutting, Effort],
    folder: Path,
    source: dict[str, str],
    batches: Sequence[Sequence[tuple[tuple[Window, Any], Shows]]],
) -> list[tuple[str, tuple[bool, ...]]]:
    """Write all chips and their tables; return their images and labels."""
    cutter = work.run.cutter
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    writing = _Writing(work.run.store, cutter.grid, folder, source["scene"])
    facts = {"format": 1, "classes": cutter.truth.classes, "gsd_m": round(cutter.grid.gsd, 6), **source}
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    executors.check_seen(folder / DESCRIPTION)
    jobs: list[tuple[int, list[tuple[int, Window]]]] = []
    rows: list[tuple[str, tuple[bool, ...]]] = []
    for number, batch in enumerate(batches):
        chips = [(k, window, shows) for k, ((window, _), shows) in enumerate(batch) if isinstance(shows, tuple)]
        rows += [(f"images/{writing.name(window)}.tif", shows) for _, window, shows in chips]
        if chips:
            jobs.append((number, [(k, window) for k, window, _ in chips]))
    for _ in Work(writing, work.report, work.progress).each(_WRITE, jobs):
        pass
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        classes = cutter.truth.classes
        writer.writerow(["image", *(["label"] if len(classes) == 1 else classes)])
        writer.writerows([image, *map(int, shows)] for image, shows in rows)
    return rows
