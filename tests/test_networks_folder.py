"""Networks of a folder: what a file says of itself holds, whatever the file is called."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import click
import pytest

from geolabel.cli.extract import extract
from geolabel.cli.label import label
from geolabel.cli.options import Request, networks_of
from geolabel.errors import OptionError, WeightsError
from geolabel.extraction.request import LIKELY, Networks, Parameters, decide
from geolabel.methods import s2c
from geolabel.models import confidence, registry
from geolabel.models.checkpoint import NetworkInfo, load_checkpoint, save_checkpoint
from geolabel.models.defaults import localizer_defaults
from geolabel.models.loading import recipe

BUNDLED = registry.lookup("bundled", "localizer")[0].path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A localizer with a floor of its own, and the confidence that goes with it."""
    path = tmp_path_factory.mktemp("valley")
    state, info = load_checkpoint(BUNDLED)
    save_checkpoint(path / "localizer.safetensors", state, replace(info, floor=77, trained={"adapted": {}}))
    shutil.copy(BUNDLED.with_suffix(".onnx"), path)
    networks = {
        "localizer": recipe("localizer", path / "localizer.safetensors", device="cpu").sha256,
        "segmenter": recipe("segmenter", device="cpu").sha256,
    }
    shipped = confidence.load_confidence(confidence.shipped())
    confidence.save_confidence(path / "confidence.json", replace(shipped, networks=networks), overwrite=False)
    return path


def test_a_copy_of_the_bundled_localizer_has_its_floor(tmp_path: Path) -> None:
    copy = shutil.copy(BUNDLED, tmp_path / "copy.safetensors")
    assert localizer_defaults(copy) == localizer_defaults(None)
    state, info = load_checkpoint(BUNDLED)
    save_checkpoint(copy, state, replace(info, constant=2.0))
    assert localizer_defaults(copy).activation_floor == 0


def test_a_file_says_its_floor(folder: Path) -> None:
    networks = Networks.from_folder(folder)
    assert decide(networks, Parameters())[0].method.activation_floor == 77
    asked = Parameters(method=replace(Parameters().method, activation_floor=5))
    assert decide(networks, asked)[0].method.activation_floor == 5


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_network_is_as_open_as_other_files(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    state, info = load_checkpoint(BUNDLED)
    save_checkpoint(tmp_path / "copy.safetensors", state, info)
    assert (tmp_path / "copy.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("floor", [-1, 256, 1.5])
def test_a_floor_that_no_map_can_have_is_refused(floor: float) -> None:
    values = json.loads(load_checkpoint(BUNDLED)[1].to_json())
    with pytest.raises(WeightsError, match="implausible values"):
        NetworkInfo.from_json(json.dumps(values | {"floor": floor}))


def test_a_folder_gives_localizer_segmenter_and_confidence(folder: Path) -> None:
    networks = Networks.from_folder(folder, device="cpu", batch=2)
    assert (networks.localizer, networks.sam, networks.sam_checkpoint, networks.batch) == (
        str(folder / "localizer.safetensors"),
        None,
        None,
        2,
    )
    parameters, recipes, found = decide(networks, Parameters())
    assert found is not None
    assert (parameters.min_confidence, recipes[0].engine, recipes[1].source) == (LIKELY, "onnx", "bundled")


def test_a_confidence_of_other_networks_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match="was fitted to another localizer than the one in use"):
        decide(Networks(confidence_model=folder / "confidence.json"), Parameters())


def test_a_limit_where_no_confidence_is_known_is_refused(folder: Path) -> None:
    alone = Networks(localizer=str(folder / "localizer.safetensors"))
    assert decide(alone, Parameters())[0].min_confidence is None
    with pytest.raises(OptionError, match=r"min confidence 0\.5: .* with --confidence-model"):
        decide(alone, Parameters(min_confidence=0.5))


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "confidence.json").touch()
    with pytest.raises(WeightsError, match="holds no network, neither localizer"):
        Networks.from_folder(tmp_path)


def test_networks_are_a_record_a_folder_or_nothing(folder: Path) -> None:
    assert Networks.of(folder) == Networks.of(str(folder)) == Networks.from_folder(folder)
    assert Networks.of(None) == Networks.of(Networks()) == Networks()
    with pytest.raises(OptionError, match=r"networks 3: give geolabel\.Networks"):
        Networks.of(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("words", ["--localizer bundled", "--sam vit_b"])
def test_a_folder_and_a_network_besides_are_refused_by_name(folder: Path, words: str) -> None:
    context = extract.make_context("extract", ["a.tif", "b.gpkg", "--networks", str(folder), *words.split()])
    with pytest.raises(OptionError, match=rf"^{words}: --networks .* says which networks run"):
        Request.of(context.params)


def test_extract_and_label_take_the_folder(folder: Path) -> None:
    chosen = ["--networks", str(folder), "--device", "cpu"]
    context = extract.make_context("extract", ["a.tif", "b.gpkg", *chosen])
    assert Request.of(context.params).networks == Networks.from_folder(folder, device="cpu", precision="auto")
    context = label.make_context("label", [str(folder), "--out", "x", "--method", "apsam", *chosen])
    given = dict(context.params)
    assert networks_of(given) == Networks.from_folder(folder, device="cpu", precision="auto")
    assert "networks" not in given
    with pytest.raises(click.exceptions.BadParameter):
        extract.make_context("extract", ["a.tif", "b.gpkg", "--networks", str(folder / "confidence.json")])


def test_a_method_that_needs_a_training_of_its_own_refuses_the_folder(folder: Path) -> None:
    with pytest.raises(WeightsError, match="--method s2c needs a localizer that was trained for it"):
        decide(Networks.from_folder(folder), Parameters(method=s2c.Scenes()))
