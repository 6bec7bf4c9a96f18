"""A student over scenes: its probability of every pixel is the score, without localizer and segmenter.

Students learn from pseudo-labels or masks, see `geolabel.training.students`, and label no chips here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from geolabel.errors import OptionError, WeightsError
from geolabel.extraction.activation_maps import blend_activation, reach
from geolabel.extraction.plan import Run
from geolabel.extraction.request import Networks, SceneMethod
from geolabel.parts import NoSegmenterRecipe, Recipe
from geolabel.settings.methods import StudentScenes
from geolabel.tiles import Window
from geolabel.types import UInt8Array


@dataclass(frozen=True)
class Scenes(StudentScenes, SceneMethod):
    """The method over scenes.

    Raises
    ------
    OptionError
        If there is no student.
    """

    name = "student"
    dense = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student is None:
            raise OptionError("--method student needs a network of geolabel train student: give --student FILE")

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """The student as the localizer, and no segmenter."""
        from geolabel.models.checkpoint import read_info

        networks.refuse("a student segments by itself", "localizer", "sam", "sam_checkpoint", "compile")
        assert self.student is not None  # see __post_init__
        kind = read_info(self.student).kind
        if kind != "student":
            raise WeightsError(f"{self.student} holds a {kind}, not a student: give it with --{kind}")
        chosen = replace(networks, localizer=str(self.student))
        student, _ = chosen.fitted(*chosen.unfitted().recipes(), alone=True)
        return student, NoSegmenterRecipe()

    def map_of(self, run: Run, window: Window, class_id: int) -> UInt8Array:
        """(H, W) probability of a class."""
        return blend_activation(run, window, class_id, partial(reach, 0))
