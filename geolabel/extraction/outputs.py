"""What a run leaves behind: where it may write, what it adds to the polygons, and the files themselves."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import geopandas as gpd
import numpy as np
import shapely

import geolabel
from geolabel.engine.run_folder import SUFFIX, Folder, written_by
from geolabel.errors import OptionError
from geolabel.extraction.passes import MosaicSource, TileReport
from geolabel.extraction.plan import Plan, Run
from geolabel.io.columns import LANDSLIDE_COLUMNS
from geolabel.io.read.review import NOTHING, Carried, check_work
from geolabel.io.read.scene_mosaic import scene_mosaic_of
from geolabel.io.styles import REVIEW_STATES
from geolabel.io.write import rasters, vectors
from geolabel.io.write.rasterize import in_pixels, rasterize
from geolabel.io.write.rasters import write_cog
from geolabel.io.write.vectors import prompt_numbers, write_inventory
from geolabel.masks import OUTSIDE
from geolabel.models.confidence_files import confidence_of
from geolabel.outputs import check_target, same_file, together

if TYPE_CHECKING:
    from geolabel.extraction.combine import Inventory
    from geolabel.extraction.extract import Extraction
    from geolabel.extraction.vectorize import Objects
    from geolabel.io.read.scenes import SceneReader
    from geolabel.scene import Scene
    from geolabel.tiles import Window
    from geolabel.types import BoolArray, Float64Array, Int64Array, UInt8Array

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """The files that a run is to write; checked before any work is done."""

    inventory: Path | None
    scores: Path | None
    mask: Path | None
    overwrite: bool
    own: frozenset[Path] = frozenset()
    """Files that the unfinished run to go on with has written itself, which it may replace."""
    carried: Carried = NOTHING
    """What of a person's work comes into the inventory."""

    @classmethod
    def of(
        cls,
        inventory: str | Path | None,
        scores: str | Path | None = None,
        mask: str | Path | None = None,
        *,
        overwrite: bool = False,
        inputs: Sequence[object] = (),
        run_dir: str | Path | None = None,
        carried: Carried = NOTHING,
    ) -> Self:
        """Check that every file may be written.

        Raises
        ------
        OptionError
            If two outputs share a name.
        OutputError
            If a file exists and may not be replaced, is an input, holds a person's work that would be lost, or its
            folder cannot be written to.
        """
        first, second, third = (None if path is None else Path(path) for path in (inventory, scores, mask))
        targets = cls(first, second, third, overwrite, carried=carried)
        root = targets.root(run_dir)
        targets = replace(targets, own=frozenset() if root is None else written_by(root))
        paths = targets.paths
        if len({os.path.realpath(path) for path in paths}) < len(paths):
            raise OptionError(f"two outputs share a name ({', '.join(map(str, paths))}): give each its own")
        if root is not None and any(same_file(path, root) for path in paths):
            raise OptionError(f"--run-dir {root} is an output of this run: give another folder")
        sources = [source for source in inputs if isinstance(source, str | Path)]
        for path in paths:
            suffixes = vectors.SUFFIXES if path == targets.inventory else rasters.SUFFIXES
            check_target(path, overwrite=targets.may_replace(path), suffixes=suffixes, inputs=sources)
        if targets.inventory is not None:
            check_work(targets.inventory, carried)
        return targets

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for path in (self.inventory, self.scores, self.mask) if path is not None]

    @property
    def raster(self) -> Path | None:
        """A raster among the files, if there is one."""
        return self.scores or self.mask

    def root(self, run_dir: str | Path | None = None) -> str | Path | None:
        """Where the records of the run are kept: as given, else beside the first output; None without any."""
        if run_dir is not None:
            return run_dir
        first = next(iter(self.paths), None)
        return None if first is None else first.with_name(first.name + SUFFIX).absolute()

    def may_replace(self, path: Path) -> bool:
        """Whether a file that is there may be replaced."""
        return self.overwrite or path.absolute() in self.own


def tile_table(reports: Sequence[TileReport], plan: Plan) -> gpd.GeoDataFrame:
    """Outline, status and class probability of every tile of the localizer."""
    corners = np.asarray(
        [
            [(tile.col, tile.row), (tile.right, tile.row), (tile.right, tile.bottom), (tile.col, tile.bottom)]
            for tile in (plan.localize_tiles[report.index] for report in reports)
        ],
        float,
    )
    a, b, c, d, e, f = tuple(plan.grid.transform)[:6]
    col, row = corners[..., 0], corners[..., 1]
    x, y = a * col + b * row + c, d * col + e * row + f
    return gpd.GeoDataFrame(
        {
            "tile": [report.index for report in reports],
            "status": [report.status for report in reports],
            "probability": [report.probability for report in reports],
            "message": [report.message for report in reports],
        },
        geometry=shapely.polygons(np.stack([x, y], axis=-1)),
        crs=plan.grid.crs,
    )


def complete(
    landslides: gpd.GeoDataFrame,
    plan: Plan,
    seen: Sequence[tuple[str, str | None]] | None = None,
    drawn_ids: Int64Array | None = None,
) -> gpd.GeoDataFrame:
    """Add what is not measured of landslides, and put the columns in the order of the inventory.

    Parameters
    ----------
    seen
        Source and date of each landslide, where these are not the same for all.
    drawn_ids
        Prompts that a person drew, see `judged`.
    """
    scene = plan.reader.scene
    source = scene.name if seen is None else [name for name, _ in seen]
    date = scene.event_date if seen is None else [date for _, date in seen]
    known = {"source": source, "event_date": date, "notes": None, "status": REVIEW_STATES[0]}
    confidence = judged(landslides, plan, drawn_ids)
    return landslides.assign(**known, confidence=confidence)[[*LANDSLIDE_COLUMNS, "geometry"]]


def judged(landslides: gpd.GeoDataFrame, plan: Plan, drawn_ids: Int64Array | None = None) -> Float64Array:
    """(K,) confidence of landslides; NaN where none is known for the networks or the method, or a person asked for one.

    The model knows polygons of the localizer's prompts; what answers a prompt that a person drew is likelier than it
    could say.
    """
    networks = {recipe.role: recipe.sha256 for recipe in (plan.localizer, plan.segmenter)}
    confidence = confidence_of(landslides, networks, plan.parameters.method)
    if drawn_ids is not None and len(drawn_ids):
        asked = frozenset(drawn_ids.tolist())
        confidence[[not asked.isdisjoint(prompt_numbers(prompts)) for prompts in landslides["prompts"]]] = np.nan
    return confidence


def is_likely(polygons: gpd.GeoDataFrame, plan: Plan) -> BoolArray:
    """(K,) whether polygons are landslides; what is less sure than the parameters ask is a candidate.

    Where nothing is known of its confidence, a polygon counts.
    """
    confidence = polygons["confidence"].to_numpy(float)
    likely: BoolArray = np.isnan(confidence) | (confidence >= (plan.parameters.min_confidence or 0))
    return likely


def sorted_by(likely: BoolArray, polygons: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Landslides and candidates."""
    return polygons[likely].reset_index(drop=True), polygons[~likely].reset_index(drop=True)


def overview(landslides: gpd.GeoDataFrame, candidates: gpd.GeoDataFrame) -> dict[str, Any]:
    """What a user wants to know of the polygons first.

    The mean confidence, where it is known, estimates which share of the landslides is right.
    """
    confidence = landslides["confidence"].to_numpy(float)
    known = confidence[np.isfinite(confidence)]
    return {
        "landslides": len(landslides),
        "area_m2": round(float(landslides["area_m2"].sum()), 1),
        "mean_confidence": round(float(known.mean()), 3) if known.size else None,
        "candidates": len(candidates),
    }


def write_outputs(found: Extraction, targets: Targets, folder: Folder | None = None) -> None:
    """Write what was asked for; the files appear together, when all are whole."""
    plan = found.plan
    with writing(targets, folder):
        write_rasters(found, targets)
        if targets.inventory is not None:
            write_inventory(
                targets.inventory,
                found.landslides,
                found.prompts,
                found.tiles,
                provenance(found),
                grid=plan.grid,
                candidates=found.candidates,
                classes=plan.classes,
                reviewed=found.reviewed,
                overwrite=targets.may_replace(targets.inventory),
                carried=targets.carried,
            )


def write_rasters(found: Extraction, targets: Targets) -> None:
    """Write the rasters of scores and of the mask, if they were asked for."""
    write_scores(found.run, targets)
    if targets.mask is not None:
        mosaic, plan = MosaicSource(found.run), found.plan
        numbers = np.arange(1, found.objects.count + 1)
        shown = found.objects.only(np.isin(numbers, found.shown))
        drawn = shapely.STRtree(in_pixels(found.drawn, plan.grid))
        blocks = ((window, _mask(shown, drawn, mosaic, window)) for window in plan.blocks)
        overwrite = targets.may_replace(targets.mask)
        write_cog(targets.mask, blocks, plan.grid, nodata=OUTSIDE, kind="mask", overwrite=overwrite)


@contextmanager
def writing(targets: Targets, folder: Folder | None) -> Iterator[None]:
    """Let all outputs take their places together; the folder of the run, where there is one, says so."""
    with nullcontext() if folder is None else folder.writing(*targets.paths), together(*targets.paths):
        yield


def write_scores(run: Run, targets: Targets) -> None:
    """Write the raster of scores, if it was asked for."""
    if targets.scores is not None:
        mosaic, plan = MosaicSource(run), run.plan
        blocks = ((window, mosaic.scores(window)) for window in plan.blocks)
        overwrite = targets.may_replace(targets.scores)
        write_cog(targets.scores, blocks, plan.grid, nodata=OUTSIDE, kind="score", overwrite=overwrite)


def _mask(shown: Objects, drawn: shapely.STRtree, mosaic: MosaicSource, window: Window) -> UInt8Array:
    """1 inside a landslide, found or kept, 0 outside, 255 where the scene is not valid."""
    mask = shown.mask(window) | rasterize(drawn, np.ones(len(drawn.geometries), np.uint8), window)
    mask[mosaic.scores(window) == OUTSIDE] = OUTSIDE
    return mask


def provenance(found: Extraction) -> dict[str, Any]:
    """Everything that is needed to tell how an inventory was made, as plain values."""
    return plan_provenance(found.plan) | {"counts": found.report.counts()} | review_provenance(found)


def review_provenance(found: Extraction | Inventory) -> dict[str, Any]:
    """What came of a person's review, if there was one."""
    if found.reviewed is None:
        return {}
    counts = {"kept": len(found.reviewed.numbers), "rejected": len(found.reviewed.rejected), "left_out": found.left_out}
    return {"review": counts}


def software() -> dict[str, str]:
    """Versions of what an inventory is made with."""
    import pyogrio
    import rasterio

    return {
        "geolabel": geolabel.__version__,
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "torch": version("torch"),
        "gdal": rasterio.__gdal_version__,
        "gdal_vectors": pyogrio.__gdal_version_string__,
        "geos": shapely.geos_version_string,
        "numpy": np.__version__,
    }


def plan_provenance(plan: Plan) -> dict[str, Any]:
    """Everything that was decided before a run, as plain values."""
    return {
        "software": software(),
        "scene": _scene_facts(plan.reader.scene) | _layer_facts(plan.reader),
        "working_grid": {
            "height": plan.grid.height,
            "width": plan.grid.width,
            "gsd_m": round(plan.grid.gsd, 6),
            "transform": list(plan.grid.transform)[:6],
            "crs": None if plan.grid.crs is None else plan.grid.crs.to_wkt(),
        },
        "stretch": asdict(plan.stretch),
        "networks": {recipe.role: asdict(recipe) for recipe in (plan.localizer, plan.segmenter)},
        "classes": list(plan.classes),
        "parameters": plan.parameters.as_dict()
        | {
            "localizer_tile": plan.localize_tiles.size,
            "localizer_overlap": plan.localize_tiles.overlap,
            "segmenter_tile": plan.segment_tiles.size,
            "segmenter_overlap": plan.segment_tiles.overlap,
        },
    }


def _scene_facts(scene: Scene) -> dict[str, Any]:
    return {
        "name": scene.name,
        "size_bytes": scene.size_bytes,
        "modified": scene.modified,
        "event_date": scene.event_date,
        "bands": list(scene.bands),
        "band_count": scene.band_count,
        "dtype": scene.dtype,
        "height": scene.grid.height,
        "width": scene.grid.width,
        "gsd_m": round(scene.grid.gsd, 6),
    }


def _layer_facts(reader: SceneReader) -> dict[str, Any]:
    """The scenes of a scene mosaic."""
    scene_mosaic = scene_mosaic_of(reader)
    if scene_mosaic is None:
        return {}
    facts = []
    for number, layer in enumerate(scene_mosaic.layers):
        with scene_mosaic.opened(number) as opened:
            place = {"row": layer.window.row, "col": layer.window.col, "stretch": asdict(layer.stretch)}
            facts.append(_scene_facts(opened.scene) | place)
    return {"scenes": facts}
