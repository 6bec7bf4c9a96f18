"""The networks to start from, and the files of the adapted ones."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from geolabel.adaptation.ground import LANDSLIDE, UNJUDGED
from geolabel.adaptation.levels import Cells, Choice, Fit, Level, Mapper, OperatingPoint, by_cell
from geolabel.errors import OptionError
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import FOLDER_FILES, Networks
from geolabel.models import loading
from geolabel.models.cam import CamLocalizer
from geolabel.models.checkpoint import (
    NetworkInfo,
    is_safetensors,
    load_checkpoint,
    load_localizer,
    read_info,
    save_checkpoint,
)
from geolabel.models.confidence import METHOD, FittedConfidence, knows, load_confidence, shipped
from geolabel.models.defaults import BUNDLED, localizer_defaults
from geolabel.models.engines import MapNetwork, every_graph_file
from geolabel.parts import LocalizerRecipe, Recipe
from geolabel.types import UInt8Array

if TYPE_CHECKING:
    from torch import Tensor

    from geolabel.adaptation.all_layers import AllLayers
    from geolabel.adaptation.decoder import Redrawn
    from geolabel.adaptation.head import Head

GREY_CUT = 120 / 255
"""Activation at the cut, see `geolabel.models.checkpoint.NetworkInfo.constant`."""


class Layers(Mapper, Protocol):
    """Fitted layers of a localizer."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by their names in the network."""
        ...


@dataclass(frozen=True)
class BaseLocalizer:
    """The localizer to start from."""

    recipe: LocalizerRecipe
    confidence: FittedConfidence | None
    """Confidence of its polygons, with the segmenter; None if unknown."""
    path: Path
    info: NetworkInfo
    point: OperatingPoint
    maps: CamLocalizer
    """Returns raw maps, or features if layers are fitted."""
    head: Head | None
    """None if no layers are fitted."""
    all_layers: AllLayers | None
    """None if those of the trunk are not fitted."""

    @classmethod
    def of(cls, plan: Plan, level: Level | None) -> BaseLocalizer:
        """The localizer of a plan; raises as `adapt`."""
        recipe = plan.localizer
        path = loading.file_of(recipe)
        info = read_info(path)
        if not isinstance(recipe, LocalizerRecipe) or info.kind != "localizer" or len(info.classes) != 1:
            raise OptionError(
                f"--localizer {recipe.source}: adapt knows localizers of one class, and this is a {info.kind} of "
                f"{len(info.classes)}: give another"
            )
        assert info.constant is not None, "a localizer without a constant was refused before"
        network, head, all_layers = cls._network(recipe, path, info, level)
        point = OperatingPoint(info.constant * GREY_CUT, -float(network.bias[0]), info.sharpness)
        return cls(
            recipe, confidence_before(plan), path, info, point, CamLocalizer(network, info, batch=1), head, all_layers
        )

    @staticmethod
    def _network(
        recipe: LocalizerRecipe, path: Path, info: NetworkInfo, level: Level | None
    ) -> tuple[MapNetwork, Head | None, AllLayers | None]:
        if level != "threshold":
            from geolabel.adaptation.all_layers import AllLayers
            from geolabel.adaptation.head import Head, OctaveMaps
            from geolabel.models.nets.localizer import PyramidLocalizer

            network, _ = load_localizer(path)
            head = Head.of(network)
            wanted = level == "all" or (level is None and recipe.device != "cpu")
            all_layers = AllLayers.of(network, info, recipe.device) if head is not None and wanted else None
            if level == "all" and all_layers is None:
                raise OptionError(
                    f"--level all: {recipe.source} is not a localizer of two octaves on EfficientNet-Lite, whose "
                    "layers can be fitted: take --level threshold"
                )
            if head is not None and isinstance(network, PyramidLocalizer):
                return OctaveMaps(network, device=recipe.device), head, all_layers
            if level == "head":
                raise OptionError(
                    f"--level head: {recipe.source} is not a localizer of two octaves, whose last layers can be "
                    "fitted: take --level threshold"
                )
        return loading.maps_of(recipe, path)[0], None, None

    @property
    def window(self) -> int:
        """Side of the gate's window in cells."""
        return max(1, self.info.window // self.info.stride)

    def fits(self, seed: int, level: Level | None) -> dict[Level, Fit[Layers]]:
        """Functions that fit the layers, by level to try; ``head`` is left out if another level is asked for."""
        layers: dict[Level, Head | AllLayers | None] = {"head": self.head, "all": self.all_layers}
        return {
            name: partial(one.fitted, cut=self.point.cut, seed=seed)
            for name, one in layers.items()
            if one is not None and level in (None, name)
        }

    def cells(self, rgb: UInt8Array, truth: UInt8Array, place: tuple[int, int, int]) -> Cells:
        """The map of an image (H, W, 3), and its judgement (H, W), by cell."""
        maps, said = self.maps.raw_maps([rgb])[0], said_of_cells(truth, place, self.info.stride)
        if self.head is None:
            return replace(said, raw=maps[0])
        features = np.moveaxis(maps, 0, 2).astype(np.float16)
        found = replace(said, features=features, image=None if self.all_layers is None else rgb)
        return replace(found, raw=self.head.map(found))


def said_of_cells(truth: UInt8Array, place: tuple[int, int, int], stride: int) -> Cells:
    """The judgement (H, W) of an image by cell of `stride` pixels, with an empty map."""
    truth = np.pad(truth, [(0, -side % stride) for side in truth.shape], constant_values=UNJUDGED)
    judged, slides = by_cell(truth != UNJUDGED, stride), by_cell(truth == LANDSLIDE, stride)
    cover = np.divide(slides, judged, out=np.zeros_like(slides), where=judged > 0)
    return Cells(np.zeros_like(cover), cover, judged, place)


def confidence_before(plan: Plan) -> FittedConfidence | None:
    """The confidence of polygons that the networks of a plan find."""
    if plan.confidence is not None:
        return plan.confidence
    networks = {recipe.role: recipe.sha256 for recipe in (plan.localizer, plan.segmenter)}
    return load_confidence(shipped()) if knows(networks, METHOD) else None


# --- the folder ------------------------------------------------------------------------------------------------------


def write_localizer(folder: Path, base: BaseLocalizer, choice: Choice[Layers], made: dict[str, Any]) -> Path | None:
    """Write the localizer as adapted, and its graph; see `_kept` for one that is not changed.

    Parameters
    ----------
    made
        Provenance in the file.
    """
    import torch

    target = folder / FOLDER_FILES["localizer"]
    if choice.level is None:
        return _kept(base.recipe, target)
    state, info = load_checkpoint(base.path)
    state |= {} if choice.layers is None else choice.layers.tensors()
    state["bias"] = torch.full_like(state["bias"], -choice.point.gate)
    info = replace(
        info,
        constant=choice.point.cut / GREY_CUT,
        floor=localizer_defaults(base.recipe.source).activation_floor,
        trained=info.trained | {loading.ADAPTED: made | {"from": base.recipe.sha256}},
    )
    save_checkpoint(target, state, info)
    _copy_graphs(base.path, target, "localizer")
    return target


def check_segmenter(networks: Networks) -> None:
    """Refuse a segmenter whose decoder cannot be fitted, before one is fetched.

    Raises
    ------
    OptionError
        If it is not one of geolabel's own.
    """
    given = networks.sam_checkpoint or networks.sam or BUNDLED
    if given == BUNDLED:
        return
    path = Path(given)
    if not (path.is_file() and is_safetensors(path) and read_info(path).kind == "segmenter"):
        raise OptionError(
            f"--sam {given}: adapt fits the decoder of segmenters that geolabel trained, and this is another: leave it "
            "out"
        )


def write_segmenter(folder: Path, recipe: Recipe, redrawn: Redrawn | None, made: dict[str, Any]) -> Path | None:
    """Write the segmenter with the fitted decoder, and its graphs; see `_kept` for one that is not changed.

    Parameters
    ----------
    made
        Provenance in the file.
    """
    path, target = loading.file_of(recipe), folder / FOLDER_FILES["sam_checkpoint"]
    if redrawn is None or redrawn.decoder is None:
        return _kept(recipe, target)
    state, info = load_checkpoint(path)
    state |= {f"mask_decoder.{name}": tensor for name, tensor in redrawn.decoder.state_dict().items()}
    of_bundled = info.trained.get(loading.ADAPTED, {}).get("of_bundled", recipe.source == BUNDLED)
    adapted = made | {"from": recipe.sha256, "of_bundled": of_bundled}
    save_checkpoint(target, state, replace(info, trained=info.trained | {loading.ADAPTED: adapted}))
    _copy_graphs(path, target, "segmenter")
    return target


def _kept(recipe: Recipe, target: Path) -> Path | None:
    """A copy of a network given by name or file, since the folder has to be complete; None for the bundled one."""
    if recipe.source == BUNDLED:
        return None
    path = loading.file_of(recipe)
    shutil.copyfile(path, target)
    _copy_graphs(path, target, recipe.role)
    return target


def _copy_graphs(old: Path, new: Path, kind: str) -> None:
    """Copy the graphs beside a network; they refer to the weights by name and contain none."""
    for one, other in zip(every_graph_file(old, kind), every_graph_file(new, kind), strict=True):
        if one.is_file():
            shutil.copyfile(one, other)
