from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from geolabel.spans import (
    Shapes,
    Spans,
    connected,
    drop_small,
    holes,
    join,
    large_components,
    largest,
    pixel_sums,
    total,
)
from geolabel.tiles import BlockGrid, Window

ALL_EIGHT = np.ones((3, 3), int)

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
dense = st.builds(
    lambda shape, share, seed: np.random.default_rng(seed).random(shape) < share,
    shapes,
    st.sampled_from([0.3, 0.6, 0.8]),
    st.integers(0, 10**6),
)
masks = hnp.arrays(bool, shapes) | dense
block_sizes = st.integers(1, 13)


def picture(text):
    return np.array([[character == "#" for character in line] for line in text.split()])


def whole(mask):
    return Window(0, 0, *mask.shape)


def spans_of(mask):
    return Spans.of_mask(mask, whole(mask))


def painted(spans, mask, values=None):
    return spans.paint(whole(mask), np.ones(len(spans), np.int32) if values is None else values)


def test_spans_by_hand():
    spans = Spans.of_mask(picture("##.# .... .##."), Window(10, 100, 3, 4))
    assert spans.row.tolist() == [10, 10, 12]
    assert spans.start.tolist() == [100, 103, 101]
    assert spans.stop.tolist() == [102, 104, 103]
    assert spans.lengths.tolist() == [2, 1, 2]
    gaps = spans.gaps()
    assert (gaps.row.tolist(), gaps.start.tolist(), gaps.stop.tolist()) == ([10], [102], [103])


@given(masks, block_sizes, st.randoms())
def test_spans_know_nothing_of_the_blocks_they_were_found_in(mask, size, random):
    blocks = list(BlockGrid(*mask.shape, size))
    random.shuffle(blocks)
    parts = [Spans.of_mask(mask[block.slices], block) for block in blocks]
    spans, index = join(parts)
    expected = spans_of(mask)
    for name in ("row", "start", "stop"):
        assert (getattr(spans, name) == getattr(expected, name)).all()
        assert getattr(spans, name).dtype == np.int32
    # every piece is in the span that it went into
    pieces = [(part.row[k], part.start[k], part.stop[k]) for part in parts for k in range(len(part))]
    for (row, start, stop), at in zip(pieces, index, strict=True):
        assert spans.row[at] == row
        assert spans.start[at] <= start < stop <= spans.stop[at]


def test_joining_nothing():
    spans, index = join([])
    assert len(spans) == len(index) == 0
    assert spans.components(4)[1] == 0
    assert len(drop_small(spans, 5)) == 0
    assert holes(spans, 5, 10)[2] == 0


@given(masks, st.integers(-2, 12), st.integers(-2, 12), st.integers(1, 9), st.integers(1, 9))
def test_clip_and_paint(mask, row, col, height, width):
    spans, window = spans_of(mask), Window(row, col, height, width)
    part, index = spans.clip(window)
    expected = np.zeros((height, width), bool)
    shared = window.intersection(whole(mask))
    if shared:
        expected[shared.within(window)] = mask[shared.slices]
    assert (part.paint(window, np.ones(len(part), np.uint8)) == expected).all()
    assert (spans.row[index] == part.row).all()
    assert (spans.paint(window, np.ones(len(spans), np.uint8)) == expected).all()
    assert (np.flatnonzero(expected) == part.pixels(window)).all()


@pytest.mark.parametrize(("connectivity", "structure"), [(4, None), (8, ALL_EIGHT)])
@given(mask=masks)
def test_components_are_those_of_the_whole_array(connectivity, structure, mask):
    labels, count = spans_of(mask).components(connectivity)
    expected, number = ndimage.label(mask, structure)
    assert count == number
    assert (painted(spans_of(mask), mask, labels + 1) == expected).all()  # numbered alike, by the first pixel


@pytest.mark.parametrize("text", ["#. .#", ".# #."])
@pytest.mark.parametrize("size", [1, 2])
def test_both_diagonals_across_the_corner_of_a_block(text, size):
    mask = picture(text)
    spans, _ = join([Spans.of_mask(mask[block.slices], block) for block in BlockGrid(2, 2, size)])
    assert spans.components(4)[1] == 2
    assert spans.components(8)[1] == 1


def test_spans_one_column_apart_touch_only_across_corners():
    mask = picture("##.. ..## ##.. .#..")
    assert spans_of(mask).components(4)[0].tolist() == [0, 1, 2, 2]
    assert spans_of(mask).components(8)[0].tolist() == [0, 0, 0, 0]


@given(masks, st.integers(0, 9), block_sizes)
def test_small_components_are_dropped(mask, minimum, size):
    labels, count = ndimage.label(mask)
    big = np.flatnonzero(np.append(0, ndimage.sum_labels(mask, labels, np.arange(1, count + 1))) >= max(minimum, 1))
    expected = np.isin(labels, big[big > 0])
    assert (painted(drop_small(spans_of(mask), minimum), mask) == expected).all()
    spans, labels, count = large_components(spans_of(mask), minimum)
    assert (painted(spans, mask) == expected).all()
    assert (labels.tolist(), count) == ((again := spans.components(4))[0].tolist(), again[1])
    # dropped inside blocks first: what touches a block's frame may continue
    parts = [drop_small(Spans.of_mask(mask[b.slices], b), minimum, frame=b) for b in BlockGrid(*mask.shape, size)]
    assert (painted(drop_small(join(parts)[0], minimum), mask) == expected).all()


def holes_of_array(mask, maximum):
    """Background components, by their pixels, that are closed and small."""
    labels, count = ndimage.label(~mask, ALL_EIGHT)
    frame = np.ones(mask.shape, bool)
    frame[1:-1, 1:-1] = False
    closed = [k for k in range(1, count + 1) if not (frame & (labels == k)).any() and (labels == k).sum() <= maximum]
    return np.where(np.isin(labels, closed), labels, 0)


@given(masks, st.integers(0, 12))
def test_holes_are_those_of_the_whole_array(mask, maximum):
    gaps, labels, count = holes(spans_of(mask), maximum, mask.shape[0])
    expected = holes_of_array(mask, maximum)
    found = painted(gaps, mask, labels + 1)
    assert ((found > 0) == (expected > 0)).all()
    assert len(np.unique(expected[expected > 0])) == count
    assert len(np.unique(np.stack([found, expected])[:, expected > 0], axis=1).T) == count  # the same partition


@pytest.mark.parametrize(
    ("text", "pixels"),
    [
        ("### #.# ###", 1),
        ("#.# #.# ###", 0),  # reaches the frame
        (".### ##.# ####", 1),
        ("#### #.## .### ####", 0),  # by the left end of the next row, at a corner
        ("#### ##.# ###. ####", 0),
        ("###. ##.# #### ####", 0),
        ("##### #...# #.#.# #...# #####", 8),  # an island does not count
        ("#### #.## ##.# ####", 2),  # one hole of two pixels
    ],
)
def test_what_a_hole_is(text, pixels):
    mask = picture(text)
    assert holes(spans_of(mask), 99, mask.shape[0])[0].lengths.sum() == pixels
    if pixels:
        assert len(holes(spans_of(mask), pixels - 1, mask.shape[0])[0]) == 0


def test_sums_and_maxima_stay_integers():
    labels = np.array([2, 0, 2])
    assert total(np.array([1 << 60, 5, 1], np.int64), labels, 3).tolist() == [5, 0, (1 << 60) + 1]
    assert largest(np.array([7, 5, 9], np.uint8), labels, 3).tolist() == [5, 0, 9]


@given(masks)
def test_shapes_against_opencv(mask):
    spans = spans_of(mask)
    labels, count = spans.components(8)
    shapes = Shapes.of(spans, labels, count)
    number, image, stats, centroids = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    assert number == count + 1
    for k in range(count):
        at = image[spans.row[shapes.first[k]], spans.start[shapes.first[k]]]
        x, y, width, height, area = stats[at]
        assert shapes.boxes[k].tolist() == [x, y, x + width, y + height]
        assert shapes.area[k] == area
        moments = cv2.moments((image == at).astype(np.uint8))
        assert (shapes.sum_col[k], shapes.sum_row[k]) == (moments["m10"], moments["m01"])
        assert shapes.centroids[k] == pytest.approx(centroids[at], abs=1e-12)


def test_a_rectangle_and_its_moments():
    mask = np.zeros((60, 60), bool)
    mask[30:36, 20:30] = True
    shapes = Shapes.of(spans_of(mask), np.zeros(6, np.int32), 1)
    assert shapes.boxes.tolist() == [[20, 30, 30, 36]]
    assert shapes.area.tolist() == [60]
    assert shapes.centroids.tolist() == [[24.5, 32.5]]


@given(masks, block_sizes)
def test_sums_under_spans(mask, size):
    values = np.arange(mask.size, dtype=np.uint8).reshape(mask.shape)
    labels, count = ndimage.label(mask)
    sums, maxima = np.zeros(count, np.int64), np.zeros(count, np.int64)
    spans, _ = join([Spans.of_mask(mask[block.slices], block) for block in BlockGrid(*mask.shape, size)])
    owner, _ = spans.components(4)
    for block in BlockGrid(*mask.shape, size):
        part, index = spans.clip(block)
        under, highest = pixel_sums(part, block, values[block.slices])
        np.add.at(sums, owner[index], under)
        np.maximum.at(maxima, owner[index], highest)
    assert sums.tolist() == [values[labels == k + 1].sum() for k in range(count)]
    assert maxima.tolist() == [values[labels == k + 1].max() for k in range(count)]


@pytest.mark.parametrize(
    ("row", "start", "stop", "sound"),
    [
        ([0, 0, 1], [0, 5, 0], [5, 6, 9], True),
        ([], [], [], True),
        ([0, 0], [0, 4], [5, 6], False),
        ([1, 0], [0, 0], [1, 1], False),
        ([0], [3], [3], False),
        ([-1], [0], [1], False),
        ([0, 1], [0], [1], False),
    ],
)
def test_what_calls_itself_spans(row, start, stop, sound):
    assert Spans(*(np.asarray(values, np.int32) for values in (row, start, stop))).in_order() is sound
    assert not Spans(*(np.asarray(values, float) for values in (row, start, stop))).in_order()


@given(mask=hnp.arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 9))))
def test_pixels_find_the_span_they_lie_in(mask):
    spans = Spans.of_mask(mask, Window(0, 0, *mask.shape))
    rows, cols = (axis.ravel() for axis in np.mgrid[-1:9, -1:11])
    found = spans.holding(rows, cols)
    inside = np.pad(mask, ((1, 9 - mask.shape[0]), (1, 11 - mask.shape[1])))[rows + 1, cols + 1]
    np.testing.assert_array_equal(found >= 0, inside)
    held = found[inside]
    np.testing.assert_array_equal(spans.row[held], rows[inside])
    assert ((spans.start[held] <= cols[inside]) & (cols[inside] < spans.stop[held])).all()


def test_things_are_grouped_by_pairs_and_numbered_by_their_first():
    labels, groups = connected(np.array([4, 3]), np.array([1, 0]), 6)
    assert (labels.tolist(), groups) == ([0, 1, 2, 0, 1, 3], 4)
    assert connected(np.zeros(0, int), np.zeros(0, int), 0)[1] == 0
