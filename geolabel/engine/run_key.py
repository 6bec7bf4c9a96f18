"""By what a run is known: everything that its records depend on, written down in the folder of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any, Self

import numpy as np
import pyproj
import shapely

from geolabel.engine import executors, worker
from geolabel.extraction.plan import Plan
from geolabel.io.read.fingerprints import fingerprint
from geolabel.io.read.scene_mosaic import scene_mosaic_of
from geolabel.io.read.scenes import SceneReader
from geolabel.io.storage import Storage
from geolabel.parsing import parse_json
from geolabel.prompts import Prompts

RUN = "run.json"
"""Name of the file that says what the records are of."""

FORMAT = 2
"""Format of the run folder; other versions are not resumed."""


MOST_BYTES = 16 << 20
"""Of ``run.json``, which takes a few thousand."""

DEEPEST = 16
"""Levels of values in values; a key has six."""


@dataclass(frozen=True)
class State:
    """What ``run.json`` says."""

    key: Mapping[str, Any]
    """Everything that the records depend on."""
    started: str
    overwrite: bool = False
    """Whether the run was asked to replace its outputs."""
    status: str = "running"
    """``running``, ``interrupted``, ``failed``, ``finished`` or ``removing``."""
    message: str = ""
    """Why it failed."""
    passes: Mapping[str, int] = field(default_factory=dict)
    """Tasks of the passes that have begun."""
    written: Mapping[str, list[int]] = field(default_factory=dict)
    """Outputs that are whole: path to size and modification time in nanoseconds; see `Folder.writing`."""

    def dump(self) -> bytes:
        """As it is written."""
        return json.dumps({"format": FORMAT} | vars(self), indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read what `dump` wrote.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        values = parse_json(data, limit=MOST_BYTES, depth=DEEPEST)
        kinds = {"key": dict, "started": str, "overwrite": bool, "status": str, "message": str, "passes": dict,
                 "written": dict}  # fmt: skip
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT or values.keys() != kinds.keys():
            raise ValueError("it is of another version of geolabel")
        if not all(isinstance(values[name], kind) for name, kind in kinds.items()):
            raise ValueError("it is damaged")
        return cls(**values)

    @classmethod
    def read(cls, folder: Storage) -> Self:
        """Read what a folder says.

        Raises
        ------
        FileNotFoundError
            If it says nothing.
        ValueError, RecursionError
            If it is anything else than what `dump` wrote.
        """
        with folder.open(RUN) as file:
            return cls.parse(file.read(MOST_BYTES + 1))


def run_key(plan: Plan, drawn: Prompts | None = None, *, scene_key: str | None = None) -> dict[str, Any] | None:
    """Everything that the records of a run depend on, as plain values; None where the scene cannot be told again.

    Parameters
    ----------
    drawn
        Prompts that replace the activation.
    scene_key
        What stands for the scene, instead of its file.
    """
    mark = {"key": scene_key} if scene_key is not None else _scene_mark(plan.reader)
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
        "parameters": plan.parameters.as_dict(),
        "prompts": None if drawn is None else _digest(*(getattr(drawn, f.name) for f in fields(drawn))),
        "versions": executors.where_networks_run(worker.versions),
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def survey_key(
    plans: Sequence[Plan], drawn: Sequence[Prompts | None], crs: pyproj.CRS | None, *, scene_key: str | None = None
) -> dict[str, Any] | None:
    """Everything that the records of a run with several plans depend on; None where a scene cannot be told again.

    Parameters
    ----------
    drawn
        For each plan, prompts that replace the activation.
    crs
        Of the inventory.
    scene_key
        What stands for the scenes, instead of their files.
    """
    keys = [run_key(plan, prompts, scene_key=scene_key) for plan, prompts in zip(plans, drawn, strict=True)]
    if None in keys:
        return None
    parts = {f"part {number}": key for number, key in enumerate(keys, 1)}
    return {"parts": len(keys), "crs": None if crs is None else crs.to_wkt()} | parts


def _scene_mark(reader: SceneReader) -> dict[str, Any] | None:
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


def difference(old: Mapping[str, Any], new: Mapping[str, Any], limit: int = 4) -> str:
    """Say in words what differs between two keys; empty where nothing does."""
    before, after = dict(_flat(old)), dict(_flat(new))
    if before.get("parameters.on_error") == "fail" and after.get("parameters.on_error") == "skip":
        before["parameters.on_error"] = "skip"  # what was done without a gap stays as it is
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    told = [
        f"{name} was {_short(before.get(name))} and is {_short(after.get(name))} now" for name in sorted(names)[:limit]
    ]
    return "; ".join(told) + (f"; and {len(names) - limit} more" if len(names) > limit else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
