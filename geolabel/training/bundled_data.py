"""What networks are trained on: pictures with their landslides outlined, synthetic, from a folder, or from a pack.

A pack is one file of a few megabytes for machines that have torch and Pillow and no raster library: a ZIP archive of
JPEG and PNG files, stored as they are, so that any tool opens it::

    data/images/NAME.jpg  data/masks/NAME.png   pictures with landslides and their masks
    negatives/NAME.jpg                          pictures without landslides

Nothing in it is executed or unpickled, and members of other names are refused.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.segmentation import felzenszwalb

from geolabel import synthetic
from geolabel.errors import OptionError
from geolabel.image_files import open_picture
from geolabel.outputs import replacing
from geolabel.radiometry import Stretch
from geolabel.synthetic import synthesize
from geolabel.synthetic.cover import LANDSLIDE
from geolabel.training.colours import jpeg
from geolabel.types import AnyArray, Float64Array, Int64Array, UInt8Array, UInt16Array

logger = logging.getLogger(__name__)

UNKNOWN = 255
"""Land cover that is no landslide, and nothing more is known."""

SCALES = (200.0, 600.0, 1800.0)
"""Of the regions that real pictures are segmented into, in turn: from a boulder field to a whole slope."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
"""Pictures that are read from a folder."""

REPORTED = (
    *("003", "010", "017", "020", "027", "034"),  # of orthophotos with landslides
    *("field_0p1m", "nodata_0p35m", "overlap1_10m", "overlap2_10m"),  # of images without
)
"""Ends of the names of real images that are kept for reports, wherever a folder of images has them."""

_REPORTED_FLIGHTS = ("brighton",)
_FLIGHTS = (*_REPORTED_FLIGHTS, "caliterra", "boruszyn")
"""Frames of one flight overlap, so that whole flights are kept for reports."""


Part = Literal["all", "kept", "others"]


def is_reported(stem: str) -> bool:
    """Whether an image of a set without landslides is kept for reports: a fifth of them, by the hash of its name."""
    if stem.startswith(_FLIGHTS):
        return stem.startswith(_REPORTED_FLIGHTS)
    return int(hashlib.sha1(stem.encode(), usedforsecurity=False).hexdigest(), 16) % 5 == 0


@dataclass(frozen=True)
class Picture:
    """One image to cut samples from."""

    rgb: UInt8Array
    """(H, W, 3), stretched as the product stretches a scene."""
    classes: UInt8Array
    """(H, W) land cover as an index into `synthetic.CLASSES`; `UNKNOWN` where all that is known is: no landslide."""
    regions: UInt16Array
    """(H, W) numbered regions that look like one thing: of land cover, or of a segmentation; 0 where there is none."""
    weight: float
    """How often it is drawn, relative to the others."""
    zooms: tuple[float, float]
    """Range of enlargements that keep its ground sample distance within the networks' range."""

    @property
    def slides(self) -> UInt8Array:
        """(H, W), 1 on landslides."""
        return on_slides(self.classes)

    @cached_property
    def slide_boxes(self) -> Float64Array:
        """(N, 4) x0, y0, x1, y1 of landslides that touch nowhere, from their first to past their last pixels."""
        labels, _ = ndimage.label(self.slides, np.ones((3, 3)))
        places = ndimage.find_objects(labels)
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in places if min(x.stop - x.start, y.stop - y.start) > 3]
        return np.array(boxes, float).reshape(-1, 4)

    @cached_property
    def slide_pixels(self) -> Int64Array:
        """(N,) flat indices of the pixels on landslides."""
        return np.flatnonzero(self.slides)


def on_slides(classes: UInt8Array) -> UInt8Array:
    """(H, W) 1 where the land cover is a landslide, else 0."""
    marked: UInt8Array = (classes == LANDSLIDE).astype(np.uint8)
    return marked


def stretch(rgb: AnyArray) -> UInt8Array:
    """Stretch (H, W, 3), every pixel valid, as the product stretches a scene."""
    bands, valid = np.moveaxis(rgb, 2, 0), np.ones(rgb.shape[:2], bool)
    return Stretch.from_sample(bands, valid).apply(bands, valid)


def number_regions(classes: AnyArray, minimum: int = 64) -> UInt16Array:
    """Number the 4-connected regions of equal class that have at least `minimum` pixels; 0 elsewhere.

    Parameters
    ----------
    classes : (H, W)
        Of at most ``65535 * minimum`` pixels.
    """
    regions = np.zeros(classes.shape, np.uint16)
    count = 0
    for value in np.unique(classes):
        labels, found = ndimage.label(classes == value)
        keep = np.bincount(labels.ravel(), minlength=found + 1) >= minimum
        keep[0] = False
        numbers = np.where(keep, count + np.cumsum(keep), 0).astype(np.uint16)
        regions += numbers[labels]
        count += int(keep.sum())
    return regions


def synthetic_pictures(
    seeds: Sequence[int], size: int, gsds: Sequence[float], *, folder: Path, workers: int
) -> list[Picture]:
    """Draw one synthetic scene per seed, or read it from `folder` where an earlier call left it.

    Parameters
    ----------
    size
        Pixels a side.
    gsds
        Ground sample distances, metres, taken in turn.
    workers
        Processes that draw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(seed, size, gsds[i % len(gsds)]) for i, seed in enumerate(seeds)]
    make = partial(_make_scene, folder=folder)
    if workers <= 1:
        paths = [make(job) for job in jobs]
    else:
        # Fork would copy a process that already runs torch's threads.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            paths = list(pool.map(make, jobs))
    return [_read_scene(path) for path in paths]


def _make_scene(job: tuple[int, int, float], folder: Path) -> Path:
    seed, size, gsd = job
    path = folder / f"scene_{_generator_version()}_{seed}_{size}px_{gsd}m.npz"
    if not path.is_file():
        scene = synthesize(size, gsd=gsd, seed=seed)
        with replacing(path, overwrite=True) as part:
            np.savez(part, rgb=stretch(scene.rgb), classes=scene.classes, regions=number_regions(scene.classes))
    return path


@cache
def _generator_version() -> str:
    """Short hash of the generator's source: scenes that another version drew are not taken for its own."""
    digest = hashlib.sha256()
    for source in sorted(Path(synthetic.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:8]


def _read_scene(path: Path) -> Picture:
    with np.load(path, allow_pickle=False) as layers:
        return Picture(layers["rgb"], layers["classes"], layers["regions"], weight=1.0, zooms=(0.6, 1.6))


_HARD = ("agricultural", "beach", "caliterra", "intersection", "river", "road")
"""How the names of images without landslides begin that show what passes for one: bare, bright or graded ground."""

HARD_WEIGHT = 3.0


def read_sets(folder: Path) -> list[list[Picture]]:
    """Read images without landslides, a set from each folder in `folder`, and leave out what is kept for reports.

    An image of another format than 8 bits of red, green and blue is left out with a warning.

    Raises
    ------
    OptionError
        If there is no image.
    """
    sets = []
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        pictures: list[Picture] = []
        for path in sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and not is_reported(p.stem)):
            try:
                rgb = stretch(read_image(path, "RGB"))
            except OptionError as error:
                logger.warning("left out: %s", error)
                continue
            # Mirrored beyond its frame a small picture would be a pattern.
            zooms = max(0.3, 200 / min(rgb.shape[:2])), 2.2
            weight = HARD_WEIGHT if path.stem.startswith(_HARD) else 1.0
            classes = np.full(rgb.shape[:2], UNKNOWN, np.uint8)
            regions = segment_regions(rgb, SCALES[len(pictures) % len(SCALES)])
            pictures.append(Picture(rgb, classes, regions, weight, zooms))
        if pictures:
            sets.append(pictures)
            logger.info("%d pictures without landslides from %s", len(pictures), place)
    if not sets:
        raise OptionError(f"{folder} holds no folder with images ({', '.join(SUFFIXES)}): give one with a folder a set")
    return sets


def read_pictures(
    folder: Path, *, exclude: Sequence[str], zooms: tuple[float, float], part: Part = "all"
) -> list[Picture]:
    """Read ``images/*`` of a folder with ``masks/*`` of the same stem; without a masks folder none shows a landslide.

    Parameters
    ----------
    exclude
        Ends of stems that are left out, such as images that are kept for reports.
    part
        ``kept``: only the fifth of the images that `is_reported` names; ``others``: only those that it does not.

    Raises
    ------
    OptionError
        If the folder holds no image, one cannot be read, or an image of a folder with masks lacks its mask.
    """
    images = folder / "images" if (folder / "images").is_dir() else folder
    masks = folder / "masks"
    paths = [
        p
        for p in sorted(images.iterdir())
        if p.suffix.lower() in SUFFIXES
        and not p.stem.endswith(tuple(exclude))
        and (part == "all" or is_reported(p.stem) == (part == "kept"))
    ]
    if not paths:
        raise OptionError(f"{folder} holds no image ({', '.join(SUFFIXES)}): give a folder with images/ and masks/")
    pictures = []
    for number, path in enumerate(paths):
        rgb = read_image(path, "RGB")
        classes = np.full(rgb.shape[:2], UNKNOWN, np.uint8)
        if masks.is_dir():
            mask = masks / f"{path.stem}.png"
            if not mask.is_file():
                raise OptionError(
                    f"{path.name} has no {mask}: add its mask, or keep images without landslides elsewhere"
                )
            classes[read_image(mask, "L") > 0] = LANDSLIDE
        stretched = stretch(rgb)
        regions = segment_regions(stretched, SCALES[number % len(SCALES)])
        pictures.append(Picture(stretched, classes, regions, 1.0, zooms))
    logger.info("%d pictures from %s", len(pictures), folder)
    return pictures


def seen_at(picture: Picture, reduced: int, enlarged: int) -> Picture:
    """A picture as a sensor of so many times larger pixels takes it, enlarged as extraction enlarges coarse images."""
    height, width = (n // reduced * reduced for n in picture.slides.shape)
    size = width // reduced * enlarged, height // reduced * enlarged
    image = Image.fromarray(picture.rgb[:height, :width]).reduce(reduced).resize(size, Image.Resampling.BILINEAR)
    layers = [
        np.asarray(Image.fromarray(layer[:height, :width]).resize(size, Image.Resampling.NEAREST))
        for layer in (picture.classes, picture.regions)
    ]
    return replace(picture, rgb=np.asarray(image), classes=layers[0], regions=layers[1])


def segment_regions(rgb: UInt8Array, scale: float) -> UInt16Array:
    """Number regions of a picture (H, W, 3) that nobody has outlined, larger ones for a larger `scale`.

    Source: Felzenszwalb and Huttenlocher (2004), "Efficient Graph-Based Image Segmentation".
    """
    half = np.asarray(Image.fromarray(rgb).reduce(2))  # a quarter of the time; edges of noise are no loss
    found = felzenszwalb(half, scale=scale, sigma=0.8, min_size=max(16, int(scale / 8)))
    height, width = rgb.shape[:2]
    return number_regions(found.repeat(2, axis=0).repeat(2, axis=1)[:height, :width])


def read_image(path: Path, mode: str) -> UInt8Array:
    """Read an image file in a mode of Pillow: (H, W) or (H, W, 3).

    Raises
    ------
    OptionError
        If it cannot be read.
    """
    try:
        with open_picture(path) as image:
            return np.asarray(image.convert(mode))
    except OSError as error:
        raise OptionError(f"{path} cannot be read ({error}): remove it, or save it again as PNG or JPEG") from error


LARGEST = 30_000_000
"""Bytes of a pack. A machine that is lent for minutes has to receive it first."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every member: the same pictures give the same bytes."""

IMAGES, MASKS, NEGATIVES = "data/images", "data/masks", "negatives"

MEMBER = re.compile(rf"({IMAGES}|{MASKS}|{NEGATIVES})/[^/\\:]+\.(jpg|jpeg|png)", re.IGNORECASE)


def write_pack(
    path: Path,
    *,
    data: Path | None = None,
    negatives: Path | None = None,
    exclude: Sequence[str] = (),
    seeds: Sequence[int] = (),
    quality: int = 92,
    size: int = 1024,
    gsd: float = 0.5,
    overwrite: bool = False,
) -> dict[str, int]:
    """Pack pictures; the file appears when it is whole.

    JPEG files are taken byte for byte; all others become JPEGs of three bands.

    Parameters
    ----------
    data
        Folder with images/ and masks/ of the same stems.
    negatives
        Folder with images that show no landslide.
    exclude
        Ends of stems that are left out, such as images that are kept for reports.
    seeds, size, gsd
        Synthetic scenes to add to those with landslides, pixels a side, metres per pixel.
    quality
        Of the JPEGs that are made, 1 to 95.
    overwrite
        Whether a file that is there may be replaced.

    Returns
    -------
    numbers of images, masks and negatives, and bytes of the file

    Raises
    ------
    OutputError
        If the file exists and must not be replaced, or cannot be written.
    OptionError
        If there is nothing to pack, a picture cannot be read or lacks its mask, or the pack grows beyond `LARGEST`.
    """
    bytes_by_kind = dict.fromkeys((IMAGES, MASKS, NEGATIVES), 0)
    counts = dict.fromkeys((IMAGES, MASKS, NEGATIVES), 0)
    with replacing(path, overwrite=overwrite) as part:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for name, content in _members(data, negatives, exclude, seeds, quality, size, gsd):
                archive.writestr(zipfile.ZipInfo(name, EPOCH), content)
                kind = name.rpartition("/")[0]
                bytes_by_kind[kind] += len(content)
                counts[kind] += 1
        if not sum(counts.values()):
            raise OptionError("nothing to pack: give --data, --negatives or --seeds")
        total = part.stat().st_size
        if total > LARGEST:
            shares = ", ".join(f"{kind} {n / 1e6:.1f} MB in {counts[kind]}" for kind, n in bytes_by_kind.items())
            raise OptionError(
                f"the pack has {total / 1e6:.1f} MB ({shares}), the limit is {LARGEST / 1e6:.0f} MB: "
                f"pack fewer or smaller pictures, or give a --quality below {quality}"
            )
    return {"images": counts[IMAGES], "masks": counts[MASKS], "negatives": counts[NEGATIVES], "bytes": total}


def _members(
    data: Path | None,
    negatives: Path | None,
    exclude: Sequence[str],
    seeds: Sequence[int],
    quality: int,
    size: int,
    gsd: float,
) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents in the order of the names within each kind."""
    if data is not None:
        for image in _pictures(data / "images", exclude):
            mask = data / "masks" / f"{image.stem}.png"
            if not mask.is_file():
                raise OptionError(f"{image.name} has no {mask}: add its mask, or pack its folder as --negatives")
            yield f"{IMAGES}/{image.stem}.jpg", _jpeg_of(image, quality)
            yield f"{MASKS}/{image.stem}.png", _png(read_image(mask, "L") > 0)
    for seed in seeds:
        scene = synthesize(size, gsd=gsd, seed=seed)
        yield f"{IMAGES}/synthetic_{seed}_scene.jpg", jpeg(scene.rgb, quality)
        yield f"{MASKS}/synthetic_{seed}_scene.png", _png(scene.truth > 0)
    if negatives is not None:
        for image in _pictures(negatives, exclude):
            yield f"{NEGATIVES}/{image.stem}.jpg", _jpeg_of(image, quality)


def _pictures(folder: Path, exclude: Sequence[str]) -> list[Path]:
    found = [p for p in sorted(folder.glob("*")) if p.suffix.lower() in SUFFIXES]
    wanted = [p for p in found if not p.stem.endswith(tuple(exclude))]
    if not wanted:
        raise OptionError(f"{folder} holds no image to pack ({', '.join(SUFFIXES)}): give another folder")
    twice = {p.stem for p in wanted if sum(q.stem == p.stem for q in wanted) > 1}
    if twice:
        raise OptionError(f"{folder} holds {min(twice)} in two formats: keep one of them")
    return wanted


def _jpeg_of(path: Path, quality: int) -> bytes:
    rgb = read_image(path, "RGB")  # also a JPEG is decoded: damaged files are not packed
    return path.read_bytes() if path.suffix.lower() in (".jpg", ".jpeg") else jpeg(rgb, quality)


def _png(mask: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


def unpack(path: Path, folder: Path) -> tuple[Path | None, Path | None]:
    """Write the pictures of a pack to a folder.

    Returns
    -------
    folders of the pictures with landslides and of those without, as trainers read them; None where there are none

    Raises
    ------
    OptionError
        If the file is no pack, or holds what a pack does not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            strange = [m.filename for m in members if not MEMBER.fullmatch(m.filename)]
            total = sum(m.file_size for m in members)
            if strange or total > LARGEST:
                reason = f"it holds {strange[0]!r}" if strange else f"its content has {total / 1e6:.1f} MB"
                raise OptionError(f"{path} is not a pack of pictures, {reason}: make it with geolabel chips --pack")
            for member in members:
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
    except (OSError, zipfile.BadZipFile) as error:
        raise OptionError(f"{path} cannot be read as a pack ({error}): make it with geolabel chips --pack") from error
    logger.info("%d files from %s", len(members), path)
    data, negatives = folder / "data", folder / NEGATIVES
    return data if data.is_dir() else None, negatives if negatives.is_dir() else None
