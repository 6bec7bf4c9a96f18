"""Write a synthetic scene and its truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from affine import Affine
from pyproj.exceptions import CRSError
from rasterio.features import shapes

import geolabel
from geolabel.errors import OptionError, SceneError
from geolabel.geodesy import measure
from geolabel.io.columns import ACTIVITIES, TRUTH_COLUMNS, kinds
from geolabel.io.read.review import Carried, check_work
from geolabel.io.styles import style_of
from geolabel.io.write import rasters, vectors
from geolabel.io.write.geopackage import Layer, VectorFile
from geolabel.io.write.rasters import write_geotiff
from geolabel.outputs import check_target, together
from geolabel.polygons import Geometries
from geolabel.scene import Grid
from geolabel.synthetic import CLASSES, SyntheticScene, synthesize_pair
from geolabel.synthetic import synthesize as draw
from geolabel.types import Int32Array

PLACE = (500_000.0, 3_000_000.0)
"""Easting and northing of the upper left corner, metres: on the central meridian of a UTM zone."""

DISTORTION = 0.05
"""Maximum difference between a metre of the CRS and a metre on the ground there, as a share."""

COLOURS = (
    (38, 92, 48),
    (151, 189, 96),
    (225, 200, 108),
    (176, 128, 86),
    (150, 150, 150),
    (60, 60, 66),
    (66, 133, 190),
    (225, 120, 190),
    (189, 0, 38),
)
"""Red, green and blue of each of `CLASSES` in the raster's colour table."""


@dataclass(frozen=True)
class SceneFiles:
    """Paths of a scene and its truth."""

    scene: Path
    """RGB, uint8."""
    truth: Path
    """The landslides' polygons, layer ``landslides``."""
    mask: Path
    """1 where a landslide is, else 0."""
    classes: Path
    """Land cover: indices into `CLASSES`."""
    dem: Path
    """Heights in metres, float32."""
    before: Path | None = None
    """RGB, uint8: the same place before the landslides, of a pair."""

    @classmethod
    def beside(cls, scene: str | Path, *, pair: bool = False) -> Self:
        """Name the other files after the scene."""
        scene = Path(scene)
        names = ("truth.gpkg", "truth.tif", "classes.tif", "dem.tif", *(["before.tif"] if pair else []))
        return cls(scene, *(scene.with_name(f"{scene.stem}_{name}") for name in names))

    @property
    def rasters(self) -> list[Path]:
        """All files but the polygons."""
        return [path for path in (self.scene, self.mask, self.classes, self.dem, self.before) if path is not None]

    def check(self, *, overwrite: bool) -> None:
        """Refuse paths where a file cannot or should not be written.

        Raises
        ------
        OutputError
            If one of the files cannot be written.
        """
        for path in self.rasters:
            check_target(path, overwrite=overwrite, suffixes=rasters.SUFFIXES)
        check_target(self.truth, overwrite=overwrite, suffixes=vectors.SUFFIXES)


def synthesize(
    scene: str | Path,
    *,
    size: int | tuple[int, int] = 1024,
    gsd: float = 0.5,
    seed: int = 0,
    epsg: int = 32648,
    pair: bool = False,
    reactivated: float = 0.0,
    overwrite: bool = False,
    discard_review: bool = False,
) -> SyntheticScene:
    """Generate a scene and write it with its truth: see `SceneFiles` and `geolabel.synthetic.synthesize`.

    The same arguments give the same bytes. The files appear together, or none of them does.

    Parameters
    ----------
    scene
        GeoTIFF to write; the other files' names derive from it.
    size
        Side, or height and width, in pixels.
    gsd
        Metres per pixel.
    seed
        Random seed.
    epsg
        A projected CRS in metres. The location in it is invented.
    pair
        Whether to also generate the place before its landslides, on another day and displaced by a few pixels. The
        scene then also has new roads, pits and fields; see `geolabel.synthetic.synthesize_pair`.
    reactivated
        Probability that a landslide of a pair was there before, 0..1. The truth then has the column ``activity``.
    overwrite
        Whether existing files may be replaced, unless a person has edited the truth.
    discard_review
        Whether they may be replaced even then.

    Raises
    ------
    OptionError
        If the size, gsd, seed or CRS is invalid, or landslides are reactivated without a pair.
    OutputError
        If a file cannot be written, or exists and may not be replaced.
    """
    if reactivated and not pair:
        raise OptionError(
            f"--reactivated {reactivated:g} needs a scene before, on which the landslides are: add --pair"
        )
    files = SceneFiles.beside(scene, pair=pair)
    files.check(overwrite=overwrite)
    carried = Carried(discard=discard_review)
    check_work(files.truth, carried)
    crs = _metric(epsg)
    both = synthesize_pair(size, gsd, seed, reactivated=reactivated) if pair else None
    drawn = draw(size, gsd, seed) if both is None else both.after
    height, width = drawn.truth.shape
    grid = Grid(crs, Affine(gsd, 0, PLACE[0], 0, -gsd, PLACE[1]), height, width)
    made = {
        "software": {"geolabel": geolabel.__version__},
        "synthetic": {"height": height, "width": width, "gsd": gsd, "seed": seed, "epsg": epsg}
        | ({} if both is None else {"before": {"shift_px": [round(v, 6) for v in both.shift]}})
        | ({"reactivated": reactivated} if reactivated else {}),
    }
    truth = {"other": (255, 255, 255), "landslide": COLOURS[-1]}
    cover = dict(zip(CLASSES, COLOURS, strict=True))
    with together(files.truth, *files.rasters):
        truths = VectorFile(
            [_landslides(drawn.ids, grid, both.reactivated if both and reactivated else None)], crs, made
        )
        vectors.write_vectors(files.truth, truths, overwrite=overwrite, carried=carried)
        write_geotiff(files.mask, drawn.truth, grid, description="landslide", classes=truth, overwrite=overwrite)
        write_geotiff(files.classes, drawn.classes, grid, description="land cover", classes=cover, overwrite=overwrite)
        write_geotiff(files.dem, drawn.dem, grid, description="height", unit="m", overwrite=overwrite)
        write_geotiff(files.scene, drawn.rgb, grid, description=f"synthetic scene, seed {seed}", overwrite=overwrite)
        if both is not None and files.before is not None:
            about = f"synthetic scene before, seed {seed}"
            write_geotiff(files.before, both.before, grid, description=about, overwrite=overwrite)
    return drawn


def _metric(epsg: int) -> pyproj.CRS:
    """Look up a CRS in metres at `PLACE`."""
    advice = "give a projected one in metres, such as 32648"
    try:
        crs = pyproj.CRS.from_epsg(epsg)
    except CRSError as error:
        raise OptionError(f"EPSG:{epsg} is not a known CRS: {advice}") from error
    if not crs.is_projected or any(axis.unit_conversion_factor != 1 for axis in crs.axis_info):
        raise OptionError(f"EPSG:{epsg}, {crs.name}, is not projected in metres: {advice}")
    try:
        metre = Grid(crs, Affine.translation(*PLACE), 1, 1).gsd
    except SceneError as error:
        raise OptionError(f"EPSG:{epsg}, {crs.name}, does not reach {PLACE}, where scenes lie: {advice}") from error
    if abs(metre - 1) > DISTORTION:
        raise OptionError(
            f"EPSG:{epsg}, {crs.name}: at {PLACE}, where scenes lie, its metre is {metre:.3f} m on the ground: {advice}"
        )
    return crs


def _landslides(ids: Int32Array, grid: Grid, reactivated: Sequence[int] | None) -> Layer:
    numbers, polygons = _outlines(ids, grid.transform)
    areas = measure(polygons, grid.crs).area_m2
    columns = TRUTH_COLUMNS if reactivated is None else TRUTH_COLUMNS | kinds("activity")
    features = gpd.GeoDataFrame({"id": numbers, "area_m2": areas}, geometry=polygons, crs=grid.crs)
    if reactivated is not None:
        features["activity"] = np.where(np.isin(numbers, reactivated), *ACTIVITIES)
    style = style_of("truth", features, columns)
    description = "Landslides as they were drawn, one row each"
    return Layer(
        "landslides", "MultiPolygon", description, columns, features[[*columns, "geometry"]], style.qml(), key="id"
    )


def _outlines(ids: Int32Array, transform: Affine) -> tuple[list[int], Geometries]:
    """Ascending numbers of the landslides in the scene, and the exact outline of each."""
    parts: dict[int, list[shapely.Polygon]] = {}
    for geometry, number in shapes(ids, mask=ids > 0, connectivity=4, transform=transform):
        parts.setdefault(int(number), []).append(shapely.geometry.shape(geometry))
    numbers = sorted(parts)
    return numbers, np.fromiter((shapely.MultiPolygon(parts[number]) for number in numbers), object, len(numbers))
