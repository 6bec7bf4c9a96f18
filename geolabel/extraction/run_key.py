"""The run key: everything the records depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields
from typing import Any

import numpy as np
import shapely

from geolabel.engine import executors, worker
from geolabel.extraction.plan import Plan
from geolabel.io.read.fingerprints import fingerprint
from geolabel.io.read.scene_mosaic import scene_mosaic_of
from geolabel.io.read.scenes import SceneReader
from geolabel.prompts import Prompts


def run_key(
    plans: Sequence[Plan], drawn: Sequence[Prompts | None], *, scene_key: str | None = None
) -> dict[str, Any] | None:
    """Everything that the records of a run depend on, as plain values; None where a scene cannot be told again.

    Parameters
    ----------
    drawn
        For each plan, prompts that replace the activation.
    scene_key
        What stands for the scenes, instead of their files.
    """
    keys = [_plan_key(plan, prompts, scene_key) for plan, prompts in zip(plans, drawn, strict=True)]
    if None in keys:
        return None
    if len(keys) == 1:
        return keys[0]
    return {"parts": len(keys)} | {f"part {number}": key for number, key in enumerate(keys, 1)}


def _plan_key(plan: Plan, drawn: Prompts | None, scene_key: str | None) -> dict[str, Any] | None:
    mark = {"key": scene_key} if scene_key is not None else scene_mark(plan.reader)
    if mark is None:
        return None
    grid, reader = plan.grid, plan.reader
    values = {
        "scene": mark
        | {
            "bands": list(reader.scene.bands),
            "nodata": reader.nodata,
            "aoi": None if reader.aoi is None else _digest(shapely.to_wkb(reader.aoi)),
            "event_date": reader.scene.event_date,
        },
        "grid": {
            "height": grid.height,
            "width": grid.width,
            "transform": list(grid.transform)[:6],
            "crs": None if grid.crs is None else grid.crs.to_wkt(),
            "unit_m": grid.unit_m,
        },
        "stretch": asdict(plan.stretch),
        "tiles": {
            "localizer": [plan.localize_tiles.size, plan.localize_tiles.overlap],
            "segmenter": [plan.segment_tiles.size, plan.segment_tiles.overlap],
            "task": plan.task_tiles,
        },
        "networks": {
            recipe.role: asdict(recipe) | {"device": recipe.device.partition(":")[0]}
            for recipe in (plan.localizer, plan.segmenter)
        },
        "classes": list(plan.classes),
        "parameters": plan.parameters.as_dict(),
        "prompts": None if drawn is None else _digest(*(getattr(drawn, f.name) for f in fields(drawn))),
        "versions": executors.where_networks_run(worker.versions),
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def scene_mark(reader: SceneReader) -> dict[str, Any] | None:
    """Plain values that change when a scene does, or one of the scenes of a scene mosaic."""
    scene_mosaic = scene_mosaic_of(reader)
    if scene_mosaic is None:
        return fingerprint(reader)
    marks = list(executors.ordered(_closed_fingerprint, [layer.reader for layer in scene_mosaic.layers]))
    if None in marks:
        return None
    named: dict[str, Any] = {"scenes": len(marks)}
    for number, (layer, mark) in enumerate(zip(scene_mosaic.layers, marks, strict=True), 1):
        named[f"{number}"] = (mark or {}) | {"at": astuple(layer.window), "stretch": asdict(layer.stretch)}
    return named


def _closed_fingerprint(reader: SceneReader) -> dict[str, Any] | None:
    with reader:
        mark = fingerprint(reader)
        return None if mark is None else mark | {"bands": reader.scene.bands, "nodata": reader.nodata}


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        digest.update(f"{len(data)} ".encode() + data)
    return digest.hexdigest()


def scenes_of(key: Mapping[str, Any]) -> list[str]:
    """The scenes that the key of a run names."""
    scene = key.get("scene")
    if isinstance(scene, Mapping):
        said = scene.get("uri", scene.get("key"))
        return [str(said)] if said is not None else [name for part in scene.values() for name in _uri(part)]
    return [name for part in key.values() if isinstance(part, Mapping) for name in scenes_of(part)]


def _uri(part: Any) -> list[str]:
    return [str(part["uri"])] if isinstance(part, Mapping) and "uri" in part else []
