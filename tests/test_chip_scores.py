"""Label maps and students scored against the masks of chips: counts, figures and bootstrap intervals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from PIL import Image
from sklearn.metrics import confusion_matrix

from geolabel.cli.main import run
from geolabel.datasets.pseudo_labels import PseudoLabelWriter
from geolabel.errors import ChipError, WeightsError
from geolabel.evaluation.chip_scores import ChipScores, paired_interval, score_chips
from geolabel.labels import IGNORE, LabelMap
from geolabel.metrics import class_figures, count_pixels

CLASSES = ("background", "landslide")


def scores(counts: ArrayLike) -> ChipScores:
    counts = np.asarray(counts)
    return ChipScores(counts, CLASSES, np.ones(len(counts), bool), tuple(f"chip{k}" for k in range(len(counts))))


def test_pixels_are_counted_by_true_and_predicted_class():
    predicted = np.array([[0, 1, 1], [1, 255, 0]], np.uint8)
    truth = np.array([[0, 1, 0], [255, 1, 1]], np.uint8)
    np.testing.assert_array_equal(count_pixels(predicted, truth, 2), [[1, 1], [1, 1]])


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_counts_are_those_of_scikit_learn(seed: int, classes: int):
    predicted, truth = np.random.default_rng(seed).integers(0, classes, (2, 6, 7)).astype(np.uint8)
    expected = confusion_matrix(truth.ravel(), predicted.ravel(), labels=range(classes))
    np.testing.assert_array_equal(count_pixels(predicted, truth, classes), expected)


def test_figures_by_hand():
    # 40 right background, 10 false alarms, 5 missed, 45 hits
    figures = scores([[[20, 5], [5, 20]], [[20, 5], [0, 25]]]).figures()
    assert figures["overall_accuracy"] == 85 / 100
    assert figures["precision"] == 45 / 55
    assert figures["recall"] == 45 / 50
    assert figures["iou"] == 45 / 60
    assert figures["f1"] == pytest.approx(90 / 105)
    assert figures["miou"] == pytest.approx((45 / 60 + 40 / 55) / 2)


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(lambda v: sum(v[1:]) > 0))
def test_iou_follows_from_f1(values: list[int]):
    figures = class_figures(np.array(values).reshape(2, 2), CLASSES)
    assert figures["iou"] == pytest.approx(figures["f1"] / (2 - figures["f1"]))


def test_a_class_that_neither_side_has_is_left_out_of_the_mean():
    counts = np.array([[6, 3, 0], [0, 3, 0], [0, 0, 0]])
    figures = class_figures(counts, ("background", "scar", "fan"))
    assert math.isnan(figures["fan iou"])
    assert figures["scar iou"] == 0.5
    assert figures["miou"] == pytest.approx((6 / 9 + 0.5) / 2)


def test_intervals_hold_the_figure_and_close_where_all_chips_are_alike():
    random = np.random.default_rng(1)
    some = scores(random.integers(1, 30, (40, 2, 2)))
    found, low_high = some.figures(), some.intervals()
    assert all(low < found[key] < high for key, (low, high) in low_high.items())
    assert low_high == some.intervals()
    assert low_high != some.intervals(seed=1)
    alike = scores(np.broadcast_to([[8, 1], [1, 10]], (5, 2, 2)))
    assert all(low == pytest.approx(high) for low, high in alike.intervals().values())


def test_a_figure_without_a_denominator_has_no_interval():
    interval = scores([[[4, 0], [0, 0]]] * 3).intervals()
    assert math.isnan(interval["iou"][0])
    assert interval["overall_accuracy"] == (1.0, 1.0)


def test_paired_differences():
    first, second = np.array([0.5, 0.7, np.nan, 0.9]), np.array([0.4, 0.6, 0.1, 0.8])
    mean, low, high = paired_interval(first, second)
    assert mean == low == high == pytest.approx(0.1)
    spread = np.linspace(-1, 1, 101)
    mean, low, high = paired_interval(spread, np.zeros(101))
    # the standard error of the mean is 0.583 / sqrt(101) = 0.058
    assert mean == pytest.approx(0)
    assert high == pytest.approx(1.96 * 0.058, abs=0.02)
    assert low == pytest.approx(-high, abs=0.03)
    assert all(math.isnan(v) for v in paired_interval([np.nan], [1.0]))


def values(k: int) -> np.ndarray:
    mask = np.zeros((8, 10), np.uint8)
    if k:
        mask[2:6, 2:6] = 1
    return mask


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    root = tmp_path / "chips"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for k in range(3):
        Image.fromarray(np.full((8, 10, 3), 50 * k, np.uint8)).save(root / f"images/chip{k}.png")
    for k in (1, 2):
        Image.fromarray(values(k) * np.uint8(255)).save(root / f"masks/chip{k}.png")
    (root / "labels.csv").write_text("image,label\nimages/chip0.png,0\nimages/chip1.png,1\nimages/chip2.png,1\n")
    return root


def write_labels(folder: Path, maps: dict[str, np.ndarray], classes: tuple[str, ...] = CLASSES) -> Path:
    writer = PseudoLabelWriter(folder, classes, {})
    for name, found in maps.items():
        image = np.zeros((*found.shape, 3), np.uint8)
        writer.write(name, image, LabelMap(found, np.ones(found.shape, np.float32), classes))
    writer.finish(tuple(maps))
    return folder


def moved(k: int) -> np.ndarray:
    found = np.roll(values(k), 2, axis=1)
    found[0] = IGNORE
    return found


def test_figures_of_all_chips_and_of_those_that_show_something(chips: Path, tmp_path: Path):
    found = write_labels(tmp_path / "pseudo", {f"chip{k}": moved(k) for k in (2, 0, 1)})
    found = score_chips(found, chips)
    assert found.names == ("chip0", "chip1", "chip2")
    tables = found.tables()
    # each mask of 16 px is hit in 8 and missed in 8, and 8 are false alarms; the first row is not judged
    for part in tables.values():
        assert part["iou"] == {"value": 8 / 24, "low": 8 / 24, "high": 8 / 24}
        assert part["f1"]["value"] == 0.5
    assert tables["all chips"]["overall_accuracy"]["value"] == pytest.approx(1 - 32 / 210)
    assert tables["chips that show something"]["overall_accuracy"]["value"] == pytest.approx(1 - 32 / 140)


def test_label_maps_agree_with_themselves(chips: Path, tmp_path: Path):
    found = write_labels(tmp_path / "pseudo", {f"chip{k}": values(k) for k in range(3)})
    assert score_chips(found, found).tables()["all chips"]["miou"]["value"] == 1
    assert score_chips(found, chips).tables()["all chips"]["miou"]["value"] == 1


def test_the_command_line_scores_chips(chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = write_labels(tmp_path / "pseudo", {f"chip{k}": moved(k) for k in range(3)})
    assert run(["evaluate", str(found), str(chips), "-q"]) == 0
    assert "chips that show something" in capsys.readouterr().out
    assert run(["evaluate", str(found), str(chips), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["all chips"]["recall"]["value"] == 0.5
    assert run(["evaluate", str(found), str(chips), "--layer", "slides", "-q"]) == 2


def test_what_cannot_be_compared(chips: Path, tmp_path: Path):
    found = write_labels(tmp_path / "few", {"chip0": values(0)})
    with pytest.raises(ChipError, match=r"2 of 3 chips are not in .*few, such as chip1"):
        score_chips(found, chips)
    found = write_labels(tmp_path / "other", {f"chip{k}": values(k) for k in range(3)}, ("background", "scar"))
    with pytest.raises(ChipError, match=r"knows scar, the masks show landslide"):
        score_chips(found, chips)
    found = write_labels(tmp_path / "small", {f"chip{k}": values(k)[:7] for k in range(3)})
    with pytest.raises(ChipError, match="label the same chips"):
        score_chips(found, chips)
    with pytest.raises(WeightsError, match="nor a student"):
        score_chips(chips / "labels.csv", chips)
