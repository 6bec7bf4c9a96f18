"""Images with objects: pseudo-labels, chips with masks, or a COCO file."""

from __future__ import annotations

import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from geolabel.datasets.chips import ChipDataset, mask_path, read_chips, read_image
from geolabel.datasets.examples import Examples, Outlined
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.errors import ChipError, require
from geolabel.labels import (
    BACKGROUND,
    Instances,
    LabelMap,
    closed_regions,
    expand_run_lengths,
    from_run_lengths,
    smallest_wins,
)
from geolabel.parsing import check_name, parse_name, read_json
from geolabel.types import AnyArray, BoolArray, UInt8Array

logger = logging.getLogger(__name__)


def read_instances(path: str | Path, *, class_name: str = "landslide") -> Examples[Outlined]:
    """Find images with objects.

    Parameters
    ----------
    path
        A folder written by ``geolabel label``, a folder of chips with masks, or a COCO file, whose image names are
        relative to its own folder or to a folder ``images`` in that.
    class_name
        Class of the masks of chips with a single class.

    Raises
    ------
    ChipError
        If it is none of these, or holds no image.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return CocoInstances(path)
    if (path / "manifest.json").is_file():
        return _LabelledInstances(PseudoLabels(path))
    return _MaskedInstances(read_chips(path, class_name=class_name))


@dataclass(frozen=True)
class _LabelledInstances:
    """The closed regions of pseudo-labels."""

    labels: PseudoLabels

    @property
    def sources(self) -> Sequence[Path]:
        """The folders of the images."""
        return self.labels.sources

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the background left out."""
        return tuple(name for name in self.labels.classes if name != BACKGROUND)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every image."""
        return self.labels.names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Outlined:
        """One image and its objects."""
        label = self.labels[index]
        named = tuple(self.labels.classes)
        objects = closed_regions(LabelMap(label.values, np.ones(label.values.shape, np.float32), named))
        shift = 0 if BACKGROUND in named[:1] else 1  # cluster 0 is a cluster too; the classes of objects begin at 1
        image = np.array(label.image)  # an array from Pillow is read-only, and torch wants to be able to write
        return image, Instances(objects.ids, objects.class_ids + shift, objects.scores, objects.areas)


@dataclass(frozen=True)
class _MaskedInstances:
    """The closed regions of the masks of chips; chips whose mask is not known are left out."""

    chips: ChipDataset

    @property
    def sources(self) -> Sequence[Path]:
        """The folders of the images."""
        return self.chips.sources

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.chips.classes

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of every chip with a mask."""
        return tuple(self.chips.names[i] for i in self._known)

    @cached_property
    def _known(self) -> list[int]:
        chips = self.chips
        known = [i for i, path in enumerate(chips.paths) if mask_path(path).is_file() or not chips.labels[i].any()]
        if not known:
            raise ChipError(
                "none of the chips has a mask: masks/NAME.png beside the folder images, or give pseudo-labels"
            )
        return known

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Outlined:
        """One chip and its objects."""
        chip = self.chips.chip(self._known[index])
        assert chip.mask is not None
        named = (BACKGROUND, *self.chips.classes)
        return chip.rgb, closed_regions(LabelMap(chip.mask, np.ones(chip.mask.shape, np.float32), named))


MAX_COCO_BYTES = 1 << 30
"""Maximum size of a COCO file in bytes; that of COCO 2017 is half as large."""

MAX_MASKS_PX = 1 << 33
"""Maximum number of pixels of all masks of one image: they are in memory at once."""


@dataclass(frozen=True)
class _Object:
    """An annotation with an outline."""

    class_id: int
    segmentation: Any
    """A list of polygons, or run lengths of COCO."""


@dataclass(frozen=True)
class _Image:
    """An image of a COCO file."""

    name: str
    size: tuple[int, int] | None
    """Height and width according to the file."""
    objects: tuple[_Object, ...]


@dataclass(frozen=True)
class CocoInstances:
    """Instances of a COCO file, as any tool writes it. Where two overlap, the pixel belongs to the smaller one.

    Boxes without an outline are left out with a warning, and so are crowds, whose objects are not separated. In a
    file of crowds only, as CVAT writes masks, each is an object. Ids are numbers or text.

    Raises
    ------
    ChipError
        If the file cannot be understood, or none of its objects has an outline.
    """

    path: Path

    def __post_init__(self) -> None:
        _ = self._images  # report errors in the file now, not in the middle of a training

    @cached_property
    def _content(self) -> dict[str, list[dict[str, Any]]]:
        try:
            content = read_json(self.path, limit=MAX_COCO_BYTES)
        except (OSError, ValueError) as error:
            raise ChipError(f"{self.path} cannot be read ({error}): give a COCO file of instances") from error
        content = content if isinstance(content, dict) else {}
        missing = [name for name in ("images", "annotations", "categories") if name not in content]
        if missing or not content["images"]:
            raise ChipError(f"{self.path} lacks {', '.join(missing) or 'images'}: give a COCO file of instances")
        return content

    @cached_property
    def _categories(self) -> dict[str, tuple[int, str]]:
        """Number from 1 and name of every category by its id, in the order of the ids."""
        names = {_id(category["id"]): parse_name(category["name"]) for category in self._content["categories"]}
        if len(names) < len(self._content["categories"]):
            raise ValueError(f"{len(self._content['categories'])} categories have {len(names)} different ids")
        twice = [name for name, count in Counter(names.values()).items() if count > 1]
        if twice:
            raise ValueError(f"several categories are called {twice[0]!r}")
        ordered = sorted(names, key=lambda key: (0, int(key), "") if key.isdecimal() else (1, 0, key))
        return {key: (number, names[key]) for number, key in enumerate(ordered, 1)}

    @cached_property
    def _images(self) -> tuple[_Image, ...]:
        try:
            return self._read_images()
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"an entry lacks {error}" if isinstance(error, KeyError) else error
            raise ChipError(
                f"{self.path} cannot be understood ({reason}): export it again as COCO instances"
            ) from error

    def _read_images(self) -> tuple[_Image, ...]:
        entries = self._content["images"]
        images = {_id(entry["id"]): (_plain(entry["file_name"]), _size(entry)) for entry in entries}
        for what, count in (("ids", len(images)), ("file names", len({name for name, _ in images.values()}))):
            if count < len(entries):
                raise ValueError(f"{len(entries)} images have {count} different {what}")
        if not self._categories:
            raise ValueError("it names no category")
        objects = self._objects(set(images))
        return tuple(_Image(name, size, tuple(objects[key])) for key, (name, size) in images.items())

    def _objects(self, images: set[str]) -> dict[str, list[_Object]]:
        """Objects with an outline by the id of their image."""
        annotations = self._content["annotations"]
        listed = [annotation for annotation in annotations if _id(annotation["image_id"]) in images]
        outlined = [annotation for annotation in listed if _has_outline(annotation.get("segmentation"))]
        single = [annotation for annotation in outlined if not _is_crowd(annotation)]
        if annotations and not listed:
            raise ValueError("none of its objects is on an image that it lists")
        if annotations and not outlined:
            raise ValueError(f"{len(annotations)} objects have a box and no outline, and training needs outlines")
        for left_out, why in (
            (len(annotations) - len(listed), "are on images that it does not list"),
            (len(listed) - len(outlined), "have a box and no outline"),
            (len(outlined) - len(single) if single else 0, "are crowds; set iscrowd to 0 where each is one object"),
        ):
            if left_out:
                logger.warning("%s: %d of %d objects left out: they %s", self.path, left_out, len(annotations), why)
        objects: dict[str, list[_Object]] = defaultdict(list)
        for annotation in single or outlined:
            category = _id(annotation["category_id"])
            if category not in self._categories:
                raise ValueError(f"an object has category {category}, which it does not list")
            number, _ = self._categories[category]
            objects[_id(annotation["image_id"])].append(_Object(number, annotation["segmentation"]))
        return objects

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by their number in the file."""
        return tuple(name for _, name in self._categories.values())

    @cached_property
    def names(self) -> tuple[str, ...]:
        """File name of every image."""
        return tuple(image.name for image in self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Outlined:
        """One image and its objects.

        Raises
        ------
        ChipError
            If the image is missing or has another size than the file says, or a segmentation cannot be understood.
        """
        entry = self._images[index]
        image = _rgb(read_image(self._find(entry.name)))
        size = image.shape[0], image.shape[1]
        if entry.size not in (None, size):
            raise ChipError(
                f"{entry.name} has {size[0]} x {size[1]} px and was outlined at {entry.size[0]} x {entry.size[1]} px, "
                f"says {self.path}: put the image that was outlined beside it"
            )
        if len(entry.objects) * size[0] * size[1] > MAX_MASKS_PX:
            raise ChipError(
                f"{self.path}: {len(entry.objects)} objects on {entry.name}, of {size[0]} x {size[1]} px, take more "
                "memory than there is: cut the image into smaller ones"
            )
        try:
            masks = [_decode(one.segmentation, *size) for one in entry.objects]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ChipError(f"{self.path}: objects of {entry.name} cannot be understood ({error})") from error
        ids = smallest_wins(np.stack(masks)) + 1 if masks else np.zeros(size, np.int32)
        areas = np.bincount(ids.ravel(), minlength=len(masks) + 1)[1:].astype(np.int64)
        class_ids = np.asarray([one.class_id for one in entry.objects], np.int32)
        return image, Instances(ids, class_ids, np.ones(len(masks), np.float32), areas)

    def _find(self, name: str) -> Path:
        for folder in (self.path.parent, self.path.parent / "images"):
            if (folder / name).is_file():
                return folder / name
        raise ChipError(f"{name} of {self.path} is neither beside it nor in images/: put the images there")


def _id(value: Any) -> str:
    """An id as text: tools disagree on whether 7, 7.0 and "7" are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{value!r} is not an id")
    return str(value).strip()


def _plain(name: Any) -> str:
    """A file name relative to the COCO file, as any system writes it.

    Raises
    ------
    ValueError
        If it leads out of the folder of the COCO file.
    """
    check_name(str(name))
    plain = str(name).replace("\\", "/")
    if PurePosixPath(plain).is_absolute() or PureWindowsPath(plain).drive or ".." in PurePosixPath(plain).parts:
        raise ValueError(f"the image {name} leads out of the folder of the file; name images from there")
    return plain


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (int(height), int(width)) if height and width else None


def _is_crowd(annotation: dict[str, Any]) -> bool:
    return str(annotation.get("iscrowd", 0)).strip().lower() in ("1", "true", "1.0")


def _has_outline(segmentation: Any) -> bool:
    if isinstance(segmentation, dict):
        return bool(segmentation.get("counts"))
    return bool(_corners(segmentation or []))


def _corners(segmentation: list[Any]) -> list[list[float]]:
    """Polygons of at least three corners; some tools do not put a single one into a list."""
    polygons = [segmentation] if segmentation and not isinstance(segmentation[0], list) else segmentation
    return [polygon for polygon in polygons if len(polygon) >= 6]


def _rgb(values: AnyArray) -> UInt8Array:
    """(H, W, 3) of a file's 8-bit values (H, W) or (H, W, B)."""
    if values.dtype != np.uint8:
        raise ChipError(
            f"images of instances have 8 bits, and this one {values.dtype}: save it again "
            "(gdal_translate -ot Byte -scale IN OUT)"
        )
    bands = values[..., None] if values.ndim == 2 else values
    return np.ascontiguousarray(bands[..., :3] if bands.shape[2] >= 3 else bands[..., :1].repeat(3, axis=2))


def _decode(segmentation: Any, height: int, width: int) -> BoolArray:
    """(height, width) mask of polygons, of run lengths or of compressed run lengths."""
    if isinstance(segmentation, list):
        return _fill(_corners(segmentation), height, width)
    size, counts = segmentation["size"], segmentation["counts"]
    if list(size) != [height, width]:
        raise ValueError(f"a mask of {size} px in an image of {[height, width]}")
    return from_run_lengths(counts if isinstance(counts, list) else expand_run_lengths(counts), height, width)


def _fill(polygons: list[list[float]], height: int, width: int) -> BoolArray:
    require("train", "pycocotools", purpose="reading outlines of a COCO file")
    from pycocotools import mask as run_length

    for polygon in polygons:
        if len(polygon) % 2:
            raise ValueError(f"an outline of {len(polygon)} numbers, and they come in pairs of x and y")
        corners = np.asarray(polygon, float).reshape(-1, 2)
        # slightly outside is usual; an outline far outside belongs to another image, and its length takes memory
        if not (np.abs(corners / (width, height) - 0.5) <= 1.5).all():
            raise ValueError(f"an outline reaches to {corners.max(axis=0).tolist()}, far outside {width} x {height} px")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools does not know numpy's newest arguments
        merged = run_length.merge(run_length.frPyObjects(polygons, height, width))
        return np.asarray(run_length.decode(merged), bool)
