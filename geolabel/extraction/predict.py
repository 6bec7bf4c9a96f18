"""From a scene to a raster of scores, read from the records of the run."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from geolabel.engine import executors
from geolabel.engine.run_folder import RunFolderOptions
from geolabel.engine.tasks import Progress, Recorded
from geolabel.errors import OptionError, RunError
from geolabel.extraction import passes
from geolabel.extraction.extract import read_drawn
from geolabel.extraction.outputs import Targets, write_scores, writing
from geolabel.extraction.passes import MaskTable, MosaicSource
from geolabel.extraction.pipeline import batches_of, find_prompts, find_scores, fit_to_tiles, merge
from geolabel.extraction.plan import SHARES, Plan, Run
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import SceneGroups, prepare_scenes
from geolabel.extraction.work import Report, asks_localizer, under_way, work_on
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.io.read.scores import ScoreRaster
from geolabel.io.records import Store
from geolabel.io.storage import storage_at
from geolabel.masks import FULL, OUTSIDE
from geolabel.parts import EverythingRecipe
from geolabel.prompts import Prompts
from geolabel.scene import Grid
from geolabel.types import Float32Array, Float64Array

if TYPE_CHECKING:
    import xarray as xr

    from geolabel.io.read.scene_inputs import Scenes
    from geolabel.tiles import Window

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


def predict(
    scene: Scenes,
    *,
    out: str | Path | None = None,
    reading: Reading | None = None,
    networks: Networks | str | Path | None = None,
    parameters: Parameters | None = None,
    prompts_from: str | Path | None = None,
    overwrite: bool = False,
    run_dir: str | Path | None = None,
    keep: bool = False,
    compute: bool = True,
    progress: Progress | None = None,
    report: Report | None = None,
) -> xr.DataArray:
    """Score every pixel of a scene: 0..1, one half at the edge of a landslide, NaN if not valid.

    The networks run now, and blocks of scores are read on demand. With ``compute=False`` the networks run when the
    first block is requested, on the dask scheduler that is active then.

    Parameters
    ----------
    scene, reading, networks, parameters, prompts_from, overwrite, progress, report
        As in `geolabel.extract`; several scenes must be on one grid.
    out
        Cloud Optimized GeoTIFF to write: 0 to 254, and 255 for pixels that are not valid. The array is then read from
        it.
    run_dir
        Folder for the records of the run. With `out`, an interrupted run resumes from it; by default it is beside the
        file. Without, it must be empty and is needed while the array is used; by default it is a temporary one that is
        deleted with the array. On a cluster all workers must see it.
    keep
        Whether to keep the records after the file is written.
    compute
        Whether the networks run now. If not, they are tasks in the graph of the array, ``scores.data.dask``: localize,
        prompt, segment, merge and score.

    Returns
    -------
    xarray.DataArray
        (y, x) float32, backed by dask, with the CRS and transform of the working grid following rioxarray, and pixel
        centres as coordinates unless the grid is rotated. For several
        classes (band, y, x), where the coordinate ``band`` names the classes.

    Raises
    ------
    RunError
        If `run_dir` is not empty.
    OptionError
        If options contradict each other.
    GeolabelError
        See `geolabel.errors`.

    Examples
    --------
    >>> import geolabel
    >>> scores = geolabel.predict("scene.tif", compute=False)  # doctest: +SKIP
    >>> scores[:1000, :1000].plot()  # doctest: +SKIP
    """
    if out is not None and not compute:
        raise OptionError(f"compute=False: the networks must run now to write {out}; omit one of the two")
    if keep and out is None:
        raise OptionError("keep: without a file the records stay in run_dir while the array is used")
    reading = reading or Reading()
    scenes = list_scenes(scene, asset=reading.asset)
    inputs = [prompts_from, *reading.inputs, *(one.source for one in scenes)]
    targets = Targets.of(None, out, overwrite=overwrite, inputs=inputs, run_dir=None if out is None else run_dir)
    asked = (reading, Networks.of(networks), parameters or Parameters())
    groups = prepare_scenes(scenes, *asked, raster=out or "the array")
    for text in groups.warnings:
        log.warning("%s", text)
    (plan,) = groups.plans
    if out is not None:
        run_folder = RunFolderOptions(run_dir, keep)
        run_predict(groups, targets, prompts_from=prompts_from, run_folder=run_folder, progress=progress, report=report)
        return _to_xarray([_Scores(ScoreRaster(out, band=band)) for band in range(1, len(plan.classes) + 1)], plan)
    (drawn,) = read_drawn(prompts_from, groups.plans)
    if run_dir is not None and any(storage_at(run_dir).names()):
        raise RunError(f"{run_dir} is not empty: give another run_dir, which is needed while the array is used")
    scratch = _Scratch() if run_dir is None else None
    store = Store(scratch.folder if scratch else Path(run_dir or ""))
    run = Run(plan, store, localized=asks_localizer(plan, [drawn]))
    scores = [_Scores(mosaic, scratch) for mosaic in MosaicSource.of_classes(run)]
    if not compute:
        return _to_xarray(scores, plan, _calls_before(run, drawn))
    find_scores(work_on(run, (report or Report()).cover(plan), progress), drawn)
    return _to_xarray(scores, plan)


def run_predict(
    groups: SceneGroups,
    targets: Targets,
    *,
    prompts_from: str | Path | None = None,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Report:
    """Run a plan up to the scores and write them; the records of the run are deleted at the end."""
    drawn = read_drawn(prompts_from, groups.plans)
    options = run_folder or RunFolderOptions()
    with under_way(groups.plans, targets, options, drawn, progress, report) as (work,):
        find_scores(work, *drawn)
        with writing(targets, work.folder):
            write_scores(work.run, targets)
    return work.report


# --- the graph -------------------------------------------------------------------------------------------------------


def _calls_before(run: Run, drawn: Prompts | None = None) -> Callable[[int], list[Any]]:
    """The passes as calls of a dask graph: by block number, the calls that must run before the block is read.

    Results are kept in the store, so networks run only once even if blocks are requested one by one.
    """
    plan = run.plan
    locate = Recorded(passes.LOCALIZE.bind(run), run.store)
    localized = [executors.later(locate, (task, task), name="localize") for task in plan.localize_tasks]
    if plan.dense:
        score = Recorded(passes.MERGE_MAPS.bind(run), run.store)
        merged = [
            [
                executors.later(_first, score, (plan.layer(block, c), (block, c)), before, name="merge")
                for c in range(len(plan.classes))
            ]
            for block, window in enumerate(plan.blocks)
            for before in [[localized[task] for task in _tasks_under(plan, window)]]
        ]
        return lambda block: [*merged[block]]
    if isinstance(plan.segmenter, EverythingRecipe):
        found = executors.later(partial(_find, run), localized, name="segment")
        return lambda _: [found]
    shares = min(SHARES, len(plan.segment_tiles))
    prompts = executors.later(partial(_prompts, run, drawn), localized, name="prompt")
    masks = [executors.later(partial(_masks, run, share, shares), prompts, name="segment") for share in range(shares)]
    mosaic = executors.later(partial(_merge, run), prompts, masks, name="merge")
    return lambda _: [mosaic]


def _tasks_under(plan: Plan, window: Window) -> list[int]:
    """Tasks of the localizer whose tiles cover a window."""
    return sorted({index // plan.task_tiles for index in plan.localize_tiles.covering(window)})


def _first(function: Callable[[T], R], item: T, _: Sequence[Any]) -> R:
    """Call a function after the calls that it depends on."""
    return function(item)


def _find(run: Run, _: Sequence[Any]) -> None:
    find_scores(work_on(run, Report()))


def _prompts(run: Run, drawn: Prompts | None, _: Sequence[Any]) -> Prompts:
    if drawn is not None:
        return fit_to_tiles(drawn, run.plan.segment_tiles)
    return find_prompts(work_on(run, Report()))


def _masks(run: Run, share: int, shares: int, prompts: Prompts) -> list[tuple[int, MaskTable]]:
    """One of several shares of the segmenter's tasks, whose number is unknown before the prompts are."""
    segment = Recorded(passes.SEGMENT.bind(run), run.store)
    tasks = batches_of(prompts, run.plan)[share::shares]
    return [(job[0], table) for job in tasks if (table := segment((job[0], job)).result) is not None]


def _merge(run: Run, prompts: Prompts, masks: Sequence[Sequence[tuple[int, MaskTable]]]) -> None:
    tables = [table for _, table in sorted((one for share in masks for one in share), key=lambda one: one[0])]
    merge(work_on(run, Report()), tables, prompts.ids[prompts.drawn])


# --- the array -------------------------------------------------------------------------------------------------------


class _Scratch:
    """A temporary folder that exists as long as this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="geolabel-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Scores:
    """Reads scores as fractions. Holds the temporary folder, which thus exists as long as the array that reads it."""

    source: MosaicSource | ScoreRaster
    scratch: _Scratch | None = None

    def __reduce__(self) -> tuple[type[_Scores], tuple[MosaicSource | ScoreRaster]]:
        return type(self), (self.source,)

    def __call__(self, window: Window) -> Float32Array:
        scores = self.source.scores(window)
        return np.where(scores == OUTSIDE, np.float32(np.nan), scores.astype(np.float32) / np.float32(FULL))


def _centres(grid: Grid) -> dict[str, Float64Array]:
    """Coordinates of pixel centres along each axis; none for a rotated grid."""
    a, b, c, d, e, f = grid.transform[:6]
    if b or d:
        return {}
    return {"y": f + e * (np.arange(grid.height) + 0.5), "x": c + a * (np.arange(grid.width) + 0.5)}


def _to_xarray(
    classes: Sequence[_Scores], plan: Plan, after: Callable[[int], Sequence[Any]] = lambda _: ()
) -> xr.DataArray:
    import pandas as pd
    import rioxarray  # noqa: F401  # registers .rio
    import xarray as xr

    blocks = [executors.lazy(read, plan.blocks, np.float32, name="score", after=after) for read in classes]
    layers = [xr.DataArray(values, dims=("y", "x"), name="score") for values in blocks]
    array: xr.DataArray = layers[0] if len(layers) == 1 else xr.concat(layers, pd.Index(plan.classes, name="band"))
    array = array.rio.write_transform(plan.grid.transform).assign_coords(_centres(plan.grid))
    if plan.grid.crs is not None:
        array = array.rio.write_crs(plan.grid.crs.to_wkt())
    return array
