"""What a run was made of and with, as plain values: the record in every inventory."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

import geolabel
from geolabel.io.read.scene_mosaic import scene_mosaic_of

if TYPE_CHECKING:
    from geolabel.extraction.plan import Plan
    from geolabel.extraction.result import Result
    from geolabel.io.read.scenes import SceneReader
    from geolabel.scene import Scene


def provenance(result: Result) -> dict[str, Any]:
    """How a result was made; on several grids, what was decided for each."""
    parts = [plan_provenance(part.plan) for part in result.parts]
    if len(parts) == 1:
        made = parts[0]
    else:
        own = [{name: value for name, value in part.items() if name != "software"} for part in parts]
        made = {"software": software(), "parts": own}
    crs, review = result.landslides.crs, result.review_counts()
    polygons = {"landslides": len(result.landslides), "candidates": len(result.candidates)}
    return (
        made
        | {"crs": None if crs is None else crs.to_wkt(), "counts": result.report.counts() | polygons}
        | ({"review": review} if review else {})
    )


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
