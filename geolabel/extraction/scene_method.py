"""What a run over scenes asks of its method: settings, networks, what these are asked, and which answers count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from geolabel.errors import OptionError
from geolabel.masks import Selection
from geolabel.models.defaults import localizer_defaults
from geolabel.parts import Recipe
from geolabel.prompts import Prompts

if TYPE_CHECKING:
    from geolabel.extraction.passes import MaskTable
    from geolabel.extraction.plan import Run
    from geolabel.extraction.request import Networks
    from geolabel.extraction.work import Work
    from geolabel.tiles import Window
    from geolabel.types import BoolArray, UInt8Array


@dataclass(frozen=True)
class SceneMethod:
    """A method over scenes: a frozen record of its settings, which knows what to do with them.

    The fields here are what the passes read. A method that has one of them as its option declares it again; in all
    others it keeps a value that changes nothing.

    Raises
    ------
    OptionError
        If a number is out of its range.
    """

    name: ClassVar[str]
    dense: ClassVar[bool] = False
    """Whether the localizer's maps are the scores, and no segmenter is asked."""

    gate: float = field(default=0.5, init=False)
    """Minimum class probability of an activation that is followed up, in some window of the localizer's size."""
    activation_threshold: int = field(default=120, init=False)
    """Grey value 0..255 that activation has to exceed (APSAM, eq. 2)."""
    activation_floor: int | None = field(default=0, init=False)
    """Grey value 0..255 that the activation of a mask's pixels has to exceed."""
    prompts: Literal["box", "point", "both"] = field(default="both", init=False)
    """What the segmenter is given of each object."""
    selection: Selection = field(default="best_iou", init=False)
    """Which of the segmenter's candidates answers a prompt."""
    min_quality: float = field(default=0.0, init=False)
    """Minimum predicted IoU x stability of a mask that takes part in the mosaic; the papers leave out none."""

    def __post_init__(self) -> None:
        limits = {"gate": 1, "activation_threshold": 255, "activation_floor": 255, "confidence": 1, "min_quality": 1}
        for name, high in limits.items():
            value = getattr(self, name, None)
            if value is not None and not 0 <= value <= high:
                raise OptionError(f"{name.replace('_', ' ')} {value}: it has to lie between 0 and {high}")

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Names of the settings that can be chosen."""
        return tuple(sorted(one.name for one in fields(cls) if one.init))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for provenance."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        return {"method": self.name} | values

    def require(self) -> None:
        """Make sure that what the method needs is installed: asked before a scene is opened.

        Raises
        ------
        OptionError
            If an extra is missing.
        """

    def with_defaults(self, networks: Networks) -> Self:  # noqa: ARG002
        """The same settings, with what suits the networks where one is None."""
        return self

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """Recipes of the localizer and the segmenter.

        Raises
        ------
        OptionError
            If a network is chosen that the method does not run.
        WeightsError
            If a network cannot be had, or was not trained for the method.
        """
        return networks.recipes(self.selection)

    def find_prompts(self, work: Work) -> Prompts | None:  # noqa: ARG002
        """Prompts of the method's own, in pixels of the working grid; None for box and centroid of every region."""
        return None

    def ask(self, work: Work) -> tuple[Prompts, list[MaskTable]] | None:  # noqa: ARG002
        """Prompts and masks of a method that asks in a way of its own; None for one that has prompts."""
        return None

    def sample(self, height: int, width: int) -> Prompts:
        """What a tile of that size may be asked, to time it: one box."""
        return Prompts.build(boxes=np.asarray([[1.0, 1.0, max(2, width - 1), max(2, height - 1)]]))

    def counts(self, work: Work, masks: Sequence[MaskTable]) -> list[BoolArray]:  # noqa: ARG002
        """Which masks of every table take part in the mosaic."""
        return [np.ones(len(table.windows), bool) for table in masks]

    def map_of(self, run: Run, window: Window, class_id: int) -> UInt8Array:
        """(H, W) grey values 0..255 of a class in a window, which are its scores; called of dense methods alone."""
        raise NotImplementedError


@dataclass(frozen=True)
class ContourMethod(SceneMethod):
    """APSAM over scenes, and what is done unless another method is chosen: box and centroid of every region."""

    name = "apsam"

    gate: float = 0.5
    activation_threshold: int = 120
    activation_floor: int | None = None
    """None for what suits the localizer, see `geolabel.models.measured`; the published method has no floor, 0."""
    prompts: Literal["box", "point", "both"] = "both"
    selection: Selection = "best_iou"
    min_quality: float = 0.0

    def with_defaults(self, networks: Networks) -> Self:
        """With the activation floor of the localizer."""
        if self.activation_floor is not None:
            return self
        return replace(self, activation_floor=localizer_defaults(networks.localizer).activation_floor)
