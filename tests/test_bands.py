from __future__ import annotations

import pytest

from geolabel.bands import choose_bands
from geolabel.errors import OptionError, SceneError

UNDEFINED = "undefined"


@pytest.mark.parametrize(
    ("names", "colours", "spec", "expected"),
    [
        ([None] * 3, ["red", "green", "blue"], None, (1, 2, 3)),
        ([None] * 4, ["blue", "green", "red", UNDEFINED], None, (3, 2, 1)),
        ([None] * 4, ["alpha", "red", "green", "blue"], None, (2, 3, 4)),
        (["B02", "B03", "B04", "B08"], ["gray"] + [UNDEFINED] * 3, None, (3, 2, 1)),
        (["B8A", "SR_B2", "SR_B3", "SR_B4"], [UNDEFINED] * 4, None, (4, 3, 2)),
        (["red", "green", "blue", "nir"], [UNDEFINED] * 4, None, (1, 2, 3)),
        (["Red edge 1", "near infrared", "Blue (490 nm)", "Green", "Red (665 nm)"], [UNDEFINED] * 5, None, (5, 4, 3)),
        ([None], ["gray"], None, (1, 1, 1)),
        ([None, None], ["gray", "alpha"], None, (1, 1, 1)),
        ([None] * 4, [UNDEFINED] * 4, "3,2,1", (3, 2, 1)),
        ([None] * 4, [UNDEFINED] * 4, (4, 2, 1), (4, 2, 1)),
        ([None] * 4, [UNDEFINED] * 4, "2", (2, 2, 2)),
        (["b", "g", "r", "Near IR"], [UNDEFINED] * 4, "near ir, r,2", (4, 3, 2)),
        ([None] * 3, ["blue", "green", "red"], "red,green,blue", (3, 2, 1)),
    ],
)
def test_bands_that_are_known_or_given(names, colours, spec, expected):
    assert choose_bands(names, colours, spec) == (expected, ())


@pytest.mark.parametrize(
    ("count", "colours", "expected", "warning"),
    [
        (4, [UNDEFINED] * 4, (1, 2, 3), "first is often blue"),
        (3, [UNDEFINED] * 3, (1, 2, 3), "3 bands of unknown colour"),
        (2, [UNDEFINED] * 2, (1, 1, 1), "two bands"),
        (4, ["alpha"] + [UNDEFINED] * 3, (2, 3, 4), "2, 3, 4 taken as red, green, blue; choose"),
        (1, ["palette"], (1, 1, 1), "-expand rgb"),
    ],
)
def test_a_guess_is_told(count, colours, expected, warning):
    bands, (told,) = choose_bands([None] * count, colours)
    assert bands == expected
    assert warning in told


@pytest.mark.parametrize("spec", ["5", "0", "-1,2,3", "1,2,99999999999999999999"])
def test_bands_that_are_not_there(spec):
    with pytest.raises(SceneError, match="the scene has 4, numbered from 1"):
        choose_bands([None] * 4, [UNDEFINED] * 4, spec)


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(SceneError, match=r"no band 'nir': the scene has gray, swir, and the numbers 1 to 2"):
        choose_bands(["swir", None], ["gray", UNDEFINED], "nir")
    with pytest.raises(SceneError, match="no descriptions and no colours"):
        choose_bands([None], [UNDEFINED], "red")


@pytest.mark.parametrize("spec", ["1,2", "1,2,3,4", "", "1,,3", ()])
def test_one_band_or_three(spec):
    with pytest.raises(OptionError, match="give one band or three"):
        choose_bands([None] * 4, [UNDEFINED] * 4, spec)


def test_alpha_alone_is_no_image():
    with pytest.raises(SceneError, match="every one is alpha"):
        choose_bands([None], ["alpha"])
