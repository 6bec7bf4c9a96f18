"""The scenes of a run: those on one grid are processed as one mosaic, others one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pyproj
import shapely
from affine import Affine

from geolabel.bands import band_in_name, choose_bands
from geolabel.engine import executors
from geolabel.errors import OptionError, SceneError, VectorError
from geolabel.extraction.evidence import Evidence, open_evidence
from geolabel.extraction.plan import Plan, examined, make_plan
from geolabel.extraction.request import ContourMethod, Networks, Parameters, Reading, decide
from geolabel.extraction.supplements import NO_SUPPLEMENTS, Supplements
from geolabel.io.read.deliveries import is_delivery
from geolabel.io.read.headers import check_image, product_of
from geolabel.io.read.map_tiles import MapTiles, missing_tiles, open_map_tiles
from geolabel.io.read.masks import Mask, hidden_share, open_masks
from geolabel.io.read.scene_inputs import SceneInput, list_scenes
from geolabel.io.read.scene_mosaic import SceneLayer, SceneMosaic, scene_mosaic_of
from geolabel.io.read.scenes import SceneReader
from geolabel.io.read.tile_urls import CRS as MAP_TILES_CRS
from geolabel.io.read.tile_urls import is_map_tiles
from geolabel.models import measured_accuracy
from geolabel.outputs import same_file
from geolabel.parts import Recipe
from geolabel.radiometry import Stretch
from geolabel.scene import Grid, Scene, span

if TYPE_CHECKING:
    from geolabel.io.read.arrays import Labelled

AS_IT_IS = Stretch((0.0,) * 3, (255.0,) * 3, "none")
"""What a scene mosaic needs: its scenes are stretched before they are put together."""


@dataclass(frozen=True)
class SceneGroups:
    """The scenes of a run, grouped by grid, with a plan for each group."""

    plans: tuple[Plan, ...]
    """One for each grid, in the order of its first scene."""
    crs: pyproj.CRS | None
    """CRS of the polygons."""
    scenes: int = 1
    warnings: tuple[str, ...] = ()
    """Assumptions for the user to check, and cases where the networks are known to do badly."""
    evidence: tuple[Evidence, ...] = ()
    """Supplementary data for each grid; empty for none."""

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """A single scene, whose polygons keep its CRS."""
        return cls((plan,), plan.grid.crs)


@dataclass(frozen=True)
class _Opened:
    """A scene with its header."""

    reader: SceneReader
    scene: Scene
    warnings: tuple[str, ...]
    product: str | None = None
    """Kind of geolabel product that it is, if it is not an image."""
    given: SceneInput = field(default_factory=lambda: SceneInput(""))
    """Its entries in a list or table."""


def prepare(
    scene: str | Path | Labelled,
    reading: Reading,
    networks: Networks,
    parameters: Parameters,
) -> Plan:
    """The plan of a run over one scene, or over several on one grid; see `prepare_scenes`."""
    scenes = list_scenes(scene, asset=reading.asset)
    (plan,) = prepare_scenes(scenes, reading, networks, parameters, raster="the result").plans
    return plan


def prepare_scenes(
    scenes: Sequence[SceneInput],
    reading: Reading,
    networks: Networks,
    parameters: Parameters,
    *,
    dst_crs: str | pyproj.CRS | None = None,
    raster: str | Path | None = None,
    supplements: Supplements | None = None,
) -> SceneGroups:
    """Read the headers of scenes, load the networks and plan the run.

    In workers a network call uses one thread by default.

    Parameters
    ----------
    scenes
        At least one, in order of precedence.
    dst_crs
        CRS of the polygons; by default the scenes' own.
    raster
        An output for which all scenes must share a grid, if there is one.
    supplements
        Supplementary data; None if earlier images are not used.

    Raises
    ------
    OptionError
        If the scenes have different CRSs and `dst_crs` is not given, `dst_crs` is unknown, or scenes on several grids
        are requested as one raster.
    GeolabelError
        See `geolabel.errors`.
    """
    crs = parse_crs(dst_crs)
    parameters.method.require()
    (supplements or NO_SUPPLEMENTS).check_used(in_table=any(one.before for one in scenes))
    opened, left_out = _images(_open(scenes, reading))
    _refuse_bands(opened)
    alone = len(scenes) == 1
    own = opened[0].scene.grid.crs
    check_dst_crs(crs, own)
    if reading.bounds is not None and not alone:
        opened = _within_bounds(opened, reading.bounds)
    groups = _groups(opened)
    if raster is not None and len(groups) > 1:
        raise OptionError(
            f"{raster} is one raster, but the scenes are on {len(groups)} grids, such as those of "
            f"{groups[0][0].scene.name} and {groups[1][0].scene.name}: give scenes of one CRS, resolution and alignment"
        )
    crs = crs or _common_crs(opened)
    # areas of interest are checked first: most mistakes appear there, before a network is loaded
    areas = [_area(group, reading, alone=alone) for group in groups]
    inside = [
        (here, area)
        for group, area in zip(groups, areas, strict=True)
        if (here := group if alone or area is None else _meeting(group, area))
    ]
    if not inside:
        raise VectorError(
            f"{reading.aoi} misses all {len(scenes)} scenes; {opened[0].scene.name} covers "
            f"{span(opened[0].scene.grid.outline.bounds)}: the CRS or the coordinates may be wrong"
        )
    beside = [_beside(group, supplements) for group, _ in inside]
    gsd = None if own is not None else reading.gsd
    masks = open_masks(reading.masks, [one.scene.grid for one in opened], "--mask", gsd=gsd)
    own_masks = [open_masks(group[0].given.mask, [group[0].scene.grid], "mask", gsd=gsd) for group, _ in inside]
    parameters, recipes, confidence = decide(networks, _for_workers(parameters))
    plans = tuple(
        replace(_plan_group(group, area, reading, recipes, parameters, (*masks, *others)), confidence=confidence)
        for (group, area), others in zip(inside, own_masks, strict=True)
    )
    found = [(one.scene.name, text) for one in opened for text in one.warnings] + _findings(plans)
    warnings = [text if alone else f"{name}: {text}" for name, text in found]
    if any(one.given.before for one in opened):
        evidence = [known for given, plan in zip(beside, plans, strict=True) for known in open_evidence(given, [plan])]
    else:
        evidence = open_evidence(supplements or NO_SUPPLEMENTS, plans)
    return SceneGroups(plans, crs, len(scenes), (*left_out, *warnings, *_cautions(plans)), tuple(evidence))


def _beside(group: Sequence[_Opened], supplements: Supplements | None) -> Supplements:
    """Supplementary data of a group, with the earlier images that a table names.

    Raises
    ------
    OptionError
        If these images are not used by the command, others are given too, or one is the scene itself.
    """
    given, found = group[0].given, supplements or NO_SUPPLEMENTS
    if given.before and supplements is None:
        raise OptionError(
            f"{given.before[0]} is an image from before {group[0].scene.name}, but only extract compares them: "
            "remove the column before from the table"
        )
    if given.before and found.befores:
        raise OptionError(f"--before {found.befores[0]}: the table names {given.before[0]}; give one of the two")
    if given.before:
        found = replace(found, before=given.before, before_mask=given.before_mask)
    scenes = [one.given.source for one in group if isinstance(one.given.source, str)]
    for path in found.befores:
        if any(same_file(Path(path), scene) for scene in scenes):
            raise OptionError(f"--before {path} is the scene itself, where nothing changes: give an earlier image")
    return found


def _for_workers(parameters: Parameters) -> Parameters:
    """The parameters with one thread per network call in workers, if not given."""
    shared = executors.clustered() or executors.in_task()
    return replace(parameters, threads=1) if shared and parameters.threads is None else parameters


def _findings(plans: Sequence[Plan]) -> list[tuple[str, str]]:
    """Name of a scene and what its sample shows, for all scenes."""
    found = []
    for plan in plans:
        mosaic = scene_mosaic_of(plan.reader)
        scenes = (
            [(plan.reader.scene.name, plan.reader)] if mosaic is None else [(s.name, s.reader) for s in mosaic.layers]
        )
        found += [(name, text) for name, reader in scenes for text in reader.findings.warnings]
    return found


def _cautions(plans: Sequence[Plan]) -> list[str]:
    """Measured accuracy at these pixel sizes, if it is a reason for caution; each once."""
    texts = [
        measured_accuracy.caution(
            max(plan.reader.scene.grid.gsd, plan.grid.gsd),  # finer scenes are reduced to the networks' range
            {recipe.role: recipe.sha256 for recipe in (plan.localizer, plan.segmenter)},
        )
        for plan in plans
        if isinstance(plan.method, ContourMethod)  # the measured method
    ]
    return list(dict.fromkeys(text for text in texts if text is not None))


def parse_crs(given: str | pyproj.CRS | None) -> pyproj.CRS | None:
    """A CRS given by the user.

    Raises
    ------
    OptionError
        If PROJ does not know it.
    """
    try:
        return None if given is None else pyproj.CRS.from_user_input(given)
    except pyproj.exceptions.CRSError as error:
        raise OptionError(f"CRS {given!r}: give a code such as EPSG:32648, or WKT") from error


def check_dst_crs(crs: pyproj.CRS | None, own: pyproj.CRS | None) -> None:
    """Refuse to reproject to `crs`, if any, data without a CRS.

    Raises
    ------
    OptionError
        If the data has none.
    """
    if crs is not None and own is None:
        raise OptionError(f"the scene has no CRS, so nothing can be reprojected to {crs.name}: omit --dst-crs")


def same_crs(one: pyproj.CRS | None, other: pyproj.CRS | None) -> bool:
    """Whether coordinates have the same meaning in both."""
    if one is None or other is None:
        return one is other
    return bool(one.equals(other, ignore_axis_order=True))


MESSAGE_BYTES = 16 << 20
"""Bytes; a larger array in memory is not sent along with every task."""


def _source(source: str | Labelled, reading: Reading) -> str | Labelled | MapTiles:
    """A layer of map tiles as the part of it that is worked on, all else as it is.

    Raises
    ------
    GeolabelError
        As `open_map_tiles`, and `_visible`.
    """
    from geolabel.io.read.features import read_aoi

    if not isinstance(source, str) or not is_map_tiles(source):
        return _visible(source)
    bounds = reading.bounds
    if reading.aoi is not None:
        bounds = read_aoi(reading.aoi, pyproj.CRS(MAP_TILES_CRS), reading.aoi_layer).bounds
    return open_map_tiles(source, bounds, reading.gsd)


def _visible(source: str | Labelled) -> str | Labelled:
    """The same source, if workers can see it.

    Raises
    ------
    OptionError
        If it is a large array in the memory of this process and the work is done in others.
    """
    if isinstance(source, str) or source.chunks or source.nbytes <= MESSAGE_BYTES or not executors.clustered():
        return source
    raise OptionError(
        f"the array of {source.nbytes >> 20} MB is in the memory of this process, and workers cannot see it: "
        "write it to a file, or open it with chunks"
    )


def _open(scenes: Sequence[SceneInput], reading: Reading) -> list[_Opened]:
    sources = [_source(one.source, reading) for one in scenes]
    readers = [
        SceneReader(
            source,
            bands=reading.bands,
            nodata=reading.nodata,
            gsd=None if isinstance(source, MapTiles) else reading.gsd,
            name=one.name,
            event_date=one.event_date,
            time=reading.time,
        )
        for one, source in zip(scenes, sources, strict=True)
    ]
    if len(readers) == 1:  # it stays open: its pixels are read next
        return [_Opened(readers[0], *_header_of(readers[0]), scenes[0])]
    headers = executors.ordered(_closed_header_of, readers)
    opened = [_Opened(reader, *header, one) for reader, header, one in zip(readers, headers, scenes, strict=True)]
    lost = next((one.scene.name for one in opened if one.scene.grid.crs is None), None)
    if lost is not None:
        raise SceneError(f"{lost} has no CRS, so it cannot be combined with others: give it one, or work on it alone")
    return opened


def _images(opened: Sequence[_Opened]) -> tuple[list[_Opened], list[str]]:
    """Those that are no products of geolabel, which patterns pick up, and what to say of the others.

    Raises
    ------
    SceneError
        If none is left.
    """
    images = [one for one in opened if one.product is None]
    if not images:
        check_image(opened[0].reader.header)
    others = [one for one in opened if one.product is not None]
    return images, [
        f"{one.scene.name} was written by geolabel ({one.product}) and is not an image: left out" for one in others
    ]


def _refuse_bands(opened: Sequence[_Opened]) -> None:
    """Refuse bands of one picture in files of their own, which would be worked on as grey scenes.

    Raises
    ------
    SceneError
        If there are any, with the command that merges them.
    """
    pictures: dict[tuple[str, Grid], list[tuple[str, str]]] = {}
    for one in opened:
        stem, band = band_in_name(one.scene.name)
        if band is not None and one.scene.band_count == 1:
            pictures.setdefault((stem, one.scene.grid), []).append((band, one.scene.name))
    for (stem, _), bands in pictures.items():
        names = [band for band, _ in bands]
        if len(set(names)) > 1:
            order = choose_bands(names, ["undefined"] * len(names), sensor=stem)[0]
            files = " ".join(bands[number - 1][1] for number in dict.fromkeys(order))
            folder = str(Path(bands[0][1]).absolute().parent)
            way = f"give their folder, {folder}, or " if is_delivery(folder) else ""
            raise SceneError(
                f"{bands[0][1]} and {len(bands) - 1} more are bands of one image in separate files: {way}join "
                f"red, green and blue (gdalbuildvrt -separate scene.vrt {files}) and give scene.vrt"
            )


def _header_of(reader: SceneReader) -> tuple[Scene, tuple[str, ...], str | None]:
    product = product_of(reader.header)
    if product is None:
        check_image(reader.header)
    missing = missing_tiles(reader.source) if isinstance(reader.source, MapTiles) else ()
    return reader.scene, (*reader.warnings, *missing), product


def _closed_header_of(reader: SceneReader) -> tuple[Scene, tuple[str, ...], str | None]:
    with reader:  # there may be thousands
        return _header_of(reader)


def _common_crs(opened: Sequence[_Opened]) -> pyproj.CRS | None:
    first, other = opened[0], _differing(opened)
    if other is not None:
        names = [f"{one.scene.name} in {getattr(one.scene.grid.crs, 'name', None)}" for one in (first, other)]
        raise OptionError(f"the scenes have different CRSs ({', '.join(names)}): choose one with --dst-crs")
    return first.scene.grid.crs


def _differing(opened: Sequence[_Opened]) -> _Opened | None:
    """A scene whose CRS differs from that of the first."""
    first = opened[0].scene.grid.crs
    return next((one for one in opened[1:] if not same_crs(first, one.scene.grid.crs)), None)


def _within_bounds(opened: Sequence[_Opened], bounds: tuple[float, float, float, float]) -> list[_Opened]:
    """The scenes that intersect a rectangle in their CRS."""
    if _differing(opened) is not None:
        raise OptionError("bounds are in the scenes' CRS, and these scenes have several: give an --aoi with its own")
    inside = _meeting(opened, shapely.box(*bounds))
    if not inside:
        raise VectorError(f"the bounds {bounds} miss all {len(opened)} scenes: give bounds in the scenes' CRS")
    return inside


def _meeting(opened: Sequence[_Opened], region: shapely.Geometry) -> list[_Opened]:
    """The scenes that intersect a region in their CRS."""
    return [one for one in opened if shapely.intersection(one.scene.grid.outline, region).area > 0]


def _groups(opened: Sequence[_Opened]) -> list[list[_Opened]]:
    """Scenes that share a grid, in order."""
    groups: list[list[_Opened]] = []
    for one in opened:
        for group in () if one.given.in_table else groups:
            if not group[0].given.in_table and group[0].scene.grid.window_of(one.scene.grid) is not None:
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _area(group: Sequence[_Opened], reading: Reading, *, alone: bool) -> shapely.Geometry | None:
    """The area of interest in the CRS of a group, if there is one; a single scene must intersect it."""
    from geolabel.io.read.features import read_aoi

    if reading.aoi is None:
        return None
    grid = group[0].scene.grid
    return read_aoi(reading.aoi, grid.crs, reading.aoi_layer, grid=grid if alone else None)


def _plan_group(
    group: Sequence[_Opened],
    area: shapely.Geometry | None,
    reading: Reading,
    recipes: tuple[Recipe, Recipe],
    parameters: Parameters,
    masks: Sequence[Mask],
) -> Plan:
    """The plan of scenes on one grid."""
    stretch: str | Stretch = reading.stretch
    reader = group[0].reader
    if len(group) > 1:
        reader, stretch = SceneReader(_scene_mosaic(group, reading.stretch, parameters.on_error, masks)), AS_IT_IS
    if area is not None:
        reader = reader.within(area)
    if masks:
        reader = reader.without(masks)
    plan = make_plan(
        reader, *recipes, parameters, bounds=reading.bounds, working_gsd=reading.working_gsd, stretch=stretch
    )
    return replace(plan, masked=hidden_share(reader, plan.grid, "--mask"))


def _scene_mosaic(group: Sequence[_Opened], stretch: str, on_error: str, masks: Sequence[Mask]) -> SceneMosaic:
    """Scenes on one grid as one mosaic over all of them; masked pixels are excluded from stretches."""
    base = group[0].scene.grid
    windows = [window for one in group if (window := base.window_of(one.scene.grid)) is not None]
    assert len(windows) == len(group), "these scenes do not share a grid"
    row, col = min(window.row for window in windows), min(window.col for window in windows)
    bottom, right = max(window.bottom for window in windows), max(window.right for window in windows)
    grid = replace(
        base, transform=base.transform * Affine.translation(col, row), height=bottom - row, width=right - col
    )
    readers = executors.ordered(partial(_examined, stretch, on_error, masks), [one.reader for one in group])
    return SceneMosaic(
        grid,
        [
            SceneLayer(
                reader,
                one.scene.name,
                replace(window, row=window.row - row, col=window.col - col),
                stretched,
                one.scene.event_date,
            )
            for one, window, (reader, stretched) in zip(group, windows, readers, strict=True)
        ],
    )


def _examined(spec: str, on_error: str, masks: Sequence[Mask], reader: SceneReader) -> tuple[SceneReader, Stretch]:
    with reader.without(masks) if masks else reader as opened:
        found, stretch = examined(opened, spec, on_error)
    return found.without(()) if masks else found, stretch  # the scene mosaic applies the masks
