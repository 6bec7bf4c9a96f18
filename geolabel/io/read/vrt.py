"""Virtual rasters (VRT), parsed and checked; GDAL opens a copy of what was checked.

A VRT can name any file, URL and driver with any option, and contain code. It is read by geolabel's own parser;
elements listed in `RASTER` are copied, and anything else is an error. Each source must be an image
(`geolabel.io.read.formats`) or, on this machine, another VRT, which is checked in the same way. A VRT from a network
may only name sources reached over a network.

Grammar: https://gdal.org/en/stable/drivers/raster/vrt.html.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4
from xml.etree import ElementTree as ET

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from geolabel.errors import SceneError
from geolabel.io.read import files, formats
from geolabel.parsing import MAX_XML_BYTES, check_name, exists, parse_xml

MAX_NESTED = 4
"""Maximum nesting of VRTs in VRTs."""

SNIFFERS = 16
"""Sources checked in parallel."""

_FROM_NETWORK = re.compile(rf"(/vsi(zip|tar|gzip|7z|rar)/\{{?)*({files.NETWORK}(_streaming)?/|(https?|ftp)://)")
_ARCHIVE = re.compile(r"(/vsi(zip|tar|gzip|7z|rar)/)+\{?/?(?!vsi)")


@dataclass(frozen=True)
class _Element:
    """What an element of a VRT may contain."""

    inner: str = ""
    """Names of elements, separated by spaces."""
    attributes: str = ""
    text: str | None = None
    """Regular expression of its text; None if it may have no text."""


ANY = r"[^\0]*"
NUMBER = r"[-+.#\w\s]{0,100}"
NUMBERS = r"[-+.#\w\s,:;]*"
WORD = r"[-+\w\s,]*(\.\d+)?"
CRS = r"\s*((EPSG|ESRI|IGNF|OGC):[\w.:+]+|urn:ogc:def:crs:[\w.:+-]+|\+proj=[^/\\]*|[A-Z]\w+\s*\[[^\0]*\]|)\s*"
"""A code, WKT, or a PROJ string without grid files: never a URL or file that would be read."""

SOURCES = "SimpleSource ComplexSource AveragedSource NoDataFromMaskSource KernelFilteredSource"
_SOURCE = "SourceFilename SourceBand SourceProperties SrcRect DstRect "
_SCALED = (
    _SOURCE
    + "NODATA UseMaskBand ScaleOffset ScaleRatio LUT ColorTableComponent Exponent SrcMin SrcMax DstMin DstMax Clamp"
)

RASTER: Mapping[str, _Element] = {
    "VRTDataset": _Element(
        "SRS GeoTransform GCPList Metadata BlockXSize BlockYSize OverviewList MaskBand VRTRasterBand GDALWarpOptions "
        "PansharpeningOptions",
        "rasterXSize rasterYSize subClass",
    ),
    "SRS": _Element(attributes="dataAxisToSRSAxisMapping coordinateEpoch", text=CRS),
    "GeoTransform": _Element(text=NUMBERS),
    "GCPList": _Element("GCP", "Projection dataAxisToSRSAxisMapping"),
    "GCP": _Element(attributes="Id Info Pixel Line X Y Z"),
    "Metadata": _Element("MDI", "domain"),
    "MDI": _Element(attributes="key", text=ANY),
    "BlockXSize": _Element(text=r"\d+"),
    "BlockYSize": _Element(text=r"\d+"),
    "OverviewList": _Element(attributes="resampling", text=NUMBERS),
    "MaskBand": _Element("VRTRasterBand"),
    "VRTRasterBand": _Element(
        f"{SOURCES} Description UnitType Offset Scale ColorInterp ColorTable CategoryNames NoDataValue NodataValue "
        "HideNoDataValue Metadata MaskBand Overview PixelFunctionType PixelFunctionLanguage PixelFunctionArguments "
        "SourceTransferType BufferRadius SkipNonContributingSources",
        "dataType band subClass blockXSize blockYSize",
    ),
    "Description": _Element(text=ANY),
    "UnitType": _Element(text=ANY),
    "Offset": _Element(text=NUMBER),
    "Scale": _Element(text=NUMBER),
    "ColorInterp": _Element(text=WORD),
    "ColorTable": _Element("Entry"),
    "Entry": _Element(attributes="c1 c2 c3 c4"),
    "CategoryNames": _Element("Category"),
    "Category": _Element(text=ANY),
    "NoDataValue": _Element(text=NUMBER),
    "NodataValue": _Element(text=NUMBER),
    "HideNoDataValue": _Element(text=WORD),
    "Overview": _Element("SourceFilename SourceBand"),
    "PixelFunctionLanguage": _Element(text=r"\s*(C|C\+\+)?\s*"),
    "PixelFunctionType": _Element(
        text=r"(min|max|mean|geometric_mean|harmonic_mean|median|mode|sum|diff|mul|div|inv|sqrt|log10|pow|exp|scale|"
        r"norm_diff|dB|dB2amp|dB2pow|intensity|real|imag|complex|mod|phase|conj|polar|cmul|replace_nodata|"
        r"interpolate_(linear|exp))"
    ),
    "PixelFunctionArguments": _Element(
        attributes="k base exponent factor fact power amplitude_type t0 dt t to propagateNoData"
    ),
    "SourceTransferType": _Element(text=WORD),
    "BufferRadius": _Element(text=NUMBER),
    "SkipNonContributingSources": _Element(text=WORD),
    "SimpleSource": _Element(_SOURCE, "resampling name"),
    "ComplexSource": _Element(_SCALED, "resampling name"),
    "AveragedSource": _Element(_SCALED, "resampling name"),
    "NoDataFromMaskSource": _Element(_SOURCE + "MaskValueThreshold NODATA RemappedValue", "resampling name"),
    "KernelFilteredSource": _Element(_SCALED + " Kernel", "resampling name"),
    "SourceFilename": _Element(attributes="relativeToVRT shared", text=ANY),
    "SourceBand": _Element(text=r"\s*(mask\s*,\s*)?\d+\s*|mask"),
    "SourceProperties": _Element(attributes="RasterXSize RasterYSize DataType BlockXSize BlockYSize"),
    "SrcRect": _Element(attributes="xOff yOff xSize ySize"),
    "DstRect": _Element(attributes="xOff yOff xSize ySize"),
    "NODATA": _Element(text=NUMBER),
    "UseMaskBand": _Element(text=WORD),
    "MaskValueThreshold": _Element(text=NUMBER),
    "RemappedValue": _Element(text=NUMBER),
    "ScaleOffset": _Element(text=NUMBER),
    "ScaleRatio": _Element(text=NUMBER),
    "LUT": _Element(text=NUMBERS),
    "ColorTableComponent": _Element(text=r"\s*\d+\s*"),
    "Exponent": _Element(text=NUMBER),
    "SrcMin": _Element(text=NUMBER),
    "SrcMax": _Element(text=NUMBER),
    "DstMin": _Element(text=NUMBER),
    "DstMax": _Element(text=NUMBER),
    "Clamp": _Element(text=WORD),
    "Kernel": _Element("Size Coefs", "normalized"),
    "Size": _Element(text=r"\s*\d+\s*"),
    "Coefs": _Element(text=NUMBERS),
    # gdalwarp -of VRT
    "GDALWarpOptions": _Element(
        "WarpMemoryLimit ResampleAlg WorkingDataType Option SourceDataset Transformer BandList SrcAlphaBand "
        "DstAlphaBand"
    ),
    "WarpMemoryLimit": _Element(text=NUMBER),
    "ResampleAlg": _Element(text=WORD),
    "WorkingDataType": _Element(text=WORD),
    "Option": _Element(attributes="name key", text=r"[-+.\w\s,]{0,200}"),
    "SourceDataset": _Element(attributes="relativeToVRT shared", text=ANY),
    "Transformer": _Element("ApproxTransformer GenImgProjTransformer"),
    "ApproxTransformer": _Element("MaxError BaseTransformer"),
    "MaxError": _Element(text=NUMBER),
    "BaseTransformer": _Element("GenImgProjTransformer"),
    "GenImgProjTransformer": _Element(
        "SrcGeoTransform SrcInvGeoTransform DstGeoTransform DstInvGeoTransform ReprojectTransformer"
    ),
    "SrcGeoTransform": _Element(text=NUMBERS),
    "SrcInvGeoTransform": _Element(text=NUMBERS),
    "DstGeoTransform": _Element(text=NUMBERS),
    "DstInvGeoTransform": _Element(text=NUMBERS),
    "ReprojectTransformer": _Element("ReprojectionTransformer"),
    "ReprojectionTransformer": _Element("SourceSRS TargetSRS Options"),
    "SourceSRS": _Element(text=CRS),
    "TargetSRS": _Element(text=CRS),
    "Options": _Element("Option"),
    "BandList": _Element("BandMapping"),
    "BandMapping": _Element("SrcNoDataReal SrcNoDataImag DstNoDataReal DstNoDataImag", "src dst"),
    "SrcNoDataReal": _Element(text=NUMBER),
    "SrcNoDataImag": _Element(text=NUMBER),
    "DstNoDataReal": _Element(text=NUMBER),
    "DstNoDataImag": _Element(text=NUMBER),
    "SrcAlphaBand": _Element(text=NUMBER),
    "DstAlphaBand": _Element(text=NUMBER),
    # gdal_pansharpen -of VRT
    "PansharpeningOptions": _Element(
        "Algorithm AlgorithmOptions Resampling NumThreads BitDepth NoData SpatialExtentAdjustment PanchroBand "
        "SpectralBand"
    ),
    "Algorithm": _Element(text=WORD),
    "AlgorithmOptions": _Element("Weights"),
    "Weights": _Element(text=NUMBERS),
    "Resampling": _Element(text=WORD),
    "NumThreads": _Element(text=WORD),
    "BitDepth": _Element(text=NUMBER),
    "NoData": _Element(text=NUMBER),
    "SpatialExtentAdjustment": _Element(text=WORD),
    "PanchroBand": _Element("SourceFilename SourceBand"),
    "SpectralBand": _Element("SourceFilename SourceBand", "dstBand"),
}
"""Every element that a VRT may hold, by its name."""

UNREAD = frozenset({"Histograms", "GDALRasterAttributeTable"})
"""Elements without effect on pixels: omitted from the copy."""

DOMAINS = frozenset({"", "IMAGE_STRUCTURE", "IMAGERY", "RPC"})
"""Metadata domains that are kept."""

LEADING = frozenset({"OVERVIEWS", "GEOLOCATION"})
"""Metadata domains that name files."""

SUBCLASSES = frozenset(
    {
        "VRTDataset",
        "VRTWarpedDataset",
        "VRTPansharpenedDataset",
        "VRTRasterBand",
        "VRTSourcedRasterBand",
        "VRTDerivedRasterBand",
        "VRTWarpedRasterBand",
        "VRTPansharpenedRasterBand",
    }
)

OPTIONS = frozenset(
    {
        "INIT_DEST",
        "UNIFIED_SRC_NODATA",
        "NUM_THREADS",
        "SAMPLE_GRID",
        "SAMPLE_STEPS",
        "SOURCE_EXTRA",
        "SKIP_NOSOURCE",
        "ERROR_OUT_IF_EMPTY_SOURCE_WINDOW",
        "XSCALE",
        "YSCALE",
        "CENTER_LONG",
        "SRC_COORD_PRECISION",
        "APPLY_VERTICAL_SHIFT",
        "OPTIMIZE_SIZE",
        "STREAMABLE_OUTPUT",
        "AREA_OF_INTEREST",
    }
)
"""Warp options with numbers or keywords as values: none of them names a file or a geometry."""

DTYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "uint64": "UInt64",
    "int64": "Int64",
    "float32": "Float32",
    "float64": "Float64",
}

_CANONICAL = {name.lower(): name for name in RASTER}  # GDAL's lookup ignores case


@dataclass(frozen=True, eq=False)
class Checked:
    """A checked copy of a VRT, in GDAL's memory."""

    path: str
    network: bool
    """Whether the VRT or any of its sources is reached over a network."""
    files: tuple[str, ...]
    """Local files it is read from, including itself."""
    held: tuple[MemoryFile, ...]
    """Keeps the copy in memory."""


_CHECKED: dict[tuple[str, int, int], Checked] = {}


def is_vrt(path: str) -> bool:
    """Whether GDAL would take a file for a VRT: by its name or its first bytes."""
    if path.lower().partition("?")[0].endswith(".vrt"):
        return True
    if files.is_remote(path):
        return False  # unreadable files are reported when no driver opens them
    try:
        return b"<VRTDataset" in files.head(path, 1024).partition(b"\0")[0]
    except OSError:
        return False


def checked_vrt(path: str, nested: int = 0) -> Checked:
    """Read a VRT, check everything in it, and keep a copy of what was checked.

    A VRT from a network is fetched once per process, a local one again after it has changed.

    Raises
    ------
    SceneError
        If it contains anything that is not allowed, or a source is not an image or not in an allowed place.
    OSError
        If it cannot be read.
    """
    version = (path, 0, 0)
    if not path.startswith("/vsi"):
        status = Path(path).stat()
        version = (path, status.st_mtime_ns, status.st_size)
    if version not in _CHECKED:
        # Without a lock, as nested VRTs are checked in other threads. If two check it at once, the first is kept.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # overviews and masks are not georeferenced
            checked = _check(path, nested)
        _CHECKED.setdefault(version, checked)
    return _CHECKED[version]


def refuse_local(name: str, named_by: str) -> None:
    """Refuse a file named by something from a network, unless that file is reached over a network too.

    Parameters
    ----------
    name
        Path for GDAL.
    named_by
        What names the file, for the message.

    Raises
    ------
    SceneError
        If the file is local or in memory.
    """
    if _FROM_NETWORK.match(files.chained(name)) is None or "file:" in name.lower():
        raise SceneError(
            f"{named_by} comes from a network but names {name!r}, which does not: files from a network may not name "
            f"local files; if you trust it, download it and give the copy"
        )


def _check(path: str, nested: int) -> Checked:
    far = files.is_remote(path)
    copy = _copied(_parsed(path), path)
    named = _by_source(copy, path)
    with ThreadPoolExecutor(SNIFFERS) as pool:
        found = list(pool.map(lambda source: _looked_at(source, path, nested), named))
    read = {path: None}
    network, held = far, list[MemoryFile]()
    for (source, elements), inner in zip(named.items(), found, strict=True):
        network |= files.is_remote(source) if inner is None else inner.network
        read |= dict.fromkeys((source,) if inner is None else inner.files)
        held += [] if inner is None else inner.held
        for element in elements:
            element.text = source if inner is None else inner.path
    folder = f"geolabel-{uuid4().hex}"
    held.append(MemoryFile(ET.tostring(copy, "utf-8"), dirname=folder, filename="copy.vrt"))
    if not far:
        formats.check_beside(path)
        for beside in formats.beside_of(path):
            end = beside[len(path) :].lower() if beside.startswith(path) else ""
            if end in (".ovr", ".msk"):
                held.append(MemoryFile(_whole(beside), dirname=folder, filename=f"copy.vrt{end}"))
                read[beside] = None
    return Checked(
        f"/vsimem/{folder}/copy.vrt", network, tuple(f for f in read if not f.startswith("/vsi")), tuple(held)
    )


def _parsed(path: str) -> ET.Element:
    try:
        root = parse_xml(files.text(path, MAX_XML_BYTES))
        if root.tag.lower() == "vrtdataset":
            return root
        why = f"its root is {root.tag[:40]!r}"
    except ValueError as error:
        why = str(error)
    raise SceneError(f"{path} is not a valid VRT ({why}): write it again (gdalbuildvrt), or give the images themselves")


def _copied(given: ET.Element, path: str) -> ET.Element:
    """A copy of an element with only the allowed content."""
    name = _CANONICAL.get(given.tag.lower(), "")
    if not name:
        raise _refusal(path, f"the element {given.tag[:80]!r}")
    rule, text = RASTER[name], (given.text or "").strip()
    known = {one.lower(): one for one in rule.attributes.split()}
    unknown = [key for key in given.attrib if key.lower() not in known]
    if unknown:
        raise _refusal(path, f"the attribute {unknown[0][:80]!r} of {name}")
    if not re.fullmatch(rule.text or "", text, re.IGNORECASE):
        raise _refusal(path, f"{text[:80]!r} in {name}")
    attributes = {known[key.lower()]: value for key, value in given.attrib.items()}
    _check_attributes(name, attributes, text, path)
    made = ET.Element(name, attributes)
    made.text = text
    inner = {one.lower() for one in rule.inner.split()}
    for child in given:
        if child.tag in UNREAD or _is_unread_metadata(child):
            continue
        if child.tag.lower() not in inner:
            raise _refusal(path, f"{child.tag[:80]!r} in {name}")
        made.append(_copied(child, path))
    return made


def _check_attributes(name: str, attributes: Mapping[str, str], text: str, path: str) -> None:
    kind = attributes.get("subClass", "VRTDataset")
    if kind not in SUBCLASSES:
        raise _refusal(path, repr(kind[:80]))
    if name == "Metadata" and attributes.get("domain", "").upper() in LEADING:
        raise _refusal(path, f"metadata of the domain {attributes['domain']}, which name other files,")
    option = attributes.get("name", attributes.get("key", ""))
    if name == "Option" and (len(attributes) > 1 or option.upper() not in OPTIONS):
        raise _refusal(path, f"the option {option[:80]!r}")
    crs = text if name in ("SRS", "SourceSRS", "TargetSRS") else attributes.get("Projection", "")
    if not re.fullmatch(CRS, crs, re.IGNORECASE) or re.search(r"grids=(?!@null\b)", crs, re.IGNORECASE):
        raise _refusal(path, f"the CRS {crs[:80]!r}")


def _is_unread_metadata(element: ET.Element) -> bool:
    domain = element.get("domain", "").upper()
    return element.tag.lower() == "metadata" and domain not in DOMAINS | LEADING


def _by_source(copy: ET.Element, path: str) -> dict[str, list[ET.Element]]:
    """The elements that name each source, without attributes that say how to find it."""
    named: dict[str, list[ET.Element]] = {}
    for element in copy.iter():
        if element.tag in ("SourceFilename", "SourceDataset"):
            source = _source(element.text or "", element.attrib.pop("relativeToVRT", "0") == "1", path)
            element.attrib.clear()
            element.set("relativeToVRT", "0")
            named.setdefault(source, []).append(element)
    return named


def _source(named: str, relative: bool, home: str) -> str:
    """Path of a source for GDAL.

    Raises
    ------
    SceneError
        If it is not in an allowed place.
    """
    check_name(named)
    refusal = _refusal(home, f"the source {named[:200]!r}")
    if home.startswith("/vsi"):
        beside = relative and re.match(r"[^:/\\<{][^:<{]*$", named) is not None  # otherwise used as is
        source = f"{home.rpartition('/')[0]}/{named}" if beside else named
        if files.is_remote(home):
            refuse_local(source, home)
        elif not (beside or _FROM_NETWORK.match(source)):
            raise refusal  # a VRT in an archive may only name members of that archive
        if ".." in re.split(r"[/\\]", source) and not source.startswith("/vsicurl"):
            raise refusal
        return files.vsi_path(source)
    if _FROM_NETWORK.match(named):
        return files.vsi_path(named)
    if named.startswith("/vsi"):
        if not _ARCHIVE.match(named):
            raise refusal
        return named
    source = str((Path(home).parent if relative else Path()) / named.removeprefix("file://"))
    if not exists(source) and re.search(r"^\w\w+:|[<{\n]", named):
        raise refusal  # a string that only some driver understands
    return str(Path(source).absolute())


def _looked_at(source: str, home: str, nested: int) -> Checked | None:
    """Check that a source is an image; a local VRT is checked, and its copy returned.

    Raises
    ------
    SceneError
        If it is neither.
    """
    if not source.startswith("/vsi") and not exists(source):
        return None  # the error is raised when it is read
    with rasterio.Env(**formats.options_of(source)):
        if formats.is_image(source):
            formats.check_pixels(source)
            return None
    if not files.is_remote(home) and not files.is_remote(source) and nested < MAX_NESTED and is_vrt(source):
        return checked_vrt(source, nested + 1)
    where = "comes from a network and " if files.is_remote(home) else ""
    raise SceneError(
        f"{home} {where}leads to {source}, which is not an image and may lead to other files: give that one, or "
        "convert it to an image first (gdal_translate IN OUT.tif)"
    )


def _whole(path: str) -> bytes:
    """A VRT that shows an image and its overviews unchanged: GDAL uses it as the overviews or mask of a copy."""
    with rasterio.Env(**formats.options_of(path)), formats.open_pixels(path) as image:
        root = ET.Element("VRTDataset", rasterXSize=str(image.width), rasterYSize=str(image.height))
        for number, dtype in enumerate(image.dtypes, 1):
            band = ET.SubElement(root, "VRTRasterBand", dataType=DTYPES.get(dtype, "Float64"), band=str(number))
            source = ET.SubElement(band, "SimpleSource")
            ET.SubElement(source, "SourceFilename", relativeToVRT="0").text = path
            ET.SubElement(source, "SourceBand").text = str(number)
        if image.tags():
            metadata = ET.SubElement(root, "Metadata")
            for key, value in image.tags().items():  # the meaning of mask bands
                ET.SubElement(metadata, "MDI", key=key).text = value
    return bytes(ET.tostring(root, "utf-8"))


def _refusal(path: str, what: str) -> SceneError:
    """The error for something that is not allowed."""
    return SceneError(
        f"{path} is a VRT that does more than mosaic images: {what} is not allowed there; if you trust it, "
        "convert it to an image (gdal_translate IN OUT.tif)"
    )
