"""Convert any raster of masks or scores to landslide polygons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geolabel
from geolabel.engine import executors
from geolabel.engine.tasks import Progress, Silent
from geolabel.extraction.vectorize import vectorize
from geolabel.io.read.fingerprints import check_apart
from geolabel.io.read.scores import ScoreRaster, check_share, class_rasters
from geolabel.outputs import check_target
from geolabel.parsing import Measure
from geolabel.tiles import BlockGrid

if TYPE_CHECKING:
    import geopandas as gpd

NOTHING = Measure(0, "px")


def polygonize(
    raster: str | Path,
    *,
    out: str | Path | None = None,
    band: int | None = None,
    classes: Sequence[str] = (),
    threshold: float = 0.5,
    nodata: float | None = None,
    gsd: float | None = None,
    min_area: Measure = NOTHING,
    max_hole: Measure = NOTHING,
    split: float | None = None,
    simplify: Measure = NOTHING,
    smooth: Measure = NOTHING,
    block_size: int = 2048,
    dst_crs: str | None = None,
    overwrite: bool = False,
    discard_review: bool = False,
    progress: Progress | None = None,
) -> gpd.GeoDataFrame:
    """Convert a raster of masks, labels or scores to landslides with attributes.

    Parameters
    ----------
    raster, threshold, nodata, gsd
        See `geolabel.io.read.scores.ScoreRaster`.
    band
        One-based; None for the only one, or the first of a raster that is not an image, or for all score bands of
        several classes written by geolabel.
    classes
        Classes to use: descriptions of bands, or names that the band tags ``class_K`` give to values; none for all. A
        pixel belongs to the class with the highest score.
    out
        File of layers to write, see `geolabel.io.write.vectors.WRITERS`; None to write nothing.
    min_area, max_hole, split, simplify, smooth
        See `geolabel.extraction.vectorize.vectorize`.
    block_size
        Side in pixels of the blocks that are read at a time; it does not affect the result.
    dst_crs
        CRS of the polygons; None for that of the raster.
    overwrite
        Whether `out` may be replaced, unless it contains reviews or edits.
    discard_review
        Whether to replace such a file and lose its reviews and edits.
    progress
        Follows the run.

    Returns
    -------
    geopandas.GeoDataFrame
        One row per landslide, as in the layer ``landslides`` of the GeoPackage; ``score_mean`` and ``score_max`` are
        null unless the raster holds scores.

    Raises
    ------
    GeolabelError
        See `geolabel.errors`.
    """
    from geolabel.extraction.result import in_dst_crs
    from geolabel.extraction.scene_groups import check_dst_crs, parse_crs
    from geolabel.io.columns import LANDSLIDE_COLUMNS
    from geolabel.io.read.review import Carried, check_work
    from geolabel.io.styles import REVIEW_STATES
    from geolabel.io.write.exchange import check_lonlat
    from geolabel.io.write.vectors import SUFFIXES, write_layers

    carried, crs = Carried(discard=discard_review), parse_crs(dst_crs)
    if out is not None:
        check_target(Path(out), overwrite=overwrite, suffixes=SUFFIXES, inputs=[raster])
        check_work(out, carried)
    sources = class_rasters(raster, band=band, classes=classes, threshold=threshold, nodata=nodata, gsd=gsd)
    source, *others = sources.values()
    if out is not None:
        check_apart([Path(out)], source.reader)
        check_lonlat(Path(out), source.grid.crs, crs)
    check_dst_crs(crs, source.grid.crs)
    if not others:
        check_share(source)
    blocks, size = BlockGrid(source.grid.height, source.grid.width, block_size), source.grid.gsd
    found = vectorize(
        [source, *others],
        source.grid,
        blocks,
        threshold=source.level,
        min_area_px=min_area.pixels(size),
        max_hole_px=max_hole.pixels(size),
        split=split,
        simplify_px=simplify.pixels(size),
        smooth_px=smooth.pixels(size),
        classes=list(sources),
        apply=partial(_followed, progress or Silent(), len(blocks)),
    )
    unknown = {"event_date": source.reader.scene.event_date, "notes": None, "confidence": None}
    unknown |= {} if source.scored else {"score_mean": None, "score_max": None}
    found = found.assign(source=source.reader.scene.name, status=REVIEW_STATES[0], **unknown)
    found = found.assign(**dict.fromkeys(LANDSLIDE_COLUMNS.keys() - set(found)))  # attributes that need a scene
    found = in_dst_crs(found[[*LANDSLIDE_COLUMNS, found.geometry.name]], crs)
    if out is not None:
        measures = {"min_area": min_area, "max_hole": max_hole, "simplify": simplify, "smooth": smooth}
        given = {"threshold": threshold, "nodata": nodata, "gsd": gsd, "split": split}
        made = _provenance(sources, given | {name: str(measure) for name, measure in measures.items()})
        write_layers(out, found, None, None, made, crs=found.crs, overwrite=overwrite, carried=carried)
    return found


def _provenance(sources: Mapping[str, ScoreRaster], parameters: dict[str, Any]) -> dict[str, Any]:
    bands = [source.band for source in sources.values()]
    scene = next(iter(sources.values())).reader.scene
    return {
        "software": {"geolabel": geolabel.__version__},
        "raster": {
            "name": scene.name,
            "size_bytes": scene.size_bytes,
            "modified": scene.modified,
            "band": bands[0] if len(set(bands)) == 1 else bands,
        },
        "classes": list(sources),
        "parameters": parameters,
    }


def _followed(progress: Progress, total: int, function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterable[Any]:
    return progress.track(executors.ordered(function, jobs), "polygonize", length_hint(jobs, total))
