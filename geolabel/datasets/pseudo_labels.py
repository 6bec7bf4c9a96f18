"""Pseudo-labels and clusters on disk: one folder for all trainings, which the same run resumes.

::

    pseudo/
      images/NAME.png     the input of the networks: 8-bit RGB
      labels/NAME.png     8-bit label map: index into the classes of the manifest, 255 = ignored
      instances.json      the closed regions of every map, as COCO instances: category id = label value
      manifest.json       format, classes, provenance and the names of the images; written last

While a run is in progress, ``run.json`` describes it and ``annotations/NAME.json`` holds the instances of an image;
both are removed when it is finished. The label map of an image is written last, so an image that has one is complete.
Where finished pseudo-labels are replaced, the new ones are made in a folder inside, and the old ones stay until
these are finished. Files that geolabel made are in the record of the folder (`geolabel.folder_record`), and nothing
else is touched. Memory does not grow with the number of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geolabel import parsing
from geolabel.clusters import Clusters, Source
from geolabel.errors import GeolabelError, OptionError, OutputError, SceneError, WeightsError
from geolabel.folders import check_folder, work_folder
from geolabel.image_files import open_picture
from geolabel.labels import BACKGROUND, IGNORE, Instances, LabelMap, closed_regions, run_lengths
from geolabel.outputs import replacing, saving
from geolabel.parts import Recipe
from geolabel.scratch import settle
from geolabel.types import AnyArray, BoolArray, UInt8Array

FORMAT = 1
"""Version of the folder; a newer one is refused."""

MANIFEST, INSTANCES, RUN = "manifest.json", "instances.json", "run.json"
"""Names of the manifest, of the instances, and of the description of an unfinished run."""


@contextmanager
def labels_folder(
    root: Path, provenance: Mapping[str, Any], *, overwrite: bool = False, inputs: Sequence[str | Path] = ()
) -> Iterator[Path]:
    """Yield the folder to make pseudo-labels in: `root`, or one in it as long as finished ones have to stay.

    Parameters
    ----------
    provenance
        How the labels are made: a stopped run is resumed by one with the same provenance.
    overwrite
        Whether to replace what geolabel made in the folder before.
    inputs
        Files and folders that the labels are made from.

    Raises
    ------
    OutputError
        If the folder is an input, holds other files, holds finished pseudo-labels and `overwrite` is false, or holds
        the beginning of another run.
    """
    check_folder(root, inputs)
    if (root / MANIFEST).is_file() and not overwrite:
        raise OutputError(f"{root} holds finished pseudo-labels: give --overwrite, or another folder")
    with work_folder(root, overwrite=overwrite, goes_on=lambda folder: _begun(folder) == _plain(provenance)) as folder:
        if _begun(folder) not in (None, _plain(provenance)):
            raise OutputError(
                f"{root} holds the beginning of another run, of other images, networks or settings: "
                "give these again to resume it, --overwrite, or another folder"
            )
        write_json(folder / RUN, {"provenance": provenance})
        yield folder


def _begun(folder: Path) -> Any:
    """Provenance of the unfinished run in a folder; None if there is none."""
    return read_json(folder / RUN).get("provenance") if (folder / RUN).exists() else None


@dataclass(frozen=True)
class PseudoLabelWriter:
    """Writes a folder of pseudo-labels, image by image, each completely or not at all.

    Parameters
    ----------
    root
        The folder; see `labels_folder`.
    classes
        Names of the label values from 0.
    provenance
        How the labels are made, as plain JSON values.
    """

    root: Path
    classes: tuple[str, ...]
    provenance: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether an image is done."""
        return (self.root / "labels" / f"{name}.png").exists()

    def files(self, name: str) -> list[Path]:
        """The files that are written for an image."""
        ends = {"images": "png", "annotations": "json", "labels": "png"}
        return [self.root / folder / f"{name}.{end}" for folder, end in ends.items()]

    def write(self, name: str, image: UInt8Array, labels: LabelMap) -> None:
        """Write an image (H, W, 3) and its labels.

        Raises
        ------
        OutputError
            If the disk is full or the folder cannot be written to.
        """
        if labels.classes != self.classes or labels.values.shape != image.shape[:2]:
            raise ValueError(f"labels {labels.classes} of {labels.values.shape} do not fit image {name} {image.shape}")
        objects = closed_regions(labels)
        for folder in ("images", "labels", "annotations"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        _write_png(self.root / "images" / f"{name}.png", image)
        write_json(
            self.root / "annotations" / f"{name}.json",
            {
                "image": {"file_name": f"images/{name}.png", "height": image.shape[0], "width": image.shape[1]},
                "annotations": [_annotation(objects, index) for index in range(len(objects))],
            },
        )
        _write_png(self.root / "labels" / f"{name}.png", labels.values)

    def finish(self, names: Sequence[str], results: Mapping[str, Any] | None = None) -> None:
        """Merge the instances of all images into one file and write the manifest.

        Parameters
        ----------
        names
            The images in the order of the manifest; all of them have been written.
        results
            Figures of the run, kept beside its provenance.
        """
        with replacing(self.root / INSTANCES, overwrite=True) as part, part.open("w", encoding="utf-8") as file:
            for piece in self._coco(names):
                file.write(piece)
        manifest = {
            "format": FORMAT,
            "classes": self.classes,
            "ignore": IGNORE,
            "images": list(names),
            "provenance": self.provenance,
            "results": dict(results or {}),
        }
        write_json(self.root / MANIFEST, _plain(manifest))
        for name in names:
            (self.root / "annotations" / f"{name}.json").unlink(missing_ok=True)
        with suppress(OSError):
            (self.root / "annotations").rmdir()
        (self.root / RUN).unlink(missing_ok=True)

    def _coco(self, names: Sequence[str]) -> Iterator[str]:
        # Two passes over the images, since COCO lists them before their annotations; only one is in memory at a time.
        things = [
            {"id": value, "name": name, "supercategory": ""}
            for value, name in enumerate(self.classes)
            if name != BACKGROUND
        ]
        yield f'{{"info": {{"description": "pseudo-labels"}}, "categories": {json.dumps(things)},\n"images": ['
        records = (read_json(self.root / "annotations" / f"{name}.json") for name in names)
        for number, record in enumerate(records, 1):
            yield (",\n" if number > 1 else "\n") + json.dumps({"id": number, **record["image"]})
        yield '\n],\n"annotations": ['
        count = 0
        records = (read_json(self.root / "annotations" / f"{name}.json") for name in names)
        for number, record in enumerate(records, 1):
            for annotation in record["annotations"]:
                count += 1
                yield (",\n" if count > 1 else "\n") + json.dumps({"id": count, "image_id": number, **annotation})
        yield "\n]}\n"


def _annotation(objects: Instances, index: int) -> dict[str, Any]:
    mask = objects.mask(index)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(cols[0])
    return {
        "category_id": int(objects.class_ids[index]),
        "score": round(float(objects.scores[index]), 6),
        "area": int(objects.areas[index]),
        "bbox": [left, top, int(cols[-1]) - left + 1, int(rows[-1]) - top + 1],
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
    }


class PseudoLabels(Sequence["PseudoLabel"]):
    """A finished folder of pseudo-labels; images are read on access.

    Raises
    ------
    SceneError
        If the folder does not exist, is not finished, or was written by a newer geolabel.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        settle(self.root)
        path = self.root / MANIFEST
        if not path.is_file():
            stopped = (self.root / RUN).exists()
            reason = "its run was stopped: run it again to go on" if stopped else "there is no manifest.json in it"
            reason = reason if self.root.is_dir() else "there is no such folder"
            raise SceneError(f"{self.root} holds no finished pseudo-labels ({reason}): give a folder of geolabel label")
        manifest = read_json(path)
        try:
            newer = manifest.get("format", 0) > FORMAT
            self.names: tuple[str, ...] = tuple(map(parsing.parse_file_name, manifest["images"]))
            self.classes: tuple[str, ...] = tuple(map(parsing.parse_name, manifest["classes"]))
            self.provenance: dict[str, Any] = dict(manifest["provenance"])
            self.results: dict[str, Any] = dict(manifest["results"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SceneError(f"{path} is not a manifest of pseudo-labels ({error!r}): make them again") from error
        if newer:
            raise SceneError(f"{self.root} has format {manifest['format']}, this geolabel reads {FORMAT}: upgrade it")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        """One image with its labels, or a list of such for a slice."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return PseudoLabel(self.root, self.names[index])

    @cached_property
    def shown(self) -> BoolArray:
        """(N,) whether a label map has a class other than the first."""
        maps = (_read_png(self.root / "labels" / f"{name}.png", "L") for name in self.names)
        return np.array([bool(((values > 0) & (values != IGNORE)).any()) for values in maps], bool)

    @property
    def sources(self) -> Sequence[Path]:
        """The folder, which no output may be."""
        return (self.root,)

    @property
    def coco(self) -> Path:
        """The file of instances."""
        return self.root / INSTANCES


@dataclass(frozen=True)
class PseudoLabel:
    """One image of a folder and its label map."""

    root: Path
    name: str

    @cached_property
    def image(self) -> UInt8Array:
        """(H, W, 3) red first."""
        return _read_png(self.root / "images" / f"{self.name}.png", "RGB")

    @cached_property
    def values(self) -> UInt8Array:
        """(H, W) index into the classes, 255 where ignored.

        Raises
        ------
        SceneError
            If the map is missing, damaged or of another size than the image.
        """
        values = _read_png(self.root / "labels" / f"{self.name}.png", "L")
        if values.shape != self.image.shape[:2]:
            raise SceneError(
                f"{self.root}: labels of {self.name} are {values.shape}, the image is {self.image.shape[:2]} px: "
                "one of the files was replaced"
            )
        return values


def unique_names(paths: Sequence[Path], root: Path) -> list[str]:
    """Names of images below a folder: their paths without suffix, folders joined by two underscores.

    Raises
    ------
    OptionError
        If two images would have the same name.
    """
    names = ["__".join(path.relative_to(root).with_suffix("").parts) for path in paths]
    seen: dict[str, Path] = {}
    for name, path in zip(names, paths, strict=True):
        if name in seen:
            raise OptionError(f"{seen[name]} and {path} have one name, {name}: rename one of them")
        seen[name] = path
    return names


def _write_png(path: Path, pixels: UInt8Array) -> None:
    with saving(path) as part:
        Image.fromarray(pixels).save(part)


def _read_png(path: Path, mode: str) -> AnyArray:
    try:
        with open_picture(path) as picture:
            if picture.mode != mode:
                raise SceneError(f"{path} has mode {picture.mode}, {mode} is needed: it was replaced by another file")
            return np.asarray(picture)
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, record: Any) -> None:
    """Write plain values, completely or not at all."""
    with saving(path) as part:
        part.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read plain values.

    Raises
    ------
    SceneError
        If the file is missing or damaged.
    """
    try:
        return parsing.read_json(path)
    except (OSError, ValueError) as error:
        raise SceneError(f"{path} cannot be read: {error}") from error


def _plain(record: Any) -> Any:
    return json.loads(json.dumps(record))


NAME = "clusters.json"
"""Name of the file in a folder of pseudo-labels."""

CLUSTERS_FORMAT = 1
"""Version of the file; a newer one is refused."""


@dataclass(frozen=True)
class ClusterFile:
    """Contents of the file."""

    clusters: Clusters
    source: Source
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How the clusters were made."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """Figures on the quality of the clusters."""

    def check(self, segmenter: Recipe) -> None:
        """Check that the features come from this segmenter.

        Raises
        ------
        OptionError
            If they come from another one.
        """
        if segmenter.sha256 != self.source.segmenter:
            raise OptionError(
                f"the clusters are those of a segmenter with SHA-256 {self.source.segmenter[:12]}..., and "
                f"{segmenter.source} has {segmenter.sha256[:12]}...: give --sam or --sam-checkpoint as when they were "
                "made"
            )

    def named(self, names: dict[int, str]) -> ClusterFile:
        """A copy with some clusters named; see `Clusters.named`."""
        return replace(self, clusters=self.clusters.named(names))


def clusters_path(path: Path) -> Path:
    """The file itself, from its name or from the folder of pseudo-labels that holds it."""
    return path / NAME if path.is_dir() else path


def save_clusters(path: Path, content: ClusterFile) -> None:
    """Write the file, completely or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_json(
        path,
        {
            "format": CLUSTERS_FORMAT,
            "clusters": content.clusters.as_dict(),
            "source": content.source.as_dict(),
            "provenance": dict(content.provenance),
            "results": dict(content.results),
        },
    )


def load_clusters(path: Path) -> ClusterFile:
    """Read the file.

    Raises
    ------
    WeightsError
        If it is missing or damaged, is not a file of clusters, or was written by a newer geolabel.
    """
    path = clusters_path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: make clusters with geolabel label --method alps")
    try:
        record = read_json(path)
        newer = record["format"] > CLUSTERS_FORMAT
        content = None if newer else _parse(record)
    except (GeolabelError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(
            f"{path} cannot be read as clusters ({error}): make them again with geolabel label --method alps"
        ) from error
    if content is None:
        raise WeightsError(f"{path} has format {record['format']}, this geolabel reads {CLUSTERS_FORMAT}: upgrade it")
    return content


def _parse(record: Mapping[str, Any]) -> ClusterFile:
    return ClusterFile(
        Clusters.from_dict(record["clusters"]),
        Source.from_dict(record["source"]),
        dict(record["provenance"]),
        dict(record["results"]),
    )
