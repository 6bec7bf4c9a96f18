"""An active run over scenes: its plan, counts, resumable folder, and run key."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import shapely

from geolabel.engine import executors, tasks, worker
from geolabel.engine.run_folder import Folder, RunFolderOptions, opened
from geolabel.engine.run_state import Changes
from geolabel.engine.tasks import Effort, Numbered, Progress, Silent
from geolabel.extraction.passes import FAILED, FOUND, NO_DATA, MaskTable, TileReport, forget
from geolabel.extraction.plan import Plan, PromptedWindow, Run
from geolabel.io.read.fingerprints import check_apart, fingerprint
from geolabel.io.read.scene_mosaic import scene_mosaic_of
from geolabel.io.read.scenes import SceneReader
from geolabel.io.records import Store
from geolabel.prompts import Prompts

_UNCOUNTED = ("found", "dense", "seconds", "pixels", "area_km2", "masked_share", "tasks", "tasks_kept", "peak_bytes")
"""Fields that are not counts, or that differ between runs with the same result."""


@dataclass
class Report(Effort):
    """Counts, gaps and effort of a run."""

    tiles: int = 0
    tiles_without_data: int = 0
    tiles_above_gate: int = 0
    tiles_failed: int = 0
    prompts: int = 0
    points_outside: int = 0
    """Prompts whose centroid is outside their region (a bow, a ring)."""
    windows: int = 0
    masks: int = 0
    gaps: list[str] = field(default_factory=list)
    """Why a part of the scene is missing, one line each."""
    pixels: int = 0
    """Pixels of the working grid."""
    area_km2: float = 0.0
    """Area of the working grid, from the size of its central pixel."""
    masked_share: float | None = None
    """Share of the working grid that masks hide, 0..1; None without masks."""
    dense: bool = False
    """Whether the method scores every pixel itself, without prompts."""
    found: dict[str, Any] = field(default_factory=dict)
    """Figures of the result, such as the number of landslides."""

    def cover(self, *plans: Plan) -> Self:
        """Record the working grids of the run at its start."""
        pixels = [plan.grid.height * plan.grid.width for plan in plans]
        areas = (count * plan.grid.gsd**2 / 1e6 for count, plan in zip(pixels, plans, strict=True))
        self.pixels += sum(pixels)
        self.area_km2 = round(self.area_km2 + sum(areas), 6)
        self.dense = plans[0].dense
        if any(plan.reader.masks for plan in plans):
            hidden = sum(count * plan.masked for count, plan in zip(pixels, plans, strict=True))
            self.masked_share = round(hidden / sum(pixels), 4)
        return self

    def count_tiles(self, reports: Sequence[TileReport]) -> None:
        """Add the status of tiles."""
        found = Counter(report.status for report in reports)
        self.tiles += len(reports)
        self.tiles_without_data += found[NO_DATA]
        self.tiles_failed += found[FAILED]
        self.tiles_above_gate += found[FOUND]
        self.gaps += [f"tile {report.index}: {report.message}" for report in reports if report.status == FAILED]

    def count_masks(self, prompts: Prompts, windows: Sequence[PromptedWindow], tables: Sequence[MaskTable]) -> None:
        """Add the numbers of prompts and masks."""
        self.prompts += len(prompts)
        self.windows += len(windows)
        self.masks += sum(len(table.windows) for table in tables)
        self.gaps += [f"{window}: {message}" for table in tables for window, message in table.failures]

    def effort(self) -> dict[str, Any]:
        """Effort of the run, which differs each time."""
        total = sum(self.seconds.values())
        figures = super().effort()
        peak = figures.pop("peak_mb")
        return figures | {
            "pixels_per_second": round(self.pixels / total) if total and not self.tasks_kept else None,
            "area_km2": self.area_km2,
            "seconds_per_km2": round(total / self.area_km2, 2) if self.area_km2 and not self.tasks_kept else None,
            "peak_mb": peak,
        }

    def hidden(self) -> dict[str, Any]:
        """Share that masks hide, if there are any."""
        return {} if self.masked_share is None else {"masked_share": self.masked_share}

    def summary(self) -> dict[str, Any]:
        """The main figures for the user, at the end."""
        names = ("prompts", "masks", "tiles", "tiles_without_data", "tiles_failed")
        counts = {name: getattr(self, name) for name in names} | {"gaps": len(self.gaps)}
        return self.found | self.hidden() | counts | self.effort()

    def counts(self) -> dict[str, Any]:
        """Plain values that the same run gives again: everything but the effort."""
        return {name: value for name, value in vars(self).items() if name not in _UNCOUNTED}


Work: TypeAlias = tasks.Work[Run, Report]
"""A run over one working grid."""

ALLOWED: Changes = {"on_error": ("fail", "skip")}
"""Values of the run key that may change: finished tasks without gaps stay valid."""


class Outputs(Protocol):
    """The output files of a run; see `geolabel.extraction.outputs.Targets`."""

    @property
    def paths(self) -> Sequence[Path]:
        """All files."""
        ...

    @property
    def overwrite(self) -> bool:
        """Whether they may be replaced."""
        ...

    def root(self, run_dir: str | Path | None = None) -> str | Path | None:
        """Folder for the records of the run; None without outputs."""
        ...


def work_on(run: Run, report: Report, progress: Progress | None = None) -> Work:
    """Work on a plan with its own records."""
    return tasks.Work(run, report, progress or Silent(), threads=run.plan.parameters.threads)


def asks_localizer(plan: Plan, drawn: Sequence[Prompts | None]) -> bool:
    """Whether the localizer runs: for prompts, or for given prompts that were its own, to weight them.

    Activation floor and confidence apply to these as in the run that found them. They do not apply to prompts drawn by
    a person; if all prompts are, the localizer is not needed.
    """
    return plan.localized and any(prompts is None or not prompts.drawn.all() for prompts in drawn)


@contextmanager
def under_way(
    plans: Sequence[Plan],
    targets: Outputs,
    run_folder: RunFolderOptions,
    drawn: Sequence[Prompts | None],
    progress: Progress | None,
    report: Report | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Iterator[list[Work]]:
    """Work on plans one after another, with one report, in a resumable or a temporary folder.

    Parameters
    ----------
    drawn
        For each plan, prompts that replace the activation.
    report
        Receives counts, gaps and seconds of the run.
    asked
        What the records depend on besides the plans and the prompts, as plain values.
    """
    for plan in plans:
        for reader in (plan.reader, *(mask.reader.reader for mask in plan.reader.masks)):
            check_apart(targets.paths, reader)
    root, progress = targets.root(run_folder.run_dir), progress or Silent()
    key = None if root is None else run_key(plans, drawn, scene_key=run_folder.scene_key)
    report = (report or Report()).cover(*plans)
    with ExitStack() as stack:
        if root is None or key is None:
            folder = None
            stack.callback(forget)
            scratch = stack.enter_context(TemporaryDirectory(prefix="geolabel-", ignore_cleanup_errors=True))
            store = Store(Path(scratch))
        else:
            folder = stack.enter_context(_in_folder(root, key | dict(asked or {}), targets, run_folder))
            store = folder.store
        works = []
        for number, plan in enumerate(plans, 1):
            part, follow = "", progress
            if len(plans) > 1:
                part, follow = f"{number:04d}-", Numbered(progress, f"{number}/{len(plans)}")
            run = Run(plan, replace(store, part=part), localized=asks_localizer(plan, drawn))
            work = work_on(run, report, follow)
            works.append(work if folder is None else work.inside(folder, part))
        yield works


@contextmanager
def _in_folder(
    root: str | Path, key: Mapping[str, Any], targets: Outputs, run_folder: RunFolderOptions
) -> Iterator[Folder]:
    """The folder of a run; cached records are dropped at the end."""
    try:
        with opened(run_folder, root, key, overwrite=targets.overwrite, allowed=ALLOWED) as folder:
            yield folder
    finally:
        forget()


@contextmanager
def in_scratch(plan: Plan, progress: Progress | None = None, *, localized: bool = True) -> Iterator[Work]:
    """Work on a plan in a temporary folder: an interrupted run restarts."""
    report = Report().cover(plan)
    try:
        with TemporaryDirectory(prefix="geolabel-", ignore_cleanup_errors=True) as scratch:
            yield work_on(Run(plan, Store(Path(scratch)), localized=localized), report, progress)
    finally:
        forget()


# --- the run key -----------------------------------------------------------------------------------------------------


def run_key(
    plans: Sequence[Plan], drawn: Sequence[Prompts | None], *, scene_key: str | None = None
) -> dict[str, Any] | None:
    """Everything that the records of a run depend on, as plain values; None if a scene cannot be identified.

    Parameters
    ----------
    drawn
        For each plan, prompts that replace the activation.
    scene_key
        Name of the scenes, instead of their files.
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
        }
        | ({"masks": [fingerprint(mask.reader.reader) for mask in reader.masks]} if reader.masks else {}),
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
    """The scenes named in the key of a run."""
    scene = key.get("scene")
    if isinstance(scene, Mapping):
        said = scene.get("uri", scene.get("key"))
        return [str(said)] if said is not None else [name for part in scene.values() for name in _uri(part)]
    return [name for part in key.values() if isinstance(part, Mapping) for name in scenes_of(part)]


def _uri(part: Any) -> list[str]:
    return [str(part["uri"])] if isinstance(part, Mapping) and "uri" in part else []
