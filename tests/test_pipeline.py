"""The four steps on stand-ins, whole and tile by tile."""

from __future__ import annotations

import numpy as np

from geolabel.labelers import ThresholdLabeler, UnionLabeler
from geolabel.parts import Everywhere, Localizer, NoMasks, NoPrompts, Pipeline, Prompter, Segmenter, label_image
from geolabel.prompters import ContourPrompter
from geolabel.testing import FakeLocalizer, FakeSegmenter

APSAM = Pipeline(FakeLocalizer(stride=4), ContourPrompter(), FakeSegmenter(), UnionLabeler())


def picture(size: tuple[int, int] = (64, 96)) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    image[8:24, 8:40] = 255
    return image


def test_an_image_becomes_a_label_map_in_four_steps() -> None:
    labels = APSAM(picture())
    assert labels.classes == ("background", "landslide")
    assert np.array_equal(labels.values, picture()[..., 0] // 255)


def test_an_image_without_an_object_is_background() -> None:
    assert not APSAM(np.zeros((32, 32, 3), np.uint8)).values.any()


def test_null_parts_leave_the_activation_to_the_labeler() -> None:
    pipeline = Pipeline(FakeLocalizer(stride=1), NoPrompts(), NoMasks(), ThresholdLabeler(0.5))
    assert np.array_equal(pipeline(picture()).values, picture()[..., 0] // 255)
    everywhere = Pipeline(Everywhere(), NoPrompts(), NoMasks(), ThresholdLabeler(0.5))
    assert (everywhere(picture()).values == 1).all()
    parts: tuple[Localizer, Prompter, Segmenter] = Everywhere(), NoPrompts(), NoMasks()
    assert len(parts) == 3


def test_tiles_give_what_the_whole_gives_where_a_tile_sees_enough() -> None:
    whole, tiled = APSAM(picture()), label_image(APSAM, picture(), 48, 24)
    assert tiled.classes == whole.classes
    assert np.array_equal(tiled.values, whole.values)


def test_an_image_of_one_tile_is_not_cut() -> None:
    sizes = []

    def spy(image: np.ndarray):
        sizes.append(image.shape)
        return APSAM(image)

    label_image(spy, picture(), 96)  # type: ignore[arg-type]
    assert sizes == [(64, 96, 3)]
