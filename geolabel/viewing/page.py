"""The page of a review: one HTML file that shows an inventory on its scene, without external resources.

A person accepts and rejects in it and downloads the reviewed file, which ``extract --keep-reviewed`` reads.
The page contains pictures of the scene, the outlines with all their digits, and its own script. A content security
policy blocks anything else, and all texts of the file are JSON that is never parsed as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from PIL import Image

import geolabel
from geolabel.errors import OptionError, VectorError
from geolabel.geodesy import measure
from geolabel.io.columns import COLUMNS, spelled
from geolabel.io.read.features import check_meets, in_crs
from geolabel.io.read.review import LAYER_OF, REJECTED, UNREVIEWED, polygon_tables
from geolabel.io.read.tile_urls import CRS as TILES_CRS
from geolabel.io.read.typed_columns import free_name
from geolabel.io.styles import LIMITS, REVIEW_STATES, WARM
from geolabel.io.written import plain
from geolabel.outputs import check_target, saving
from geolabel.parsing import parse_json
from geolabel.scene import Grid
from geolabel.types import AnyArray, UInt8Array
from geolabel.urls import without_secrets
from geolabel.viewing.backdrop import Backdrop, Source, frame_of, paint

log = logging.getLogger(__name__)

MAX_PIXELS = 12_000_000
"""Maximum number of pixels of each picture of a page, some 2 to 4 MB."""

QUALITY = 80
"""WebP quality of the pictures, 0 to 100."""

TABLE = ("id", "class", "confidence", "area_m2", "reason", "status")
"""Columns of the table, if present; class and reason only if they differ."""

LONLAT = "OGC:CRS84"

AROUND = 0.1
"""Margin around the polygons, as a share of their extent, where the scene is map tiles."""

POLICY = (
    "default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"
)
"""Content security policy of the page: its own style and script, known by their hashes, and embedded pictures."""


def view(
    slides: str | Path,
    scene: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    before: str | Path | Sequence[str | Path] = (),
    bands: str | None = None,
    before_bands: str | None = None,
    nodata: float | None = None,
    gsd: float | None = None,
    time: str | None = None,
    stretch: str = "p2-98",
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a page on which a person reviews an inventory.

    Parameters
    ----------
    slides
        A file of polygons, such as `geolabel.extract` writes; of a GeoPackage of geolabel the layers ``landslides``,
        ``candidates`` and ``rejected``.
    scene
        The scene that they were found in, or several, the first on top.
    out
        The page, whose name ends with ``.html``.
    before
        Scenes of the time before, of any grid and CRS, for a swipe between both.
    bands, nodata, gsd, time, stretch
        How the scenes are read, see `geolabel.Reading`.
    before_bands
        Which bands of `before` are red, green and blue, if not those that a reader would choose.
    max_pixels
        Maximum number of pixels of each picture.
    overwrite
        Whether to replace an existing page.

    Returns
    -------
    Number of ``polygons``, metres per pixel of the picture (``gsd_m``) and size of the page in ``bytes``.

    Raises
    ------
    OutputError
        If the page cannot be written.
    VectorError
        If the polygons cannot be read or miss the scene.
    SceneError
        If a scene cannot be read.
    """
    out = Path(out)
    scenes, earlier = ([one] if isinstance(one, str | Path) else list(one) for one in (scene, before))
    check_target(out, overwrite=overwrite, suffixes=(".html", ".htm"), inputs=[slides, *scenes, *earlier])
    if max_pixels < 1:
        raise OptionError(f"{max_pixels} px: a picture needs at least one")
    inventory = _inventory(slides)
    how: dict[str, Any] = {"nodata": nodata, "gsd": gsd, "stretch": stretch, "area": _area(inventory)}
    sources = [Source.open(one, bands=bands, time=time, **how) for one in scenes]
    frame = frame_of([source.grid for source in sources], inventory.crs, max_pixels)
    if len(inventory):
        check_meets(str(slides), inventory, frame)
        for doubt in _doubts(inventory, [source.reader.scene.name for source in sources], frame):
            log.warning("%s: %s", Path(slides).name, doubt)
    after = paint(sources, frame)
    then = paint([Source.open(one, bands=before_bands, **how) for one in earlier], frame) if earlier else None
    if then is not None and not then.valid.any():
        raise OptionError(f"before {earlier[0]}: it shows nothing of the scene; give a picture of the same place")
    title = Path(without_secrets(str(slides))).name
    shown = ", ".join(without_secrets(source.reader.scene.name) for source in sources)
    page = _Page(title, f"geolabel {geolabel.__version__}. Scene: {shown}", inventory, after, then).html()
    with saving(out) as part:
        part.write_text(page, encoding="utf-8", newline="\n")
    return {"polygons": len(inventory), "gsd_m": round(frame.gsd, 3), "bytes": len(page.encode())}


def _area(inventory: gpd.GeoDataFrame) -> tuple[float, float, float, float] | None:
    """Left, bottom, right, top in web Mercator of the polygons with a margin; None without polygons or CRS."""
    if not len(inventory) or inventory.crs is None:
        return None
    left, bottom, right, top = inventory.to_crs(TILES_CRS).total_bounds
    around = AROUND * max(right - left, top - bottom)
    return float(left - around), float(bottom - around), float(right + around), float(top + around)


def _doubts(inventory: gpd.GeoDataFrame, shown: Sequence[str], frame: Grid) -> list[str]:
    """Reasons to doubt the scenes that are shown: polygons of other scenes, or outside the picture."""
    found = []
    known = {_file_name(name) for text in inventory.get("source", ()) for name in _names(text)}
    given = {_file_name(name) for name in shown}
    known = {name for name in known if Path(name).suffix}  # an array has no file
    if known and not known & given:
        found.append(
            f"its polygons were found in {_few(known)}, and the page shows {_few(given)}: give --scene with the scene "
            "that they were found in, unless you mean to look at another"
        )
    outside = int((~inventory.geometry.intersects(frame.outline)).sum())
    if outside:
        found.append(
            f"{outside} of {len(inventory)} polygons are outside the scenes that are given, and no one can see them: "
            "give every scene with --scene"
        )
    return found


def _names(text: object) -> list[str]:
    """Names of scenes in the column ``source``: one, or a list in JSON."""
    if not isinstance(text, str):
        return []
    try:
        found = parse_json(text)
    except ValueError:
        return [text]
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else [text]


def _file_name(name: str) -> str:
    return re.split(r"[/\\]", without_secrets(name))[-1]


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


LAYER = "layer "
"""Name of the column for the layer of a polygon. The space keeps it apart from a person's columns."""


def _inventory(slides: str | Path) -> gpd.GeoDataFrame:
    """All polygons of a file, in a CRS that GeoJSON can name: the file's own if it has a code."""
    tables = polygon_tables(Path(slides))
    crs = next(iter(tables.values())).crs
    target = pyproj.CRS.from_user_input(LONLAT) if crs is not None and _name_of(crs) is None else crs
    moved = [
        (table if crs is None else in_crs(table, target, slides)).assign(**{LAYER: layer})
        for layer, table in tables.items()
    ]
    together = pd.concat([table for table in moved if len(table)] or moved[:1], ignore_index=True)
    states = together["status"] if "status" in together else pd.Series(None, together.index, dtype=object)
    states = states.astype(object).where(states.notna(), UNREVIEWED).astype(str).str.lower()
    states = states.mask((together[LAYER] == REJECTED) & (states == UNREVIEWED), REJECTED)
    unknown = sorted({*states} - {*REVIEW_STATES})
    if unknown:
        raise VectorError(f"{slides}: the status {unknown[0]!r} is not one of {', '.join(REVIEW_STATES)}")
    notes = together["notes"] if "notes" in together else pd.Series(None, together.index, dtype=object)
    together = gpd.GeoDataFrame(together.assign(status=states, notes=notes), geometry="geometry", crs=target)
    if own := spelled(LAYER_OF, together.columns):  # the page uses that name for the layer of a polygon
        together = together.rename(columns={own: free_name(own, together)})
    if "confidence" not in together and "area_m2" not in together:
        together["area_m2"] = measure(_multipolygons(together.geometry.to_numpy()), together.crs).area_m2
    return together


def _name_of(crs: pyproj.CRS) -> str | None:
    """The name of a CRS in GeoJSON; None where it has no code, and empty for longitudes and latitudes of WGS 84."""
    authority = crs.to_authority(min_confidence=100)
    if authority is None:
        return None
    known = {("EPSG", "4326"), ("OGC", "CRS84")}
    return "" if authority in known else f"urn:ogc:def:crs:{authority[0]}::{authority[1]}"


def _multipolygons(shapes: AnyArray) -> AnyArray:
    """(N,) as multipolygons, with shells counterclockwise as in GeoJSON."""
    oriented = shapely.orient_polygons(shapely.force_2d(shapes))
    whole = [one if one.geom_type == "MultiPolygon" else shapely.MultiPolygon([one]) for one in oriented]
    return np.array([*whole, None], object)[:-1]


def _ragged(shapes: AnyArray) -> tuple[AnyArray, list[list[int]]]:
    """(V, 2) vertices of polygons, and the offsets of their rings, their parts and the polygons themselves."""
    if not len(shapes):
        return np.zeros((0, 2)), [[0], [0], [0]]
    _, coordinates, offsets = shapely.to_ragged_array(_multipolygons(shapes))
    return coordinates, [part.tolist() for part in offsets]


def _packed(coordinates: AnyArray) -> str:
    """All bits of vertices (V, 2), in a form that compresses well.

    Neighbours differ in their last bits: each vertex is stored as its XOR with the one before, and bytes of the same
    rank are stored together, which deflate compresses well.
    """
    bits = np.asarray(coordinates, "<f8").view("<u8")
    changed = bits.copy()
    changed[1:] ^= bits[:-1]
    ranks = changed.reshape(-1).view(np.uint8).reshape(-1, 8).T
    return base64.b64encode(zlib.compress(ranks.tobytes(), 9)).decode()


@dataclass(frozen=True)
class _Page:
    """The contents of a page."""

    title: str
    footer: str
    inventory: gpd.GeoDataFrame
    after: Backdrop
    before: Backdrop | None

    def html(self) -> str:
        """The whole page."""
        style, script = (_part(name) for name in ("page.css", "page.js"))
        pictures = [_picture("after", self.after)] + ([] if self.before is None else [_picture("before", self.before)])
        return Template(_part("page.html")).substitute(
            policy=POLICY.format(style=_hash(style), script=_hash(script)),
            generator=escape(f"geolabel {geolabel.__version__}"),
            title=escape(self.title),
            footer=escape(self.footer),
            style=style,
            script=script,
            pictures="\n".join(pictures),
            data=self._data(),
        )

    def _data(self) -> str:
        """The inventory as JSON without any character that is special in HTML."""
        table, grid = self.inventory, self.after.grid
        columns = [name for name in table.columns if name not in (table.geometry.name, LAYER)]
        coordinates, offsets = _ragged(table.geometry.to_numpy())
        stem = Path(self.title).stem
        values = {name: [_value(one) for one in table[name]] for name in columns}
        data = {
            "name": stem,
            "download": f"{stem}_reviewed.geojson",
            "crs": None if table.crs is None else _name_of(table.crs) or None,
            "width": grid.width,
            "height": grid.height,
            "metres": grid.gsd,
            "inverse": list(~grid.transform)[:6],
            "limits": list(LIMITS),
            "colours": [f"rgb({colour})" for colour in WARM],
            "columns": [_column(name) for name in columns],
            "table": [_column(name) for name in TABLE if name in columns and _is_telling(name, values[name])],
            "values": list(values.values()),
            "layers": table[LAYER].tolist(),
            "status": values["status"],
            "notes": values["notes"],
            "coordinates": _packed(coordinates),
            "offsets": offsets,
        }
        text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        text = json.dumps({"digest": digest} | data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
        return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _part(name: str) -> str:
    return files("geolabel.viewing").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _picture(name: str, backdrop: Backdrop) -> str:
    data = base64.b64encode(_webp(backdrop.image, backdrop.valid)).decode()
    return f'<img class="picture" id="{name}" alt="" src="data:image/webp;base64,{data}">'


def _webp(image: UInt8Array, valid: AnyArray) -> bytes:
    """A picture as WebP, transparent where nothing is valid."""
    whole = bool(valid.all())
    bands = image if whole else np.dstack([image, valid * np.uint8(255)])
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(bands)).save(stream, "WEBP", quality=QUALITY, method=2)
    return stream.getvalue()


def _value(value: object) -> Any:
    """A value of a column as JSON."""
    known = plain(value)
    if isinstance(known, int) and not isinstance(known, bool):
        return str(known)  # a browser would round it
    if isinstance(known, float):
        return None if not math.isfinite(known) else int(known) if known.is_integer() else known
    return known


def _column(name: str) -> dict[str, Any]:
    known = COLUMNS.get(name)
    return {
        "name": name,
        "title": name if known is None else known.alias,
        "meaning": "" if known is None else known.meaning,
        "decimals": None if known is None else known.decimals,
        "text": known is not None and known.kind == "text",
    }


def _is_telling(name: str, values: Sequence[Any]) -> bool:
    return name not in ("class", "reason") or len(set(values)) > 1
