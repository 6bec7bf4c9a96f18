"""Training pictures in one file of a few megabytes, for machines that have torch and Pillow and no raster library.

A pack is a ZIP archive of JPEG and PNG files, stored as they are, so that any tool opens it::

    data/images/NAME.jpg  data/masks/NAME.png   pictures with landslides and their masks
    negatives/NAME.jpg                          pictures without landslides

Nothing in it is executed or unpickled, and members of other names are refused.
"""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from geolabel.errors import OptionError
from geolabel.outputs import replacing
from geolabel.synthetic import synthesize
from geolabel.training.colours import jpeg
from geolabel.training.pictures import SUFFIXES, read_image

logger = logging.getLogger(__name__)

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
    rgb = read_image(path, "RGB")  # also a JPEG is decoded: what is damaged is not packed
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
                raise OptionError(f"{path} is no pack of pictures, {reason}: make it with geolabel chips --pack")
            for member in members:
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
    except (OSError, zipfile.BadZipFile) as error:
        raise OptionError(f"{path} cannot be read as a pack ({error}): make it with geolabel chips --pack") from error
    logger.info("%d files from %s", len(members), path)
    data, negatives = folder / "data", folder / NEGATIVES
    return data if data.is_dir() else None, negatives if negatives.is_dir() else None
