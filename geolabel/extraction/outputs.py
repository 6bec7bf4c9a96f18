"""The files of a run: where it may write, what a person did in them, what it writes, and how that was made."""

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
import pandas as pd
import pyproj
import shapely

import geolabel
from geolabel import geodesy, polygons
from geolabel.engine.run_folder import SUFFIX, Folder, written_by
from geolabel.errors import OptionError
from geolabel.extraction.passes import MosaicSource
from geolabel.extraction.plan import Plan, Run
from geolabel.extraction.result import Result, reprojected, stacked
from geolabel.extraction.scene_groups import same_crs
from geolabel.io.columns import LANDSLIDE_COLUMNS, MEASURED, WINDOW_COLUMNS
from geolabel.io.read.review import (
    LAYER,
    NOTHING,
    REDRAWN,
    REJECTED,
    UNREVIEWED,
    Carried,
    Review,
    check_work,
    mark_of_prompts,
    read_review,
)
from geolabel.io.read.scene_mosaic import scene_mosaic_of
from geolabel.io.write import rasters, vectors
from geolabel.io.write.rasters import in_pixels, rasterize, write_cog
from geolabel.io.write.vectors import Reviewed, prompt_numbers, write_layers
from geolabel.io.written import canonical, plain, read_written
from geolabel.masks import OUTSIDE
from geolabel.outputs import check_target, same_file, together
from geolabel.types import AnyArray, BoolArray
from geolabel.viewing.backdrop import Source
from geolabel.viewing.preview import SUFFIXES as SUFFIXES_OF_PICTURES
from geolabel.viewing.preview import together_of, write_preview

if TYPE_CHECKING:
    from geolabel.extraction.result import Result
    from geolabel.extraction.vectorize import Objects
    from geolabel.io.read.scenes import SceneReader
    from geolabel.scene import Scene
    from geolabel.tiles import Window
    from geolabel.types import UInt8Array


@dataclass(frozen=True)
class Targets:
    """The files that a run is to write; checked before any work is done."""

    inventory: Path | None
    scores: Path | None
    mask: Path | None
    overwrite: bool
    own: frozenset[Path] = frozenset()
    """Files that the interrupted run has written itself, which it may replace when it is resumed."""
    carried: Carried = NOTHING
    """What of a person's work comes into the inventory."""
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

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for path in (self.inventory, self.scores, self.mask, self.preview) if path is not None]

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


@contextmanager
def writing(targets: Targets, folder: Folder | None) -> Iterator[None]:
    """Let all outputs take their places together; the folder of the run, where there is one, says so."""
    with nullcontext() if folder is None else folder.writing(*targets.paths), together(*targets.paths):
        yield


def write_result(result: Result, targets: Targets, folder: Folder | None = None) -> None:
    """Write what was asked for; the files appear together, when all are whole."""
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
                reviewed=result.reviewed,
                overwrite=targets.may_replace(targets.inventory),
                carried=targets.carried,
            )
        _write_picture(result, targets)


def _write_picture(result: Result, targets: Targets) -> None:
    """Draw the result on its scenes, if a picture was asked for."""
    if targets.preview is not None:
        sources = [Source(part.plan.reader, part.plan.stretch) for part in result.parts]
        layers = {"landslides": result.landslides, "candidates": result.candidates}
        if result.reviewed is not None:
            layers[REJECTED] = result.reviewed.rejected
        polygons = together_of(layers, result.landslides.crs)
        area = float(result.landslides["area_m2"].sum()) / 1e4
        title = f"{len(result.landslides)} landslides, {area:.3g} ha; {len(result.candidates)} candidates"
        write_preview(targets.preview, polygons, sources, title=title, overwrite=targets.may_replace(targets.preview))


def write_scores(run: Run, targets: Targets) -> None:
    """Write the raster of scores, a band for each class, if it was asked for."""
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
    """Write the raster of the landslides, if it was asked for; of several classes, each has a label of its own."""
    if targets.mask is not None:
        (part,) = result.parts  # there is one grid: its polygons are numbered as they were found
        plan, run = part.plan, part.run
        shown = part.objects.only(np.isin(np.arange(1, part.objects.count + 1), result.shown))
        outlines, names = result.reviewed_polygons(plan.grid.crs)
        several = len(plan.classes) > 1
        classes = [*dict.fromkeys([*plan.classes, *names])] if several else []  # a person may have added some
        labels = [classes.index(name) + 1 if several else 1 for name in names]
        drawn = shapely.STRtree(in_pixels(outlines, plan.grid)), np.asarray(labels, np.uint8)
        blocks = ((window, _mask(shown, drawn, MosaicSource(run), window)) for window in plan.blocks)
        overwrite = targets.may_replace(targets.mask)
        write_cog(targets.mask, blocks, plan.grid, nodata=OUTSIDE, kind="mask", classes=classes, overwrite=overwrite)


def _mask(
    shown: Objects, drawn: tuple[shapely.STRtree, UInt8Array], mosaic: MosaicSource, window: Window
) -> UInt8Array:
    """The class of a landslide, found or kept, from 1; 0 outside, 255 where the scene is not valid."""
    kept = rasterize(*drawn, window)
    mask = np.where(kept > 0, kept, shown.mask(window))
    mask[mosaic.scores(window) == OUTSIDE] = OUTSIDE
    return mask


# --- provenance ------------------------------------------------------------------------------------------------------


def _provenance(result: Result) -> dict[str, Any]:
    """How a result was made; on several grids, what was decided for each."""
    parts = [plan_provenance(part.plan) for part in result.parts]
    if len(parts) == 1:
        made = parts[0]
    else:
        own = [{name: value for name, value in part.items() if name != "software"} for part in parts]
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
        "networks": {recipe.role: asdict(recipe) for recipe in (plan.localizer, plan.segmenter)},
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
    """The scenes that a mosaic is made of."""
    scene_mosaic = scene_mosaic_of(reader)
    if scene_mosaic is None:
        return {}
    facts = []
    for number, layer in enumerate(scene_mosaic.layers):
        with scene_mosaic.opened(number) as opened:
            place = {"row": layer.window.row, "col": layer.window.col, "stretch": asdict(layer.stretch)}
            facts.append(_scene_facts(opened.scene) | place)
    return {"scenes": facts}


# A person's work comes first. A polygon that the run found is left out if at least half of it is on ground that a
# person has decided about, of whatever class: kept, as it stands in the inventory already, or rejected. If instead it
# covers at least half of such a polygon, and much ground besides, it is a candidate, for the person to see. Two kinds
# of polygons are exempt: those that the reviewed file holds with the same outline and that nobody touched, which keep
# their numbers; and, on rejected ground, those that answer a prompt that was drawn or changed since that file was
# written.


log = logging.getLogger(__name__)

SHARE = 0.5
"""Of a polygon, from which on ground that a person has decided about decides about it."""


def _review_of(keep_reviewed: str | Path | None, prompts_from: str | Path | None) -> Review | None:
    """The review that a run keeps: that of the file named for it, else of the one whose prompts it answers, if ours.

    Raises
    ------
    VectorError
        If the file cannot be read.
    """
    if keep_reviewed is None and (prompts_from is None or read_written(prompts_from) is None):
        return None
    review = read_review(Path(keep_reviewed or prompts_from or ""))
    if review.unsure:
        log.warning(
            "%s does not say what geolabel wrote into it, as exports do not: whether %d polygons that are unreviewed "
            "were edited cannot be known, and they are not kept; set their status to accepted to keep them",
            review.path,
            review.unsure,
        )
    return review


def carried_over(
    keep_reviewed: str | Path | None, prompts_from: str | Path | None, *, discard: bool = False
) -> Carried:
    """What of a person's work a run carries over; see `_review_of`."""
    review = _review_of(keep_reviewed, prompts_from)
    if prompts_from is None or not Path(prompts_from).is_file():  # none, or a URL, which no output can be
        return Carried(discard, review)
    return Carried(discard, review, Path(prompts_from), mark_of_prompts(Path(prompts_from)))


def with_review(result: Result, review: Review | None) -> Result:
    """What a person reviewed and what a run found as one result; see the module for the rules.

    Numbers of what was kept, or is found again as it was, are as before; all others are higher than any that a polygon
    of these files has had.
    """
    if review is None:
        return result
    landslides, candidates, fresh = result.landslides, result.candidates, result.fresh
    unit_m = result.parts[0].plan.grid.unit_m
    crs = landslides.crs
    kept, rejected = (_carried(table, crs, unit_m) for table in (review.kept, review.rejected))
    highest = review.highest
    for table in (kept, rejected):
        new = table["id"].isna().to_numpy(bool)
        table.loc[new, "id"] = np.arange(highest + 1, highest + 1 + new.sum())
        highest += int(new.sum())
    found = pd.concat([landslides.assign(**{LAYER: "landslides"}), candidates.assign(**{LAYER: "candidates"})])
    found = found.sort_values("id", ignore_index=True)
    shapes = np.asarray(found.geometry.to_numpy(), object)
    was = _waiting(review, crs)
    known = [was.get(shapely.to_wkb(outline)) for outline in canonical(shapes)]
    again = np.array([one is not None for one in known], bool)
    answers = np.array([not fresh.isdisjoint(prompt_numbers(named)) for named in found["prompts"]], bool)
    inside, around = _decided(shapes, answers, kept, rejected)
    numbers = found["id"].to_numpy(np.int64)
    ids = np.array([one[0] if one is not None else 0 for one in known], np.int64)
    stays = again | ~inside
    new = stays & ~again
    ids[new] = np.arange(highest + 1, highest + 1 + new.sum())
    highest += int(new.sum())
    shown = np.array([one is not None and one[1] == "landslides" for one in known], bool)
    layer = np.where(around & ~shown, "candidates", found[LAYER].to_numpy(object))
    found = found.assign(**{"id": ids, LAYER: layer})[stays]
    columns = LANDSLIDE_COLUMNS | dict(review.columns)
    layers = []
    for name in ("landslides", "candidates"):
        parts = [part[part[LAYER] == name] for part in (found, kept)]
        layers.append(stacked(parts, crs, columns).sort_values("id", kind="stable", ignore_index=True))
    numbered = frozenset(int(number) for number in kept["id"])
    return replace(
        result,
        landslides=layers[0],
        candidates=layers[1],
        reviewed=Reviewed(numbered, stacked([rejected], crs, columns), review.columns, highest, _looked(review, crs)),
        shown=numbers[stays & (layer == "landslides")],
        left_out=int((~stays).sum()),
    )


def _looked(review: Review, crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    return stacked([review.looked], crs, WINDOW_COLUMNS) if len(review.looked) else review.looked


def _carried(table: gpd.GeoDataFrame, crs: pyproj.CRS | None, unit_m: float | None) -> gpd.GeoDataFrame:
    """Reviewed polygons in the CRS of the inventory, with the sizes of those outlines that are a person's."""
    outlines = reprojected(table, crs)
    new = np.full(len(table), not same_crs(table.crs, crs)) | table[REDRAWN].to_numpy(bool)
    table = table.reindex(columns=[*dict.fromkeys([*table.columns, *LANDSLIDE_COLUMNS])])
    table = table.set_geometry(gpd.GeoSeries(outlines, index=table.index, crs=crs))
    dates = [plain(value) for value in table["event_date"]]
    states = table["status"].astype(object).where(table["status"].notna(), UNREVIEWED)
    sizes = geodesy.measure(polygons.valid_multipolygons(outlines[new]), crs, 1.0 if unit_m is None else unit_m)
    measured = {name: pd.to_numeric(table[name]).to_numpy(float, copy=True) for name in MEASURED}
    for name, values in measured.items():
        values[new] = getattr(sizes, name)
    return table.assign(event_date=pd.Series(dates, table.index, dtype=object), status=states, **measured)


def _waiting(review: Review, crs: pyproj.CRS | None) -> dict[bytes, tuple[int, str]]:
    """Number and layer of the polygons that nobody has looked at, by their outlines."""
    outlines = canonical(reprojected(review.waiting, crs))
    rows = zip(outlines, review.waiting["id"], review.waiting[LAYER], strict=True)
    return {shapely.to_wkb(outline): (int(number), layer) for outline, number, layer in rows}


def _decided(
    shapes: AnyArray, answers: BoolArray, kept: gpd.GeoDataFrame, rejected: gpd.GeoDataFrame
) -> tuple[BoolArray, BoolArray]:
    """(K,) which polygons are to `SHARE` on ground that is decided about, and which cover such a polygon to `SHARE`.

    Parameters
    ----------
    answers : (K,)
        Which answer a fresh prompt, so that rejected ground does not count.
    """
    ground = polygons.valid_multipolygons(np.concatenate([kept.geometry.to_numpy(), rejected.geometry.to_numpy()]))
    refused = np.arange(len(ground)) >= len(kept)
    inside, around = np.zeros(len(shapes), bool), np.zeros(len(shapes), bool)
    one, other = shapely.STRtree(ground).query(shapes, predicate="intersects")
    counts = ~(answers[one] & refused[other])
    one, other = one[counts], other[counts]
    shared = shapely.intersection(shapes[one], ground[other])
    covered = shapely.area(shared) >= SHARE * shapely.area(ground[other])
    around[one[covered & (shapely.area(shared) > 0)]] = True
    for k in np.unique(one):
        inside[k] = shapely.union_all(shared[one == k]).area >= SHARE * shapes[k].area
    return inside, around
