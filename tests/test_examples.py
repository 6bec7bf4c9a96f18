"""Folders of images: what is found, in which order, and as what it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from geolabel.datasets.examples import ImageFolder
from geolabel.errors import OptionError, SceneError

RAMP = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def picture(path: Path, pixels: np.ndarray = RAMP) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def raster(path: Path, bands: np.ndarray, crs: str | None = "EPSG:32648", **profile: object) -> Path:
    count, height, width = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=bands.dtype,
        count=count,
        height=height,
        width=width,
        crs=crs,
        transform=Affine(0.5, 0, 5e5, 0, -0.5, 3e6),
        **profile,
    ) as file:
        file.write(bands)
    return path


def test_pictures_are_found_below_the_folder_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/x.png", "a.JPG", "a_notes.txt", "b/w.tif"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image", encoding="utf-8")
        elif name.endswith("tif"):
            raster(tmp_path / name, np.moveaxis(RAMP, 2, 0), photometric="rgb")
        else:
            picture(tmp_path / name)
    assert ImageFolder(tmp_path).names == ["a", "b__w", "b__x"]


def test_of_labelled_chips_only_the_images_count(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "one.png")
    picture(tmp_path / "masks" / "one.png")
    assert ImageFolder(tmp_path).names == ["one"]


def test_eight_bits_are_taken_as_they_are_with_and_without_a_place(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    raster(tmp_path / "b.tif", np.moveaxis(RAMP, 2, 0), photometric="rgb")
    images = ImageFolder(tmp_path)
    assert np.array_equal(images.read(0), RAMP)
    assert np.array_equal(images.read(1), RAMP)


def test_other_types_share_one_stretch(tmp_path: Path) -> None:
    dark, bright = (np.full((3, 10, 10), level, np.uint16) for level in (100, 3000))
    raster(tmp_path / "dark.tif", dark, photometric="rgb")
    raster(tmp_path / "bright.tif", bright, photometric="rgb")
    images = ImageFolder(tmp_path)
    assert (images.read(0) == 255).all()
    assert (images.read(1) == 0).all()


def test_a_folder_that_is_not_there_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"none is not a folder: give a folder"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(SceneError, match=r"contains no image with one of the suffixes .png"):
        ImageFolder(tmp_path)


def test_two_images_of_one_name_are_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.jpg")
    with pytest.raises(OptionError, match="have one name, a: rename one"):
        _ = ImageFolder(tmp_path).names


def test_the_digest_knows_the_same_images_again(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    first = ImageFolder(tmp_path).digest
    assert ImageFolder(tmp_path).digest == first
    picture(tmp_path / "b.png")
    assert ImageFolder(tmp_path).digest != first
