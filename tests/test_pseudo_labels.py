"""Pseudo-labels on disk: what is written is read back, a stopped run goes on, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geolabel.datasets.pseudo_labels import PseudoLabels, PseudoLabelWriter, unique_names
from geolabel.errors import OptionError, OutputError, SceneError
from geolabel.labels import LabelMap, from_run_lengths

CLASSES = ("background", "slide")
PROVENANCE = {"method": "test", "seed": 3}


def image(seed: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def labels(size: tuple[int, int] = (6, 8)) -> LabelMap:
    values = np.zeros(size, np.uint8)
    values[1:3, 2:5] = 1
    values[5, 7] = 1
    values[0, 0] = 255
    return LabelMap(values, np.full(size, 0.5, np.float32), CLASSES)


def write(root: Path, names: tuple[str, ...] = ("a", "b"), **options: object) -> PseudoLabelWriter:
    writer = PseudoLabelWriter(root, CLASSES, PROVENANCE, **options)  # type: ignore[arg-type]
    writer.start()
    for seed, name in enumerate(names):
        writer.write(name, image(seed), labels())
    return writer


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "out").finish(["a", "b"], {"images": 2})
    found = PseudoLabels(tmp_path / "out")
    assert (found.names, found.classes, found.provenance) == (("a", "b"), CLASSES, PROVENANCE)
    assert found.results == {"images": 2}
    for seed, one in enumerate(found):
        assert np.array_equal(one.image, image(seed))
        assert np.array_equal(one.values, labels().values)
    assert [one.name for one in found[:1]] == ["a"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "images", "labels", "instances.json", "manifest.json"
    }  # fmt: skip


def test_instances_are_coco(tmp_path: Path) -> None:
    write(tmp_path, min_area=1).finish(["a", "b"])
    coco = json.loads((tmp_path / "instances.json").read_text(encoding="utf-8"))
    assert [(one["id"], one["name"]) for one in coco["categories"]] == [(1, "slide")]
    assert [one["file_name"] for one in coco["images"]] == ["images/a.png", "images/b.png"]
    assert [(one["id"], one["image_id"]) for one in coco["annotations"]] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    first = coco["annotations"][0]
    assert (first["bbox"], first["area"], first["score"]) == ([2, 1, 3, 2], 6, 0.5)
    mask = from_run_lengths(first["segmentation"]["counts"], *first["segmentation"]["size"])
    expected = np.zeros((6, 8), bool)
    expected[1:3, 2:5] = True
    assert np.array_equal(mask, expected)


def test_a_folder_without_images_is_a_valid_result(tmp_path: Path) -> None:
    write(tmp_path, ()).finish([])
    assert len(PseudoLabels(tmp_path)) == 0
    assert json.loads((tmp_path / "instances.json").read_text(encoding="utf-8"))["annotations"] == []


def test_same_input_same_bytes_however_often_it_was_stopped(tmp_path: Path) -> None:
    write(tmp_path / "once").finish(["a", "b"])
    write(tmp_path / "twice", ("a",))
    writer = PseudoLabelWriter(tmp_path / "twice", CLASSES, PROVENANCE)
    writer.start()
    assert (writer.has("a"), writer.has("b")) == (True, False)
    writer.write("b", image(1), labels())
    writer.finish(["a", "b"])
    files = sorted(path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*.*"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


def test_another_run_does_not_go_on_with_this_one(tmp_path: Path) -> None:
    write(tmp_path, ("a",))
    other = PseudoLabelWriter(tmp_path, CLASSES, {"method": "test", "seed": 4})
    with pytest.raises(OutputError, match="the beginning of another run"):
        other.start()
    other.start(overwrite=True)
    assert not other.has("a")


def test_finished_labels_and_other_things_stay(tmp_path: Path) -> None:
    writer = write(tmp_path / "done")
    writer.finish(["a", "b"])
    with pytest.raises(OutputError, match="finished pseudo-labels: give --overwrite"):
        writer.start()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="holds other things"):
            PseudoLabelWriter(tmp_path / "photos", CLASSES, {}).start(overwrite=overwrite)
    assert (tmp_path / "photos" / "me.jpg").exists()


def test_unfinished_and_missing_folders_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "begun", ("a",))
    with pytest.raises(SceneError, match="its run was stopped: run it again"):
        PseudoLabels(tmp_path / "begun")
    with pytest.raises(SceneError, match="there is no such folder"):
        PseudoLabels(tmp_path / "nowhere")
    with pytest.raises(SceneError, match="no manifest"):
        PseudoLabels(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    write(tmp_path).finish(["a", "b"])
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "labels" / "a.png")
    (tmp_path / "images" / "b.png").write_bytes(b"no png")
    found = PseudoLabels(tmp_path)
    with pytest.raises(SceneError, match=r"labels of a are \(3, 3\), the image is \(6, 8\) px"):
        _ = found[0].values
    with pytest.raises(SceneError, match=r"b\.png cannot be read"):
        _ = found[1].image


def test_names_keep_their_folders_and_do_not_repeat(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / "a.png", tmp_path / "a.png"]
    assert unique_names(paths, tmp_path) == ["x__a", "a"]
    with pytest.raises(OptionError, match="have one name, a: rename one"):
        unique_names([tmp_path / "a.png", tmp_path / "a.jpg"], tmp_path)


def test_labels_of_another_size_are_a_mistake_of_the_caller(tmp_path: Path) -> None:
    writer = write(tmp_path, ())
    with pytest.raises(ValueError, match="do not fit image a"):
        writer.write("a", image(0, (5, 5)), labels())
