"""Objects that touch are cut where they are narrow, whatever blocks they were found in."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from geolabel.errors import OptionError
from geolabel.extraction.vectorize import find_objects, vectorize
from geolabel.mosaic import Layers
from geolabel.scene import Grid
from geolabel.spans import Spans
from geolabel.splitting import split_at_necks
from geolabel.tiles import BlockGrid, Window
from geolabel.types import BoolArray, Int32Array, UInt8Array

UTM = Affine(1, 0, 500_000, 0, -1, 3_000_000)


def discs(*at: tuple[float, float, float], size: tuple[int, int] = (80, 160)) -> BoolArray:
    """Discs of a row, a column and a radius."""
    rows, cols = np.mgrid[: size[0], : size[1]]
    return np.any([(rows - row) ** 2 + (cols - col) ** 2 < radius**2 for row, col, radius in at], axis=0)


def cut(mask: BoolArray, neck: float, min_area_px: float = 0) -> Int32Array:
    """(H, W) number of the part of each pixel from 1, 0 outside."""
    window = Window(0, 0, *mask.shape)
    spans, count = Spans.of_mask(mask, window), None
    labels, count = spans.components(4)
    spans, parts, _ = split_at_necks(spans, labels, count, neck=neck, min_area_px=min_area_px)
    return np.asarray(spans.paint(window, parts + 1), np.int32)


# parts 40 px wide, and a neck of 2 * sqrt(20^2 - 16^2) = 24 px between them
TWO = discs((40, 40, 20), (40, 72, 20))


def test_two_discs_are_cut_below_the_width_of_their_neck() -> None:
    assert cut(TWO, 0.55).max() == 1
    parts = cut(TWO, 0.65)
    assert parts.max() == 2
    assert np.array_equal(parts > 0, TWO)
    assert (parts[:, :56][TWO[:, :56]] == 1).all()
    assert (parts[:, 57:][TWO[:, 57:]] == 2).all()


def test_a_part_below_the_minimum_area_is_not_cut_off() -> None:
    mask = discs((40, 40, 20), (40, 64, 6))
    area = int(np.sum(cut(mask, 0.9) == 2))
    assert 60 < area < 120
    assert cut(mask, 0.9, min_area_px=area).max() == 2
    assert cut(mask, 0.9, min_area_px=area + 1).max() == 1


def test_a_disc_and_a_long_strip_of_one_width_stay_whole() -> None:
    strip = np.zeros((40, 160), bool)
    strip[10:30, 5:155] = True
    assert cut(discs((40, 40, 30)), 0.9).max() == 1
    assert cut(strip, 0.9).max() == 1


def test_a_chain_is_cut_at_every_neck_and_numbered_by_first_pixels() -> None:
    parts = cut(discs((40, 120, 18), (41, 90, 18), (30, 60, 18), (42, 30, 18)), 0.8)
    assert parts.max() == 4
    first = [int(np.flatnonzero(parts == k)[0]) for k in range(1, 5)]
    assert first == sorted(first)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_parts_cover_the_objects_and_are_connected(seed: int, neck: float, minimum: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(60, 70)), 3) > 0.02
    parts, whole = cut(mask, neck, minimum), ndimage.label(mask)[0]
    assert np.array_equal(parts > 0, mask)
    for k in range(1, int(parts.max()) + 1):
        part = parts == k
        assert ndimage.label(part)[1] == 1
        of = np.unique(whole[part])
        assert len(of) == 1  # of one object
        assert part.sum() >= minimum or part.sum() == (whole == of[0]).sum()


def test_a_neck_beyond_1_is_refused() -> None:
    with pytest.raises(OptionError, match=r"split 1\.5: give the width of a neck"):
        cut(TWO, 1.5)


class Mosaic:
    """A mosaic of scores, without masks."""

    def __init__(self, scores: UInt8Array) -> None:
        self.all = scores

    def scores(self, window: Window) -> UInt8Array:
        return np.ascontiguousarray(self.all[window.slices])

    def read(self, window: Window, spans: Spans) -> Layers:
        return Layers(self.scores(window))


@pytest.mark.parametrize("block", [7, 33, 500])
def test_no_result_depends_on_blocks(block: int) -> None:
    rng = np.random.default_rng(5)
    blobs = ndimage.gaussian_filter(rng.normal(size=(90, 120)), 4) > 0
    mosaic = Mosaic(np.where(blobs, 200, 0).astype(np.uint8))
    objects = find_objects(mosaic, BlockGrid(90, 120, block), threshold=127, min_area_px=20, split=0.6)
    whole = find_objects(mosaic, BlockGrid(90, 120, 500), threshold=127, min_area_px=20, split=0.6)
    uncut = find_objects(mosaic, BlockGrid(90, 120, 500), threshold=127, min_area_px=20)
    assert objects.count == whole.count > uncut.count
    for name in ("row", "start", "stop"):
        assert np.array_equal(getattr(objects.spans, name), getattr(whole.spans, name))
    assert np.array_equal(objects.labels, whole.labels)


def test_outlines_of_parts_are_exact_and_share_their_border() -> None:
    mosaic = Mosaic(np.where(TWO, 200, 0).astype(np.uint8))
    grid = Grid(None, UTM, *TWO.shape, 1.0)
    found = vectorize(mosaic, grid, BlockGrid(*TWO.shape, 50), threshold=127, split=0.65)
    assert len(found) == 2
    one, other = found.geometry
    assert one.area + other.area == TWO.sum()
    assert one.intersection(other).area == 0
    assert one.intersection(other).length > 20
    assert found["score_mean"].tolist() == pytest.approx([200 / 254] * 2)


def test_parts_keep_the_class_of_their_object() -> None:
    scores = [np.where(TWO & (np.arange(160) < at), 200, 0).astype(np.uint8) for at in (0, 160)]
    scores[0][2:10, 2:40] = 230
    objects = find_objects([Mosaic(own) for own in scores], BlockGrid(*TWO.shape, 500), threshold=127, split=0.65)
    assert objects.class_ids.tolist() == [0, 1, 1]
    assert sorted(sum(kind.astype(int) for kind in objects.apart()).tolist()) == [1, 1, 1]
    assert len(list(objects.apart())) == 3
