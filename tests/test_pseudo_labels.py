"""Pseudo-labels on disk: what is written is read back, a stopped run resumes, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geolabel.datasets.pseudo_labels import PseudoLabels, PseudoLabelWriter, labels_folder, unique_names
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


def write(root: Path, names: tuple[str, ...] = ("a", "b")) -> PseudoLabelWriter:
    writer = PseudoLabelWriter(root, CLASSES, PROVENANCE)
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
        "images",
        "labels",
        "instances.json",
        "manifest.json",
    }


def test_instances_are_coco(tmp_path: Path) -> None:
    write(tmp_path).finish(["a", "b"])
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


def begin(root: Path, names: tuple[str, ...], **options: bool) -> None:
    """Write some images and stop."""
    with pytest.raises(KeyboardInterrupt), labels_folder(root, PROVENANCE, **options) as folder:  # noqa: PT012
        write(folder, names)
        raise KeyboardInterrupt


def finish(root: Path, names: tuple[str, ...] = ("a", "b"), **options: bool) -> None:
    with labels_folder(root, PROVENANCE, **options) as folder:
        write(folder, names).finish(list(names))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_input_same_bytes_however_often_it_was_stopped(tmp_path: Path) -> None:
    finish(tmp_path / "once")
    begin(tmp_path / "twice", ("a",))
    with labels_folder(tmp_path / "twice", PROVENANCE) as folder:
        writer = PseudoLabelWriter(folder, CLASSES, PROVENANCE)
        assert (writer.has("a"), writer.has("b")) == (True, False)
        writer.write("b", image(1), labels())
        writer.finish(["a", "b"])
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")
    assert len(contents(tmp_path / "once")) == 7


def test_another_run_does_not_go_on_with_this_one(tmp_path: Path) -> None:
    begin(tmp_path, ("a",))
    with pytest.raises(OutputError, match="the beginning of another run"), labels_folder(tmp_path, {"seed": 4}):
        pass
    with labels_folder(tmp_path, {"seed": 4}, overwrite=True) as folder:
        assert not PseudoLabelWriter(folder, CLASSES, {}).has("a")


def test_finished_labels_and_other_things_stay(tmp_path: Path) -> None:
    finish(tmp_path / "done")
    with pytest.raises(OutputError, match="finished pseudo-labels: give --overwrite"):
        finish(tmp_path / "done")
    (tmp_path / "photos" / "images").mkdir(parents=True)
    for name in ("run.json", "clusters.json", "images/me.png"):
        (tmp_path / "photos" / name).write_text("mine")
    before = contents(tmp_path / "photos")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="no record that geolabel wrote"):
            finish(tmp_path / "photos", overwrite=overwrite)
    assert contents(tmp_path / "photos") == before


def test_the_old_labels_stand_until_the_new_ones_are_finished(tmp_path: Path) -> None:
    finish(tmp_path, ("a", "old"))
    (tmp_path / "labels" / "mine.png").write_text("mine")
    before = contents(tmp_path)
    begin(tmp_path, ("a",), overwrite=True)
    assert {name: data for name, data in contents(tmp_path).items() if not name.startswith(".geolabel-work")} == before
    assert PseudoLabels(tmp_path).names == ("a", "old")
    with labels_folder(tmp_path, PROVENANCE, overwrite=True) as folder:
        assert PseudoLabelWriter(folder, CLASSES, PROVENANCE).has("a")
        write(folder, ("b",)).finish(["a", "b"])
    assert PseudoLabels(tmp_path).names == ("a", "b")
    assert sorted(name for name in contents(tmp_path) if "/" in name) == [
        "images/a.png",
        "images/b.png",
        "labels/a.png",
        "labels/b.png",
        "labels/mine.png",
    ]


def test_what_a_person_changed_is_not_replaced(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "manifest.json").write_text((tmp_path / "manifest.json").read_text() + " ")
    with pytest.raises(OutputError, match=r"manifest\.json was changed, or not written by geolabel"):
        finish(tmp_path, overwrite=True)


def test_unfinished_and_missing_folders_are_told_apart(tmp_path: Path) -> None:
    begin(tmp_path / "begun", ("a",))
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
