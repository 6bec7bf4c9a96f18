"""The files of a run: where it may write, what it writes, and the provenance."""

from __future__ import annotations

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
import pyproj
import shapely

import geolabel
from geolabel.engine.run_folder import SUFFIX, Folder, written_by
from geolabel.errors import OptionError
from geolabel.extraction.cutting import heads_of
from geolabel.extraction.passes import MosaicSource
from geolabel.extraction.plan import Plan, Run
from geolabel.extraction.result import Part, Result, reprojected
from geolabel.io.read.masks import hidden_ground
from geolabel.io.read.review import (
    NOTHING,
    REJECTED,
    Carried,
    check_work,
)
from geolabel.io.read.scene_mosaic import scene_mosaic_of
from geolabel.io.write import rasters, vectors
from geolabel.io.write.exchange import check_lonlat
from geolabel.io.write.rasters import in_pixels, rasterize, write_cog
from geolabel.io.write.vectors import write_layers
from geolabel.masks import OUTSIDE
from geolabel.models.defaults import BUNDLED
from geolabel.outputs import check_target, same_file, together
from geolabel.viewing.backdrop import Source
from geolabel.viewing.preview import EXCLUDED_GROUND, MASKED_GROUND, together_of, write_preview
from geolabel.viewing.preview import SUFFIXES as SUFFIXES_OF_PICTURES

if TYPE_CHECKING:
    from geolabel.extraction.result import Result
    from geolabel.extraction.vectorize import Objects
    from geolabel.io.read.scenes import SceneReader
    from geolabel.scene import Scene
    from geolabel.tiles import Window
    from geolabel.types import UInt8Array


@dataclass(frozen=True)
class Targets:
    """The files that a run will write; checked before any work is done."""

    inventory: Path | None
    scores: Path | None
    mask: Path | None
    overwrite: bool
    own: frozenset[Path] = frozenset()
    """Files that the interrupted run has written itself; a resumed run may replace them."""
    carried: Carried = NOTHING
    """A person's review that goes into the inventory."""
    preview: Path | None = None
    """A picture."""

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
        preview: str | Path | None = None,
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
        first, second, third, picture = (
            None if path is None else Path(path) for path in (inventory, scores, mask, preview)
        )
        targets = cls(first, second, third, overwrite, carried=carried, preview=picture)
        root = targets.root(run_dir)
        targets = replace(targets, own=frozenset() if root is None else written_by(root))
        paths = targets.paths
        if len({os.path.realpath(path) for path in paths}) < len(paths):
            raise OptionError(f"two outputs share a name ({', '.join(map(str, paths))}): give each its own")
        if root is not None and any(same_file(path, root) for path in paths):
            raise OptionError(f"--run-dir {root} is an output of this run: give another folder")
        sources = [source for source in inputs if isinstance(source, str | Path)]
        for path in paths:
            kinds = {targets.inventory: vectors.SUFFIXES, targets.preview: SUFFIXES_OF_PICTURES}
            suffixes = kinds.get(path, rasters.SUFFIXES)
            check_target(path, overwrite=targets.may_replace(path), suffixes=suffixes, inputs=sources)
        if targets.inventory is not None:
            check_work(targets.inventory, carried)
        return targets

    def check_crs(self, crs: pyproj.CRS | None, dst_crs: pyproj.CRS | None = None) -> None:
        """Refuse, before any work is done, an inventory in a format that cannot hold polygons in a CRS.

        See `geolabel.io.write.exchange.check_lonlat`.
        """
        if self.inventory is not None:
            check_lonlat(self.inventory, crs, dst_crs)

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for path in (self.inventory, self.scores, self.mask, self.preview) if path is not None]

    @property
    def raster(self) -> Path | None:
        """A raster among the files, if there is one."""
        return self.scores or self.mask

    def root(self, run_dir: str | Path | None = None) -> str | Path | None:
        """Where the records of the run are kept: as given, else beside the first output; None without an output."""
        if run_dir is not None:
            return run_dir
        first = next(iter(self.paths), None)
        return None if first is None else first.with_name(first.name + SUFFIX).absolute()

    def may_replace(self, path: Path) -> bool:
        """Whether an existing file may be replaced."""
        return self.overwrite or path.absolute() in self.own


@contextmanager
def writing(targets: Targets, folder: Folder | None) -> Iterator[None]:
    """Move all outputs to their places together; the folder of the run, if there is one, records that."""
    with nullcontext() if folder is None else folder.writing(*targets.paths), together(*targets.paths):
        yield


def write_result(result: Result, targets: Targets, folder: Folder | None = None) -> None:
    """Write the requested files; they appear together, when all are complete."""
    masked = _masked(result)
    with writing(targets, folder):
        write_scores(result.parts[0].run, targets)
        _write_mask(result, targets)
        if targets.inventory is not None:
            write_layers(
                targets.inventory,
                result.landslides,
                (result.boxes, result.points),
                result.tiles,
                _provenance(result),
                crs=result.landslides.crs,
                candidates=result.candidates,
                masked=masked,
                reviewed=result.reviewed,
                overwrite=targets.may_replace(targets.inventory),
                carried=targets.carried,
            )
        _write_picture(result, targets, masked)


def _masked(result: Result) -> gpd.GeoDataFrame | None:
    """Ground that masks leave out and no other scene shows, in polygons; None if there is no mask."""
    plans, crs = [part.plan for part in result.parts], result.landslides.crs
    if not any(plan.reader.masks for plan in plans):
        return None
    hidden = [shapely.union_all(hidden_ground(plan.reader, plan.grid)) for plan in plans]
    shown = [shapely.difference(plan.grid.outline, ground) for plan, ground in zip(plans, hidden, strict=True)]
    both = []
    for grounds in (hidden, shown):
        tables = [gpd.GeoDataFrame(geometry=[g], crs=p.grid.crs) for g, p in zip(grounds, plans, strict=True)]
        both.append(shapely.union_all(np.concatenate([reprojected(table, crs) for table in tables])))
    left = both[0] if len(plans) == 1 else shapely.difference(*both)
    parts = [part for part in shapely.get_parts(left) if part.area]
    return gpd.GeoDataFrame({"id": np.arange(1, len(parts) + 1)}, geometry=parts, crs=crs)


def _counted(table: gpd.GeoDataFrame, name: str) -> str:
    """The number of polygons, with what they are."""
    return f"{len(table)} {name}" + ("s" if len(table) != 1 else "")


def _write_picture(result: Result, targets: Targets, masked: gpd.GeoDataFrame | None) -> None:
    """Draw the result on its scenes, if a picture was requested."""
    if targets.preview is not None:
        sources = [Source(part.plan.reader, part.plan.stretch) for part in result.parts]
        layers = {"landslides": result.landslides, "candidates": result.candidates}
        if result.reviewed is not None:
            layers[REJECTED] = result.reviewed.rejected
        polygons = together_of(layers, result.landslides.crs)
        area = float(result.landslides["area_m2"].sum()) / 1e4
        found, other = _counted(result.landslides, "landslide"), _counted(result.candidates, "candidate")
        title = f"{found}, {area:.3g} ha; {other}"
        grounds = {EXCLUDED_GROUND: _excluded(result)} | ({} if masked is None else {MASKED_GROUND: masked})
        overwrite = targets.may_replace(targets.preview)
        write_preview(targets.preview, polygons, sources, title=title, grounds=grounds, overwrite=overwrite)


def _excluded(result: Result) -> gpd.GeoDataFrame:
    """Ground of ``--exclude``."""
    crs = result.landslides.crs
    tables = [gpd.GeoDataFrame(geometry=part.evidence.excluded, crs=part.plan.grid.crs) for part in result.parts]
    return gpd.GeoDataFrame(geometry=np.concatenate([reprojected(table, crs) for table in tables]), crs=crs)


def write_scores(run: Run, targets: Targets) -> None:
    """Write the raster of scores, a band for each class, if it was requested."""
    if targets.scores is not None:
        mosaics, plan = MosaicSource.of_classes(run), run.plan
        blocks = ((window, np.stack([mosaic.scores(window) for mosaic in mosaics])) for window in plan.blocks)
        write_cog(
            targets.scores,
            blocks,
            plan.grid,
            nodata=OUTSIDE,
            kind="score",
            classes=plan.classes if len(plan.classes) > 1 else (),
            overwrite=targets.may_replace(targets.scores),
        )


def _write_mask(result: Result, targets: Targets) -> None:
    """Write the raster of the landslides, if it was requested; with several classes, each has its own label."""
    if targets.mask is not None:
        (part,) = result.parts  # there is one grid: its polygons are numbered as they were found
        plan, run = part.plan, part.run
        shown = part.objects.only(np.isin(np.arange(1, part.objects.count + 1), result.shown))
        outlines, names = result.reviewed_polygons(plan.grid.crs)
        several = len(plan.classes) > 1
        classes = [*dict.fromkeys([*plan.classes, *names])] if several else []  # a person may have added some
        labels = [classes.index(name) + 1 if several else 1 for name in names]
        drawn = shapely.STRtree(in_pixels(outlines, plan.grid)), np.asarray(labels, np.uint8)
        ground = reprojected(gpd.GeoDataFrame(geometry=result.cut_out, crs=result.landslides.crs), plan.grid.crs)
        cut = shapely.STRtree(in_pixels(ground, plan.grid)), np.ones(len(ground), np.uint8)
        blocks = ((window, _mask(shown, drawn, cut, MosaicSource(run), window)) for window in plan.blocks)
        overwrite = targets.may_replace(targets.mask)
        write_cog(targets.mask, blocks, plan.grid, nodata=OUTSIDE, kind="mask", classes=classes, overwrite=overwrite)


def _mask(
    shown: Objects,
    drawn: tuple[shapely.STRtree, UInt8Array],
    cut: tuple[shapely.STRtree, UInt8Array],
    mosaic: MosaicSource,
    window: Window,
) -> UInt8Array:
    """The class of a landslide, found or kept, from 1; 0 outside, 255 where the scene is not valid."""
    kept, found = rasterize(*drawn, window), shown.mask(window)
    mask = np.where(kept > 0, kept, np.where(rasterize(*cut, window) > 0, np.zeros_like(found), found))
    mask[mosaic.scores(window) == OUTSIDE] = OUTSIDE
    return mask


# --- provenance ------------------------------------------------------------------------------------------------------


def _provenance(result: Result) -> dict[str, Any]:
    """How a result was made; on several grids, with the decisions for each."""
    parts = [plan_provenance(part.plan) | _networks(part) for part in result.parts]
    if len(parts) == 1:
        made = parts[0]
    else:
        own = [{name: value for name, value in part.items() if name != "software"} for part in parts]
        beside = [dict(part.evidence.given) for part in result.parts]
        if any(given != beside[0] for given in beside):
            own = [made | {"evidence": given} for made, given in zip(own, beside, strict=True)]
        made = {"software": _software(), "parts": own}
    crs, review = result.landslides.crs, result.review_counts()
    polygons = {"landslides": len(result.landslides), "candidates": len(result.candidates)}
    given = result.parts[0].evidence.given
    return (
        made
        | ({"evidence": dict(given)} if given else {})
        | {"crs": None if crs is None else crs.to_wkt(), "counts": result.report.counts() | polygons}
        | ({"review": review} if review else {})
    )


def _software() -> dict[str, str]:
    """Versions of the software that made an inventory."""
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


def _networks(part: Part) -> dict[str, Any]:
    """The networks of a part, including the evidence head if it was used."""
    heads = heads_of(part.run, part.evidence)
    beside = {} if heads is None else {"evidence": {"source": BUNDLED, "sha256": heads.sha256}}
    return {"networks": _recipes(part.plan) | beside}


def _recipes(plan: Plan) -> dict[str, Any]:
    return {recipe.role: asdict(recipe) for recipe in (plan.localizer, plan.segmenter)}


def plan_provenance(plan: Plan) -> dict[str, Any]:
    """Everything that was decided before a run, as plain values."""
    return {
        "software": _software(),
        "scene": _scene_facts(plan.reader.scene) | _layer_facts(plan.reader),
        "working_grid": {
            "height": plan.grid.height,
            "width": plan.grid.width,
            "gsd_m": round(plan.grid.gsd, 6),
            "transform": list(plan.grid.transform)[:6],
            "crs": None if plan.grid.crs is None else plan.grid.crs.to_wkt(),
        },
        "stretch": asdict(plan.stretch),
        **_mask_facts(plan),
        "networks": _recipes(plan),
        **({} if plan.confidence is None else {"confidence_model": plan.confidence.fitted}),
        "classes": list(plan.classes),
        "parameters": plan.parameters.as_dict()
        | {
            "localizer_tile": plan.localize_tiles.size,
            "localizer_overlap": plan.localize_tiles.overlap,
            "segmenter_tile": plan.segment_tiles.size,
            "segmenter_overlap": plan.segment_tiles.overlap,
        },
    }


def _mask_facts(plan: Plan) -> dict[str, Any]:
    """What masks hide, if there are any."""
    names = [mask.name for mask in plan.reader.masks]
    return {"masks": {"names": names, "share": round(plan.masked, 6)}} if names else {}


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
    """The scenes of a mosaic."""
    scene_mosaic = scene_mosaic_of(reader)
    if scene_mosaic is None:
        return {}
    facts = []
    for number, layer in enumerate(scene_mosaic.layers):
        with scene_mosaic.opened(number) as opened:
            place = {"row": layer.window.row, "col": layer.window.col, "stretch": asdict(layer.stretch)}
            facts.append(_scene_facts(opened.scene) | place)
    return {"scenes": facts}
