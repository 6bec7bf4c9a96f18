"""From a scene to a raster of scores, read from where the run left them."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geolabel.engine import executors
from geolabel.engine.progress import Progress
from geolabel.engine.run_folder import RunFolderOptions
from geolabel.errors import RunError
from geolabel.extraction.extract import read_drawn
from geolabel.extraction.outputs import Targets, write_scores, writing
from geolabel.extraction.passes import MosaicSource
from geolabel.extraction.pipeline import find_scores
from geolabel.extraction.plan import Parameters, Plan, Run
from geolabel.extraction.request import Networks, Reading
from geolabel.extraction.scene_groups import prepare_survey
from geolabel.extraction.work import Report, under_way, work_on
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.io.storage import storage_at
from geolabel.io.store import Store
from geolabel.masks import FULL, OUTSIDE
from geolabel.types import Float32Array

if TYPE_CHECKING:
    import xarray as xr

    from geolabel.io.read.arrays import Labelled
    from geolabel.scene import Grid
    from geolabel.tiles import BlockGrid, Window


log = logging.getLogger(__name__)


def predict(
    scene: str | Path | Labelled | Sequence[str | Path | Labelled],
    *,
    reading: Reading | None = None,
    networks: Networks | None = None,
    parameters: Parameters | None = None,
    run_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> xr.DataArray:
    """Score every pixel of a scene: 0..1, one half at the edge of a landslide, NaN where the scene is not valid.

    The networks run now; blocks of scores are read when they are asked for.

    Parameters
    ----------
    scene, reading, networks, parameters, progress
        As in `geolabel.extract`; several scenes have to lie on one grid.
    run_dir
        Empty folder that keeps what the networks found, for as long as the array is used. By default a temporary one
        that goes with the array; on a cluster it has to be one that all workers see.

    Returns
    -------
    xarray.DataArray
        (y, x) float32, backed by dask, with the CRS and transform of the working grid as rioxarray has them.

    Raises
    ------
    RunError
        If `run_dir` is not empty.
    GeolabelError
        See `geolabel.errors`.
    """
    reading = reading or Reading()
    scenes = list_scenes(scene, asset=reading.asset)
    asked = (reading, networks or Networks(), parameters or Parameters())
    survey = prepare_survey(scenes, *asked, raster="the array")
    for text in survey.warnings:
        log.warning("%s", text)
    (plan,) = survey.plans
    if run_dir is not None and any(storage_at(run_dir).names()):
        raise RunError(f"{run_dir} is not empty: give another run_dir, for as long as the array is used")
    scratch = _Scratch() if run_dir is None else None
    run = Run(plan, Store(scratch.folder if scratch else Path(run_dir or "")), localized=plan.localized)
    find_scores(work_on(run, Report(), progress))
    return _to_xarray(_Scores(MosaicSource(run), scratch), plan.grid, plan.blocks)


def run_predict(
    plan: Plan,
    targets: Targets,
    *,
    prompts_from: str | Path | None = None,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
) -> Report:
    """Do what was planned as far as the scores and write them; the records of the run are gone at the end."""
    drawn = read_drawn(prompts_from, plan)
    with under_way(plan, targets, run_folder or RunFolderOptions(), drawn, progress) as work:
        find_scores(work, drawn)
        with writing(targets, work.folder):
            write_scores(work.run, targets)
    return work.report


class _Scratch:
    """A temporary folder that lives as long as this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="geolabel-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Scores:
    """Reads scores as fractions. Holds the temporary folder, which so lives as long as the array that reads from it."""

    source: MosaicSource
    scratch: _Scratch | None = None

    def __reduce__(self) -> tuple[type[_Scores], tuple[MosaicSource]]:
        return type(self), (self.source,)

    def __call__(self, window: Window) -> Float32Array:
        scores = self.source.scores(window)
        return np.where(scores == OUTSIDE, np.float32(np.nan), scores.astype(np.float32) / np.float32(FULL))


def _to_xarray(read: _Scores, grid: Grid, blocks: BlockGrid) -> xr.DataArray:
    import rioxarray  # noqa: F401  # registers .rio
    import xarray as xr

    array: xr.DataArray = xr.DataArray(executors.lazy(read, blocks, np.float32), dims=("y", "x"), name="score")
    array = array.rio.write_transform(grid.transform)
    if grid.crs is not None:
        array = array.rio.write_crs(grid.crs.to_wkt())
    return array
