"""A STAC item of a result: place and date, files, and how they were made."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date as day
from pathlib import Path
from typing import Any

import pyproj
import shapely
from affine import Affine

import geolabel
from geolabel.errors import OptionError, SceneError, VectorError
from geolabel.io.read.scenes import SceneReader
from geolabel.io.write.geopackage import parts_of
from geolabel.io.write.stac import EXTENSIONS, GEOJSON, asset_of, footprint, href_of, item_of, multihash, write_item
from geolabel.io.write.vectors import provenance_of
from geolabel.io.written import plain
from geolabel.outputs import check_target, other_files
from geolabel.parsing import read_json
from geolabel.review.inventories import LANDSLIDES, Inventory, areas, read_inventory
from geolabel.urls import without_secrets

log = logging.getLogger(__name__)

MAX_ITEM_BYTES = 16 << 20
"""Maximum size in bytes of a network's item."""


def stac_item(
    slides: str | Path,
    files: Sequence[str | Path] = (),
    *,
    out: str | Path,
    networks: Sequence[str | Path] = (),
    date: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a STAC item of an inventory and of the files that belong to it.

    Parameters
    ----------
    slides
        An inventory, reviewed or not.
    files
        The same inventory in other formats, rasters, pictures and pages.
    out
        Path of the item, ``.json``; paths of files are relative to it.
    networks
        Items of the networks, written by ``geolabel models stac``, to link to; their checksums must be those of the
        networks that made the inventory.
    date
        Date of the scene, ``YYYY-MM-DD``, or the first and the last of several separated by a slash; None for that in
        the inventory.
    overwrite
        Whether `out` may be replaced.

    Returns
    -------
    The item.

    Raises
    ------
    OptionError
        If no date is known, a date is invalid, or a network did not make the inventory.
    GeolabelError
        If a file cannot be read or written.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.stac_item("slides.gpkg", ["slides.parquet"], out="slides.json")["assets"]  # doctest: +SKIP
    """
    slides, out = Path(slides), Path(out)
    given = [slides, *(Path(file) for file in files)]
    check_target(out, overwrite=overwrite, suffixes=(".json", ".geojson"), inputs=[*given, *networks])
    inventory, made = read_inventory(slides), provenance_of(slides)
    times = _times(_dates(made, inventory) if date is None else date.split("/"))
    grids = _grids(made)
    item = item_of(
        out,
        footprint(_outlines(grids, inventory)),
        {"title": f"Landslides of {_scenes(made) or slides.name}"}
        | times
        | _projection(grids, inventory.crs)
        | _processing(made, inventory),
        _assets(given, out),
        extensions=["file", "projection", "processing"],
        links=_links(networks, out, made),
    )
    write_item(item, out, overwrite=overwrite)
    return item


def _assets(given: Sequence[Path], out: Path) -> dict[str, Any]:
    names = [path.name for path in given]
    if len({*names}) < len(names):
        raise OptionError(f"two files have one name ({', '.join(names)}): give each once, or rename one")
    first, *others = given
    assets = {first.name: asset_of(first, out, "Inventory of landslides", ["data"])}
    assets |= {path.name: asset_of(path, out, path.name, **_raster(path)) for path in others}
    beside = [file for path in given for file in other_files(path) if file.exists()]
    return assets | {file.name: asset_of(file, out, file.name) for file in beside}


KINDS = {"complex64": "cfloat32", "complex128": "cfloat64", "complex_int16": "cint16"}
"""STAC's names for dtypes that rasterio names differently; see its common metadata, ``data_type``."""


def _raster(path: Path) -> dict[str, Any]:
    """Size, georeference and bands of a GeoTIFF (STAC 1.1, common metadata); empty for others and unreadable files."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return {}
    try:
        header = SceneReader(path, gsd=1.0).header
    except SceneError as error:
        log.warning("%s is named without its bands: %s", path, error)
        return {}
    named = [text or f"band {number}" for number, text in enumerate(header.descriptions, 1)]
    bands: list[dict[str, Any]] = []
    for number, (name, kind, nodata) in enumerate(zip(named, header.dtypes, header.nodata, strict=True), 1):
        own = name if named.count(name) == 1 else f"{name} {number}"
        bands.append({"name": own, "data_type": KINDS.get(kind, kind)})
        if nodata is not None:
            bands[-1]["nodata"] = nodata if math.isfinite(nodata) else str(nodata)
    place = {} if header.transform is None else {"proj:transform": list(header.transform)[:6]}
    return {"bands": bands, "proj:shape": [header.height, header.width]} | place


# --- time ------------------------------------------------------------------------------------------------------------


def _dates(made: Mapping[str, Any], inventory: Inventory) -> list[str]:
    """Dates in the provenance and in the polygons."""
    named = [
        scene.get("event_date")
        for part in parts_of(made)
        for scene in (part.get("scene"), *_list(part.get("scenes")))
        if isinstance(scene, dict)
    ]
    if "event_date" in inventory.polygons:
        named += [plain(value) for value in inventory.polygons["event_date"]]
    return sorted({str(one)[:10] for one in named if one})


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _times(dates: Sequence[str]) -> dict[str, Any]:
    """The times of an item; a date covers the whole day."""
    if not dates:
        raise OptionError("no date of the scene is known, and an item needs one: give --date YYYY-MM-DD, or FIRST/LAST")
    for one in dates:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", one) or not _is_day(one):
            raise OptionError(f"date {one!r}: give YYYY-MM-DD, or the first and the last with a slash between")
    first, last = min(dates), max(dates)
    days = {"start_datetime": f"{first}T00:00:00Z", "end_datetime": f"{last}T23:59:59Z"}
    return {"datetime": None} | days if first < last else {"datetime": f"{first}T00:00:00Z"}


def _is_day(text: str) -> bool:
    try:
        return bool(day.fromisoformat(text))
    except ValueError:
        return False


# --- place -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """A working grid."""

    transform: Affine
    height: int
    width: int
    gsd: float
    crs: pyproj.CRS | None

    @property
    def outline(self) -> shapely.Geometry:
        corners = [(0, 0), (0, self.height), (self.width, self.height), (self.width, 0)]
        return shapely.Polygon([self.transform * corner for corner in corners])


def _grids(made: Mapping[str, Any]) -> list[_Grid]:
    found = []
    for part in parts_of(made):
        try:
            grid = part["working_grid"]
            crs = None if grid["crs"] is None else pyproj.CRS.from_wkt(grid["crs"])
            place = Affine(*map(float, grid["transform"]))
            found.append(_Grid(place, int(grid["height"]), int(grid["width"]), float(grid["gsd_m"]), crs))
        except (KeyError, TypeError, ValueError, pyproj.exceptions.CRSError):
            continue
    return found


def _outlines(grids: Sequence[_Grid], inventory: Inventory) -> list[tuple[shapely.Geometry, pyproj.CRS | None]]:
    """Outlines of the working grids; if unknown, the bounding box of the polygons."""
    if grids or not len(inventory.polygons):
        return [(grid.outline, grid.crs) for grid in grids]
    return [(shapely.box(*inventory.polygons.total_bounds), inventory.crs)]


def _projection(grids: Sequence[_Grid], crs: pyproj.CRS | None) -> dict[str, Any]:
    """The CRS of the inventory; for a single working grid in it, also its size and transform."""
    if crs is None:
        return {"proj:code": None}
    authority = crs.to_authority()
    named: dict[str, Any] = {"proj:code": ":".join(authority) if authority else None}
    if not authority:
        named["proj:wkt2"] = crs.to_wkt()
    if len(grids) == 1 and grids[0].crs == crs:
        (grid,) = grids
        named |= {"proj:shape": [grid.height, grid.width], "proj:transform": list(grid.transform)[:6], "gsd": grid.gsd}
    return named


# --- processing ------------------------------------------------------------------------------------------------------


def _scenes(made: Mapping[str, Any]) -> str:
    """Names of the scenes, without their folders."""
    names = [str(part["scene"].get("name", "")) for part in parts_of(made) if isinstance(part.get("scene"), dict)]
    return ", ".join(dict.fromkeys(re.split(r"[/\\]", without_secrets(name))[-1] for name in names if name))


def _networks(made: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the networks by role."""
    found: dict[str, str] = {}
    for part in parts_of(made):
        networks = part.get("networks")
        for role, recipe in (networks if isinstance(networks, dict) else {}).items():
            if isinstance(recipe, dict) and isinstance(recipe.get("sha256"), str):
                found.setdefault(str(role), recipe["sha256"])
    return found


def _processing(made: Mapping[str, Any], inventory: Inventory) -> dict[str, Any]:
    software = made.get("software")
    versions = {str(k): str(v) for k, v in software.items()} if isinstance(software, dict) else {}
    parameters = parts_of(made)[0].get("parameters") if parts_of(made) else None
    method = parameters.get("method") if isinstance(parameters, dict) else None
    shown = inventory.layer == LANDSLIDES
    area = float(areas(inventory.outlines(inventory.crs)[shown], inventory.crs).sum())
    states = {str(state): int((inventory.state == state).sum()) for state in sorted({*inventory.state})}
    lineage = f"Landslides found in {_scenes(made) or 'a scene'}" + (f" by the method {method}" if method else "")
    given = made.get("evidence")
    beside = [name for name in ("before", "dem", "exclude") if isinstance(given, dict) and name in given]
    beside += ["a mask"] if any("masks" in part for part in parts_of(made)) else []
    lineage += f", with {', '.join(beside)}" if beside else ""
    return {
        "processing:software": versions or {"geolabel": geolabel.__version__},
        "processing:lineage": f"{lineage}; polygons by review: "
        + ", ".join(f"{n} {state}" for state, n in states.items()),
        "geolabel:landslides": int(shown.sum()),
        "geolabel:area_m2": round(area, 1),
        "geolabel:review": states,
        "geolabel:networks": {role: multihash(digest) for role, digest in _networks(made).items()},
    }


def _links(networks: Sequence[str | Path], out: Path, made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Links to the items of networks."""
    known = {multihash(digest): role for role, digest in _networks(made).items()}
    links = []
    for path in map(Path, networks):
        try:
            item = read_json(path, limit=MAX_ITEM_BYTES)
            sums = {asset.get("file:checksum") for asset in item["assets"].values()}
            declared = EXTENSIONS["mlm"] in item["stac_extensions"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise VectorError(f"{path} is no STAC item: give one that geolabel models stac wrote") from error
        if not declared or not sums & {*known}:
            raise OptionError(
                f"{path} describes no network that made this inventory (known: {', '.join(known.values()) or 'none'}): "
                "write the item with geolabel models stac"
            )
        role = next(known[one] for one in sums if one in known)
        links.append({"rel": "derived_from", "href": href_of(path, out), "type": GEOJSON, "title": f"The {role}"})
    return links
