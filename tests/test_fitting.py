"""A segmenter for images that are larger than it takes."""

import numpy as np
import pytest

from geolabel.models.sam import FittingSegmenter
from geolabel.parts import Segmenter
from geolabel.prompts import Prompts
from geolabel.testing import FakeSegmenter

PROMPTS = Prompts.build(boxes=np.array([[40.0, 20.0, 80.0, 60.0]]), points=np.array([[[59.5, 39.5]]]))


def ask(segmenter: Segmenter, height: int, width: int) -> np.ndarray:
    (masks,) = segmenter([np.zeros((height, width, 3), np.uint8)], [PROMPTS])
    return masks.binary[0]


def test_an_image_that_fits_is_passed_on():
    inner = FakeSegmenter(window=128)
    np.testing.assert_array_equal(ask(FittingSegmenter(inner), 128, 100), ask(inner, 128, 100))


@pytest.mark.parametrize("window", [100, 50, 25])
def test_a_larger_image_is_answered_at_its_own_size(window: int):
    found = ask(FittingSegmenter(FakeSegmenter(window=window)), 100, 200)
    truth = np.zeros((100, 200), bool)
    truth[20:60, 40:80] = True
    assert found.shape == truth.shape
    assert (found & truth).sum() / (found | truth).sum() > 0.8
    rows, cols = np.nonzero(found)
    assert (rows.mean(), cols.mean()) == pytest.approx((39.5, 59.5), abs=1.5)


def test_points_keep_their_place():
    class Asked(FakeSegmenter):
        def __call__(self, images, prompts):
            self.seen.append(prompts[0])
            return super().__call__(images, prompts)

    inner = Asked(window=100)
    object.__setattr__(inner, "seen", [])
    ask(FittingSegmenter(inner), 100, 200)
    # the centre of pixel 59.5 of 200 is at 60 / 200 of the width, which is 30 of 100, the corner of pixels 29 and 30
    np.testing.assert_allclose(inner.seen[0].points, [[[29.5, 19.5]]])
    np.testing.assert_allclose(inner.seen[0].boxes, [[20, 10, 40, 30]])


def test_it_is_a_segmenter():
    made: Segmenter = FittingSegmenter(FakeSegmenter())
    assert made.window > 10**6
    assert made.gsd_range == FakeSegmenter().gsd_range
