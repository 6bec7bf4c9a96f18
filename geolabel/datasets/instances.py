"""Images with their objects: pseudo-labels, chips with masks, or a file of COCO."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.datasets.chips import ChipDataset, mask_path, read_chips, read_image
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.errors import ChipError
from geolabel.labels import BACKGROUND, Instances, LabelMap, closed_regions, smallest_wins
from geolabel.trainers.examples import Examples
from geolabel.trainers.instances import Outlined
from geolabel.types import AnyArray, BoolArray, UInt8Array


def read_instances(path: str | Path, *, class_name: str = "landslide") -> Examples[Outlined]:
    """Find images with objects.

    Parameters
    ----------
    path
        A folder as ``geolabel label`` writes it, a folder of chips with masks, or a COCO file; its images lie where it
        says, from its own folder or from a folder ``images`` in that.
    class_name
        What the masks of chips with a single class show.

    Raises
    ------
    ChipError
        If it is none of these, or holds no image.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return CocoInstances(path)
    if (path / "manifest.json").is_file():
        return LabelledInstances(PseudoLabels(path))
    return MaskedInstances(read_chips(path, class_name=class_name))


@dataclass(frozen=True)
class LabelledInstances:
    """The closed regions of pseudo-labels."""

    labels: PseudoLabels

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
        shift = 0 if BACKGROUND in named[:1] else 1  # of clusters, 0 is one too; the classes of objects begin at 1
        image = np.array(label.image)  # what Pillow lends cannot be written to, and torch wants to be able to
        return image, Instances(objects.ids, objects.class_ids + shift, objects.scores, objects.areas)


@dataclass(frozen=True)
class MaskedInstances:
    """The closed regions of the masks of chips; chips whose mask is not known are left out."""

    chips: ChipDataset

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


@dataclass(frozen=True)
class CocoInstances:
    """Instances of a COCO file. Where two overlap the smaller has the pixel; crowds are left out.

    Raises
    ------
    ChipError
        If the file cannot be understood.
    """

    path: Path

    def __post_init__(self) -> None:
        missing = {"images", "annotations", "categories"} - set(self._content)
        if missing or not self._content["images"]:
            raise ChipError(
                f"{self.path} lacks {', '.join(sorted(missing)) or 'images'}: give a COCO file of instances"
            )

    @cached_property
    def _content(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ChipError(f"{self.path} cannot be read ({error}): give a COCO file of instances") from error
        return content if isinstance(content, dict) else {}

    @cached_property
    def _categories(self) -> dict[int, int]:
        return {thing["id"]: k for k, thing in enumerate(sorted(self._content["categories"], key=lambda t: t["id"]), 1)}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by their number in the file."""
        return tuple(thing["name"] for thing in sorted(self._content["categories"], key=lambda thing: thing["id"]))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """File name of every image."""
        return tuple(image["file_name"] for image in self._content["images"])

    @cached_property
    def _by_image(self) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in self._content["annotations"]:
            if not annotation.get("iscrowd", 0):
                found[annotation["image_id"]].append(annotation)
        return found

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Outlined:
        """One image and its objects.

        Raises
        ------
        ChipError
            If the image is missing, or a segmentation cannot be understood.
        """
        entry = self._content["images"][index]
        folders = (self.path.parent, self.path.parent / "images")
        file = next(
            (folder / entry["file_name"] for folder in folders if (folder / entry["file_name"]).is_file()), None
        )
        if file is None:
            raise ChipError(f"{entry['file_name']} of {self.path} lies neither beside it nor in images/")
        image = rgb(read_image(file))
        size = image.shape[0], image.shape[1]
        annotations = self._by_image.get(entry["id"], [])
        try:
            masks = [_decode(annotation["segmentation"], *size) for annotation in annotations]
            class_ids = np.asarray(
                [self._categories[annotation["category_id"]] for annotation in annotations], np.int32
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ChipError(f"{self.path}: objects of {entry['file_name']} cannot be understood ({error})") from error
        ids = smallest_wins(np.stack(masks)) + 1 if masks else np.zeros(size, np.int32)
        areas = np.bincount(ids.ravel(), minlength=len(masks) + 1)[1:].astype(np.int64)
        return image, Instances(ids, class_ids, np.ones(len(masks), np.float32), areas)


def rgb(values: AnyArray) -> UInt8Array:
    """(H, W, 3) of a file's 8-bit values (H, W) or (H, W, B)."""
    if values.dtype != np.uint8:
        raise ChipError(f"images of instances have 8 bits, and this one {values.dtype}: save it anew "
                        "(gdal_translate -ot Byte -scale IN OUT)")  # fmt: skip
    bands = values[..., None] if values.ndim == 2 else values
    return np.ascontiguousarray(bands[..., :3] if bands.shape[2] >= 3 else bands[..., :1].repeat(3, axis=2))


def _decode(segmentation: Any, height: int, width: int) -> BoolArray:
    # Polygons, run lengths, or compressed run lengths.
    from pycocotools import mask as run_length

    if isinstance(segmentation, list):
        encoded = run_length.merge(run_length.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = run_length.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools does not know numpy's newest arguments
        mask: BoolArray = run_length.decode(encoded).astype(bool)
    if mask.shape != (height, width):
        raise ValueError(f"a mask of {mask.shape} px in an image of {(height, width)}")
    return mask
