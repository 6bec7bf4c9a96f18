"""Chips with image-level labels, from a table or from one folder per class.

Three layouts are understood::

    chips/labels.csv                a column `image` with paths, and either `label` (0 or 1, no or yes; or names of
                                    classes, separated by semicolons) or one column of 0 and 1 per class
    chips/labels.csv + chips/part/  asked for chips/part: the rows below it
    chips/CLASS/*.png               one folder per class; background, negative, none, other or no_CLASS is no class

The mask of ``images/NAME.jpg`` is ``masks/NAME.png`` beside the folder ``images``. In a folder with ``chips.json``, as
`geolabel chips` writes it, or with more than one class, masks hold class numbers and 255 for pixels to ignore; in
any other, every value but 0 is the single class.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch.utils.data import Dataset

from geolabel.chips import Chip
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.datasets.tables import means_nothing, read_table
from geolabel.errors import ChipError
from geolabel.image_files import open_picture
from geolabel.labels import BACKGROUND, IGNORE
from geolabel.parsing import check_name, parse_length, parse_name, read_json
from geolabel.scratch import settle
from geolabel.types import AnyArray, BoolArray, UInt8Array

if TYPE_CHECKING:
    from torch import Tensor

    from geolabel.radiometry import Stretch

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
TABLE, DESCRIPTION = "labels.csv", "chips.json"

MAX_CHIP_BYTES = 1 << 30
"""Maximum size in bytes of the values of a chip in all bands; a header that states more is refused."""

MAX_DESCRIPTION_BYTES = 1 << 20

SAMPLED = 32
"""Number of chips to fit the stretch of a set to, unless it is uint8."""


@dataclass(frozen=True)
class _Row:
    path: Path
    labels: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class ChipDataset(Dataset):  # type: ignore[type-arg]
    """Chips on disk; images are read on access. See `read_chips`."""

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: BoolArray
    """(N, C)"""
    numbered: bool = False
    """Whether masks hold class numbers; otherwise every value but 0 is the only class."""
    given_gsd: float | None = None
    """Metres per pixel, if the set says so."""
    transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Applied to every sample, as in torchgeo's datasets."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Stem of every chip's file."""
        return tuple(path.stem for path in self.paths)

    @property
    def sources(self) -> Sequence[Path]:
        """The folders of the images, which must not be an output."""
        return sorted({path.parent for path in self.paths})

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: ``image`` (3, H, W) float 0..255, ``label`` (C,) float, and ``mask`` (H, W) long if known."""
        import torch

        chip = self.chip(index)
        sample: dict[str, Tensor] = {
            "image": torch.from_numpy(chip.rgb).permute(2, 0, 1).float(),
            "label": torch.from_numpy(chip.labels).float(),
        }
        if chip.mask is not None:
            sample["mask"] = torch.from_numpy(chip.mask).long()
        return sample if self.transforms is None else self.transforms(sample)

    def chip(self, index: int) -> Chip:
        """Read one chip.

        Raises
        ------
        ChipError
            If its file, or its mask, cannot be read, or they differ in size.
        """
        path, labels = self.paths[index], self.labels[index]
        rgb = self.rgb(index)
        return Chip(path.stem, rgb, labels, self._mask(path, labels, rgb.shape[:2]))

    def rgb(self, index: int) -> UInt8Array:
        """Read the image (H, W, 3) of one chip, without its mask; raises as `chip` does."""
        return self._to_rgb(read_image(self.paths[index]), self.paths[index])

    @cached_property
    def gsd(self) -> float | None:
        """Metres per pixel: that of the set, else of the first chip if it is a georeferenced GeoTIFF, else None."""
        return self.given_gsd or (_gsd(self.paths[0]) if len(self) else None)

    def part(self, keep: BoolArray) -> Self:
        """The chips of a mask (N,)."""
        paths = tuple(path for path, kept in zip(self.paths, keep, strict=True) if kept)
        return replace(self, paths=paths, labels=self.labels[keep])

    def _mask(self, path: Path, labels: BoolArray, size: tuple[int, ...]) -> UInt8Array | None:
        file = mask_path(path)
        if not file.is_file():
            return None if labels.any() else np.zeros(size, np.uint8)
        values = read_image(file)
        if values.shape[:2] != size:
            raise ChipError(
                f"the mask {file} has {values.shape[0]} x {values.shape[1]} px and its chip {size[0]} x {size[1]}: "
                "save the mask again at the size of the chip"
            )
        values = values if values.ndim == 2 else values.max(axis=2)
        if not self.numbered:
            return (values > 0).astype(np.uint8)
        unknown = sorted(set(np.unique(values).tolist()) - {*range(len(self.classes) + 1), IGNORE})
        if unknown:
            raise ChipError(
                f"the mask {file} holds the value {unknown[0]}: masks hold 0 for background, 1 to {len(self.classes)} "
                f"for classes, and {IGNORE} for pixels to ignore"
            )
        return values.astype(np.uint8)

    def _to_rgb(self, values: AnyArray, path: Path) -> UInt8Array:
        bands = _bands(values, path)
        if bands.dtype == np.uint8:
            return np.ascontiguousarray(bands)
        return self._stretch.apply(np.moveaxis(bands, 2, 0), np.asarray(np.isfinite(bands).all(axis=2)))

    @cached_property
    def _stretch(self) -> Stretch:
        """One stretch for all chips that are not uint8, from a sample of the set."""
        from geolabel.radiometry import Stretch

        chosen = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int))
        flat = [_bands(read_image(self.paths[i]), self.paths[i]).reshape(-1, 3)[::7] for i in chosen]
        bands = np.concatenate(flat).T[:, None]
        return Stretch.from_sample(bands, np.asarray(np.isfinite(bands).all(axis=0)))


def read_chips(path: str | Path, *, class_name: str = "landslide") -> ChipDataset:
    """Find the chips of a folder or a table.

    Parameters
    ----------
    path
        A folder, or a CSV file; see the top of this module.
    class_name
        What label 1 of a table with a single column of 0 and 1 means.

    Raises
    ------
    ChipError
        If there is no such set, its table cannot be understood, names a file that is not there, or two chips share a
        name.
    """
    path = Path(path)
    settle(path)  # restore a set that was being replaced when its run was killed
    table = _table_of(path)
    classes, rows = _from_folders(path) if table is None else _from_table(table, class_name)
    if table is not None and path.is_dir() and table.parent != path:
        inside = path.resolve()
        rows = [row for row in rows if inside in row.path.resolve().parents]
    if not rows:
        raise ChipError(f"{path} holds no chips: give a folder with {TABLE}, or one folder of images per class")
    missing = [row.path for row in rows if not row.path.is_file()]
    if missing:
        raise ChipError(
            f"{len(missing)} of {len(rows)} labelled chips are missing, such as {missing[0]}: "
            "add the files, or take their rows out of the table"
        )
    doubles = [name for name, count in Counter(row.path.stem for row in rows).items() if count > 1]
    if doubles:
        raise ChipError(
            f"{len(doubles)} names stand for several chips, such as {doubles[0]!r}: results are named "
            "after chips, so give each a different name"
        )
    if table is not None and path.is_dir():
        _count_unlabelled(table, rows)
    facts = _description(path if path.is_dir() else path.parent)
    known: Sequence[str] = facts.get("classes", classes)
    order = [classes.index(name) if name in classes else None for name in known]
    labels = np.array([[k is not None and row.labels[k] for k in order] for row in rows], bool)
    paths = tuple(row.path for row in rows)
    numbered = "classes" in facts or len(known) > 1
    return ChipDataset(tuple(known), paths, labels.reshape(len(rows), -1), numbered, facts.get("gsd_m"))


def _table_of(path: Path) -> Path | None:
    if path.suffix.lower() == ".csv":
        if not path.is_file():
            raise ChipError(f"{path} does not exist: give a table of chips or a folder")
        return path
    if not path.is_dir():
        raise ChipError(f"{path} is not a folder: give a folder of chips or a CSV file")
    return next((table for table in (path / TABLE, path.parent / TABLE) if table.is_file()), None)


def _description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    if not file.is_file():
        return {}
    try:
        facts = read_json(file, limit=MAX_DESCRIPTION_BYTES)
        return {"classes": tuple(map(parse_name, facts["classes"])), "gsd_m": parse_length(facts["gsd_m"])}
    except (OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ChipError(f"{file} cannot be understood ({error}): cut the chips again, or remove it") from error


# --- tables ----------------------------------------------------------------------------------------------------------


def _from_table(table: Path, class_name: str) -> tuple[tuple[str, ...], list[_Row]]:
    classes, rows = read_table(table, class_name)
    lines: dict[Path, int] = {}
    for row in rows:
        first = lines.setdefault(_file(table, row.image), row.line)
        if first != row.line:
            raise ChipError(f"lines {first} and {row.line} of {table} name {row.image}: keep one of them")
    return classes, [_Row(path, row.labels) for path, row in zip(lines, rows, strict=True)]


def _file(table: Path, name: str) -> Path:
    """The file that a table names, with slashes or backslashes."""
    check_name(name)
    file = table.parent / name
    return file if file.is_file() or "\\" not in name else table.parent / name.replace("\\", "/")


def _count_unlabelled(table: Path, rows: list[_Row]) -> None:
    """Warn of images beside labelled ones that are not in the table."""
    labelled = {row.path for row in rows}
    beside = {file for folder in {path.parent for path in labelled} for file in folder.iterdir()}
    without = sorted(file for file in beside - labelled if file.suffix.lower() in SUFFIXES)
    if without:
        logger.warning("%s has no row for %d images, such as %s: left out", table, len(without), without[0].name)


# --- folders ---------------------------------------------------------------------------------------------------------


def _from_folders(root: Path) -> tuple[tuple[str, ...], list[_Row]]:
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name != "masks" and not p.name.startswith(".")]
    files = {folder: [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES] for folder in folders}
    classes = tuple(folder.name for folder in folders if files[folder] and not means_nothing(folder.name))
    if classes == ("images",):
        raise ChipError(f"{root} has images and no labels: add {TABLE} with the columns image and label")
    return classes, [
        _Row(path, tuple(folder.name == name for name in classes)) for folder in folders for path in files[folder]
    ]


# --- pixels ----------------------------------------------------------------------------------------------------------


def mask_path(image: Path) -> Path:
    """Path of the mask of a chip, if it has one."""
    return image.parent.parent / "masks" / f"{image.stem}.png"


def read_image(path: Path) -> AnyArray:
    """Values of a file, (H, W) or (H, W, B).

    Raises
    ------
    ChipError
        If it cannot be read.
    """
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            return _read_tiff(path)
        with open_picture(path) as image:
            plain = image if image.mode in ("L", "RGB", "P", "1", "I;16") else image.convert("RGB")
            plain = plain.convert("RGB") if plain.mode == "P" and path.parent.name != "masks" else plain
            values = np.array(plain)
            return values.astype(np.uint8) if values.dtype == bool else values
    except OSError as error:
        raise ChipError(f"{path} cannot be read ({error}): remove it, or save it again as PNG, JPEG or TIFF") from error


def _read_tiff(path: Path) -> AnyArray:
    from rasterio.errors import RasterioError

    from geolabel.io.read.opening import reading

    try:
        with reading(str(path)) as dataset:
            size = dataset.height * dataset.width * sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
            if size > MAX_CHIP_BYTES:
                raise OSError(f"it claims {dataset.count} x {dataset.height} x {dataset.width} values")
            return np.moveaxis(dataset.read(), 0, 2)
    except RasterioError as error:
        raise OSError(error) from error


def _bands(values: AnyArray, path: Path) -> AnyArray:
    # (H, W, 3): the first three bands, or grey three times.
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[2] == 2:
        raise ChipError(f"{path} has two bands: a chip is grey, or its first three bands are red, green and blue")
    return values[..., :3] if values.shape[2] >= 3 else np.repeat(values, 3, axis=2)


def _gsd(path: Path) -> float | None:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    from geolabel.errors import SceneError
    from geolabel.io.read.scenes import SceneReader

    try:
        with SceneReader(path) as reader:
            return reader.scene.grid.gsd
    except SceneError:
        return None


# --- chips with masks, and pseudo-labels -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _PaintedChip:
    """A chip that has a mask."""

    chip: Chip

    @property
    def image(self) -> UInt8Array:
        """(H, W, 3) RGB."""
        return self.chip.rgb

    @property
    def values(self) -> UInt8Array:
        """(H, W) 0 background, k the k-th class from 1, 255 where unknown."""
        assert self.chip.mask is not None
        return self.chip.mask


@dataclass(frozen=True)
class PaintedChips:
    """Chips with masks; those that show nothing need none."""

    chips: ChipDataset

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of every value from 0."""
        return (BACKGROUND, *self.chips.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every chip."""
        return self.chips.names

    @property
    def sources(self) -> Sequence[Path]:
        """The folders of the chips."""
        return self.chips.sources

    @property
    def shown(self) -> BoolArray:
        """(N,) whether a chip shows a class."""
        shown: BoolArray = np.any(self.chips.labels, axis=1)
        return shown

    @cached_property
    def gsd(self) -> float | None:
        """Metres per pixel, if known."""
        return self.chips.gsd

    def __len__(self) -> int:
        return len(self.chips)

    def __getitem__(self, index: int) -> _PaintedChip:
        """Read one chip."""
        return _PaintedChip(self.chips.chip(index))


def read_painted(path: str | Path, *, class_name: str = "landslide") -> PseudoLabels | PaintedChips:
    """Find the label maps of a folder: of ``geolabel label``, or of chips with ``masks/``.

    Raises
    ------
    ChipError
        If the folder holds neither, or a chip that shows something has no mask.
    SceneError
        If its pseudo-labels are not finished.
    """
    path = Path(path)
    if (path / "manifest.json").is_file() or (path / "run.json").is_file():
        return PseudoLabels(path)
    chips = read_chips(path, class_name=class_name)
    shown: BoolArray = np.any(chips.labels, axis=1)
    bare = [file for file, shows in zip(chips.paths, shown, strict=True) if shows and not mask_path(file).is_file()]
    if bare:
        raise ChipError(
            f"{len(bare)} of {int(shown.sum())} chips that show something have no mask, such as {bare[0]}: label them "
            "with geolabel label, or add masks/ beside images/"
        )
    return PaintedChips(chips)
