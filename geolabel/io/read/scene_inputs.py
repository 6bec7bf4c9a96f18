"""Scene inputs: paths and URLs, patterns, lists in text files, tables of pairs, and STAC items."""

from __future__ import annotations

import csv
import glob
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urljoin, urlsplit

from geolabel.errors import OptionError, SceneError
from geolabel.io.read import files
from geolabel.io.read.deliveries import is_metadata
from geolabel.io.read.opening import is_remote
from geolabel.io.read.tile_urls import is_map_tiles
from geolabel.parsing import check_name, check_regular, exists, parse_json
from geolabel.urls import path_of

if TYPE_CHECKING:
    from geolabel.io.read.arrays import Labelled

    OneScene: TypeAlias = "str | Path | Labelled | SceneInput"
    Scenes: TypeAlias = OneScene | Sequence[OneScene]

LIST_BYTES = 256 << 20
"""Maximum bytes of a list; a larger file is probably not a list."""

MAX_SCENES = 100_000
"""Maximum scenes of a list; each is opened before work begins."""

REMOTE = re.compile(r"(/vsicurl/)?https?://|(s3|gs|az|abfss?|adls?|oss|swift)://|/vsi(s3|gs|az|adls|oss|swift)/")
"""Schemes allowed in a list from a network. Others may refer to local files."""

PREFERRED = ("visual", "image", "ortho", "rgb", "data", "analytic")
"""Common names of image assets in STAC items, in order of preference."""

RASTERS = ("image/tiff", "image/jp2", "image/png", "image/jpeg", "image/vnd.stac.geotiff", "application/x-geotiff")


@dataclass(frozen=True)
class SceneInput:
    """A scene to process, and the other columns of its table."""

    source: str | Labelled
    name: str | None = None
    """The user's name for it; None for its default name."""
    event_date: str | None = None
    before: tuple[str, ...] = ()
    """Images of the same place before the event, from a table of pairs."""
    before_mask: tuple[str, ...] = ()
    """Masks of the images before the event, see `geolabel.extraction.supplements`."""
    mask: tuple[str, ...] = ()
    """Masks of the scene."""

    @property
    def in_table(self) -> bool:
        """Whether a table has entries for this scene only, so that it is processed separately."""
        return bool(self.before or self.mask)


def list_scenes(given: Any, *, asset: str | None = None) -> list[SceneInput]:
    """Expand inputs to scenes, in the given order; duplicates are dropped.

    Parameters
    ----------
    given
        A scene, or a sequence of them. A scene is a path or a URI that GDAL opens, a pattern such as ``folder/*.tif``,
        a delivery (`geolabel.io.read.deliveries`), a layer of map tiles (`geolabel.io.read.tile_urls`), a text file
        (``.txt``) with one of these per line, a table of pairs (``.csv``, see `COLUMNS`), a file of STAC items
        (``.json``), STAC items as pystac has them, an ``xarray.DataArray`` or an ``xarray.Dataset``.
    asset
        Asset of STAC items to use; by default the only image.

    Raises
    ------
    OptionError
        If `given` is empty.
    SceneError
        If a pattern or list is empty, or a list cannot be read or names something that is not allowed.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    scenes = [found for one in (given if several else [given]) for found in _expand(one, asset)]
    if not scenes:
        raise OptionError("no scene: give at least one file")
    first: dict[object, SceneInput] = {}
    for scene in scenes:
        first.setdefault(scene.source if isinstance(scene.source, str) else id(scene.source), scene)
    return list(first.values())


def _expand(one: Any, asset: str | None) -> Iterator[SceneInput]:
    if isinstance(one, SceneInput):
        yield one
        return
    if not isinstance(one, str | Path):
        if hasattr(one, "dims"):
            yield SceneInput(one)
            return
        items = one.to_dict() if hasattr(one, "to_dict") else one
        if not isinstance(items, Mapping):
            raise OptionError(f"{one!r} is not a scene: give a path, a URL, STAC items or an array")
        yield from _stac(items, "the STAC items", "", asset)
        return
    text = str(one)
    suffix = Path(urlsplit(text).path if is_remote(text) else text).suffix.lower()
    if is_metadata(text):
        yield _scene_input(text)
    elif suffix == ".txt":
        yield from _text(text, asset)
    elif suffix == ".csv":
        yield from _table(text)
    elif suffix in (".json", ".geojson") and (items := _items(text)) is not None:
        yield from _stac(items, text, text, asset)
    elif re.search(r"[*?\[]", text) and not (is_remote(text) or is_map_tiles(text) or exists(text)):
        found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207  # the pattern may be absolute
        if not found:
            raise SceneError(f"{text}: no file matches: correct the path or the pattern")
        yield from map(_scene_input, found)
    else:
        yield _scene_input(text)


def _scene_input(text: str) -> SceneInput:
    """A scene as the user wrote it; files get absolute paths, as workers may have another current folder."""
    check_name(text)
    return SceneInput(str(Path(text).absolute()), text) if not is_remote(text) and exists(text) else SceneInput(text)


# --- text files ------------------------------------------------------------------------------------------------------


def _text(name: str, asset: str | None) -> Iterator[SceneInput]:
    try:
        lines = _content(name).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SceneError(f"{name} is not a list of scenes: it is not UTF-8 text") from error
    entries = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    if not entries:
        raise SceneError(f"{name} lists no scene: write one path or URL per line")
    _check_count(len(entries), name)
    for entry in entries:
        if entry.lower().endswith(".txt"):
            raise SceneError(f"{name} lists {entry}: a list names scenes, not other lists")
        scene = _resolve(entry, name)
        check_name(scene)
        plain = not (is_remote(scene) or re.match(r"/vsi|\w{2,}:", scene) or re.search(r"[*?\[]", scene))
        if plain and not exists(scene):
            raise SceneError(f"{name} is read as a list of scenes, but lists {entry}: there is no such file")
        yield from _expand(scene, asset)


# --- tables ----------------------------------------------------------------------------------------------------------

COLUMNS = ("scene", "before", "before_mask", "mask")
"""Columns of a table of pairs; the first is required. A cell holds one path or URL, or several separated by |."""


def _table(name: str) -> Iterator[SceneInput]:
    try:
        table = csv.DictReader(io.StringIO(_content(name).decode("utf-8-sig")), skipinitialspace=True, strict=True)
        columns = table.fieldnames = [column.strip() for column in table.fieldnames or ()]
        rows = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SceneError(f"{name} is not a table of scenes: give CSV in UTF-8, with commas ({error})") from error
    unknown = [column for column in columns if column not in COLUMNS]
    twice = [column for column in columns if columns.count(column) > 1]
    if unknown or twice or not rows or "scene" not in columns:
        what = f"has a column {unknown[0]!r}" if unknown else "has no row, or no column scene"
        what = f"has two columns {twice[0]}" if twice and not unknown else what
        raise SceneError(f"{name} {what}: give a header and rows of {', '.join(COLUMNS)}")
    _check_count(len(rows), name)
    for number, row in enumerate(rows, 2):
        if None in row:
            raise SceneError(f"{name}, line {number}: more cells than columns; put a path with a comma in quotes")
        scene, before, before_mask, mask = (_cell(row.get(column) or "", name) for column in COLUMNS)
        if len(scene) != 1:
            raise SceneError(f"{name}, line {number}: {len(scene)} scenes; give one per row")
        yield replace(_scene_input(scene[0]), before=before, before_mask=before_mask, mask=mask)


def _cell(text: str, home: str) -> tuple[str, ...]:
    """The paths and URLs in a cell, resolved."""
    entries = [entry for entry in map(str.strip, text.split("|")) if entry]
    return tuple(entry if entry == "none" else str(_scene_input(_resolve(entry, home)).source) for entry in entries)


def _check_count(count: int, name: str) -> None:
    if count > MAX_SCENES:
        raise SceneError(f"{name} lists {count} scenes; the limit for one run is {MAX_SCENES}: split the list")


def _resolve(entry: str, home: str) -> str:
    """An entry of a list; relative paths are relative to the list.

    Raises
    ------
    SceneError
        If a list from a network names a local file.
    """
    if not is_remote(home):
        if is_remote(entry) or is_map_tiles(entry) or entry.startswith("/vsi") or Path(entry).is_absolute():
            return entry
        if entry.startswith("file://"):
            return unquote(path_of(entry))
        return str(Path(home).parent / entry)
    if re.match(r"\w[\w+.-]*:|/vsi", entry):
        full = entry
    elif home.startswith(("http://", "https://")):
        full = urljoin(home, entry)
    else:
        full = entry if entry.startswith("/") else f"{home.rpartition('/')[0]}/{entry}"
    if not REMOTE.match(full):
        raise SceneError(f"{home} names {entry}: a list from a network may not name local files")
    return full


def _content(name: str) -> bytes:
    """The bytes of a list."""
    if not is_remote(name):
        path = Path(name)
        try:
            check_regular(path)
            if path.stat().st_size > LIST_BYTES:
                raise SceneError(f"{name} is larger than {LIST_BYTES >> 20} MB, too large for a list of scenes")
            return path.read_bytes()
        except OSError as error:
            raise SceneError(f"{name} cannot be read: {error.strerror or error}") from error
    try:
        return files.fetch(name, LIST_BYTES)
    except ValueError as error:
        raise SceneError(f"{name} is not a list of scenes: {error}") from error


# --- STAC ------------------------------------------------------------------------------------------------------------


def _items(name: str) -> Mapping[str, Any] | None:
    """The content of a file if it holds STAC items; None otherwise, as for a scene."""
    try:
        values = parse_json(_content(name), limit=LIST_BYTES)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    features = values.get("features") if values.get("type") == "FeatureCollection" else [values]
    is_items = isinstance(features, list) and all(isinstance(f, dict) and "assets" in f for f in features)
    return values if is_items else None


def _stac(values: Mapping[str, Any], name: str, home: str, asset: str | None) -> Iterator[SceneInput]:
    items = values.get("features", [values])
    if not items:
        raise SceneError(f"no STAC items in {name}: give at least one, or the scenes themselves")
    _check_count(len(items), name)
    for item in items:
        if not isinstance(item, Mapping) or not isinstance(item.get("assets"), Mapping):
            raise SceneError(f"{name}: a STAC item without assets: give items, not a catalogue or a collection")
        found = _scene_input(_resolve(_href(item, name, asset), home or _self(item)))
        yield replace(found, event_date=_date(item))


def _href(item: Mapping[str, Any], name: str, asset: str | None) -> str:
    """URL or path of an item's image asset.

    Raises
    ------
    SceneError
        If several assets, or none, could be meant.
    """
    assets = {str(key): value for key, value in item["assets"].items() if isinstance(value, Mapping)}
    known = ", ".join(sorted(assets)) or "no assets"
    if asset is not None:
        chosen = [asset] if asset in assets else []
    else:
        pictures = [key for key in assets if _is_picture(assets[key])]
        chosen = [key for key in PREFERRED if key in pictures][:1] or pictures
    if len(chosen) != 1 or not isinstance(assets[chosen[0]].get("href"), str):
        what = f"no asset {asset}" if asset is not None else "no single image asset"
        raise SceneError(f"{name}: item {item.get('id')} has {what}, but {known}: choose one with --asset NAME")
    return str(assets[chosen[0]]["href"])


def _is_picture(asset: Mapping[str, Any]) -> bool:
    roles = asset.get("roles")
    if isinstance(roles, list) and {"thumbnail", "overview", "metadata"} & set(map(str, roles)):
        return False
    kind = str(asset.get("type") or "").lower()
    return kind.startswith(RASTERS) if kind else str(asset.get("href")).lower().endswith((".tif", ".tiff", ".jp2"))


def _self(item: Mapping[str, Any]) -> str:
    """The item's own location (link ``self``); relative names are relative to it."""
    links = item.get("links")
    found = [
        str(link.get("href"))
        for link in (links if isinstance(links, list) else ())
        if isinstance(link, Mapping) and link.get("rel") == "self"
    ]
    return found[0] if found else ""


def _date(item: Mapping[str, Any]) -> str | None:
    properties = item.get("properties")
    if not isinstance(properties, Mapping):
        return None
    said = str(properties.get("datetime") or properties.get("start_datetime") or "")
    return said[:10] if re.match(r"\d{4}-\d\d-\d\d(T|$)", said) else None
