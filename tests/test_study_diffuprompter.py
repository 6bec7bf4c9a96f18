"""The study of DiffuPrompter's numbers, on a tiny network of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="needs the extra geolabel[diffusion]")
pytest.importorskip("transformers", reason="needs the extra geolabel[diffusion]")

from geolabel.cli.main import run
from geolabel.datasets.pseudo_labels import PseudoLabelWriter
from geolabel.evaluation.study_diffuprompter import Once
from geolabel.labels import BACKGROUND, LabelMap
from geolabel.testing import FakeLocalizer, write_diffusion


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusion(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images: a landslide, an airplane, and neither."""
    folder = tmp_path_factory.mktemp("labels") / "pseudo"
    writer = PseudoLabelWriter(folder, (BACKGROUND, "landslide", "airplane"), {"method": "test"})
    for k, name in enumerate(("none", "slide", "plane")):
        values = np.zeros((96, 96), np.uint8)
        values[20:60, 30:70] = (0, 1, 2)[k]
        image = np.random.default_rng(k).integers(0, 256, (96, 96, 3)).astype(np.uint8)
        writer.write(name, image, LabelMap(values, np.ones(values.shape, np.float32), writer.classes))
    writer.finish(["none", "slide", "plane"])
    return folder


def study(*arguments: object) -> int:
    return run(["study", "diffuprompter", *map(str, arguments), "--threads", "1"])


def test_every_row_is_measured_once(
    model: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    given = [labels, "--out", out, "--diffusion", model, "--timesteps", "30", "--draws", "1", "--thresholds", "0.4,0.6"]
    assert study(*given, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    names = [
        f"t {t}, L {n}, threshold {g}, {way}"
        for t, n in ((30, 50), (40, 1))
        for g in (0.4, 0.6)
        for way in ("masks", "map alone")
    ]
    assert [name for name in rows if name not in ("table", "plot")] == names
    assert all(0 <= rows[name]["IoU"] <= 1 for name in names)
    assert rows[names[0]]["AP of the paper's Mask R-CNN"] == 0.205
    assert (out / "diffuprompter.png").stat().st_size > 1000
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("t*.json")}
    assert set(kept) == {"t30-L50.json", "t40-L1.json"}
    assert study(*given) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("t*.json")} == kept
    assert study(*given, "--template", "A map of {}.") == 2
    assert "was measured with words template" in capsys.readouterr().err


def test_a_study_needs_the_classes_of_the_images(
    model: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [labels, "--out", tmp_path / "study", "--diffusion", model]
    assert study(*given, "--classes", "landslide") == 2
    assert "the images show landslide, airplane" in capsys.readouterr().err
    assert study(*given, "--thresholds", "0.4,1.5") == 2
    assert "between 0 and 1" in capsys.readouterr().err
    assert study(*given, "--draws", "few") == 2
    assert "give numbers with commas" in capsys.readouterr().err


def test_a_picture_is_seen_once() -> None:
    seen = []

    def note(image: np.ndarray) -> np.ndarray:
        seen.append(image.shape)
        return image.mean(axis=2, dtype=np.float32) / 255

    once = Once(FakeLocalizer(function=note))
    image = np.zeros((16, 16, 3), np.uint8)
    first, other, again = once([image, image + 1, image])
    assert len(seen) == 2
    assert first is again
    assert other is not first
    assert once.window == 64
