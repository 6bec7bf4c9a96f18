"""Nothing is encoded twice or for nothing: images that the encoder of a segmenter sees, counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geolabel.datasets.chips import read_chips
from geolabel.engine import worker
from geolabel.engine.tasks import Silent
from geolabel.evaluation.studies import _grid_masks
from geolabel.extraction.request import Networks
from geolabel.labelers import ConfidenceLabeler
from geolabel.labeling.regions import segment_maps
from geolabel.masks import Filters
from geolabel.methods import apsam
from geolabel.models import on_torch
from geolabel.models.engines import bucket
from geolabel.models.nets.sam import ConvEncoder
from geolabel.prompters import PeakPrompter
from geolabel.training.s2c import prompted_targets

TORCH = Networks(engine="torch", device="cpu", batch=4)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the batches that encoders are given, padding included."""
    sizes: list[int] = []
    forward = ConvEncoder.forward

    def counted(self: ConvEncoder, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(ConvEncoder, "forward", counted)
    monkeypatch.setattr(on_torch, "ImageEncoderViT", ())  # the class of none
    worker._load.cache_clear()
    yield sizes
    worker._load.cache_clear()


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Eleven chips of several sizes, five of which show a landslide: bright ground in dark forest."""
    random = np.random.default_rng(0)
    for number in range(11):
        label = "landslide" if number % 2 else "none"
        (tmp_path / "chips" / label).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(20, 60, (48 + number, 56, 3)).astype(np.uint8)
        pixels[12:36, 12:40] += np.uint8(140 if number % 2 else 0)
        Image.fromarray(pixels).save(tmp_path / "chips" / label / f"{number:02}.png")
    return tmp_path / "chips"


def test_a_chip_that_is_asked_about_is_encoded_once_in_batches(chips: Path, tmp_path: Path, encoded: list[int]) -> None:
    settings = apsam.Settings(single_scale=True, activation_threshold=1)
    apsam.label(chips, tmp_path / "out", settings, TORCH, overwrite=False, progress=Silent())
    assert sorted(encoded) == [1, 4]  # batches run side by side, in any order; six chips show nothing


def test_the_maps_of_segments_encode_each_chip_once(chips: Path, tmp_path: Path, encoded: list[int]) -> None:
    _, recipe = TORCH.recipes()
    known = read_chips(chips)
    segment_maps(known, recipe, tmp_path / "maps", filters=Filters(), points_per_side=1, progress=Silent())
    assert encoded == [1] * 11


def test_masks_of_peaks_in_a_training_encode_each_crop_once(encoded: list[int]) -> None:
    segmenter = worker.segmenter(TORCH.recipes()[1])
    targets = prompted_targets(PeakPrompter(), segmenter, ConfidenceLabeler(), ("landslide",))
    images = list(np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3)).astype(np.uint8))
    maps, labels = torch.rand((6, 1, 8, 8)), torch.tensor([[1], [1], [0], [1], [1], [1.0]])
    found = targets(images, maps, labels)
    assert found.shape == (6, 32, 32)
    assert not found[2].any()
    assert encoded == [4, 1]


def test_a_study_encodes_an_image_once(encoded: list[int]) -> None:
    segmenter = worker.segmenter(TORCH.recipes()[1].everything(Filters()))
    _grid_masks(segmenter, np.zeros((40, 30, 3), np.uint8))
    assert encoded == [1]


def test_few_images_are_filled_up_to_a_power_of_two() -> None:
    assert [bucket(count, 6) for count in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 4, 6, 6]
