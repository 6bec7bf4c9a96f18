"""Label maps and students scored against the masks of chips."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geolabel.cli.main import run
from geolabel.datasets.pseudo_labels import PseudoLabelWriter
from geolabel.errors import ChipError, WeightsError
from geolabel.evaluation.chip_scores import score_chips
from geolabel.labels import IGNORE, LabelMap

CLASSES = ("background", "landslide")


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
    scores = score_chips(found, chips)
    assert scores.names == ("chip0", "chip1", "chip2")
    tables = scores.tables()
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
    with pytest.raises(WeightsError, match="no student"):
        score_chips(chips / "labels.csv", chips)
