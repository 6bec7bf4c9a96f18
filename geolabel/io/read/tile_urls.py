"""URLs of map tiles: templates with zoom, column and row, and WMTS capabilities.

Capabilities are untrusted: they are parsed with limits, and may only name tiles on the same server.

Standard: OGC Web Map Tile Service 1.0.0 (07-057r7).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, quote, urlsplit
from xml.etree import ElementTree as ET

from geolabel.errors import OptionError, SceneError
from geolabel.io.read import tile_cache
from geolabel.parsing import exists, parse_xml

CRS = "EPSG:3857"

RADIUS_M = 6_378_137.0
"""Radius of the sphere of web Mercator."""

HALF_M = math.pi * RADIUS_M
"""Half the side of the world in web Mercator."""

SIZES = (256, 512)
"""Allowed tile sides in pixels."""

WMTS = re.compile(r"wmts:", re.IGNORECASE)

MAX_CAPABILITIES_BYTES = 32 << 20
"""Maximum size of capabilities; those of a whole country take several megabytes."""

PIXEL_M = 0.28e-3
"""Pixel size in metres of a WMTS scale denominator, from the standard."""

FORMATS = ("image/png", "image/jpeg", "image/webp", "image/jpg")

SHOWN_LAYERS = 8
"""Maximum number of layers listed in an error."""

MAX_LEVELS = 30

_FIELD = re.compile(r"\{(-?\w+)\}")

_NAMES = {"tilematrix": "z", "tilecol": "x", "tilerow": "y"}
"""WMTS's names for zoom, column and row."""


def is_map_tiles(text: str) -> bool:
    """Whether a text is a layer of map tiles: it has a placeholder for zoom or quadkey, or is a WMTS layer."""
    named = WMTS.match(text) is not None or {"z", "q"} & set(_fields(_unquoted(text)))
    return bool(named) and not exists(text)


def template_of(text: str) -> Template:
    """The tile URL of a layer, given as a template, or as ``WMTS:URL,layer=NAME`` by a server's capabilities.

    Raises
    ------
    OptionError
        See `Template.parse`; or if the WMTS layer is missing or not named.
    SceneError
        If the capabilities cannot be read, or lead to another server.
    """
    if WMTS.match(text) is None:
        return Template.parse(text)
    match = re.fullmatch(r"wmts:(?P<url>.+?),layer=(?P<layer>[^,]+)", text, re.IGNORECASE)
    url, layer = (match["url"], match["layer"]) if match else (text[5:].partition(",")[0], None)
    _check_server(url, text)
    return _of_capabilities(url, layer)


def _unquoted(text: str) -> str:
    return re.sub("%7D", "}", re.sub("%7B", "{", text, flags=re.IGNORECASE), flags=re.IGNORECASE)


def _fields(text: str) -> list[str]:
    return [_NAMES.get(name.lower(), name.lower()) for name in _FIELD.findall(text)]


@dataclass(frozen=True)
class Template:
    """The URL of a layer's tiles, with placeholders for zoom, column and row."""

    text: str
    matrices: tuple[str, ...] = ()
    """WMTS's name of each zoom level, empty for a missing one; () if levels are named by number."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Check a URL such as ``https://host/{z}/{x}/{y}.png``.

        Raises
        ------
        OptionError
            If it does not use https (or http on this machine), or a placeholder is missing or unknown.
        """
        template = _unquoted(text)
        parts = _check_server(template, text)
        fields = _fields(template)
        unknown = [name for name in fields if name not in ("z", "x", "y", "-y", "q")]
        if "{" in parts.netloc or unknown or re.search(r"[{}]", _FIELD.sub("", template)):
            what = f"{{{unknown[0]}}}" if unknown else "a brace in the name of the server or a single one"
            raise OptionError(
                f"{text}: {what} is not understood in the URL of map tiles: give {{z}}, {{x}} and {{y}} ({{-y}} where "
                "rows count from the south) or {q}, and the name of one server instead of {s}"
            )
        if "q" not in fields and not {"z", "x"} < set(fields):
            raise OptionError(f"{text}: the URL of map tiles needs placeholders {{z}}, {{x}} and {{y}}, or {{q}}")
        if "q" not in fields and not {"y", "-y"} & set(fields):
            raise OptionError(f"{text}: the URL of map tiles has no placeholder for the row: give {{y}}, or {{-y}}")
        return cls(template)

    @property
    def host(self) -> str:
        """Name of the server."""
        return urlsplit(self.text).hostname or ""

    def check_zoom(self, zoom: int) -> None:
        """Check that a layer has a zoom level.

        Raises
        ------
        OptionError
            If it is known not to.
        """
        there = [level for level, name in enumerate(self.matrices) if name]
        if self.matrices and zoom not in there:
            raise OptionError(
                f"{self.text} has the zoom levels {there[0]} to {there[-1]}, but --gsd needs {zoom}: give another"
            )

    def url(self, zoom: int, row: int, col: int) -> str:
        """The URL of a tile; rows count from the north."""
        quadkey = "".join(str((col >> k & 1) + 2 * (row >> k & 1)) for k in range(zoom - 1, -1, -1))
        values = {
            "z": quote(self.matrices[zoom], safe=":") if self.matrices else zoom,
            "x": col,
            "y": row,
            "-y": (1 << zoom) - 1 - row,
            "q": quadkey,
        }
        return _FIELD.sub(lambda found: str(values[_fields(found[0])[0]]), self.text)


def _check_server(url: str, text: str) -> SplitResult:
    """Check that a URL uses https, or http on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:  # brackets in the host name
        parts, host = urlsplit(""), None
    here = host in ("localhost", "127.0.0.1", "::1")
    if not (host and (parts.scheme == "https" or (parts.scheme == "http" and here))):
        raise OptionError(
            f"{text}: map tiles are read over https://, or http:// from this machine; merge a folder of tiles "
            "into one file instead (gdalbuildvrt, gdal_translate)"
        )
    return parts


# --- WMTS ------------------------------------------------------------------------------------------------------------


def _of_capabilities(url: str, layer: str | None) -> Template:
    root = _capabilities(url)
    layers = {_text(one, "Identifier"): one for one in root.iterfind(".//Contents/Layer")}
    if layer is None or layer not in layers:
        named = "no layer is named" if layer is None else f"there is no layer {layer}"
        more = f" and {len(layers) - SHOWN_LAYERS} more" if len(layers) > SHOWN_LAYERS else ""
        shown = ", ".join(list(layers)[:SHOWN_LAYERS]) or "none"
        raise OptionError(f"{url}: {named}: give WMTS:URL,layer=NAME; it has {shown}{more}")
    found = layers[layer]
    linked = {_text(link, "TileMatrixSet") for link in found.iterfind("TileMatrixSetLink")}
    sets = {_text(one, "Identifier"): _matrices(one) for one in root.iterfind(".//Contents/TileMatrixSet")}
    fitting = {name: levels for name, levels in sets.items() if name in linked and any(levels)}
    if not fitting:
        raise SceneError(
            f"{url}: the layer {layer} has no tiles in web Mercator ({CRS}), but in "
            f"{', '.join(sorted(linked)) or 'none'}: give another layer, or a raster"
        )
    name = max(fitting, key=lambda one: sum(map(bool, fitting[one])))
    return _same_server(url, _tile_url(root, found, layer, name), fitting[name], layer)


def _capabilities(url: str) -> ET.Element:
    data = tile_cache.tile_file(url, MAX_CAPABILITIES_BYTES)
    try:
        root = parse_xml(data, limit=MAX_CAPABILITIES_BYTES)
        for element in root.iter():
            element.tag = element.tag.rpartition(":")[2]  # namespace prefixes are arbitrary
        if root.tag == "Capabilities":
            return root
        why = f"its root is {root.tag[:40]!r}"
    except ValueError as error:
        why = str(error) if data else "there is nothing"
    raise SceneError(f"{url} does not give WMTS capabilities ({why}): open it in a browser")


def _text(element: ET.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _matrices(tile_set: ET.Element) -> tuple[str, ...]:
    """Names of the zoom levels of a matrix set that are those of web Mercator; empty names for missing ones."""
    if not re.search(r"EPSG:.*\b(3857|900913)$", _text(tile_set, "SupportedCRS"), re.IGNORECASE):
        return ()
    levels = [""] * MAX_LEVELS
    for matrix in tile_set.iterfind("TileMatrix"):
        try:
            size, high = int(_text(matrix, "TileWidth")), int(_text(matrix, "TileHeight"))
            side = float(_text(matrix, "ScaleDenominator")) * PIXEL_M * size
            left, top = map(float, _text(matrix, "TopLeftCorner").split())
            zoom = math.log2(2 * HALF_M / side)
        except (ValueError, ZeroDivisionError, OverflowError):
            continue
        placed = abs(left + HALF_M) < 1 and abs(top - HALF_M) < 1
        if size == high and size in SIZES and placed and abs(zoom - round(zoom)) < 1e-4 and 0 <= zoom < MAX_LEVELS - 1:
            levels[round(zoom)] = _text(matrix, "Identifier")
    return tuple(levels)


def _tile_url(root: ET.Element, layer: ET.Element, name: str, tile_set: str) -> str:
    """The tile URL of a layer in a matrix set: a given template, or the query defined by the standard."""
    styles = layer.findall("Style")
    style = next((one for one in styles if one.get("isDefault", "").lower() in ("true", "1")), (styles or [layer])[0])
    values = {"tilematrixset": tile_set, "layer": name, "style": _text(style, "Identifier") if styles else "default"}
    values |= {_text(one, "Identifier").lower(): _text(one, "Default") for one in layer.iterfind("Dimension")}

    def fill(match: re.Match[str]) -> str:
        value = values.get(match[1].lower())
        return match[0] if value is None else quote(value, safe="")

    for resource in layer.iterfind("ResourceURL"):
        if resource.get("resourceType") == "tile" and resource.get("format", "").partition(";")[0] in FORMATS:
            return re.sub(r"\{([\w:.-]+)\}", fill, resource.get("template", ""))
    formats = [one for one in (element.text or "" for element in layer.iterfind("Format")) if one in FORMATS]
    for operation in root.iterfind(".//Operation[@name='GetTile']"):
        for get in operation.iterfind(".//Get"):
            base = next((value for key, value in get.attrib.items() if key.rpartition(":")[2] == "href"), "")
            query = {
                "SERVICE": "WMTS",
                "REQUEST": "GetTile",
                "VERSION": "1.0.0",
                "LAYER": name,
                "STYLE": values["style"],
            }
            query |= {"FORMAT": (formats or ["image/png"])[0], "TILEMATRIXSET": tile_set}
            words = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
            joint = "" if base.endswith(("?", "&")) else "&" if "?" in base else "?"
            return f"{base}{joint}{words}&TILEMATRIX={{z}}&TILEROW={{y}}&TILECOL={{x}}"
    return ""


def _same_server(url: str, template: str, matrices: tuple[str, ...], layer: str) -> Template:
    """The template of a layer, if it leads to the server that described it."""
    asked = urlsplit(url)
    try:
        given = urlsplit(template)
        same = given.hostname == asked.hostname and (given.scheme != asked.scheme or given.port == asked.port)
    except ValueError:  # brackets, or text instead of a port
        given, same = urlsplit(""), False
    if not same or given.scheme not in ("http", "https"):
        where = f"those of {template[:80]!r}" if template else "none that are PNG, JPEG or WebP"
        raise SceneError(
            f"{url} names as the tiles of {layer} {where}: only tiles of that server are read; if you trust another "
            "one, give its tile URL, with {z}, {x} and {y}"
        )
    # a server behind a proxy may not know that it is reached by https
    own = given._replace(scheme=asked.scheme, netloc=asked.netloc).geturl()
    return Template(Template.parse(own).text, matrices)
