"""What is said of the networks that ship comes from figures beside their weights, and depends on the pixels at hand."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

import geolabel
from geolabel.errors import WeightsError
from geolabel.evaluation.cards import figures_of_sets
from geolabel.evaluation.steps import OURS, Measurement, Section
from geolabel.models import loading, measured_accuracy
from geolabel.models.measured_accuracy import Measured, SetFigures, load_measured, save_measured

FINE = SetFigures("fine", (0.2, 0.9), 0.67, {"Otsu on excess green": 0.43})
COARSE = SetFigures("coarse", (3.0, 3.0), 0.07, {"Otsu on excess green": 0.35, "Otsu on brightness": 0.3}, 24, 477, 0.0)
FOUND = Measured({"localizer": "a" * 64, "segmenter": "b" * 64}, (FINE, COARSE))


@pytest.mark.parametrize("gsd", [0.2, 0.5, 0.9, 0.1, 1.5])
def test_where_the_networks_did_well_there_is_no_caution(gsd: float) -> None:
    assert FOUND.caution(gsd) is None


@pytest.mark.parametrize("gsd", [1.9, 3.0, 6.0])
def test_where_a_threshold_on_colour_does_better_the_user_is_told(gsd: float) -> None:
    text = FOUND.caution(gsd)
    assert text is not None
    assert f"pixels of {gsd:.3g} m: on real scenes of 3 m" in text
    assert "F1 of 0.07, where Otsu on excess green has 0.35" in text
    assert "of 477 landslides less than 24 px wide they find none" in text


@pytest.mark.parametrize("gsd", [0.05, 30.0])
def test_far_from_all_that_was_measured_the_user_is_told(gsd: float) -> None:
    assert "were measured on scenes of 0.2 to 3 m, none of them near this" in str(FOUND.caution(gsd))


def test_better_networks_need_no_caution() -> None:
    better = replace(COARSE, f1=0.6, narrow_found=0.4)
    assert replace(FOUND, sets=(FINE, better)).caution(3.0) is None
    assert replace(FOUND, sets=()).caution(3.0) is None


def test_figures_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    save_measured(tmp_path / "measured.json", FOUND.networks, FOUND.sets)
    assert load_measured(tmp_path / "measured.json") == FOUND


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"networks": {}, "sets": [{"data": "x"}]}'])
def test_a_file_without_figures_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "measured.json"
    with pytest.raises(WeightsError, match="install geolabel again"):
        load_measured(path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match="geolabel bench card"):
        load_measured(path)


def test_the_figures_that_ship_are_of_the_networks_that_ship() -> None:
    found = measured_accuracy.of_bundled()
    recipes = [loading.recipe(role, "bundled", device="cpu") for role in ("localizer", "segmenter")]
    held = {recipe.role: recipe.sha256 for recipe in recipes}
    assert dict(found.networks) == held, "measure again: geolabel bench quality, then geolabel bench card"
    assert found.sets
    assert measured_accuracy.caution(0.5, held) == found.caution(0.5)
    assert measured_accuracy.caution(3.0, held | {"segmenter": "0" * 64}) is None, "nothing is known of other networks"


def test_figures_come_from_the_table_of_the_bench() -> None:
    def row(data: str, method: str, f1: float) -> Measurement:
        return Measurement(data, method, {"F1": f1, "IoU": 0.1})

    coarse = [
        row("hokkaido", OURS, 0.07),
        row("hokkaido", "Otsu on excess green", 0.35),
        row("hokkaido", "forest", 0.9),
    ]
    coarse += [row("hokkaido without one", OURS, 0.5)]
    scene = [row("sichuan", OURS, float("nan")), row("nowhere", OURS, 0.5)]
    width = [
        Measurement(
            "hokkaido",
            OURS,
            {
                "below 8 px": 0.0,
                "landslides below 8 px": 100,
                "8 to 24 px": 0.05,
                "landslides 8 to 24 px": 300,
                "from 64 px": 1.0,
            },
        )
    ]
    sections = {
        "coarse": Section(
            "coarse", "", coarse, cases={"hokkaido": [{"gsd": 3.0}], "hokkaido without one": [{"gsd": 3}]}
        ),
        "scene": Section("scene", "", scene, cases={"sichuan": [{"gsd": 0.5}], "nowhere": [{"name": "x"}]}),
        "width": Section("width", "", width),
    }
    assert figures_of_sets(sections) == [
        SetFigures("sichuan", (0.2, 0.9), 0.0),
        SetFigures("hokkaido", (3.0, 3.0), 0.07, {"Otsu on excess green": 0.35}, 24, 400, 0.0375),
    ]


def test_a_run_says_what_is_known_of_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def caution(gsd: float, networks: dict[str, str]) -> str | None:
        asked.append(round(gsd, 2))
        return "take care" if gsd > 1 else None

    monkeypatch.setattr(measured_accuracy, "caution", caution)
    for gsd, scale in ((0.05, 0.05), (3.0, 3.0)):
        path = tmp_path / f"{gsd}.tif"
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 64, "width": 64, "crs": "EPSG:32648"}
        with rasterio.open(
            path, "w", photometric="rgb", transform=Affine(scale, 0, 5e5, 0, -scale, 3e6), **profile
        ) as file:
            file.write(np.random.default_rng(0).integers(1, 255, (3, 64, 64), np.uint8))
        with caplog.at_level(logging.WARNING, "geolabel"):
            geolabel.extract(path)
    assert asked == [0.2, 3.0]
    assert caplog.messages.count("take care") == 1
