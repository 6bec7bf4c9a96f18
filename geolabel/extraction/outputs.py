"""The files of a run: where it may write, and what it writes there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import shapely

from geolabel.engine.run_folder import SUFFIX, Folder, written_by
from geolabel.errors import OptionError
from geolabel.extraction.passes import MosaicSource
from geolabel.extraction.plan import Run
from geolabel.extraction.provenance import provenance
from geolabel.io.read.review import NOTHING, Carried, check_work
from geolabel.io.write import rasters, vectors
from geolabel.io.write.rasterize import in_pixels, rasterize
from geolabel.io.write.rasters import write_cog
from geolabel.io.write.vectors import write_layers
from geolabel.masks import OUTSIDE
from geolabel.outputs import check_target, same_file, together

if TYPE_CHECKING:
    from geolabel.extraction.result import Result
    from geolabel.extraction.vectorize import Objects
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


@contextmanager
def writing(targets: Targets, folder: Folder | None) -> Iterator[None]:
    """Let all outputs take their places together; the folder of the run, where there is one, says so."""
    with nullcontext() if folder is None else folder.writing(*targets.paths), together(*targets.paths):
        yield


def write_result(result: Result, targets: Targets, folder: Folder | None = None) -> None:
    """Write what was asked for; the files appear together, when all are whole."""
    with writing(targets, folder):
        write_scores(result.parts[0].run, targets)
        write_mask(result, targets)
        if targets.inventory is not None:
            write_layers(
                targets.inventory,
                result.landslides,
                (result.boxes, result.points),
                result.tiles,
                provenance(result),
                crs=result.landslides.crs,
                candidates=result.candidates,
                reviewed=result.reviewed,
                overwrite=targets.may_replace(targets.inventory),
                carried=targets.carried,
            )


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


def write_mask(result: Result, targets: Targets) -> None:
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
