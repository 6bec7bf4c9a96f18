"""APSAM, S2C and CISM as labels of chips: what is followed, what is skipped, and what is refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
from affine import Affine
from PIL import Image

from geolabel.cli.main import run
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.engine import worker
from geolabel.errors import OptionError
from geolabel.extraction import request
from geolabel.io.write.rasters import write_geotiff
from geolabel.labelers import enlarged
from geolabel.labeling import label
from geolabel.labeling.label import ActivatedLabels
from geolabel.labels import BACKGROUND
from geolabel.methods import METHODS, apsam, cism, s2c
from geolabel.models import loading, registry
from geolabel.models.checkpoint import IMAGE_LABELS, load_checkpoint, save_checkpoint
from geolabel.models.defaults import segmenter_defaults
from geolabel.models.multiscale import MultiscaleLocalizer
from geolabel.models.refinement import Pamr, levelled
from geolabel.models.sam import FittingSegmenter
from geolabel.prompts import Prompts
from geolabel.scene import Grid
from geolabel.testing import FakeLocalizer, FakeSegmenter

SQUARE = (slice(40, 80), slice(24, 64))


def chip(bright: bool = True) -> np.ndarray:
    image = np.random.default_rng(0).integers(20, 60, (120, 100, 3)).astype(np.uint8)
    if bright:
        image[SQUARE] = 240
    return image


def marked(image: np.ndarray) -> np.ndarray:
    return (image.mean(axis=2) > 180).astype(np.float32)


LOCALIZER = FakeLocalizer(function=marked, stride=4)


def labeller(method: str) -> ActivatedLabels:
    if method == "apsam":
        return ActivatedLabels(LOCALIZER, lambda of: apsam.pipeline(of, FakeSegmenter(), apsam.Settings()))
    if method == "s2c":
        return ActivatedLabels(LOCALIZER, lambda of: s2c.pipeline(of, FakeSegmenter(radius=6), s2c.Settings()))
    return ActivatedLabels(LOCALIZER, lambda of: cism.pipeline(of, cism.Settings()))


@pytest.mark.parametrize(("method", "least"), [("apsam", 0.9), ("s2c", 0.5), ("cism", 0.9)])
def test_a_chip_is_labelled_where_its_class_is(method: str, least: float):
    found = labeller(method)(chip(), np.array([True]))
    truth = np.zeros((120, 100), bool)
    truth[SQUARE] = True
    hit = found.values == 1
    assert found.classes == (BACKGROUND, "landslide")
    assert (hit & truth).sum() / (hit | truth).sum() >= least
    assert (hit & truth).sum() / hit.sum() >= 0.6


@pytest.mark.parametrize("method", ["apsam", "s2c", "cism"])
def test_a_chip_that_shows_nothing_asks_no_network(method: str):
    def never(_: np.ndarray) -> np.ndarray:
        raise AssertionError

    label = labeller(method)
    found = ActivatedLabels(FakeLocalizer(function=never), label.compose)(chip(), np.array([False]))
    assert not found.values.any()
    assert found.confidence.min() == 1


def test_the_map_of_another_class_is_not_followed():
    class Two(FakeLocalizer):
        def __call__(self, images):
            (one,) = super().__call__(images)
            both = np.concatenate([one.values, one.values])
            return [type(one)(both, both, both.max(axis=(1, 2)), one.stride, ("scar", "fan"))]

    localizer = Two(function=marked, stride=4, classes=("scar", "fan"))
    label = ActivatedLabels(localizer, lambda of: cism.pipeline(of, cism.Settings()))
    assert set(np.unique(label(chip(), np.array([False, True])).values)) == {0, 2}
    assert set(np.unique(label(chip(), np.array([True, False])).values)) == {0, 1}


class Fuzzy(FakeLocalizer):
    """Two classes side by side on a chip of two colours, and a map of blocks that knows neither edge."""

    def __call__(self, images):
        (one,) = super().__call__(images)
        side = np.arange(images[0].shape[1] // 8)
        maps = np.stack([np.where(side < 5, 0.8, 0.3), np.where(side < 5, 0.25, 0.9)]).astype(np.float32)
        maps = np.repeat(maps[:, None], images[0].shape[0] // 8, axis=1)
        return [type(one)(maps, np.ones_like(maps), maps.max(axis=(1, 2)), 8, ("scar", "fan"))]


def test_a_crf_draws_all_classes_along_the_edges_of_the_chip():
    image = np.full((64, 64, 3), 40, np.uint8)
    image[:, 37:] = 200
    truth = np.where(np.arange(64) < 37, 1, 2)
    found = {}
    for crf in (False, True):
        settings = cism.Settings(crf=crf)
        label = ActivatedLabels(Fuzzy(stride=8, classes=("scar", "fan")), partial(cism.pipeline, settings=settings))
        found[crf] = (label(image, np.array([True, True])).values == truth).mean()
    assert found[False] < 0.97 < 0.99 < found[True]
    with pytest.raises(OptionError, match="needs a background"):
        cism.pipeline(LOCALIZER, cism.Settings(crf=True, activation_threshold=0))


def test_the_segmenter_is_given_what_was_asked_for():
    for kind, has_box, has_point in (("box", True, False), ("point", False, True), ("both", True, True)):
        pipeline = apsam.pipeline(LOCALIZER, FakeSegmenter(), apsam.Settings(prompts=kind))
        prompts = pipeline.prompter(LOCALIZER([chip()])[0])
        assert (prompts.has_box.all(), bool((prompts.labels == 1).any())) == (has_box, has_point)


def test_peaks_of_a_large_chip_are_asked_about_reduced():
    large = np.kron(chip(), np.ones((3, 3, 1), np.uint8))
    label = ActivatedLabels(LOCALIZER, lambda of: s2c.pipeline(of, FakeSegmenter(radius=8), s2c.Settings()))
    found = label(large, np.array([True]))
    assert found.values.shape == large.shape[:2]
    assert found.values[120:240, 72:192].any()


def test_a_segmenter_is_given_pixels_that_torch_takes():
    class Strict(FakeSegmenter):
        def __call__(self, images, prompts):
            assert all(image.flags.writeable for image in images)
            return super().__call__(images, prompts)

    wide = np.zeros((40, 600, 3), np.uint8)
    fitting = FittingSegmenter(Strict())
    assert len(fitting([wide], [Prompts.build(points=np.array([[[300.0, 20.0]]]))])[0]) > 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chips/images").mkdir(parents=True)
    for k in range(3):
        Image.fromarray(chip(k > 0)).save(tmp_path / f"chips/images/chip{k}.png")
    rows = "".join(f"images/chip{k}.png,{int(k > 0)}\n" for k in range(3))
    (tmp_path / "chips/labels.csv").write_text("image,label\n" + rows)
    return tmp_path / "chips"


@pytest.mark.parametrize("method", ["apsam", "s2c", "cism"])
def test_the_command_line_labels(method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(label, "chip_localizer", lambda *_, **__: LOCALIZER)
    monkeypatch.setattr(worker, "segmenter", lambda _: FakeSegmenter(radius=12))
    monkeypatch.setattr(request, "check_trained", lambda *_: None)
    words = ["label", str(folder), "--method", method, "--out", str(tmp_path / "pseudo"), "--device", "cpu", "-q"]
    assert run(words) == 0
    found = PseudoLabels(tmp_path / "pseudo")
    assert found.provenance["method"] == method
    # the bundled segmenter's masks are never as stable as the paper asks
    assert found.provenance["settings"].get("confidence", 0.0) == 0.0
    assert found.provenance["networks"].keys() == ({"localizer"} if method == "cism" else {"localizer", "segmenter"})
    assert [bool(one.values.any()) for one in found] == [False, True, True]
    assert run([*words, "--overwrite", "--class-name", "scar"]) == 1
    assert "knows landslide, the chips show scar" in capsys.readouterr().err
    assert run([*words, "--overwrite", "--clusters", "3"]) == 2
    assert f"--clusters is an option of --method alps, not of {method}" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["s2c", "cism"])
def test_a_localizer_of_another_training_is_refused_for_chips_and_scenes(
    method: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    state, info = load_checkpoint(loading.file_of(loading.recipe("localizer", "bundled", device="cpu")))
    for name in ("cam", method):
        save_checkpoint(tmp_path / f"{name}.safetensors", state, replace(info, trained={"method": name}))
    scene = tmp_path / "s.tif"
    image = np.tile(chip(), (2, 2, 1))
    write_geotiff(scene, image, Grid(pyproj.CRS(32648), Affine(1, 0, 5e5, 0, -1, 3e6), 240, 200), description="")
    for words in (["label", folder, "--out", tmp_path / "p"], ["extract", scene, "--out", tmp_path / "a.gpkg"]):
        asked = [*map(str, words), "--method", method, "--device", "cpu", "-q"]
        assert run(asked) == 1
        said = capsys.readouterr().err
        assert (
            f"--method {method} needs a localizer that was trained for it, but bundled was trained in another way"
            in said
        )
        assert f"geolabel train localizer --method {method}" in said
        assert run([*asked, "--localizer", str(tmp_path / "cam.safetensors")]) == 1
        assert "cam.safetensors was trained with --method cam" in capsys.readouterr().err
    assert run([*asked, "--localizer", str(tmp_path / f"{method}.safetensors")]) == 0
    assert gpd.read_file(tmp_path / "a.gpkg", layer="landslides")["confidence"].isna().all()


def test_tau_is_the_paper_s_for_official_networks():
    assert (segmenter_defaults(None).confidence, segmenter_defaults("vit_b").confidence) == (0.0, 0.5)


def test_the_bundled_networks_label(folder: Path, tmp_path: Path):
    words = ["label", str(folder), "--method", "apsam", "--out", str(tmp_path / "pseudo"), "--device", "cpu", "-q"]
    assert run([*words, "--single-scale", "--pamr"]) == 0
    settings = PseudoLabels(tmp_path / "pseudo").provenance["settings"]
    assert (settings["single_scale"], settings["pamr"]) == (True, True)


def test_all_views_or_one():
    recipe = loading.recipe("localizer", "bundled", device="cpu")
    assert isinstance(label.chip_localizer(recipe), MultiscaleLocalizer)
    image = chip()
    (one,), (many,) = (label.chip_localizer(recipe, multiscale=flag)([image]) for flag in (False, True))
    assert np.abs(one.values - many.values).max() > 0.01


def test_maps_are_refined_where_asked_for():
    recipe, image = loading.recipe("localizer", "bundled", device="cpu"), chip()
    plain, refined = (label.chip_localizer(recipe, multiscale=False, pamr=flag) for flag in (False, True))
    (found,) = refined([image])
    expected = levelled(Pamr()(image, enlarged(plain([image])[0], *image.shape[:2]))[0])
    assert (found.values[0] == expected).all()


def test_every_method_says_what_it_needs():
    assert {"apsam", "s2c", "cism"} <= METHODS.keys()
    assert all(method.settings({}) is not None for method in METHODS.values() if method.for_chips)


def test_maps_of_image_labels_are_refined_unless_told_otherwise(folder: Path, tmp_path: Path):
    state, info = load_checkpoint(registry.lookup("bundled", "localizer")[0].path)
    file = tmp_path / "localizer.safetensors"
    save_checkpoint(file, state, replace(info, trained=info.trained | {"supervision": IMAGE_LABELS}))
    for name, words, expected in (
        ("own", ["--localizer", str(file)], True),
        ("told", ["--localizer", str(file), "--no-pamr"], False),
        ("bundled", [], False),
    ):
        words += ["--method", "apsam", "--single-scale", "--device", "cpu", "-q", "--out", str(tmp_path / name)]
        assert run(["label", str(folder), *words]) == 0
        assert PseudoLabels(tmp_path / name).provenance["settings"]["pamr"] is expected
