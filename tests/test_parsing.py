from __future__ import annotations

import pytest

import geolabel
from geolabel.errors import OptionError
from geolabel.extraction.supplements import Supplements
from geolabel.parsing import Measure


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("400m2", 400, "m2"),
        ("25px", 25, "px"),
        ("2 m", 2, "m"),
        ("0.5PX", 0.5, "px"),
        (" .5m ", 0.5, "m"),
        ("1e2M2", 100, "m2"),
    ],
)
def test_reads_a_number_with_its_unit(text, value, unit):
    assert Measure.parse(text) == Measure(value, unit)


@pytest.mark.parametrize(
    ("measure", "pixels"),
    [(Measure(400, "m2"), 1600), (Measure(25, "px"), 25), (Measure(2, "m"), 4)],
)
def test_counts_pixels_at_a_ground_sample_distance(measure, pixels):
    assert measure.pixels(0.5) == pixels


def test_a_bare_number_is_told_the_units_that_fit():
    with pytest.raises(OptionError, match="'400' lacks a unit: give 400m2 or 400px"):
        Measure.parse("400", units=("m2", "px"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("400ha", "the unit ha does not fit here: give 400m2 or 400px"),
        ("2m", "the unit m does not fit here"),
        ("much", "is not a number with a unit, such as 10m2 or 10px"),
        ("", "is not a number with a unit"),
        ("nanm2", "is not a number with a unit"),
        ("-5m2", "-5m2: it must be a number that is not negative"),
        ("1e999px", "not negative"),
    ],
)
def test_refuses_what_is_no_measure(text, message):
    with pytest.raises(OptionError, match=message):
        Measure.parse(text, units=("m2", "px"))


@pytest.mark.parametrize("text", ["400m2", "0.5px", "1.25m"])
def test_prints_what_it_reads(text):
    assert str(Measure.parse(text)) == text


def test_a_measure_without_a_unit_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="min_area 400 has no unit"):
        geolabel.Parameters(min_area=400)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="min_slope '10deg' has no unit"):
        Supplements(dem="dem.tif", min_slope="10deg")  # type: ignore[arg-type]
