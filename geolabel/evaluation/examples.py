"""Images with the outlines of their landslides: folders of real ones, synthetic scenes, and packs of chips.

All are split by one rule, so that no image used for selection is used for reports.

A pack is one file of chips, for machines with torch and Pillow: a ZIP archive of ``train/`` and ``val/``, each with
``images/*.jpg``, ``masks/*.png`` and a ``labels.csv``. Nothing in it is executed or unpickled; members with other names
are refused.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image
from scipy import ndimage

from geolabel.datasets.chips import mask_path, read_chips
from geolabel.errors import OptionError
from geolabel.outputs import replacing, saving
from geolabel.prompts import Prompts
from geolabel.synthetic import synthesize
from geolabel.training.bundled_data import REPORTED, SUFFIXES, is_reported, read_image
from geolabel.training.colours import jpeg
from geolabel.types import BoolArray, Float64Array, Int32Array, UInt8Array

Split = Literal["report", "select"]
"""``report`` is for published tables, ``select`` for choosing between weights and designs."""

SYNTHETIC: dict[Split, int] = {"report": 1000, "select": 800_000}
"""First seed of the synthetic scenes of each split; trainings use other seeds."""

SYNTHETIC_SIZE, SYNTHETIC_GSD = 1024, 0.5
"""Side in pixels of a synthetic scene, and metres per pixel."""

SAMPLE, SAMPLE_SIZE = 1000, 2048
"""Seed and size of the scene in the README."""

CHIP_GSD, L4S_GSD, HOKKAIDO_GSD = 0.8, 10.0, 3.0
"""Metres per pixel of the sets of chips: Bijie's, Landslide4Sense's and Hokkaido's."""

OUTLINED_GSD = 0.5
"""Metres per pixel assumed for orthophotos without georeference."""

NEGATIVES_GSD = {"ucmerced": 0.3, "oam_fair": 0.3, "odm_drone": 0.15, "georef": 0.1}
"""Metres per pixel of sets without landslides, for images without georeference; names of other folders end in theirs,
such as ``_0p2m``."""

FOLDS = 5
"""One in this many images of a training folder is kept for selection."""

MINIMUM = 64
"""Minimum area in pixels of a landslide for object counts."""

MINIMUM_OUTLINED = 1000
"""The same for orthophotos outlined by hand and resampled, where specks became detached from outlines."""

INSIDE = 127
"""Grey values of a mask above this are landslide."""

CROP = 0.6
"""Side of an off-centre crop, as a share of the image's."""


@dataclass(frozen=True)
class Example:
    """An image with its landslides."""

    name: str
    rgb: UInt8Array
    """(H, W, 3) as stored in the file, not stretched."""
    ids: Int32Array
    """(H, W) number of the landslide, from 1; 0 elsewhere."""
    minimum: int = MINIMUM
    """Minimum area in pixels of a landslide for object counts."""

    @property
    def truth(self) -> BoolArray:
        """(H, W) landslide or not."""
        return self.ids > 0


class Examples(Protocol):
    """A sized iterable of examples, each created on iteration."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Example]: ...


@dataclass(frozen=True)
class Files:
    """Image files, and the folder with masks of the same stem; an image without mask shows no landslide."""

    images: tuple[Path, ...]
    masks: Path
    minimum: int = MINIMUM

    def __len__(self) -> int:
        return len(self.images)

    def listed(self) -> dict[str, int | str]:
        """Number of files and a digest of their names."""
        return listed(self.images)

    def __iter__(self) -> Iterator[Example]:
        for path in self.images:
            rgb = read_image(path, "RGB")
            mask = self.masks / f"{path.stem}.png"
            truth = read_image(mask, "L") > INSIDE if mask.is_file() else np.zeros(rgb.shape[:2], bool)
            if truth.shape != rgb.shape[:2]:
                raise OptionError(f"{mask} has {truth.shape} px, its image {rgb.shape[:2]}: make them of one size")
            yield Example(path.stem, rgb, ndimage.label(truth)[0].astype(np.int32), self.minimum)


@dataclass(frozen=True)
class Negatives:
    """Image files of one set without landslides."""

    images: tuple[Path, ...]
    gsd: float
    """Metres per pixel of images without georeference."""


@dataclass(frozen=True)
class SyntheticScenes:
    """Synthetic scenes of `count` seeds from `first`."""

    first: int
    count: int
    size: int = SYNTHETIC_SIZE
    gsd: float = SYNTHETIC_GSD

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Example]:
        for seed in range(self.first, self.first + self.count):
            scene = synthesize(self.size, gsd=self.gsd, seed=seed)
            yield Example(f"seed {seed}", scene.rgb, np.where(scene.truth > 0, scene.ids, 0))


@dataclass(frozen=True)
class Shrunk:
    """Examples resampled to coarser pixels."""

    items: Examples
    factor: float
    """Ratio of coarse to fine pixel size."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return (shrunk(example, self.factor) for example in self.items)


# --- folders ---------------------------------------------------------------------------------------------------------


FOLDERS = {
    "sichuan": "sichuan",
    "bijie": "bijie",
    "hokkaido": "hokkaido_planet_3m",
    "l4s": "l4s_rgb_10m",
    "negatives": "negatives",
    "geotiffs": "geotiffs",
}
"""Names of the folders in a folder with all data, by the field of `Data`."""


@dataclass(frozen=True)
class Data:
    """Folders with real images; None for those that are not available."""

    sichuan: Path | None = None
    """images/ and masks/; images for reports are named in `geolabel.training.bundled_data.REPORTED`."""
    bijie: Path | None = None
    """train/ and val/, each with images/ and masks/."""
    hokkaido: Path | None = None
    """images/ and masks/ of chips of 3 m; for reports only."""
    l4s: Path | None = None
    """train/ and validation/, each with images/ and masks/, chips of 10 m."""
    negatives: Path | None = None
    """A folder for each set of images without landslides."""
    geotiffs: Path | None = None
    """GeoTIFFs without landslides."""

    @classmethod
    def inside(cls, folder: Path) -> Data:
        """The folders of `FOLDERS` that exist in a folder.

        Raises
        ------
        OptionError
            If none of them exists.
        """
        found = {field: folder / name for field, name in FOLDERS.items() if (folder / name).is_dir()}
        if not found:
            known = ", ".join(FOLDERS.values())
            raise OptionError(f"{folder} contains none of the folders {known}: give one of them by its own option")
        return cls(**found)


def listed(paths: Sequence[Path]) -> dict[str, int | str]:
    """Number of files and a digest of their names."""
    names = "\n".join(path.name for path in paths)
    return {"images": len(paths), "names": hashlib.sha256(names.encode()).hexdigest()}


def outlined(folder: Path, split: Split) -> Files:
    """Images of a folder with images/ and masks/; those named in `REPORTED` are for reports only."""
    kept, others = separate_reported(_images(folder))
    wanted = kept if split == "report" else others
    return replace(_files(folder, wanted), minimum=MINIMUM_OUTLINED)


def separate_reported(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Separate images named in `REPORTED`, which are for reports only, from the others."""
    kept, others = list[Path](), list[Path]()
    for path in paths:
        (kept if path.stem.endswith(REPORTED) else others).append(path)
    return kept, others


def chips(folder: Path, split: Split) -> Files:
    """Chips of a folder with val/, for reports, and train/, one fifth of which is for selection.

    The fifth is chosen by name: the SHA-1 of the file's stem, as an integer, is 0 modulo 5.
    """
    part = folder / ("val" if split == "report" else "train")
    wanted = [path for path in _images(part) if split == "report" or fold_of(path.stem) == 0]
    return _files(part, wanted)


def satellite_chips(folder: Path, split: Split) -> Files:
    """Chips of a folder with validation/, for reports, and train/, a fifth of which is for selection as in `chips`."""
    part = folder / ("validation" if split == "report" else "train")
    wanted = [path for path in _images(part) if split == "report" or fold_of(path.stem) == 0]
    return replace(_files(part, wanted), minimum=1)


def report_only(folder: Path) -> Files:
    """All images of a folder with images/ and masks/ that is for reports only."""
    return replace(_files(folder, _images(folder)), minimum=1)


def without_landslides(folder: Path, split: Split) -> dict[str, Negatives]:
    """Sets of images without landslides, one of each folder in `folder`.

    Images selected by `is_reported` are for reports. Trainings use all others, one fifth of which is for selection: the
    SHA-1 of the file's stem, as an integer, is 1 modulo 5.

    Raises
    ------
    OptionError
        If no folder has an image of this split, or the pixel size of a folder is unknown.
    """
    sets = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        images = tuple(
            path
            for path in sorted(place.rglob("*"))
            if path.suffix.lower() in SUFFIXES
            and (
                is_reported(path.stem) if split == "report" else not is_reported(path.stem) and fold_of(path.stem) == 1
            )
        )
        if images:
            sets[place.name] = Negatives(images, stated_gsd(place.name))
    if not sets:
        raise OptionError(f"{folder} has no image of this split: give a folder with a folder for each set of images")
    return sets


def stated_gsd(name: str) -> float:
    """Metres per pixel at the end of a folder's name, such as ``terraces_0p2m``, or in `NEGATIVES_GSD`.

    Raises
    ------
    OptionError
        If they are in neither.
    """
    ending = re.search(r"_(\d+(?:p\d+)?)m$", name)
    if ending:
        return float(ending[1].replace("p", "."))
    if name not in NEGATIVES_GSD:
        raise OptionError(f"{name}: the size of its pixels is unknown; append it to the folder's name, as {name}_0p3m")
    return NEGATIVES_GSD[name]


def tiffs(folder: Path) -> list[Path]:
    """GeoTIFFs of a folder, sorted by name.

    Raises
    ------
    OptionError
        If there is none.
    """
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".tif", ".tiff"))
    if not found:
        raise OptionError(f"{folder} has no GeoTIFF (.tif, .tiff): give a folder with scenes that show no landslide")
    return found


def fold_of(name: str) -> int:
    """Which of `FOLDS` folds a name belongs to, the same on every machine."""
    return int(hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest(), 16) % FOLDS


def _images(folder: Path) -> list[Path]:
    images = folder / "images"
    return sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES) if images.is_dir() else []


def _files(folder: Path, wanted: Sequence[Path]) -> Files:
    if not wanted:
        raise OptionError(f"{folder} has no image of this split: give a folder with images/ and masks/")
    return Files(tuple(wanted), folder / "masks")


# --- one example -----------------------------------------------------------------------------------------------------


def landslide_prompts(ids: Int32Array, minimum: int) -> Prompts:
    """Box and centroid of each landslide of at least `minimum` pixels; `Prompts.ids` are their numbers."""
    boxes: list[tuple[int, ...]] = []
    points: list[Float64Array] = []
    numbers = []
    for number, place in enumerate(ndimage.find_objects(ids), 1):
        if place is None:
            continue
        rows, cols = np.nonzero(ids[place] == number)
        if len(rows) < minimum:
            continue
        (y, x) = place
        boxes.append((x.start, y.start, x.stop, y.stop))
        points.append(np.array([x.start + cols.mean(), y.start + rows.mean()]))
        numbers.append(number)
    if not numbers:
        return Prompts.build()
    return Prompts.build(np.array(boxes, float), np.stack(points), ids=np.array(numbers, np.int64))


def off_centre(example: Example) -> Example:
    """Crop an example with landslides so that the first may be anywhere in it, at the same pixel size.

    The name seeds the position, which is uniform over all crops that contain the landslide's centroid.
    """
    rng = np.random.default_rng(int(hashlib.sha1(example.name.encode(), usedforsecurity=False).hexdigest()[:8], 16))
    centre = landslide_prompts(example.ids, minimum=1).points[0, 0, ::-1]
    cut = []
    for middle, length in zip(centre.astype(int).tolist(), example.ids.shape, strict=True):
        side = max(1, round(CROP * length))
        start = int(rng.integers(max(0, middle - side + 1), min(middle, length - side) + 1))
        cut.append(slice(start, start + side))
    return replace(example, rgb=example.rgb[cut[0], cut[1]], ids=example.ids[cut[0], cut[1]])


def shrunk(example: Example, factor: float) -> Example:
    """Resample an example to pixels `factor` times as large: mean colours, landslide where at least half is."""
    height, width = (max(1, round(side / factor)) for side in example.ids.shape)
    rgb = np.array(Image.fromarray(example.rgb).resize((width, height), Image.Resampling.BOX))
    cover = Image.fromarray(example.truth.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    ids = ndimage.label(np.asarray(cover) >= 0.5)[0].astype(np.int32)
    return Example(example.name, rgb, ids, max(1, round(example.minimum / factor**2)))


SPLITS = ("train", "val")

MEMBER = re.compile(r"(train|val)/(labels\.csv|chips\.json|images/[^/\\:]+\.jpg|masks/[^/\\:]+\.png)")

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of all members, so that the same chips give the same bytes."""

LARGEST = 1 << 30
"""Maximum size of the unpacked members, bytes."""


def pack_chips(
    data: Path, path: Path, *, quality: int = 85, limit: int | None = None, overwrite: bool = False
) -> dict[str, int]:
    """Write both splits of a set to one file, atomically.

    Parameters
    ----------
    quality
        JPEG quality of the images, 1 to 95.
    limit
        Maximum number of chips of each split, evenly spread; None for all.
    overwrite
        Whether an existing file may be replaced.

    Returns
    -------
    number of chips of each split, and size of the file in bytes
    """
    counts: dict[str, int] = {}
    with replacing(path, overwrite=overwrite) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for split in SPLITS:
            chips = read_chips(data / split)
            step = 1 if limit is None else max(1, len(chips) // limit)
            rows = [",".join(["image", *(["label"] if len(chips.classes) == 1 else chips.classes)])]
            for k in range(0, len(chips), step):
                name = chips.names[k]
                archive.writestr(zipfile.ZipInfo(f"{split}/images/{name}.jpg", EPOCH), jpeg(chips.rgb(k), quality))
                mask = mask_path(chips.paths[k])
                if mask.is_file():
                    archive.writestr(zipfile.ZipInfo(f"{split}/masks/{name}.png", EPOCH), mask.read_bytes())
                rows.append(",".join([f"images/{name}.jpg", *(str(int(shown)) for shown in chips.labels[k])]))
            archive.writestr(zipfile.ZipInfo(f"{split}/labels.csv", EPOCH), "\n".join([*rows, ""]))
            counts[split] = len(rows) - 1
    return counts | {"bytes": path.stat().st_size}


def unpack_chips(path: Path, folder: Path) -> Path:
    """Write the chips of a pack to a folder, unless they are there, and return the folder.

    Raises
    ------
    OptionError
        If the file is not such a pack.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            strange = [m.filename for m in members if not MEMBER.fullmatch(m.filename)]
            if strange or sum(m.file_size for m in members) > LARGEST:
                raise OptionError(
                    f"{path} is not a pack of chips ({(strange or ['too large'])[0]}): write one with --pack"
                )
            for member in members:
                target = folder / member.filename
                if not target.is_file() or target.stat().st_size != member.file_size:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with saving(target) as part:
                        part.write_bytes(archive.read(member))
    except (OSError, zipfile.BadZipFile) as error:
        raise OptionError(f"{path} cannot be read as a pack of chips ({error}): write one with --pack") from error
    return folder
