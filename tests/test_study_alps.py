"""The study of ALPS as pre-training, in miniature: a stand-in finds what is bright, a corner, and the whole image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geolabel.cli.main import run
from geolabel.datasets.chips import read_chips
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.engine import worker
from geolabel.errors import ChipError, OptionError
from geolabel.evaluation import study_alps
from geolabel.evaluation.study_alps import LESSONS, PAPER, AlpsStudy
from geolabel.extraction.request import Networks
from geolabel.io.downloads import sha256
from geolabel.labels import IGNORE
from geolabel.masks import FULL, FeaturedMasks, Masks
from geolabel.methods.alps import Settings
from geolabel.models.checkpoint import read_info
from geolabel.prompts import Prompts
from geolabel.training import students
from geolabel.training.fit import Schedule
from geolabel.training.presets import STUDENTS
from geolabel.training.samples import Cropping
from geolabel.types import UInt8Array

SMALL = replace(
    STUDENTS["cpu"],
    architectures={"resunet": {"name": "resunet", "widths": [16, 32]}},
    batch=4,
    cropping=Cropping(32, strength=0.0),
    schedule=Schedule(rate=1e-2, average=0.0, evaluations=1, fall="poly"),
)


class Finder:
    """Answers with what is bright, with a corner, and with the whole image; features are their brightness."""

    window = 64
    gsd_range = (0.01, 1000.0)
    calls = 0

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        self.calls += len(images)
        return [self._masks(image[..., 0], asked) for image, asked in zip(images, prompts, strict=True)]

    def _masks(self, grey: np.ndarray, prompts: Prompts) -> FeaturedMasks:
        corner = np.zeros(grey.shape, bool)
        corner[:6, :6] = True
        found = [mask for mask in (grey > 110, corner, np.ones(grey.shape, bool)) if mask.any()]
        features = np.asarray([[grey[mask].mean()] for mask in found], np.float32)
        ones = np.ones(len(found), np.float32)
        scores = np.stack(found).astype(np.uint8) * np.uint8(FULL)
        return FeaturedMasks(
            scores, ones, ones, prompts.ids[np.zeros(len(found), int)], np.ones(len(found), int), features
        )


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> Finder:
    part = Finder()
    monkeypatch.setattr(worker, "segmenter", lambda _: part)
    monkeypatch.setattr(students, "STUDENTS", {"cpu": SMALL, "paper": SMALL})
    return part


def write_chips(root: Path, count: int, prefix: str) -> Path:
    rows = ["image,label"]
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for k in range(count):
        rng = np.random.default_rng(k)
        image = rng.integers(0, 90, (48, 40, 3)).astype(np.uint8)
        if k % 2 == 0:
            mask = np.zeros((48, 40), np.uint8)
            row, col = rng.integers(8, (28, 20))
            mask[row : row + 18, col : col + 18] = 255
            image[mask > 0] += 120
            Image.fromarray(mask).save(root / f"masks/{prefix}{k}.png")
        Image.fromarray(image).save(root / f"images/{prefix}{k}.png")
        rows.append(f"images/{prefix}{k}.png,{int(k % 2 == 0)}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_chips(tmp_path / "data/train", 12, "a")
    write_chips(tmp_path / "data/val", 4, "b")
    write_chips(tmp_path / "data/other", 4, "c")
    return tmp_path / "data"


def study(data: Path, *more: str) -> int:
    return run(
        [
            "study",
            "alps",
            str(data / "train"),
            "--test",
            str(data / "val"),
            "--model",
            "resunet",
            "--clusters",
            "2",
            "-q",
            "--device",
            "cpu",
            "--steps",
            "4",
            "--masks",
            "2,4",
            *more,
        ]
    )


def test_every_row_is_a_lesson_of_the_paper() -> None:
    assert LESSONS.keys() == PAPER.keys()
    assert [lesson.gate for lesson in LESSONS.values() if lesson.gate] == [0.1, 0.3, 0.5, 0.7, 1.0]
    assert LESSONS["backbone"] == replace(LESSONS["gate 0.3"], gate=None)


def test_all_rows_are_measured_and_the_study_resumes(
    data: Path, tmp_path: Path, finder: Finder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    few = {
        name: LESSONS[name] for name in ("scratch", "backbone", "gate 0.3", "gate 1.0", "binary", "chained", "longer")
    }
    monkeypatch.setattr(study_alps, "LESSONS", few)
    given = [data, "--before", str(data / "other"), "--out", str(out), "--seeds", "2", "--max-share", "0.3", "--json"]
    assert study(*given) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [name for name in rows if name not in ("table", "plot")] == [
        f"{name}, {count} masks" for count in (2, 4) for name in few
    ]
    assert "gain" not in rows["scratch, 2 masks"]
    for name in few.keys() - {"scratch"}:
        figures = rows[f"{name}, 4 masks"]
        assert figures["gain"] == pytest.approx(figures["IoU"] - rows["scratch, 4 masks"]["IoU"])
        assert figures["minimum gain"] <= figures["gain"] <= figures["maximum gain"]
    assert rows["gate 0.3, 2 masks"]["IoU"] == rows["backbone, 2 masks"]["IoU"]
    assert rows["binary, 2 masks"]["paper, iSAID"] == 0.1003
    assert finder.calls == 12 + 4  # both sets, once for all gates
    assert (out / "alps.png").stat().st_size > 1000
    pretrained = {path.name: read_info(path / students.FILE).trained for path in (out / "taught").iterdir()}
    default = "gate 0.3"
    assert set(pretrained) == {
        "before",
        default,
        "gate 1.0",
        *(f"{default}, {more}" for more in ("binary", "chained", "4 times")),
    }
    assert (pretrained[default]["steps"], pretrained[f"{default}, 4 times"]["steps"]) == (4, 16)
    assert pretrained[f"{default}, chained"]["init"]["sha256"] == sha256(out / "taught" / "before" / students.FILE)
    assert pretrained[f"{default}, chained"]["init"]["share"] == "backbone"
    table = (out / "alps.md").read_bytes()
    (out / "tuned" / "scratch" / "2-1" / "figures.json").unlink()
    monkeypatch.setattr(worker, "segmenter", None)  # nothing is asked again
    assert study(*given) == 0
    assert (out / "alps.md").read_bytes() == table


def test_the_gate_decides_what_is_learned(data: Path, tmp_path: Path, finder: Finder) -> None:
    assert study(data, "--only", "gate 0.3", "--only", "gate 1.0", "--masks", "2", "--out", str(tmp_path / "out")) == 0
    labels = [PseudoLabels(tmp_path / f"out/labels/images/gate {gate}") for gate in (0.3, 1.0)]
    assert [(one.values == IGNORE).any() for one in (labels[0][0], labels[1][0])] == [True, False]
    binary = study_alps.Binary(labels[0])
    assert np.array_equal(binary[0].values == 0, labels[0][0].values == IGNORE)
    assert binary.classes == ("background", "object")


def study_of(data: Path, tmp_path: Path, **more: object) -> AlpsStudy:
    networks, student = Networks(device="cpu"), students.StudentRequest("resunet")
    chips = read_chips(data / "train")
    return AlpsStudy(chips, data / "train", tmp_path / "out", networks, student=student, **more)  # type: ignore[arg-type]


def test_what_is_judged_is_not_learned_from(data: Path, tmp_path: Path, finder: Finder) -> None:
    held = study_of(data, tmp_path, masks=(2,), settings=Settings(clusters="2"))
    judged = set(held._judged.names)
    assert judged
    names = held.chips.names
    for seed in range(3):
        few, more = (held._tuned_on(count, seed) for count in (2, 3))
        assert set(few) <= set(more)
        assert not judged & {names[k] for k in more}
        assert sum(held.chips.labels.any(axis=1)[few]) == 2
    assert not judged & {names[k] for k in held._unjudged(names)}


def test_what_cannot_be_studied_is_an_error(data: Path, tmp_path: Path, finder: Finder) -> None:
    with pytest.raises(OptionError, match="no row is called 'gates': known are scratch; overall"):
        study_of(data, tmp_path, only=("gates",), masks=(2,))
    with pytest.raises(OptionError, match="give --before FOLDER"):
        study_of(data, tmp_path, only=("chained",), masks=(2,))
    with pytest.raises(ChipError, match="7 masks to tune on"):
        study_of(data, tmp_path, test=read_chips(data / "val"), masks=(7,))
    assert study(data, "--only", "head", "--masks", "2", "--out", str(tmp_path / "out")) == 0
    assert study(data, "--only", "head", "--masks", "2", "--steps", "5", "--out", str(tmp_path / "out")) == 2
