"""A run over many scenes: those on one grid are worked on as one, the others one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyproj
import shapely
from affine import Affine

from geolabel.bands import band_in_name, choose_bands
from geolabel.engine import executors
from geolabel.errors import OptionError, SceneError, VectorError
from geolabel.extraction import request
from geolabel.extraction.plan import Parameters, Plan, examined, make_plan
from geolabel.extraction.request import Networks, Reading
from geolabel.io.read.headers import check_image, product_of
from geolabel.io.read.scene_inputs import SceneInput
from geolabel.io.read.scene_mosaic import SceneLayer, SceneMosaic, scene_mosaic_of
from geolabel.io.read.scenes import SceneReader
from geolabel.models import measured
from geolabel.parts import Recipe
from geolabel.radiometry import Stretch
from geolabel.scene import Grid, Scene, span

AS_IT_IS = Stretch((0.0,) * 3, (255.0,) * 3, "none")
"""What a scene mosaic needs: its scenes are stretched before they are put together."""


@dataclass(frozen=True)
class Survey:
    """What a run over one scene or many will do."""

    plans: tuple[Plan, ...]
    """One for each grid, in the order of its first scene."""
    crs: pyproj.CRS | None
    """Of the inventory."""
    scenes: int
    warnings: tuple[str, ...] = ()
    """What had to be guessed, for the user to check, and where the networks are known to do badly."""

    @property
    def plain(self) -> bool:
        """Whether all there is to do is one plan, whose landslides need nothing done to them."""
        first = self.plans[0]
        told_apart = not self.several or scene_mosaic_of(first.reader) is not None
        return len(self.plans) == 1 and told_apart and same_crs(self.crs, first.grid.crs)

    @property
    def several(self) -> bool:
        """Whether there is more than one scene to tell apart."""
        return self.scenes > 1


@dataclass(frozen=True)
class Found:
    """A scene whose header has been read."""

    reader: SceneReader
    scene: Scene
    warnings: tuple[str, ...]
    product: str | None = None
    """What of geolabel's own it is, if it is no image."""


def prepare_survey(
    scenes: Sequence[SceneInput],
    reading: Reading,
    networks: Networks,
    parameters: Parameters,
    *,
    dst_crs: str | pyproj.CRS | None = None,
    raster: str | Path | None = None,
) -> Survey:
    """Open the headers of scenes, load the networks and decide the run.

    Parameters
    ----------
    scenes
        At least one, in order of precedence.
    dst_crs
        CRS of the inventory; by default the scenes' own.
    raster
        An output that takes all scenes to lie on one grid, if there is one.

    Raises
    ------
    OptionError
        If the scenes have different CRSs and `dst_crs` is not given, `dst_crs` is none, or scenes that lie on several
        grids are to become one raster.
    GeolabelError
        See `geolabel.errors`.
    """
    crs = parse_crs(dst_crs)
    if len(scenes) == 1:
        plan = _single(scenes[0], reading, networks, parameters)
        own = plan.grid.crs
        if crs is not None and own is None:
            raise OptionError(
                f"the scene has no CRS, so nothing can be reprojected to {crs.name}: leave --dst-crs away"
            )
        return Survey((plan,), crs or own, 1, (*plan.reader.warnings, *_cautions([plan])))
    found, left_out = _images(_open(scenes, reading))
    _refuse_bands(found)
    if reading.bounds is not None:
        found = _within_bounds(found, reading.bounds)
    groups = _groups(found)
    if raster is not None and len(groups) > 1:
        raise OptionError(
            f"{raster} is one raster, and the scenes lie on {len(groups)} grids, such as those of "
            f"{groups[0][0].scene.name} and {groups[1][0].scene.name}: give scenes of one CRS, resolution and alignment"
        )
    crs = crs or _common_crs(found)
    parameters = request.for_workers(networks.settled(parameters))
    recipes = networks.recipes_of(parameters)
    planned = (_plan_group(group, reading, recipes, parameters) for group in groups)
    plans = tuple(plan for plan in planned if plan is not None)
    if not plans:
        first = found[0].scene
        raise VectorError(
            f"{reading.aoi} misses all {len(scenes)} scenes, of which {first.name} reaches over "
            f"{span(first.grid.outline.bounds)}: its CRS or its coordinates may be wrong"
        )
    warnings = tuple(f"{one.scene.name}: {text}" for one in found for text in one.warnings)
    return Survey(plans, crs, len(scenes), (*left_out, *warnings, *_noticed(plans), *_cautions(plans)))


def _noticed(plans: Sequence[Plan]) -> list[str]:
    """What the samples of the scenes say."""
    noticed = []
    for plan in plans:
        together = scene_mosaic_of(plan.reader)
        readers = [(plan.reader.scene.name, plan.reader)] if together is None else []
        readers += [] if together is None else [(layer.name, layer.reader) for layer in together.layers]
        noticed += [f"{name}: {text}" for name, reader in readers for text in reader.findings.warnings]
    return noticed


def _cautions(plans: Sequence[Plan]) -> list[str]:
    """What was measured of the networks at these sizes of pixels, where that is a reason for caution; each once."""
    texts = [
        measured.caution(
            max(plan.reader.scene.grid.gsd, plan.grid.gsd),  # finer scenes are reduced to what the networks know
            {recipe.role: recipe.sha256 for recipe in (plan.localizer, plan.segmenter)},
        )
        for plan in plans
        if plan.parameters.method == "apsam"
    ]
    return list(dict.fromkeys(text for text in texts if text is not None))


def parse_crs(given: str | pyproj.CRS | None) -> pyproj.CRS | None:
    """A CRS as a user names it.

    Raises
    ------
    OptionError
        If PROJ does not know it.
    """
    try:
        return None if given is None else pyproj.CRS.from_user_input(given)
    except pyproj.exceptions.CRSError as error:
        raise OptionError(f"CRS {given!r}: give a code such as EPSG:32648, or WKT") from error


def same_crs(one: pyproj.CRS | None, other: pyproj.CRS | None) -> bool:
    """Whether coordinates mean the same in both."""
    if one is None or other is None:
        return one is other
    return bool(one.equals(other, ignore_axis_order=True))


def _single(listed: SceneInput, reading: Reading, networks: Networks, parameters: Parameters) -> Plan:
    known = {} if listed.event_date is None else {"event_date": listed.event_date}
    scene = listed.source if listed.name is None else listed.name
    return request.prepare(scene, reading, networks, parameters, **known)


def _open(listed: Sequence[SceneInput], reading: Reading) -> list[Found]:
    readers = [request.open_scene(request.visible(one.source), one.name, reading, one.event_date) for one in listed]
    found = [Found(reader, *seen) for reader, seen in zip(readers, executors.ordered(_look, readers), strict=True)]
    lost = next((one.scene.name for one in found if one.scene.grid.crs is None), None)
    if lost is not None:
        raise SceneError(
            f"{lost} has no CRS, so it has no place among {len(found)} scenes: give it one, or work on it alone"
        )
    return found


def _images(found: Sequence[Found]) -> tuple[list[Found], list[str]]:
    """Those that are no products of geolabel, which patterns pick up, and what to say of the others.

    Raises
    ------
    SceneError
        If none is left.
    """
    images = [one for one in found if one.product is None]
    if not images:
        check_image(found[0].reader.header)
    others = [one for one in found if one.product is not None]
    return images, [f"{one.scene.name} is a raster of geolabel's own ({one.product}): left out" for one in others]


def _refuse_bands(found: Sequence[Found]) -> None:
    """Refuse bands of one picture in files of their own, which would be worked on as grey scenes.

    Raises
    ------
    SceneError
        If there are such, with the command that joins them.
    """
    pictures: dict[tuple[str, Grid], list[tuple[str, str]]] = {}
    for one in found:
        stem, band = band_in_name(one.scene.name)
        if band is not None and one.scene.band_count == 1:
            pictures.setdefault((stem, one.scene.grid), []).append((band, one.scene.name))
    for (stem, _), bands in pictures.items():
        names = [band for band, _ in bands]
        if len(set(names)) > 1:
            order = choose_bands(names, ["undefined"] * len(names), sensor=stem)[0]
            files = " ".join(bands[number - 1][1] for number in dict.fromkeys(order))
            raise SceneError(
                f"{bands[0][1]} and {len(bands) - 1} more are bands of one picture in files of their own: join red, "
                f"green and blue (gdalbuildvrt -separate scene.vrt {files}) and give scene.vrt"
            )


def _look(reader: SceneReader) -> tuple[Scene, tuple[str, ...], str | None]:
    with reader:  # closed again: there may be thousands
        product = product_of(reader.header)
        if product is None:
            check_image(reader.header)
        return reader.scene, reader.warnings, product


def _common_crs(found: Sequence[Found]) -> pyproj.CRS | None:
    first, other = found[0], _differing(found)
    if other is not None:
        names = [f"{one.scene.name} in {getattr(one.scene.grid.crs, 'name', None)}" for one in (first, other)]
        raise OptionError(f"the scenes have different CRSs ({', '.join(names)}): say with --dst-crs which is wanted")
    return first.scene.grid.crs


def _differing(found: Sequence[Found]) -> Found | None:
    """A scene whose CRS is not that of the first."""
    first = found[0].scene.grid.crs
    return next((one for one in found[1:] if not same_crs(first, one.scene.grid.crs)), None)


def _within_bounds(found: Sequence[Found], bounds: tuple[float, float, float, float]) -> list[Found]:
    """Those scenes that a rectangle in their CRS meets."""
    if _differing(found) is not None:
        raise OptionError("bounds are in the scenes' CRS, and these scenes have several: give an --aoi with its own")
    inside = _meeting(found, shapely.box(*bounds))
    if not inside:
        raise VectorError(f"the bounds {bounds} miss all {len(found)} scenes: give bounds in the scenes' CRS")
    return inside


def _meeting(found: Sequence[Found], region: shapely.Geometry) -> list[Found]:
    """Those scenes that a region in their CRS covers in part."""
    return [one for one in found if shapely.intersection(one.scene.grid.outline, region).area > 0]


def _groups(found: Sequence[Found]) -> list[list[Found]]:
    """Scenes that share a grid, in order."""
    groups: list[list[Found]] = []
    for one in found:
        for group in groups:
            if group[0].scene.grid.window_of(one.scene.grid) is not None:
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _plan_group(
    group: Sequence[Found], reading: Reading, recipes: tuple[Recipe, Recipe], parameters: Parameters
) -> Plan | None:
    """The plan of scenes on one grid; None where the area of interest misses them all."""
    from geolabel.io.read.features import read_aoi

    crs = group[0].scene.grid.crs
    aoi = None if reading.aoi is None else read_aoi(reading.aoi, crs, reading.aoi_layer)
    group = group if aoi is None else _meeting(group, aoi)
    if not group:
        return None
    stretch: str | Stretch = reading.stretch
    reader = group[0].reader
    if len(group) > 1:
        reader, stretch = SceneReader(_scene_mosaic(group, reading.stretch, parameters.on_error)), AS_IT_IS
    if aoi is not None:
        reader = reader.within(aoi)
    return make_plan(
        reader, *recipes, parameters, bounds=reading.bounds, working_gsd=reading.working_gsd, stretch=stretch
    )


def _scene_mosaic(group: Sequence[Found], stretch: str, on_error: str) -> SceneMosaic:
    """Scenes on one grid as one, which reaches as far as they do."""
    base = group[0].scene.grid
    windows = [window for one in group if (window := base.window_of(one.scene.grid)) is not None]
    assert len(windows) == len(group), "these scenes do not share a grid"
    row, col = min(window.row for window in windows), min(window.col for window in windows)
    bottom, right = max(window.bottom for window in windows), max(window.right for window in windows)
    grid = replace(
        base, transform=base.transform * Affine.translation(col, row), height=bottom - row, width=right - col
    )
    readers = executors.ordered(partial(_examined, stretch, on_error), [one.reader for one in group])
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


def _examined(spec: str, on_error: str, reader: SceneReader) -> tuple[SceneReader, Stretch]:
    with reader:
        return examined(reader, spec, on_error)
