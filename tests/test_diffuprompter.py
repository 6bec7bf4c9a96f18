"""DiffuPrompter: the path after the map by hand, and ``geolabel label`` on a tiny network of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geolabel.activation import Activation
from geolabel.cli.main import run
from geolabel.concepts import Grounding, parse_concepts
from geolabel.datasets.examples import ImageFolder
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.errors import OptionError
from geolabel.labels import closed_regions
from geolabel.masks import FULL, Masks
from geolabel.methods.diffuprompter import Settings, compose, grey_level, shown_classes
from geolabel.parts import Segmenter
from geolabel.prompts import Prompts
from geolabel.testing import FakeLocalizer, write_diffusion


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers", reason="needs the extra geolabel[diffusion]")
    pytest.importorskip("transformers", reason="needs the extra geolabel[diffusion]")
    return write_diffusion(tmp_path_factory.mktemp("tiny") / "model")


class ThreeCandidates:
    """Answers a box with its upper half, itself, and itself with a border of four pixels; sure of the first only."""

    window = 128
    gsd_range = (0.01, 1000.0)

    def __call__(self, images: Any, prompts: Any) -> list[Masks]:
        return [self._of(image.shape[:2], asked) for image, asked in zip(images, prompts, strict=True)]

    def _of(self, size: tuple[int, int], prompts: Prompts) -> Masks:
        filled = np.zeros((len(prompts), 3, *size), np.uint8)
        for k, (x0, y0, x1, y1) in enumerate(prompts.boxes.astype(int)):
            filled[k, 0, y0 : (y0 + y1) // 2, x0:x1] = FULL
            filled[k, 1, y0:y1, x0:x1] = FULL
            filled[k, 2, max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4] = FULL
        count = len(prompts) * 3
        return Masks(
            filled.reshape(count, *size),
            predicted_iou=np.tile(np.asarray([1, 0.5, 0.1], np.float32), len(prompts)),
            stability=np.ones(count, np.float32),
            prompt_ids=np.repeat(prompts.ids, 3),
            candidates=np.tile(np.arange(1, 4), len(prompts)),
        )


_segmenter: Segmenter = ThreeCandidates()


def two_squares() -> np.ndarray:
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:24, 8:24] = 255
    image[40:56, 32:56] = 255
    return image


def test_every_component_gets_the_candidate_most_like_it_and_becomes_an_instance() -> None:
    labels = compose(FakeLocalizer(stride=1), ThreeCandidates(), 0.4)(two_squares())
    assert (labels.values == (two_squares()[..., 0] > 0)).all()
    objects = closed_regions(labels)
    assert objects.areas.tolist() == [16 * 16, 16 * 24]
    assert objects.scores.tolist() == [1, 1]


def test_attention_only_labels_what_exceeds_the_threshold() -> None:
    def half(image: np.ndarray) -> np.ndarray:
        return np.where(image[..., 0] > 0, np.float32(0.5), np.float32(0.4))

    pipeline = compose(FakeLocalizer(stride=1, function=half), ThreeCandidates(), 0.4, attention_only=True)
    assert (pipeline(two_squares()).values == (two_squares()[..., 0] > 0)).all()


@pytest.mark.parametrize(("threshold", "level"), [(0.3, 76), (0.4, 102), (0.5, 127), (0.2, 51)])
def test_prompts_and_labels_have_one_threshold(threshold: float, level: int) -> None:
    assert grey_level(threshold) == level
    grey = np.arange(256, dtype=np.float32).reshape(1, 1, 256) / 255
    seen = Activation(grey, np.ones_like(grey), np.ones(1, np.float32), 1, ("x",))
    labels = compose(FakeLocalizer(), ThreeCandidates(), threshold, attention_only=True).labeler(
        Masks.none(1, 256), Prompts.build(), seen
    )
    assert int(np.argmax(labels.values[0])) == level + 1


def test_settings_that_cannot_be() -> None:
    with pytest.raises(OptionError, match=r"threshold 1\.0"):
        Settings(threshold=1.0)
    with pytest.raises(OptionError, match="landslide is given for two classes"):
        Settings(classes="landslide,landslide")


# --- what images are known to show


def chips(folder: Path, **images: tuple[str, ...]) -> Path:
    random = np.random.default_rng(0)
    for place, names in images.items():
        (folder / place).mkdir(parents=True)
        for name in names:
            pixels = random.integers(0, 256, (128, 128, 3), np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{name}.png")
    return folder


def asked(text: str) -> Grounding:
    return Grounding(parse_concepts(text))


def test_folders_say_what_an_image_shows(tmp_path: Path) -> None:
    root = chips(tmp_path, Storage_Tank=("a", "b"), airplane=("c",), forest=("d",))
    known = shown_classes(ImageFolder(root), asked("airplane,tank/storage tank"))
    assert known == {
        "Storage_Tank__a": ("tank",),
        "Storage_Tank__b": ("tank",),
        "airplane__c": ("airplane",),
        "forest__d": (),
    }


def test_folders_that_name_no_class_say_nothing(tmp_path: Path) -> None:
    root = chips(tmp_path, summer=("a",), winter=("b",))
    assert shown_classes(ImageFolder(root), asked("landslide")) == {}


def test_a_table_says_what_an_image_shows(tmp_path: Path) -> None:
    root = chips(tmp_path, images=("a", "b"))
    (root / "labels.csv").write_text("image,label\nimages/a.png,1\nimages/b.png,0\n", encoding="utf-8")
    assert shown_classes(ImageFolder(root), asked("landslide,airplane")) == {"a": ("landslide",), "b": ()}


# --- the command


def label(*arguments: Any) -> int:
    return run(["label", *map(str, arguments), "--method", "diffuprompter", "--threads", "1"])


def test_label_writes_maps_and_instances(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = chips(tmp_path / "chips", landslide=("a",), airplane=("b",), river=("c",))
    options = ["--classes", "landslide/mudslide,airplane", "--diffusion", model, "--draws", 2]
    assert label(root, "--out", tmp_path / "out", *options, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["images"], figures["classes_known_of"]) == (3, 3)
    labels = PseudoLabels(tmp_path / "out")
    assert labels.classes == ("background", "landslide", "airplane")
    of = {name: set(np.unique(labels[k].values).tolist()) for k, name in enumerate(labels.names)}
    assert of["landslide__a"] <= {0, 1}
    assert of["airplane__b"] <= {0, 2}
    assert of["river__c"] == {0}
    assert labels.provenance["networks"]["localizer"]["grounding"]["draws"] == 2
    coco = json.loads(labels.coco.read_text(encoding="utf-8"))
    assert [thing["name"] for thing in coco["categories"]] == ["landslide", "airplane"]
    assert {entry["category_id"] for entry in coco["annotations"]} <= {1, 2}


def test_larger_images_are_labelled_in_tiles_and_the_same_command_gives_the_same_bytes(
    model: Path, tmp_path: Path
) -> None:
    root = tmp_path / "chips"
    root.mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 200, 3), np.uint8)).save(root / "wide.png")
    for out, more in (("one", ["--no-crf"]), ("two", ["--no-crf"]), ("refined", [])):
        options = ["--diffusion", model, "--draws", 2, "--attention-only", *more]
        assert label(root, "--out", tmp_path / out, *options) == 0
    one, two, refined = ((tmp_path / out / "labels" / "wide.png").read_bytes() for out in ("one", "two", "refined"))
    assert one == two != refined
    values = PseudoLabels(tmp_path / "one")[0].values
    assert values.shape == (150, 200)
    assert set(np.unique(values).tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--classes", "landslide,landslide"], 2, "landslide is given for two classes"),
        (["--classes", "滑坡"], 2, "tokenizer does not know '滑坡'"),
        (["--timestep", "1000"], 2, "the network's schedule ends at 999"),
        (["--template", "Photo"], 2, "one {}"),
        (["--attention-only", "--sam", "bundled"], 2, "--sam bundled: --attention-only uses no segmenter"),
        (["--diffusion", "no/such/model"], 1, "no/such/model is neither a folder"),
    ],
)
def test_bad_input_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    root = chips(tmp_path / "chips", images=("a",))
    given = options if "--diffusion" in options else ["--diffusion", str(model), *options]
    assert label(root, "--out", tmp_path / "out", *given) == code
    error = capsys.readouterr().err
    assert message in error
    rest = [line for line in error.splitlines() if message not in line]
    assert rest in ([], ["preparing"], ["preparing", "label: 1 task"])


def test_without_network_and_weights_there_are_two_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("GEOLABEL_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    root = chips(tmp_path / "chips", images=("a",))
    assert label(root, "--out", tmp_path / "out", "--diffusion", "nobody/nothing") == 1
    error = capsys.readouterr().err
    assert "GEOLABEL_OFFLINE forbids downloads: run hf download nobody/nothing" in error
    assert "or give the folder of a downloaded model with --diffusion FOLDER" in error
