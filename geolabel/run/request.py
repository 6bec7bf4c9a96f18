"""What a user asks for: how to read a scene, with which networks. Plain records that become a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolabel.masks import Selection
from geolabel.parts import Recipe
from geolabel.run.plan import Parameters, Plan, make_plan

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Reading:
    """How a scene is read."""

    bands: str | tuple[int, ...] | None = None
    """Red, green and blue, as numbers from 1, descriptions or colours; None to find them in the header."""
    nodata: float | None = None
    gsd: float | None = None
    """Metres per pixel of a scene without CRS."""
    aoi: str | Path | None = None
    """A vector file; only its polygons are worked on."""
    bounds: tuple[float, float, float, float] | None = None
    """Left, bottom, right, top in the scene's CRS; only this part is worked on."""
    working_gsd: float | None = None
    """Metres per pixel to work at; None for the scene's own within the networks' range."""
    stretch: str = "p2-98"
    """Radiometric stretch of the whole scene: percentiles, two values, or ``none``."""


@dataclass(frozen=True)
class Networks:
    """Which networks run, and where."""

    localizer: str = "bundled"
    sam: str = "bundled"
    sam_checkpoint: str | Path | None = None
    device: str = "auto"
    precision: str = "auto"
    batch: int | None = None
    """Images per network call; None for 1 on the CPU and 8 on a GPU."""

    def recipes(self, selection: Selection = "best_iou") -> tuple[Recipe, Recipe]:
        """Recipes of the localizer and the segmenter."""
        from geolabel.io import weights

        where: dict[str, Any] = {"device": self.device, "precision": self.precision, "batch": self.batch}
        return (
            weights.recipe("localizer", self.localizer, **where),
            weights.recipe("segmenter", self.sam, checkpoint=self.sam_checkpoint, selection=selection, **where),
        )


def prepare(scene: str | Path | xr.DataArray, reading: Reading, networks: Networks, parameters: Parameters) -> Plan:
    """Open the header of a scene, load the networks and decide the run."""
    from geolabel.io.scenes import SceneReader
    from geolabel.io.vectors import read_aoi

    reader = SceneReader(_source(scene), bands=reading.bands, nodata=reading.nodata, gsd=reading.gsd)
    crs = reader.scene.grid.crs  # the header comes first: most mistakes show there, before a network is loaded
    if reading.aoi is not None:
        reader = reader.within(read_aoi(reading.aoi, crs))
    return make_plan(
        reader,
        *networks.recipes(parameters.selection),
        parameters,
        bounds=reading.bounds,
        working_gsd=reading.working_gsd,
        stretch=reading.stretch,
    )


def _source(scene: str | Path | xr.DataArray) -> str | xr.DataArray:
    return str(scene) if isinstance(scene, Path) else scene
