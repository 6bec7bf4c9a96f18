from __future__ import annotations

import pytest

from geolabel.bands import choose_bands, is_alpha
from geolabel.errors import OptionError, SceneError

UNDEFINED = "undefined"
GREY = [UNDEFINED]
RGB = ["red", "green", "blue"]
SUPERDOVE = ["coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"]
WORLDVIEW = ["Coastal", "Blue", "Green", "Yellow", "Red", "Red Edge", "NIR1", "NIR2"]


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
        (SUPERDOVE, [UNDEFINED] * 8, None, (6, 4, 2)),
        (["B2", "B3", "B4"], RGB, None, (3, 2, 1)),
        (["blue", "green", "red", "nir"], [*RGB, "alpha"], None, (3, 2, 1)),
        (["B", "G", "R", "N"], [*RGB, "alpha"], None, (3, 2, 1)),
        (["Red", "Green", "Blue", "NIR"], [*RGB, UNDEFINED], None, (1, 2, 3)),
        (WORLDVIEW, [UNDEFINED] * 8, None, (5, 3, 2)),
        (["C", "B", "G", "Y", "R", "RE", "N", "N2"], [UNDEFINED] * 8, None, (5, 3, 2)),
        (["Blue-444", "Blue", "Green-531", "Green", "Red-650", "Red", "Red edge", "NIR"], GREY * 8, None, (6, 4, 2)),
        ([f"SR_B{n}" for n in (1, 2, 3, 4, 5, 7)], GREY * 6, None, (3, 2, 1)),
        ([f"SR_B{n}" for n in range(1, 8)], GREY * 7, None, (4, 3, 2)),
        ([f"B{n}" for n in (*range(1, 9), "8A", 9, 11, 12)], GREY * 12, None, (4, 3, 2)),
        ([f"B{n:02}" for n in (2, 3, 4, 8)], GREY * 4, None, (3, 2, 1)),
        (
            [f"B{n}, central wavelength {w} nm" for n, w in ((4, 665), (3, 560), (2, 490), (8, 842))],
            GREY * 4,
            None,
            (1, 2, 3),
        ),
        ([f"T48RUV_20240101_B{n:02}_10m" for n in (2, 3, 4)], RGB, None, (3, 2, 1)),
        ([f"sur_refl_b{n:02}" for n in range(1, 8)], GREY * 7, None, (1, 4, 3)),
        (["coastal_aerosol", "blue", "green", "red", "nir08"], GREY * 5, None, (4, 3, 2)),
        (["near infra-red", "red", "green", "blue"], GREY * 4, None, (2, 3, 4)),
        (["Band 1", "Band 2", "Band 3", "Band 4"], [*RGB, "alpha"], None, (1, 2, 3)),
        (["B1", "B2", "B3", "B4"], [*RGB, "alpha"], None, (1, 2, 3)),
        (
            ["Band 1 (0.442 Micrometers)", "Band 2 (0.482 um)", "Band 3 (0.561 um)", "Band 4 (0.655 um)"],
            GREY * 4,
            None,
            (4, 3, 2),
        ),
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


def test_the_sensor_decides_what_numbers_mean():
    names = [f"B{n}" for n in range(1, 8)]
    for sensor, expected in (("LT05_L2SP_193024.tif", (3, 2, 1)), ("LANDSAT_7 ETM", (3, 2, 1)), ("LC08_L2", (4, 3, 2))):
        assert choose_bands(names, GREY * 7, sensor=sensor) == (expected, ())
    bands, (doubt,) = choose_bands(names, GREY * 7)
    assert bands == (4, 3, 2)
    assert "Landsat 4 to 7" in doubt
    assert choose_bands(names[:4], GREY * 4, sensor="Sentinel-2") == ((4, 3, 2), ())


def test_wavelengths_decide_where_names_do_not():
    lengths = [float(nm) for nm in range(400, 1000, 20)]
    assert choose_bands([None] * 30, GREY * 30, wavelengths=lengths) == ((14, 9, 5), ())
    assert choose_bands([None] * 3, RGB, wavelengths=[490.0, 560.0, 665.0]) == ((3, 2, 1), ())
    bands, (doubt,) = choose_bands([None] * 3, GREY * 3, wavelengths=[840.0, 665.0, 560.0])
    assert (bands, "unknown colour" in doubt) == ((1, 2, 3), True)


@pytest.mark.parametrize(
    ("names", "colours", "warning"),
    [
        (["nir", "red", "green"], RGB, "descriptions say nir, red, green: choose with --bands"),
        (["red", "green", "nir", "x"], [*RGB, "alpha"], "descriptions say red, green, nir"),
        (["red_2019", "green", "blue", "red_2020"], GREY * 4, "bands 1, 4 are all described as red: 1 is used"),
    ],
)
def test_names_that_contradict_or_repeat_are_told(names, colours, warning):
    bands, (told,) = choose_bands(names, colours)
    assert bands == (1, 2, 3)
    assert warning in told


@pytest.mark.parametrize(
    ("name", "colour", "alpha"),
    [
        (None, "alpha", True),
        ("", "alpha", True),
        ("Band 4", "alpha", True),
        ("Alpha", UNDEFINED, True),
        ("a", "alpha", True),
        ("mask", "alpha", True),
        ("nir", "alpha", False),
        ("N", "alpha", False),
        ("B08", "alpha", False),
        ("Near Infrared", "alpha", False),
        ("a", UNDEFINED, False),
        (None, UNDEFINED, False),
    ],
)
def test_a_band_that_is_described_as_something_else_is_no_alpha(name, colour, alpha):
    assert is_alpha(name, colour) == alpha


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
    with pytest.raises(SceneError, match="all are alpha"):
        choose_bands([None], ["alpha"])
