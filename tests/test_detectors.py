"""Detectors: AP by hand, crops with objects, and a training of a few steps on what geolabel label writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator

from geolabel.cli.main import run
from geolabel.datasets.instances import CocoInstances, read_instances
from geolabel.datasets.pseudo_labels import PseudoLabelWriter
from geolabel.errors import ChipError, OptionError, WeightsError
from geolabel.labels import BACKGROUND, LabelMap, closed_regions
from geolabel.models import registry
from geolabel.models.checkpoint import read_info
from geolabel.models.nets.student import build_detector
from geolabel.training.average_precision import NAMES, AveragePrecision, ScoredMasks
from geolabel.training.detectors import FILE, MAX_OBJECTS, DetectorLosses, DetectorRequest, crop_objects, detect
from geolabel.training.fit import Schedule
from geolabel.training.presets import DETECTORS, DetectorPreset
from geolabel.training.samples import Cropping
from geolabel.training.train import train


def label_map(*squares: tuple[int, int, int, int], size: int = 160) -> LabelMap:
    """Squares (row, col, side, class) on background."""
    values = np.zeros((size, size), np.uint8)
    for row, col, side, value in squares:
        values[row : row + side, col : col + side] = value
    return LabelMap(values, np.ones(values.shape, np.float32), (BACKGROUND, "slide", "pond"))


def found(*squares: tuple[int, int, int, int, float], size: int = 160) -> ScoredMasks:
    masks = [label_map(square[:4], size=size).values > 0 for square in squares]
    return ScoredMasks(
        np.stack(masks) if masks else np.zeros((0, size, size), bool),
        np.asarray([square[3] for square in squares], np.int32),
        np.asarray([square[4] for square in squares], np.float32),
    )


# --- average precision


def test_what_is_found_exactly_has_an_ap_of_one() -> None:
    counted = AveragePrecision(2)
    truth = closed_regions(label_map((0, 0, 20, 1), (40, 40, 50, 2), (100, 20, 8, 1)))
    counted.add(truth, ScoredMasks.of(truth))
    assert counted.figures() == pytest.approx(
        {"AP": 1, "AP50": 1, "AP75": 1, "APs": 1, "APm": 1, "APl": math.nan}, nan_ok=True
    )


def test_an_object_of_an_iou_of_a_little_over_a_half_counts_at_the_lowest_threshold_only() -> None:
    counted = AveragePrecision(1)
    truth = closed_regions(label_map((0, 0, 100, 1)))
    counted.add(truth, found((0, 0, 73, 1, 0.9)))  # .5329
    figures = counted.figures()
    assert figures["AP50"] == pytest.approx(1)
    assert figures["AP75"] == 0
    assert figures["AP"] == pytest.approx(0.1)
    assert figures["APl"] == pytest.approx(0.1)
    assert math.isnan(figures["APs"])


def test_a_surer_false_alarm_halves_the_precision() -> None:
    counted = AveragePrecision(1)
    counted.add(closed_regions(label_map((0, 0, 40, 1))), found((0, 0, 40, 1, 0.5), (100, 100, 40, 1, 0.9)))
    assert counted.figures()["AP50"] == pytest.approx(0.5)


def test_nothing_found_and_nothing_there() -> None:
    counted = AveragePrecision(1)
    assert all(math.isnan(value) for value in counted.figures().values())
    counted.add(closed_regions(label_map((0, 0, 40, 1))), found())
    figures = counted.figures()
    assert set(figures) == set(NAMES)
    assert (figures["AP"], figures["APm"]) == (0, 0)
    assert math.isnan(figures["APs"])


# --- crops


def test_a_crop_keeps_image_and_objects_together() -> None:
    values = label_map((10, 10, 30, 1), (100, 90, 20, 2), (60, 60, 2, 1))
    image = np.repeat((values.values * 100)[..., None], 3, axis=2)
    for seed in range(8):
        rgb, ids, class_ids = crop_objects(
            image, closed_regions(values), Cropping(96, strength=0.0), np.random.default_rng(seed)
        )
        assert (rgb.shape, ids.shape, class_ids.shape) == ((96, 96, 3), (96, 96), (MAX_OBJECTS,))
        count = int((class_ids > 0).sum())
        assert set(np.unique(ids).tolist()) | {0} == set(range(count + 1))
        for number in range(1, count + 1):
            assert set(rgb[ids == number].ravel().tolist()) == {100 * class_ids[number - 1]}
            assert (ids == number).sum() >= 9  # the speck of four pixels is no object


def test_the_padding_of_a_small_image_holds_no_object() -> None:
    values = label_map((0, 0, 40, 1), size=40)
    image = np.full((40, 40, 3), 200, np.uint8)
    rgb, ids, _ = crop_objects(image, closed_regions(values), Cropping(64, strength=0.0), np.random.default_rng(0))
    assert ((ids > 0) == (rgb[..., 0] == 200)).all()
    assert (ids > 0).sum() == 40 * 40


def test_boxes_of_the_losses_hold_their_masks() -> None:
    seen: list[Any] = []

    class Recorder(torch.nn.Module):
        def forward(self, images: list[torch.Tensor], targets: list[Any]) -> dict[str, torch.Tensor]:
            seen.extend(targets)
            return {}

    losses = DetectorLosses(Recorder())
    objects = closed_regions(label_map((10, 20, 30, 1), (100, 90, 20, 2)))
    class_ids = torch.zeros(2, 5, dtype=torch.int32)
    class_ids[0, :2] = torch.from_numpy(objects.class_ids)
    ids = torch.stack([torch.from_numpy(objects.ids), torch.zeros(160, 160, dtype=torch.int32)])
    losses(torch.zeros(2, 3, 160, 160, dtype=torch.uint8), ids, class_ids)
    assert seen[0]["boxes"].tolist() == [[20, 10, 50, 40], [90, 100, 110, 120]]
    assert seen[0]["labels"].tolist() == [1, 2]
    assert seen[0]["masks"].sum(dim=(1, 2)).tolist() == [900, 400]
    assert (seen[1]["boxes"].shape, seen[1]["masks"].shape) == ((0, 4), (0, 160, 160))


# --- reading


def write_coco(folder: Path) -> Path:
    (folder / "images").mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 50}],
        "categories": [{"id": 9, "name": "pond"}, {"id": 4, "name": "slide"}],
        "annotations": [
            {"image_id": 7, "category_id": 9, "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]]},
            {"image_id": 7, "category_id": 4, "segmentation": {"size": [40, 50], "counts": [0, 10, 1990]}},
            {"image_id": 7, "category_id": 4, "iscrowd": 1, "segmentation": {"size": [40, 50], "counts": [0, 2000]}},
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_coco_file_is_understood(tmp_path: Path) -> None:
    examples = CocoInstances(write_coco(tmp_path))
    assert examples.classes == ("slide", "pond")
    image, objects = examples[0]
    assert image.shape == (40, 50, 3)
    assert objects.class_ids.tolist() == [2, 1]
    assert objects.areas.tolist() == [200, 10]
    assert objects.mask(0)[10:20, 10:30].all()
    assert objects.mask(1)[:10, 0].all()


def test_pseudo_labels_and_their_coco_file_hold_the_same(tmp_path: Path) -> None:
    labels = pseudo_labels(tmp_path / "pseudo", 2)
    as_maps, as_coco = read_instances(labels), read_instances(labels / "instances.json")
    assert as_maps.classes == as_coco.classes == ("slide", "pond")
    for index in range(2):
        (image, one), (same, two) = as_maps[index], as_coco[index]
        assert (image == same).all()
        assert (one.ids == two.ids).all()
        assert one.class_ids.tolist() == two.class_ids.tolist()


@pytest.mark.parametrize(
    ("content", "message"), [("{", "cannot be read"), ("[]", "lacks"), ('{"images": [], "annotations": []}', "lacks")]
)
def test_what_is_no_coco_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ChipError, match=message):
        read_instances(path)


def test_chips_without_masks_have_no_objects(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels.csv").write_text("image,label\nimages/a.png,1\n", encoding="utf-8")
    with pytest.raises(ChipError, match="none of the chips has a mask"):
        assert read_instances(tmp_path).names


# --- training


def pseudo_labels(folder: Path, count: int) -> Path:
    """Bright squares, all of them labelled."""
    writer = PseudoLabelWriter(folder, (BACKGROUND, "slide", "pond"), {"method": "test"})
    names = [f"image{k}" for k in range(count)]
    for k, name in enumerate(names):
        labels = label_map((20 + k, 30, 40, 1), (90, 80 + k, 30, 2), size=128)
        image = np.repeat((labels.values * 90 + 40)[..., None], 3, axis=2)
        writer.write(name, image, labels)
    writer.finish(names)
    return folder


SMALL = {"backbone": "resnet18", "anchors": [16, 32, 64, 128, 256], "proposals": 20, "detections": 5, "sampled": 8}
PRESET = DetectorPreset(
    architecture={"backbone": "tiny"},
    epochs=1,
    batch=1,
    cropping=Cropping(64, strength=0.0),
    schedule=Schedule(rate=1e-3),
)


def build_tiny(classes: int, **_: object) -> nn.Module:
    """Mask R-CNN with a fiftieth of the weights, since a training writes all of them several times."""
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=16), nn.ReLU())
    trunk.out_channels = 8  # type: ignore[assignment]
    return MaskRCNN(
        trunk,
        rpn_anchor_generator=AnchorGenerator(((16, 32, 64),)),
        box_head=TwoMLPHead(8 * 7**2, 16),
        box_predictor=FastRCNNPredictor(16, classes + 1),
        mask_head=MaskRCNNHeads(8, (8,), 1),
        mask_predictor=MaskRCNNPredictor(8, 8, classes + 1),
        rpn_post_nms_top_n_test=20,
        box_detections_per_img=5,
        box_batch_size_per_image=8,
        _skip_resize=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, float]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geolabel.models.nets.student.build_detector", build_tiny)
        yield _trained(tmp_path_factory)


def _trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("detector")
    labels = pseudo_labels(folder / "pseudo", 2)
    request = DetectorRequest(epochs=1)
    return folder, train(labels, folder / "out", request, preset=PRESET)


def test_a_training_leaves_a_detector_and_its_figures(trained: tuple[Path, dict[str, float]]) -> None:
    folder, figures = trained
    assert set(NAMES) <= set(figures)
    assert figures["steps"] == 2
    info = read_info(folder / "out" / FILE)
    assert (info.kind, info.classes, info.window) == ("detector", ("slide", "pond"), 64)
    losses = (folder / "out" / "curves.csv").read_text(encoding="utf-8").splitlines()
    assert {"loss_mask", "loss_classifier", "loss_objectness"} <= set(losses[0].split(","))


def test_a_detector_is_tuned_on_a_share_of_others(trained: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder, _ = trained
    request = DetectorRequest(epochs=0.1, init=("overall", folder / "out" / FILE), share=0.6)
    figures = train(
        folder / "pseudo", tmp_path / "tuned", request, preset=PRESET, test=folder / "pseudo" / "instances.json"
    )
    info = read_info(tmp_path / "tuned" / FILE)
    first = read_info(folder / "out" / FILE)
    assert info.architecture == first.architecture
    assert info.trained["init"]["share"] == "overall"
    assert info.trained["images"] in (1, 2)
    assert set(NAMES) <= set(figures)


def test_what_a_detector_cannot_be_made_of(trained: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder, _ = trained
    with pytest.raises(OptionError, match="multiples of 32"):
        DetectorRequest(size=100)
    other = write_coco(tmp_path)
    with pytest.raises(ChipError, match="the test shows slide, lake, the training slide, pond"):
        train(folder / "pseudo", tmp_path / "out", DetectorRequest(), preset=PRESET, test=_renamed(other))
    first = ("overall", folder / "out" / FILE)
    with pytest.raises(OptionError, match="give the same --model and --preset"):
        train(other, tmp_path / "out", DetectorRequest(init=first))
    bundled = registry.lookup("bundled", "localizer")[0].path
    with pytest.raises(WeightsError, match="holds a localizer, not a detector"):
        train(folder / "pseudo", tmp_path / "out", DetectorRequest(init=("overall", bundled)), preset=PRESET)


def _renamed(path: Path) -> Path:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["categories"][0]["name"] = "lake"
    other = path.with_name("renamed.json")
    other.write_text(json.dumps(content), encoding="utf-8")
    return other


def test_a_detector_sees_an_image_at_its_own_scale() -> None:
    torch.manual_seed(0)
    detector = build_detector(2, **SMALL).train()
    seen = detect(detector, np.zeros((70, 90, 3), np.uint8))
    assert seen.masks.shape[1:] == (70, 90)
    assert detector.training  # as it was
    inside, _ = detector.transform([torch.zeros(3, 64, 96)])
    assert inside.image_sizes == [(64, 96)]


def test_the_presets_can_be_built() -> None:
    assert all(build_detector(1, **preset.architecture) for preset in DETECTORS.values())


def test_the_command_refuses_before_it_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / FILE).write_bytes(b"x")
    train = ["train", "student", "--model", "maskrcnn"]
    assert run([*train, str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "exists: choose another --out" in capsys.readouterr().err
    assert run([*train, str(tmp_path / "none.json"), "--out", str(tmp_path / "out")]) == 1
    assert "none.json: there is no such file" in capsys.readouterr().err
