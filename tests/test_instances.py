"""COCO files of other tools: what they mean, and what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as peer

from geolabel.datasets.instances import CocoInstances
from geolabel.errors import ChipError

SQUARE = [[10, 10, 40, 10, 40, 30, 10, 30]]
RUNS = {"size": [48, 64], "counts": [490, 20, 48 * 64 - 510]}
IMAGE = {"id": 1, "file_name": "a.png", "width": 64, "height": 48}


def outlined(segmentation: Any = SQUARE, **changes: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 1, "segmentation": segmentation} | changes


def coco(
    folder: Path,
    *annotations: dict[str, Any],
    images: tuple[dict[str, Any], ...] = (IMAGE,),
    categories: tuple[dict[str, Any], ...] = ({"id": 1, "name": "landslide"},),
) -> CocoInstances:
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "c.json").write_text(json.dumps(content), encoding="utf-8")
    return CocoInstances(folder / "c.json")


@pytest.mark.parametrize("nothing", [{"segmentation": []}, {"segmentation": None}, {"segmentation": [[1, 1, 9, 9]]}])
def test_boxes_without_an_outline_are_left_out_and_counted(
    tmp_path: Path, nothing: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    _, objects = coco(tmp_path, outlined(bbox=[1, 1, 5, 5], **nothing), outlined())[0]
    assert objects.areas.tolist() == [600]
    assert "1 of 2 objects left out: they have a box and no outline" in caplog.text
    with pytest.raises(ChipError, match="1 objects have a box and no outline, and training needs outlines"):
        coco(tmp_path, outlined(**nothing))


def test_part_of_an_outline_with_two_corners_is_passed_over(tmp_path: Path):
    _, objects = coco(tmp_path, outlined([[1, 1, 9, 9], *SQUARE]))[0]
    assert objects.areas.tolist() == [600]


def test_a_polygon_need_not_be_in_a_list_of_its_own(tmp_path: Path):
    assert coco(tmp_path, outlined(SQUARE[0]))[0][1].areas.tolist() == [600]


def test_crowds_are_left_out_unless_all_objects_are(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    crowd = outlined(RUNS, iscrowd=1)
    assert coco(tmp_path, crowd, crowd | {"iscrowd": True})[0][1].areas.tolist() == [20, 0]
    assert not caplog.records
    for zero in (0, "0", False):
        assert coco(tmp_path, outlined(iscrowd=zero), crowd)[0][1].areas.tolist() == [600]
    assert "1 of 2 objects left out: they are crowds; set iscrowd to 0 where each is one object" in caplog.text


def test_compressed_run_lengths_are_those_of_pycocotools(tmp_path: Path):
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        mask = rng.random((48, 64)) < share
        encoded = peer.encode(np.asfortranarray(mask, np.uint8))
        segmentation = {"size": [48, 64], "counts": encoded["counts"].decode()}
        _, objects = coco(tmp_path, outlined(segmentation))[0]
        assert np.array_equal(objects.ids > 0, mask)


@pytest.mark.parametrize("counts", ["5220", "z", "\x00", "o" * 1000, [10, 2**40], [-5, 48 * 64 + 5], [1.5, 3070.5]])
def test_run_lengths_that_do_not_fill_the_image_are_refused(tmp_path: Path, counts: Any):
    with pytest.raises(ChipError, match=r"objects of a\.png cannot be understood"):
        coco(tmp_path, outlined({"size": [48, 64], "counts": counts}))[0]


def test_an_image_of_another_size_is_refused(tmp_path: Path):
    twice = IMAGE | {"width": 128, "height": 96}
    with pytest.raises(ChipError, match=r"a\.png has 48 x 64 px and was outlined at 96 x 128 px"):
        coco(tmp_path, outlined(), images=(twice,))[0]
    unsized = {"id": 1, "file_name": "a.png"}
    assert coco(tmp_path, outlined(), images=(unsized,))[0][1].areas.tolist() == [600]
    with pytest.raises(ChipError, match=r"a mask of \[64, 48\] px in an image of \[48, 64\]"):
        coco(tmp_path, outlined(RUNS | {"size": [64, 48]}), images=(unsized,))[0]
    with pytest.raises(ChipError, match=r"an outline reaches to \[400\.0, 300\.0\], far outside 64 x 48 px"):
        coco(tmp_path, outlined([[100, 100, 400, 100, 400, 300]]), images=(unsized,))[0]


def test_ids_are_numbers_with_gaps_or_text(tmp_path: Path):
    pond = {"id": 30, "name": "pond"}
    for image_id, slide_id in ((7, 5), ("7", "5"), (7.0, "5")):
        one = outlined(image_id=image_id, category_id=slide_id)
        found = coco(tmp_path, one, images=(IMAGE | {"id": "7"},), categories=(pond, {"id": 5, "name": "slide"}))
        assert found.classes == ("slide", "pond")
        assert found[0][1].class_ids.tolist() == [1]
    named = coco(tmp_path, outlined(category_id="b"), categories=({"id": "b", "name": "y"}, {"id": "a", "name": "x"}))
    assert (named.classes, named[0][1].class_ids.tolist()) == (("x", "y"), [2])


def test_objects_of_images_that_are_not_listed_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert len(coco(tmp_path, outlined(), outlined(image_id=9))[0][1]) == 1
    assert "1 of 2 objects left out: they are on images that it does not list" in caplog.text
    with pytest.raises(ChipError, match="none of its objects is on an image that it lists"):
        coco(tmp_path, outlined(image_id=9))


def test_file_names_of_windows_are_found(tmp_path: Path):
    (tmp_path / "images" / "part").mkdir(parents=True)
    Image.new("RGB", (64, 48), "white").save(tmp_path / "images" / "part" / "b.png")
    for name in (r"images\part\b.png", r"part\b.png", "./part/b.png"):
        image, _ = coco(tmp_path, outlined(), images=(IMAGE | {"file_name": name},))[0]
        assert image.min() == 255


@pytest.mark.parametrize("name", ["/etc/a.png", r"C:\data\a.png", r"\\server\a.png", "../a.png", r"images\..\..\a.png"])
def test_file_names_do_not_lead_out_of_the_folder(tmp_path: Path, name: str):
    with pytest.raises(ChipError, match="leads out of the folder of the file; name images from there"):
        coco(tmp_path, outlined(), images=(IMAGE | {"file_name": name},))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": (IMAGE, IMAGE)}, "2 images have 1 different ids"),
        ({"images": (IMAGE, IMAGE | {"id": 2})}, "2 images have 1 different file names"),
        ({"images": ({"id": 1},)}, "an entry lacks 'file_name'"),
        ({"categories": ({"id": 2, "name": "pond"},)}, "an object has category 1, which it does not list"),
        ({"categories": ({"id": 1, "name": "x"}, {"id": 2, "name": "x"})}, "several categories are called 'x'"),
        ({"categories": ({"id": None, "name": "x"},)}, "None is not an id"),
        ({"categories": ({"id": 1, "name": "x"}, {"id": "1", "name": "y"})}, "2 categories have 1 different ids"),
        ({"categories": ()}, "it names no category"),
    ],
)
def test_entries_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ChipError, match=message):
        coco(tmp_path, outlined(), **changes)


def test_an_image_without_objects_is_background(tmp_path: Path):
    assert len(coco(tmp_path)[0][1]) == 0
