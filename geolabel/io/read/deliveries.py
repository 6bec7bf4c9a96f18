"""Deliveries of satellite data: folders and archives whose images are recognised by name.

Sentinel-2 (``.SAFE``), Landsat and PlanetScope use fixed names, so red, green and blue are known before a file is
opened. The metadata beside the images is untrusted and never read, and GDAL's own drivers for these products never
run: geolabel writes a virtual raster over the images, which are checked like any other raster.

Names: https://sentiwiki.copernicus.eu/web/s2-products, https://www.usgs.gov/landsat-missions (Collection 2),
https://docs.planet.com/data/imagery/planetscope.
"""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from xml.etree import ElementTree as ET

from rasterio.io import MemoryFile

from geolabel.bands import COLOURS, PLANET, PLANET_BANDS
from geolabel.errors import SceneError
from geolabel.io.read import formats
from geolabel.io.read.vrt import DTYPES, Checked
from geolabel.parsing import check_regular

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

MAX_NAMES = 20_000
"""Maximum number of names examined in a folder or archive; a Sentinel-2 product has several hundred."""

MAX_DEPTH = 5
"""Maximum folder depth: the images of Sentinel-2 are in ``GRANULE/NAME/IMG_DATA/R10m``."""

MAX_IMAGE_BYTES = 16 << 30
"""Maximum unpacked size of an image in an archive; images of these missions have up to a few gigabytes."""

MAX_RATIO = 200
"""Maximum ratio of unpacked to packed size of an image in an archive; images hardly compress further."""

_SENTINEL_ID = r"(?:L2A_)?T\d\d[A-Z]{3}_(?P<date>\d{8})T\d{6}|S2[A-Z]_\w+_T\d\d[A-Z]{3}"
_LANDSAT_ID = r"L(?P<sensor>[COTEM])0\d_L\w{3}_\d{6}_(?P<date>\d{8})_\d{8}_\d\d_\w\w"
_PLANET_ID = r"(?P<date>\d{8})_\d{6}(?:_\d+)?_[0-9a-z]{4}"
"""One acquisition, identified by how the names of its images begin."""

_SENTINEL = re.compile(rf"(?P<id>{_SENTINEL_ID})_B(?P<band>0[234])(?P<kind>(?:_[126]0m)?)\.jp2", re.IGNORECASE)

_LANDSAT = re.compile(rf"(?P<id>{_LANDSAT_ID})_(?P<kind>(?:SR_)?)B(?P<band>\d\d?)\.tif", re.IGNORECASE)

_QUALITY: Mapping[re.Pattern[str], dict[str, Any]] = {
    re.compile(rf"(?P<id>{_SENTINEL_ID})_SCL_(?P<kind>[26]0m)\.jp2", re.IGNORECASE): {"values": (3, 8, 9, 10)},
    re.compile(rf"(?P<id>{_LANDSAT_ID})_QA_PIXEL\.tif", re.IGNORECASE): {"bits": 0b11110},
    re.compile(rf"(?P<id>{_PLANET_ID})_3B_udm2(?:_clip)?\.tif", re.IGNORECASE): {"values": (0,)},
}
"""Quality rasters and the values that mark hidden ground. Sentinel-2: cloud shadow, cloud of medium and high
probability, cirrus. Landsat: dilated cloud, cirrus, cloud, cloud shadow. PlanetScope: everything not marked clear
in the first band."""

_OLI, _TM = {"4": "red", "3": "green", "2": "blue"}, {"3": "red", "2": "green", "1": "blue"}

_LANDSAT_BANDS = {"C": _OLI, "O": _OLI, "T": _TM, "E": _TM, "M": {}}
"""Band numbers by sensor letter: OLI, TM, ETM+, and MSS, which has no blue band."""

_SENTINEL_KINDS = ("_10m", "", "_20m", "_60m")

_METADATA = re.compile(
    r"(?P<sentinel>MTD_MSIL\w\w|MTD_TL)\.xml|(?P<landsat>L\w+)_MTL\.(?:xml|json|txt)|"
    r"(?P<planet>\d{8}_\d{6}\w*?)_(?:3B_\w+_)?metadata(?:_clip)?\.(?:xml|json)",
    re.IGNORECASE,
)
"""Names of metadata files that are accepted as an input instead of their delivery."""


@dataclass(frozen=True)
class Image:
    """One band of an image, used as a colour."""

    path: str
    """Path for GDAL."""
    band: int = 1

    @property
    def name(self) -> str:
        """File name, with the band number if the image has several."""
        return PurePosixPath(self.path.replace("\\", "/")).name


@dataclass(frozen=True)
class Delivery:
    """A folder or archive with one image in red, green and blue."""

    name: str
    images: tuple[Image, Image, Image]
    """Red, green, blue."""
    date: str | None
    """ISO 8601 date of acquisition."""
    fill: float | None
    """Nodata of images that do not declare one."""
    files: tuple[str, ...]
    """Local files it is read from."""


@dataclass(frozen=True)
class Quality:
    """The quality raster of a delivery: which pixels clouds and their shadows hide."""

    path: str
    """Path for GDAL; the first band is read."""
    values: tuple[int, ...] = ()
    """Values that mark hidden ground."""
    bits: int = 0
    """Bits that mark hidden ground; any of them suffices."""


@dataclass(frozen=True)
class _Found:
    """Red, green and blue of one acquisition, found by file name."""

    id: str
    rank: int
    """Rank among several images of one acquisition; the lowest is used."""
    images: Mapping[str, tuple[str, int]]
    """Name and band by colour."""
    date: str | None
    fill: float | None = 0.0


# --- by name ---------------------------------------------------------------------------------------------------------


def _known(names: Iterable[str]) -> list[_Found]:
    """Acquisitions that the file names show, complete or not."""
    bands: dict[tuple[str, str, int], _Found] = {}
    planet = []
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        if match := _SENTINEL.fullmatch(file):
            rank, colour = _SENTINEL_KINDS.index(match["kind"].lower()), _OLI[match["band"][1:]]
        elif match := _LANDSAT.fullmatch(file):
            rank = 0 if match["kind"] else 1
            colour = _LANDSAT_BANDS[match["sensor"].upper()].get(match["band"], "")
        elif match := PLANET.fullmatch(file):
            planet.append(_of_planet(match, name))
            continue
        else:
            continue
        key = (folder, match["id"], rank)
        found = bands.get(key) or _Found(match["id"], rank, {}, _iso(match["date"]))
        bands[key] = replace(found, images={**found.images, colour: (name, 1)}) if colour else found
    return [*bands.values(), *planet]


def _of_planet(match: re.Match[str], name: str) -> _Found:
    kind = match["kind"].lower()
    numbers = dict(zip(COLOURS, ((name, band) for band in PLANET_BANDS[kind]), strict=True))
    fill = None if kind == "visual" else 0.0  # a visual image has an alpha band, and 0 is a valid value
    return _Found(match["id"], list(PLANET_BANDS).index(kind), numbers, _iso(match["date"]), fill)


def _iso(date: str | None) -> str | None:
    return None if date is None else f"{date[:4]}-{date[4:6]}-{date[6:]}"


def _chosen(found: Sequence[_Found], home: str, wanted: str | None) -> _Found | None:
    """The one acquisition of a delivery, from its best images; None if the names show none.

    Raises
    ------
    SceneError
        If there are several acquisitions, or none with all three colours.
    """
    found = [one for one in found if wanted is None or one.id.lower().startswith(wanted.lower())]
    whole = [one for one in found if set(one.images) == set(COLOURS)]
    if not found:
        return None
    if not whole:
        there = ", ".join(sorted(found[0].images)) or "none of them (MSS sees no blue)"
        raise SceneError(
            f"{home} holds images of {found[0].id}, but of red, green and blue only {there}: detection needs "
            "all three, so download the missing bands"
        )
    names = sorted({one.id for one in whole})
    if len(names) > 1:
        more = ", ..." if len(names) > 3 else ""
        raise SceneError(
            f"{home} holds {len(names)} scenes ({', '.join(names[:3])}{more}), and one is expected: give the "
            "folder of each, such as NAME.SAFE, or its metadata file (_metadata.json, _metadata.xml, _MTL.xml)"
        )
    return min(whole, key=lambda one: one.rank)


# --- folders and archives --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Contents:
    """Names of the files in a folder or an archive."""

    names: Collection[str]
    locate: Callable[[str], str]
    """Path of a name for GDAL; names that lead outside are refused."""
    wanted: str | None = None
    """Start of the names of the wanted acquisition."""


def _contents(path: str) -> _Contents | None:
    """Contents of a possible delivery: a folder, a zip or tar, or the metadata file of one."""
    if path.startswith("/vsi") or not Path(path).exists():
        return None
    home, wanted = Path(path), None
    if match := _METADATA.fullmatch(home.name):
        home, wanted = home.parent, match["landsat"] or match["planet"]
    if home.is_dir():
        return None if home.suffix.lower() == ".zarr" else _Contents(_names_in(home), partial(_inside, home), wanted)
    kind = home.suffix.lower()[1:]
    if kind not in ("zip", "tar"):
        return None
    check_regular(home)
    members = _zipped(home) if kind == "zip" else _tarred(home)

    def locate(name: str) -> str:
        _check_member(name, members[name], path)
        return f"/vsi{kind}/{{{home.absolute()}}}/{name}"

    return _Contents(members, locate)


def find_delivery(path: str) -> Delivery | None:
    """The delivery at a path: a folder, a zip or tar, or the metadata file of one; None if it is not a delivery.

    Parameters
    ----------
    path
        As returned by `files.vsi_path`.

    Raises
    ------
    SceneError
        If it holds several scenes, lacks a colour, or names files that it does not contain.
    """
    inside = _contents(path)
    found = None if inside is None else _chosen(_known(inside.names), path, inside.wanted)
    return None if inside is None or found is None else _delivery(path, found, inside.locate)


def is_metadata(path: str) -> bool:
    """Whether a path is named like a delivery's metadata file."""
    return _METADATA.fullmatch(Path(path).name) is not None and find_delivery(str(Path(path).absolute())) is not None


def is_delivery(path: str) -> bool:
    """Whether a path is a readable delivery."""
    try:
        return find_delivery(path) is not None
    except SceneError:
        return False


def find_quality(path: str) -> Quality | None:
    """The quality raster of a delivery; None if the path is not a delivery.

    Raises
    ------
    SceneError
        As `find_delivery`, or if the delivery has no quality raster.
    """
    inside = _contents(path)
    found = None if inside is None else _chosen(_known(inside.names), path, inside.wanted)
    if inside is None or found is None:
        return None
    for name in sorted(inside.names):
        for pattern, hides in _QUALITY.items():
            match = pattern.fullmatch(name.rpartition("/")[2])
            if match is not None and match["id"] == found.id:
                return Quality(inside.locate(name), **hides)
    raise SceneError(
        f"{path} has no cloud raster for {found.id} (SCL of Sentinel-2 L2A, QA_PIXEL of Landsat, udm2 of "
        "PlanetScope): give a mask from another source"
    )


def _delivery(path: str, found: _Found, locate: Callable[[str], str]) -> Delivery:
    red, green, blue = (Image(locate(name), band) for name, band in (found.images[colour] for colour in COLOURS))
    places = {one.path for one in (red, green, blue)}
    files = (path,) if any(place.startswith("/vsi") for place in places) else tuple(sorted(places))
    return Delivery(path, (red, green, blue), found.date, found.fill, files)


def _names_in(home: Path) -> list[str]:
    """Names of the files in a folder and its subfolders, with slashes; links to folders are not followed."""
    names: list[str] = []
    for folder, inner, files in os.walk(home):
        depth = len(Path(folder).relative_to(home).parts)
        inner[:] = sorted(inner) if depth < MAX_DEPTH else []
        names += [(Path(folder).relative_to(home) / file).as_posix() for file in files]
        if len(names) > MAX_NAMES:
            return []  # more than a delivery has
    return names


def _inside(home: Path, name: str) -> str:
    """Path of a named file in a folder.

    Raises
    ------
    SceneError
        If it is a link that leads outside the folder.
    """
    file = home / name
    target = file.resolve()
    if not target.is_relative_to(home.resolve()):
        raise SceneError(
            f"{file} is a link to {target}, outside its delivery: if you trust the link, copy the image there"
        )
    return str(file.absolute())


@dataclass(frozen=True)
class _Member:
    """Size of a file in an archive, unpacked and packed."""

    size: int
    packed: int
    plain: bool = True
    """False for encrypted files and links."""


def _zipped(path: Path) -> dict[str, _Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return {}
    if len(members) > MAX_NAMES:
        return {}
    return {one.filename: _Member(one.file_size, one.compress_size, not one.flag_bits & 1) for one in members}


def _tarred(path: Path) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for one in archive:
                members[one.name] = _Member(one.size, one.size, one.isreg())
                if len(members) > MAX_NAMES:
                    return {}
    except (tarfile.TarError, OSError, ValueError):
        return {}
    return members


def _check_member(name: str, member: _Member, path: str) -> None:
    """Refuse an archive member that is not a plain file or is too large.

    Raises
    ------
    SceneError
        If it is refused.
    """
    unpack = "unpack it, if you trust it, and give the folder"
    if name.startswith("/") or ".." in name.split("/") or re.search(r"[\\:{}\0]", name) or not member.plain:
        raise SceneError(f"{path} names {name[:200]!r}, which is not a plain file in it: {unpack}")
    if member.size > MAX_IMAGE_BYTES:
        raise SceneError(
            f"{path} holds {name}, which takes {member.size >> 30} GB unpacked; the limit for images is "
            f"{MAX_IMAGE_BYTES >> 30} GB: {unpack}"
        )
    if member.size > MAX_RATIO * max(1, member.packed):
        raise SceneError(
            f"{path} holds {name}, which is {member.size // max(1, member.packed)} times larger unpacked; the limit "
            f"is {MAX_RATIO} times: {unpack}"
        )


# --- as a virtual raster ---------------------------------------------------------------------------------------------

_CHECKED: dict[tuple[Delivery, tuple[tuple[int, int], ...]], Checked] = {}
"""Cached by delivery and by time and size of its files."""


def as_vrt(delivery: Delivery, opened: Callable[[str], DatasetReader]) -> Checked:
    """A virtual raster of red, green and blue over the images of a delivery.

    Parameters
    ----------
    opened
        Opens an image and checks its size, like `opening.open_raster`.

    Raises
    ------
    SceneError
        If a file is not an image, or the three do not share a grid.
    rasterio.errors.RasterioError
        If one cannot be opened.
    """
    stats = [Path(file).stat() for file in delivery.files]
    version = (delivery, tuple((one.st_mtime_ns, one.st_size) for one in stats))
    if version not in _CHECKED:
        folder = f"geolabel-{uuid4().hex}"
        text = ET.tostring(_described(delivery, opened), "utf-8")
        held = MemoryFile(text, dirname=folder, filename="delivery.vrt")
        # if two threads describe it at once, the first result is kept
        _CHECKED.setdefault(version, Checked(f"/vsimem/{folder}/delivery.vrt", False, delivery.files, (held,)))
    return _CHECKED[version]


def _described(delivery: Delivery, opened: Callable[[str], DatasetReader]) -> ET.Element:
    first, root = None, ET.Element("VRTDataset")
    for colour, image in zip(COLOURS, delivery.images, strict=True):
        if not formats.is_image(image.path):
            raise SceneError(f"{image.path} is named as the {colour} band of {delivery.name}, but is not an image")
        with opened(image.path) as dataset:
            if dataset.count < image.band:
                raise SceneError(
                    f"{image.path} has {dataset.count} bands, but by its name {colour} should be band "
                    f"{image.band}: give the file itself, and its red, green and blue bands with --bands"
                )
            grid = (dataset.width, dataset.height, dataset.transform, dataset.crs)
            if first is None:
                first = grid
                _place(root, dataset, delivery)
            elif grid != first:
                raise SceneError(
                    f"{delivery.name}: {image.path} is not on the grid of {delivery.images[0].path}: download it again"
                )
            nodata = dataset.nodatavals[image.band - 1]
            several = f"band {image.band} of " if dataset.count > 1 else ""
            _add_band(
                root,
                dataset,
                image.band,
                image.path,
                Description=f"{colour}, {several}{image.name}",
                NoDataValue=delivery.fill if nodata is None else nodata,
                ColorInterp=colour.capitalize(),
            )
            if colour == COLOURS[-1]:
                alphas = [band for band, role in enumerate(dataset.colorinterp, 1) if role.name == "alpha"]
                for band in alphas:
                    _add_band(root, dataset, band, image.path, ColorInterp="Alpha")
    return root


def _place(root: ET.Element, dataset: DatasetReader, delivery: Delivery) -> None:
    root.set("rasterXSize", str(dataset.width))
    root.set("rasterYSize", str(dataset.height))
    if dataset.crs is not None:
        ET.SubElement(root, "SRS").text = dataset.crs.to_wkt()
    if not dataset.transform.is_identity:
        ET.SubElement(root, "GeoTransform").text = ",".join(map(repr, dataset.transform.to_gdal()))
    if delivery.date is not None:
        metadata = ET.SubElement(root, "Metadata")
        ET.SubElement(metadata, "MDI", key="ACQUISITION_DATE").text = delivery.date


def _add_band(root: ET.Element, dataset: DatasetReader, number: int, path: str, **said: Any) -> None:
    kind = DTYPES.get(dataset.dtypes[number - 1], "Float64")
    height, width = dataset.block_shapes[number - 1]
    band = ET.SubElement(root, "VRTRasterBand", dataType=kind, band=str(len(root.findall("VRTRasterBand")) + 1))
    for name, value in said.items():
        if value is not None:
            ET.SubElement(band, name).text = str(value)
    source = ET.SubElement(band, "SimpleSource")
    ET.SubElement(source, "SourceFilename", relativeToVRT="0").text = path
    ET.SubElement(source, "SourceBand").text = str(number)
    size = {"RasterXSize": str(dataset.width), "RasterYSize": str(dataset.height), "DataType": kind}
    ET.SubElement(source, "SourceProperties", {**size, "BlockXSize": str(width), "BlockYSize": str(height)})
    for rect in ("SrcRect", "DstRect"):
        ET.SubElement(source, rect, xOff="0", yOff="0", xSize=str(dataset.width), ySize=str(dataset.height))
