from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import get_args

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from geolabel.extraction.result import MERGED
from geolabel.extraction.vectorize import MosaicReader, Objects, find_objects, sum_objects, vectorize
from geolabel.io.columns import Merged, Of
from geolabel.masks import FULL, OUTSIDE
from geolabel.mosaic import NO_MASK, Layers
from geolabel.scene import Grid
from geolabel.spans import Spans
from geolabel.tiles import BlockGrid, Window
from geolabel.types import AnyArray

ALL_EIGHT = np.ones((3, 3), int)
THRESHOLD = 100

PLACES = [
    (pyproj.CRS("EPSG:32648"), Affine(0.5, 0, 400000, 0, -0.5, 3000000)),
    (pyproj.CRS("EPSG:4326"), Affine(1e-5, 0, 103.7, 0, -1e-5, 31.2)),
    (pyproj.CRS("EPSG:32648"), Affine.translation(400000, 3e6) * Affine.rotation(25) * Affine.scale(2, -3)),
    (None, Affine(1, 0, 0, 0, -1, 0)),
]


@dataclass
class Arrays:
    """A mosaic in memory."""

    whole: AnyArray
    activation: AnyArray | None = None
    winner: AnyArray | None = None

    def scores(self, window):
        return self.whole[window.slices]

    def read(self, window, spans):
        assert (self.whole[window.slices] >= 0).all()
        winner = None if self.winner is None else self.winner[window.slices]
        attributes = {} if self.activation is None else {"activation": self.activation[window.slices]}
        return Layers(self.whole[window.slices], winner, attributes)


_: type[MosaicReader] = Arrays


@st.composite
def mosaics(draw):
    shape = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    values = st.sampled_from([0, 99, 100, 101, 254, OUTSIDE, 100, 254])
    scores = draw(hnp.arrays(np.uint8, shape, elements=values, fill=st.sampled_from([0, 254])))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return Arrays(scores, rng.integers(0, 256, shape, np.uint8), rng.integers(-1, 5, shape, np.int32))


def grid_of(mosaic, place=PLACES[0]):
    crs, transform = place
    return Grid(crs, transform, *mosaic.whole.shape, unit_m=0.5 if crs is None else None)


def cleaned(scores, min_area, max_hole):
    """The mask after cleaning, the whole array at once."""
    mask = (scores >= THRESHOLD) & (scores != OUTSIDE)
    labels, count = ndimage.label(mask)
    area = ndimage.sum_labels(mask, labels, np.arange(count + 1))
    mask = (area >= min_area)[labels] & mask
    holes, count = ndimage.label(~mask, ALL_EIGHT)
    frame = np.ones(mask.shape, bool)
    frame[1:-1, 1:-1] = False
    for k in range(1, count + 1):
        hole = holes == k
        if not (hole & frame).any() and hole.sum() <= max_hole and not (scores[hole] == OUTSIDE).any():
            mask |= hole
    return mask


limits = st.sampled_from([0, 1, 2, 3.5, 6, 20])


@given(mosaics(), st.integers(1, 17), limits, limits, st.sampled_from(PLACES))
def test_exact_polygons_are_those_of_the_whole_mask(mosaic, size, min_area, max_hole, place):
    grid = grid_of(mosaic, place)
    blocks = BlockGrid(grid.height, grid.width, size)
    found = vectorize(mosaic, grid, blocks, threshold=THRESHOLD, min_area_px=min_area, max_hole_px=max_hole)
    mask = cleaned(mosaic.whole, min_area, max_hole)
    labels, count = ndimage.label(mask)
    assert found["id"].tolist() == list(range(1, count + 1))
    shapes = rasterio.features.shapes(labels.astype(np.int32), mask=mask, connectivity=4)
    expected = {int(value): shapely.geometry.shape(geometry) for geometry, value in shapes}
    for number, polygon in zip(found["id"], found.geometry, strict=True):
        # the corners are integers, so moving them is the only rounding, and it is the same
        moved = shapely.transform(expected[number], lambda p: np.column_stack(grid.transform * (p[:, 0], p[:, 1])))
        assert shapely.normalize(polygon) == shapely.normalize(shapely.MultiPolygon([moved]))


@given(
    mosaics(),
    st.integers(1, 17),
    limits,
    limits,
    st.sampled_from(PLACES),
    st.sampled_from([0, 0.75, 3]),
    st.sampled_from([0, 2.0]),
)
def test_nothing_depends_on_the_blocks(mosaic, size, min_area, max_hole, place, simplify, smooth):
    grid = grid_of(mosaic, place)

    def run(size):
        return vectorize(
            mosaic,
            grid,
            BlockGrid(grid.height, grid.width, size),
            threshold=THRESHOLD,
            min_area_px=min_area,
            max_hole_px=max_hole,
            simplify_px=simplify,
            smooth_px=smooth,
            predicted_iou=np.linspace(0.1, 0.9, 5, dtype=np.float32),
            stability=np.ones(5, np.float32),
        )

    one, many = run(99), run(size)
    assert (shapely.to_wkb(one.geometry.to_numpy()) == shapely.to_wkb(many.geometry.to_numpy())).all()
    pd.testing.assert_frame_equal(
        pd.DataFrame(one.drop(columns="geometry")), pd.DataFrame(many.drop(columns="geometry")), check_exact=True
    )


@given(mosaics(), st.integers(1, 17), limits, limits)
def test_attributes_are_those_of_the_pixels(mosaic, size, min_area, max_hole):
    quality = np.array([0.1, 0.2, 0.4, 0.6, 0.8], np.float32)
    grid = grid_of(mosaic)
    found = vectorize(
        mosaic,
        grid,
        BlockGrid(grid.height, grid.width, size),
        threshold=THRESHOLD,
        min_area_px=min_area,
        max_hole_px=max_hole,
        predicted_iou=quality,
        stability=quality[::-1],
    )
    labels, count = ndimage.label(cleaned(mosaic.whole, min_area, max_hole))
    assert len(found) == count
    for row in found.itertuples():
        inside = labels == row.id
        winners = mosaic.winner[inside]
        winners = winners[winners != NO_MASK]
        assert row.score_mean == pytest.approx(mosaic.whole[inside].mean() / FULL)
        assert row.score_max == mosaic.whole[inside].max() / FULL
        assert row.activation_mean == pytest.approx(mosaic.activation[inside].mean() / 255)
        assert row.n_prompts == len(set(winners))
        if len(winners):
            assert row.predicted_iou == pytest.approx(quality[winners].mean(dtype=np.float64))
            assert row.stability == pytest.approx(quality[::-1][winners].mean(dtype=np.float64))
        else:
            assert np.isnan(row.predicted_iou)


@dataclass
class WithHeights(Arrays):
    """A mosaic with a further layer to describe objects by: integers of any size, below 0 too."""

    def read(self, window, spans):
        layers = super().read(window, spans)
        return replace(
            layers, attributes=dict(layers.attributes) | {"elevation": heights(self.whole.shape)[window.slices]}
        )


def heights(shape: tuple[int, int]) -> AnyArray:
    return np.random.default_rng(0).integers(-5000, 90_000, shape, np.int32)


@given(mosaics(), st.integers(1, 17))
def test_any_layer_is_summed_by_its_name(mosaic, size):
    mosaic = WithHeights(mosaic.whole, mosaic.activation, mosaic.winner)
    blocks = BlockGrid(*mosaic.whole.shape, size)
    objects = find_objects(mosaic, blocks, threshold=THRESHOLD)
    sums = sum_objects(mosaic, blocks, objects)
    labels, count = ndimage.label(cleaned(mosaic.whole, 0, 0))
    assert objects.count == count
    if count:
        inside = [heights(labels.shape)[labels == k] / 10 for k in range(1, count + 1)]
        means = sums.of(Of("elevation", "mean", 10), objects.areas)
        assert means == pytest.approx(np.array([values.mean() for values in inside]))
        assert sums.of(Of("slope", "mean", 1), objects.areas) is None


def test_every_rule_of_merging_is_known():
    assert set(MERGED) == set(get_args(Merged))


@given(mosaics(), st.integers(1, 17), limits, limits)
def test_the_mask_is_painted_from_the_same_objects(mosaic, size, min_area, max_hole):
    blocks = BlockGrid(*mosaic.whole.shape, size)
    objects = find_objects(mosaic, blocks, threshold=THRESHOLD, min_area_px=min_area, max_hole_px=max_hole)
    expected = cleaned(mosaic.whole, min_area, max_hole)
    for block in blocks:
        assert (objects.mask(block) == expected[block.slices]).all()


def test_small_objects_go_before_holes_are_filled():
    # the island counts as hole once it is dropped, so nine pixels are filled and one object is left
    scores = np.full((7, 7), 200, np.uint8)
    scores[2:5, 2:5] = 0
    scores[3, 3] = 200
    grid = grid_of(Arrays(scores))
    for size in (1, 2, 3, 5, 7):
        found = vectorize(Arrays(scores), grid, BlockGrid(7, 7, size), threshold=100, min_area_px=2, max_hole_px=9)
        assert len(found) == 1
        assert found.geometry[0].area == 49 * 0.25
        assert found["score_mean"][0] == pytest.approx(41 * 200 / 49 / FULL)  # with what was filled


def test_a_filled_hole_takes_its_island_in():
    scores = np.full((7, 7), 200, np.uint8)
    scores[1:6, 1:6] = 0
    scores[3, 3] = 200
    found = vectorize(Arrays(scores), grid_of(Arrays(scores)), BlockGrid(7, 7, 3), threshold=100, max_hole_px=24)
    assert len(found) == 1
    assert len(found.geometry[0].geoms[0].interiors) == 0


def test_limits_keep_what_equals_them():
    scores = np.zeros((5, 12), np.uint8)
    scores[0:2, 0:2] = 200  # four pixels
    scores[0:5, 5:10] = 200
    scores[2, 6:9] = 0  # a hole of three
    mosaic, blocks = Arrays(scores), BlockGrid(5, 12, 4)
    assert find_objects(mosaic, blocks, threshold=100, min_area_px=4).count == 2
    assert find_objects(mosaic, blocks, threshold=100, min_area_px=4.1).count == 1
    assert find_objects(mosaic, blocks, threshold=100, max_hole_px=3).areas.tolist() == [4, 25]
    assert find_objects(mosaic, blocks, threshold=100, max_hole_px=2.9).areas.tolist() == [4, 22]


def test_the_threshold_itself_is_landslide():
    scores = np.array([[99, 100, 101]], np.uint8)
    assert find_objects(Arrays(scores), BlockGrid(1, 3, 2), threshold=100).areas.tolist() == [2]


def test_without_layers_their_attributes_are_missing():
    scores = np.full((3, 3), 200, np.uint8)
    found = vectorize(Arrays(scores), grid_of(Arrays(scores)), BlockGrid(3, 3, 2), threshold=100)
    assert found[["activation_mean", "predicted_iou", "stability", "n_prompts"]].isna().all(axis=None)
    assert found["score_max"].notna().all()


@pytest.mark.parametrize("value", [0, OUTSIDE])
def test_nothing_found_is_a_table_without_rows(value):
    scores = np.full((5, 5), value, np.uint8)
    found = vectorize(
        Arrays(scores), grid_of(Arrays(scores)), BlockGrid(5, 5, 2), threshold=1, min_area_px=5, max_hole_px=5
    )
    assert isinstance(found, gpd.GeoDataFrame)
    assert len(found) == 0
    assert found.crs == PLACES[0][0]


def test_objects_are_outlined_in_batches_that_change_nothing():
    mask = np.random.default_rng(1).random((60, 60)) < 0.55
    spans = Spans.of_mask(mask, Window(0, 0, 60, 60))
    labels, count = spans.components(4)
    objects = Objects(spans, labels, count, np.zeros(count, np.int32))
    for size in (1, 7, 100, 10**6):
        parts = list(objects.batches(size))
        assert sum(part.count for part in parts) == objects.count
        assert np.concatenate([part.areas for part in parts]).tolist() == objects.areas.tolist()
        assert all(np.bincount(part.labels, minlength=part.count).all() for part in parts)
    assert len(list(objects.batches(10**6))) == 1


def test_the_work_on_blocks_travels():
    rng = np.random.default_rng(0)
    mosaic = Arrays(np.where(rng.random((40, 40)) < 0.6, 200, 0).astype(np.uint8))
    grid, blocks = grid_of(mosaic), BlockGrid(40, 40, 9)

    def elsewhere(function, jobs):
        with ThreadPoolExecutor(3) as pool:
            yield from pool.map(pickle.loads(pickle.dumps(function)), [pickle.loads(pickle.dumps(job)) for job in jobs])

    here = vectorize(mosaic, grid, blocks, threshold=100, min_area_px=3, max_hole_px=3)
    there = vectorize(mosaic, grid, blocks, threshold=100, min_area_px=3, max_hole_px=3, apply=elsewhere)
    assert here.equals(there)
