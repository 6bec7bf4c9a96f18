"""Judging coarse masks: what counting all pixels of the enlarged masks gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from geolabel.masks import stability_score
from geolabel.models.low_res import judge
from geolabel.tiles import extent


def smooth(count: int, side: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, side, side))
    fields = ndimage.gaussian_filter(noise, (0, 1.5, 1.5)) * 12
    return (fields - np.linspace(-3, 6, count)[:, None, None]).astype(np.float32)  # from full to all but empty


@pytest.mark.parametrize("size", [(64, 64), (61, 40), (3, 64), (1, 1)])
@pytest.mark.parametrize("step", [2, 4])
def test_judges_as_counting_all_pixels_does(size: tuple[int, int], step: int) -> None:
    logits = smooth(12, 64 // step, seed=step)
    whole = interpolate(torch.from_numpy(logits)[None], (64, 64), mode="bilinear", align_corners=False)[0].numpy()
    pixels = whole[:, : size[0], : size[1]]
    found = judge(logits, step, size, 0.7)
    np.testing.assert_array_equal(found.stability, stability_score(pixels, 0.7))
    for box, mask in zip(found.boxes.tolist(), pixels > 0, strict=True):
        near = extent(mask)
        if near is None:
            assert box[2] == -1
        else:
            rows, cols = near
            assert box == [cols.start, rows.start, cols.stop - 1, rows.stop - 1]
    if size == (64, 64):
        assert 0 < (found.stability > 0.2).sum() < 12
        assert len({tuple(box) for box in found.boxes.tolist()}) > 3


@pytest.mark.parametrize("place", [(0, 0), (5, 9), (13, 2), (12, 12)])
def test_small_masks_are_judged_where_they_are(place: tuple[int, int]) -> None:
    """All others are far below the cuts, so that most of the image holds nothing."""
    logits = np.full((3, 16, 16), -50, np.float32)
    row, col = place
    logits[:2, row : row + 3, col : col + 4] = smooth(2, 20, seed=row)[:, :3, :4] + 4
    pixels = interpolate(torch.from_numpy(logits)[None], (64, 64), mode="bilinear", align_corners=False)[0].numpy()
    found = judge(logits, 4, (62, 61), 1.0)
    np.testing.assert_array_equal(found.stability, stability_score(pixels[:, :62, :61], 1.0))
    for box, mask in zip(found.boxes[:2].tolist(), pixels[:2, :62, :61] > 0, strict=True):
        rows, cols = extent(mask)
        assert box == [cols.start, rows.start, cols.stop - 1, rows.stop - 1]
    assert found.boxes[2].tolist() == [0, 0, -1, 0]


def test_masks_that_are_full_empty_or_no_numbers_are_judged() -> None:
    logits = np.stack([np.full((4, 4), value, np.float32) for value in (5, -5, np.nan)])
    found = judge(logits, 4, (16, 12), 1.0)
    assert found.stability.tolist() == [1, 0, 0]
    assert found.boxes[:, 2].tolist() == [11, -1, -1]
    assert judge(logits[:0], 4, (16, 12), 1.0).boxes.shape == (0, 4)


def test_masks_that_are_not_stable_enough_have_no_box() -> None:
    logits = smooth(12, 16, seed=4)
    every = judge(logits, 4, (64, 64), 0.7)
    limit = float(np.median(every.stability))
    some = judge(logits, 4, (64, 64), 0.7, limit)
    asked = every.stability >= limit
    assert 0 < asked.sum() < 12
    np.testing.assert_array_equal(some.stability, every.stability)
    np.testing.assert_array_equal(some.boxes[asked], every.boxes[asked])
    assert (some.boxes[~asked] == [0, 0, -1, 0]).all()
