"""Labelling a folder: every image once, going on after a stop, and the options of methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import dask
import numpy as np
import pytest
from PIL import Image

from geolabel.datasets.chips import read_chips
from geolabel.datasets.examples import ImageFolder
from geolabel.datasets.pseudo_labels import PseudoLabels, PseudoLabelWriter
from geolabel.engine.tasks import Silent, Weighed
from geolabel.errors import OptionError, OutputError, SceneError
from geolabel.labelers import UnionLabeler
from geolabel.labeling.label import _ChipImages, label_images, label_provenance
from geolabel.labels import LabelMap
from geolabel.methods import METHODS
from geolabel.parts import Pipeline, SegmenterRecipe, label_image
from geolabel.prompters import ContourPrompter
from geolabel.testing import FakeLocalizer, FakeSegmenter
from geolabel.types import UInt8Array

T = TypeVar("T")

CLASSES = ("background", "landslide")


@pytest.fixture
def chips(tmp_path: Path) -> ImageFolder:
    """Three images with one bright square each, the last larger than what the segmenter sees at once."""
    (tmp_path / "chips").mkdir()
    for number, side in enumerate((64, 96, 160)):
        pixels = np.zeros((side, side, 3), np.uint8)
        pixels[16:32, 8 : 24 + 8 * number] = 255
        Image.fromarray(pixels).save(tmp_path / "chips" / f"{number}.png")
    return ImageFolder(tmp_path / "chips")


def pipeline(_: Sequence[str], images: Sequence[UInt8Array]) -> list[LabelMap]:
    parts = Pipeline(FakeLocalizer(), ContourPrompter(), FakeSegmenter(), UnionLabeler())
    return [label_image(parts, image, 128) for image in images]


def test_a_pipeline_labels_a_folder(chips: ImageFolder, tmp_path: Path) -> None:
    writer = PseudoLabelWriter(tmp_path / "out", CLASSES, {"method": "test"})
    assert label_images(chips, pipeline, writer, progress=Silent()) == {"images": 3, "kept": 0, "classes": 2}
    found = PseudoLabels(tmp_path / "out")
    assert found.names == ("0", "1", "2")
    for one in found:
        assert np.array_equal(one.values == 1, one.image[..., 0] == 255)


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(chips: ImageFolder, tmp_path: Path) -> None:
    asked: list[str] = []

    def stopping(names: Sequence[str], images: Sequence[UInt8Array]) -> list[LabelMap]:
        asked.extend(names)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return pipeline(names, images)

    stopped, whole = (PseudoLabelWriter(tmp_path / name, CLASSES, {"method": "test"}) for name in ("a", "b"))
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(KeyboardInterrupt):
            label_images(chips, stopping, stopped, progress=Silent())
        with pytest.raises(SceneError, match="was stopped: run it again"):
            PseudoLabels(tmp_path / "a")
        assert label_images(chips, stopping, stopped, progress=Silent())["kept"] == 1
    assert asked == ["0", "1", "1", "2"]
    label_images(chips, pipeline, whole, progress=Silent())
    files = sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert len(files) == 9
    assert [(tmp_path / "a" / file).read_bytes() for file in files] == [
        (tmp_path / "b" / file).read_bytes() for file in files
    ]
    with pytest.raises(OutputError, match="give --overwrite"):
        label_images(chips, pipeline, whole, progress=Silent())


@dataclass(frozen=True)
class Settings:
    threshold: float = 0.5
    model: Path = Path("a.json")


@dataclass
class Weights(Silent):
    """Keeps what progress is told of the time that tasks take."""

    told: dict[str, Sequence[float]] = field(default_factory=dict)

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through."""
        self.told[name] = results.weights if isinstance(results, Weighed) else [1.0] * total
        return iter(results)


def test_progress_knows_how_long_images_take(chips: ImageFolder, tmp_path: Path) -> None:
    assert [chips.tiles(index, 100) for index in range(3)] == [1, 1, 4]
    (chips.root / "0.png").write_bytes(b"no header")
    assert chips.tiles(0, 100) == 1
    told, writer = Weights(), PseudoLabelWriter(tmp_path / "out", CLASSES, {"method": "test"})
    two = [SegmenterRecipe("none", batch=2)]
    (chips.root / "0.png").write_bytes((chips.root / "1.png").read_bytes())
    label_images(chips, pipeline, writer, networks=two, weigh=lambda k: chips.tiles(k, 100), progress=told)
    assert told.told == {"label": [2, 4]}


def test_a_chip_takes_as_long_as_it_is_large_and_one_that_shows_nothing_no_time(tmp_path: Path) -> None:
    for name, side in (("a/1", 100), ("a/2", 300), ("none/3", 300)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{name}.png")
    found = read_chips(tmp_path)
    shown = replace(found, classes=("a",), labels=found.labels[:, :1])
    small, large, none = map(_ChipImages(shown).weigh, range(3))
    assert large - small == 80_000
    assert none < small / 20


def test_provenance_is_plain_and_changes_with_everything(chips: ImageFolder) -> None:
    recipe = SegmenterRecipe("bundled", "0" * 64)
    facts = label_provenance("test", Settings(), [recipe], chips)
    assert facts["settings"] == {"threshold": 0.5, "model": "a.json"}
    assert facts["networks"]["segmenter"]["source"] == "bundled"
    assert label_provenance("test", Settings(0.4), [recipe], chips) != facts


def test_a_method_takes_its_own_options_only() -> None:
    method = METHODS["diffuprompter"]
    assert method.settings({"threshold": 0.3, "crf": None, "clusters": None}).threshold == 0.3
    with pytest.raises(OptionError, match="--clusters"):
        method.settings({"clusters": 3})


def test_every_method_is_there_and_its_options_are_options_of_the_command() -> None:
    from dataclasses import fields

    from geolabel.cli.label import label

    named = {option.name for option in label.params}
    for name, method in METHODS.items():
        if method.for_chips is None:
            continue
        assert {field.name for field in fields(type(method.settings({})))} <= named, name
        assert callable(method.label)
