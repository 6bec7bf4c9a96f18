"""The command line and the library speak of the same parameters."""

from __future__ import annotations

from dataclasses import fields

import click
import pytest

from geolabel.cli.extract import extract
from geolabel.cli.options import Request, parse_bounds
from geolabel.cli.predict import predict
from geolabel.errors import OptionError
from geolabel.extraction.plan import Parameters
from geolabel.extraction.request import Networks, Reading
from geolabel.units import Measure


def given(*arguments: str) -> Request:
    context = extract.make_context("extract", ["scene.tif", "--out", "x.gpkg", *arguments])
    return Request.of(context.params)


def test_defaults_are_those_of_the_library() -> None:
    assert given() == Request(Reading(), Networks(), Parameters())


def test_every_parameter_has_its_option() -> None:
    names = {option.name for option in extract.params}
    known = {field.name for record in (Parameters, Networks, Reading) for field in fields(record)}
    assert known <= names


def test_predict_takes_what_extract_takes_but_for_polygons() -> None:
    missing = {option.name for option in extract.params} - {option.name for option in predict.params}
    assert missing == {
        "score_out",
        "mask_out",
        "score_threshold",
        "min_confidence",
        "min_area",
        "max_hole",
        "simplify",
        "smooth",
        "dry_run",
        "dst_crs",
        "keep_reviewed",
        "discard_review",
    }


def test_options_arrive_in_their_records() -> None:
    request = given(
        "--tile-size", "256", "--min-area", "400m2", "--bands", "3,2,1", "--device", "cpu", "--bounds", "0,1,2,3"
    )
    assert request.parameters.tile_size == 256
    assert request.parameters.min_area == Measure(400, "m2")
    assert request.reading.bands == "3,2,1"
    assert request.reading.bounds == (0, 1, 2, 3)
    assert request.networks.device == "cpu"


@pytest.mark.parametrize("text", ["", "1,2,3", "a,b,c,d", "5,0,1,1", "0,5,1,1"])
def test_bounds_that_enclose_nothing_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="bounds"):
        parse_bounds(text)


@pytest.mark.parametrize("text", ["400", "400km", "-1m2", "m2", "nan m2"])
def test_a_measure_needs_a_unit_and_a_sensible_value(text: str) -> None:
    with pytest.raises(click.BadParameter):
        given("--min-area", text)
