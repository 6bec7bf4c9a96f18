from __future__ import annotations

import numpy as np
import pytest

from geolabel.nodata import Margin, examine
from geolabel.tiles import Window


def noise(shape=(3, 120, 150), dtype="uint8", low=5, high=240):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def left(bands, findings):
    """What stays valid."""
    valid = np.ones(bands.shape[1:], bool)
    if findings.fill is not None:
        valid &= ~(bands == findings.fill).any(axis=0)
    for margin in findings.margins:
        valid &= ~margin.hidden(bands, Window(0, 0, *valid.shape), valid.shape)
    return valid


def everything(bands):
    return np.ones(bands.shape[1:], bool)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", 0),
        ("uint8", 255),
        ("uint16", 65535),
        ("uint16", 0),
        ("int16", 32767),
        ("float32", 0),
        ("float32", 255),
    ],
)
def test_a_margin_of_black_or_white_is_left_out_and_what_is_alike_inside_stays(dtype, value):
    bands = noise(dtype=dtype)
    rows, cols = np.mgrid[:120, :150]
    margin = rows + cols < 60
    bands[:, margin] = value
    bands[:, 80:90, 100:110] = value  # a shadow, a cloud
    findings = examine(bands, everything(bands), single=False)
    (told,) = findings.warnings
    assert f"a margin of {value:g} in all bands, 10 % of the scene, is left out" in told
    np.testing.assert_array_equal(left(bands, findings), ~margin)


def test_what_is_no_margin_stays():
    dark = noise(low=0, high=2)  # black and nearly black all over, but never for long
    for bands in (noise(), dark, np.zeros((3, 60, 60), np.uint8), np.full((3, 60, 60), 255, np.uint8)):
        assert examine(bands, everything(bands), single=False).margins == ()
    thin, red = noise(), noise()
    thin[:, 0] = 0  # 1 row of 120
    red[1:, :40] = 0  # two bands of three
    for bands in (thin, red):
        assert examine(bands, everything(bands), single=False) == examine(noise(), everything(bands), single=False)
    stated = noise()
    stated[:, :40] = 0
    assert examine(stated, everything(stated), single=False, stated=True).margins == ()
    declared = everything(stated)
    declared[:40] = False
    assert examine(stated, declared, single=False).margins == ()


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", -9999), ("int16", -9999), ("int16", -32768), ("float32", -999), ("float64", -99)]
)
@pytest.mark.parametrize("where", [slice(0, 30), slice(50, 60)], ids=["border", "inside"])
def test_a_value_far_below_all_others_is_a_fill(dtype, value, where):
    bands = noise(dtype=dtype)
    bands[:, where] = value
    bands[1, 100, 100] = value  # in one band
    findings = examine(bands, everything(bands), single=False)
    assert findings.fill == value
    assert f"the value {value}, in" in findings.warnings[0]
    expected = everything(bands)
    expected[where] = expected[100, 100] = False
    np.testing.assert_array_equal(left(bands, findings), expected)


def test_low_values_that_others_come_near_are_no_fill():
    depths = noise(dtype="int16", low=-200, high=100)
    assert examine(depths, everything(depths), single=False).fill is None
    rare = noise(dtype="float32")
    rare[:, 3, 4] = -9999
    assert examine(rare, everything(rare), single=False).fill is None


@pytest.mark.parametrize("value", [-3.4e38, np.finfo("f4").min, 9.96921e36, 1e20])
def test_numbers_out_of_all_reach_are_told(value):
    bands = noise(dtype="float32") / 255
    bands[:, :40] = value
    valid = everything(bands)
    valid[:40] = False  # as the reader has it
    (told,) = examine(bands, valid, single=False).warnings
    assert f"values such as {value:g}, in 33 % of the scene" in told


def test_the_highest_number_inside_is_told_and_stays():
    bands = noise(dtype="uint16")
    bands[:, 50:60, 50:60] = 65535
    findings = examine(bands, everything(bands), single=False)
    assert (findings.margins, findings.fill) == ((), None)
    assert "the value 65535" in findings.warnings[0]
    assert "--nodata 65535" in findings.warnings[0]


def test_labels_and_nearly_nothing_are_told():
    labels = np.zeros((3, 120, 150), np.uint8)
    labels[:, 60:66, 20:26] = 1
    labels[:, 3:5, 20:26] = 2
    valid = labels[0] > 0
    told = examine(labels, valid, single=True).warnings
    assert [text for text in told if "only 0.27 % of the scene holds data" in text]
    assert [text for text in told if "the band holds nothing but 1, 2, like masks and labels" in text]
    assert examine(noise(), everything(labels), single=True).warnings == ()


def test_a_margin_is_the_same_in_every_window_and_at_every_size():
    cells = np.zeros((30, 40), bool)
    cells[:, :10] = True
    margin = Margin(0.0, cells)
    bands = np.zeros((3, 600, 800), np.uint8)
    whole = margin.hidden(bands, Window(0, 0, 600, 800), (600, 800))
    np.testing.assert_array_equal(whole, np.broadcast_to(np.arange(800) < 200, whole.shape))
    part = margin.hidden(bands[:, 50:90, 150:333], Window(50, 150, 40, 183), (600, 800))
    np.testing.assert_array_equal(part, whole[50:90, 150:333])
    half = margin.hidden(bands[:, ::2, ::2], Window(0, 0, 300, 400), (300, 400))
    np.testing.assert_array_equal(half, whole[::2, ::2])
