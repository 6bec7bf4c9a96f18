"""Everything in a scene, on a stand-in that finds each bright object of a tile: none is cut, doubled or glued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from rasterio.features import rasterize
from scipy import ndimage

from geolabel.cli.main import run as command
from geolabel.engine import worker
from geolabel.errors import OptionError
from geolabel.extraction.request import Parameters
from geolabel.extraction.segment import GridPrompts, segment
from geolabel.masks import FULL, Masks
from geolabel.parsing import Measure
from geolabel.parts import Everywhere
from geolabel.prompts import Prompts
from geolabel.types import UInt8Array

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
LEVELS = (100, 160, 220)
"""Brightness of objects; neighbours of different brightness are different objects, even where they touch."""


@dataclass(frozen=True)
class Objects:
    """Answers the first point in every connected region of one brightness with that region, as the tile shows it."""

    window: int = 128
    gsd_range: tuple[float, float] = (0.01, 1000.0)

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        return [self._masks(image[..., 0], asked) for image, asked in zip(images, prompts, strict=True)]

    def _masks(self, grey: np.ndarray, prompts: Prompts) -> Masks:
        found, ids = [], []
        for level in LEVELS:
            regions, count = ndimage.label(grey == level)
            for region in range(1, count + 1):
                found.append(np.where(regions == region, np.uint8(FULL), np.uint8(0)))
                ids.append(prompts.ids[len(ids) % len(prompts)])
        if not found:
            return Masks.none(*grey.shape)
        quality = np.linspace(0.9, 0.6, len(found)).astype(np.float32)
        return Masks(np.stack(found), quality, quality, np.asarray(ids), np.ones(len(found), np.int64))


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_load", lambda recipe: Everywhere() if recipe.role == "localizer" else Objects())


def country() -> np.ndarray:
    """Objects inside tiles, at seams and corners of tiles, longer than tiles, touching, one a bow."""
    grey = np.zeros((300, 420), np.uint8)
    grey[20:50, 30:60] = 100
    grey[40:70, 90:130] = 160  # at a seam of columns
    grey[85:115, 85:115] = 220  # where four tiles meet
    grey[130:140, 10:400] = 100  # longer than two tiles
    grey[140:150, 10:400] = 160  # its neighbour
    grey[160:290, 200:210] = 220  # a bow: two arms and a bend
    grey[160:290, 300:310] = 220
    grey[280:290, 200:310] = 220
    grey[285:300, 20:60] = 160  # at the frame
    return grey


def write(path: Path, grey: np.ndarray, crs: str | None = "EPSG:32648") -> Path:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=grey.shape[0],
        width=grey.shape[1],
        crs=crs,
        transform=UTM,
        photometric="rgb",
    ) as target:
        target.write(np.stack([grey] * 3))
    return path


def find(scene: Path, **options: object) -> gpd.GeoDataFrame:
    values = {"tile_size": 128, "overlap": 32, "simplify": Measure(0, "px"), "min_area": Measure(0, "px")}
    return segment(
        scene, parameters=Parameters(**values | options), everything=GridPrompts(points_per_side=4), reading=None
    )


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from geolabel.radiometry import Stretch

    monkeypatch.setattr(Stretch, "from_sample", classmethod(lambda cls, *_: cls((0.0,) * 3, (255.0,) * 3, "none")))
    return write(tmp_path / "scene.tif", country())


@pytest.mark.parametrize(("size", "overlap"), [(128, 32), (128, 64), (96, 20), (128, 33)])
def test_no_object_is_cut_doubled_or_glued(scene: Path, size: int, overlap: int) -> None:
    found = find(scene, tile_size=size, overlap=overlap)
    grey, painted = country(), np.zeros((300, 420), np.int32)
    expected = sum(ndimage.label(grey == level)[1] for level in LEVELS)
    assert len(found) == expected
    for number, shape in zip(found["id"], found.geometry, strict=True):
        mask = rasterize([shape], out_shape=grey.shape, transform=UTM).astype(bool)
        assert not painted[mask].any()
        painted[mask] = number
        assert len(set(grey[mask].tolist())) == 1
    assert np.array_equal(painted > 0, grey > 0)


def test_numbers_follow_the_first_pixel_and_attributes_are_there(scene: Path) -> None:
    found = find(scene)
    assert found["id"].tolist() == list(range(1, len(found) + 1))
    tops = found.geometry.bounds["maxy"].to_numpy()
    assert (np.diff(tops) <= 0).all()
    first = found.iloc[0]
    assert (first["area_m2"], first["n_tiles"]) == (pytest.approx(900 * 0.25, rel=2e-3), 1)
    assert found["n_tiles"].tolist()[3:6] == [5, 5, 8]  # two as long as the scene, and the bow
    assert found["gsd_m"].iloc[0] == pytest.approx(0.5, rel=1e-3)


def test_small_ones_are_dropped(scene: Path) -> None:
    assert len(find(scene, min_area=Measure(700, "px"))) == len(find(scene)) - 1


def test_the_command_writes_a_styled_layer_twice_the_same(scene: Path, tmp_path: Path, capsys) -> None:
    names = [tmp_path / "a.gpkg", tmp_path / "b.gpkg"]
    for name in names:
        assert (
            command(
                [
                    "segment",
                    str(scene),
                    "--out",
                    str(name),
                    "--points-per-side",
                    "4",
                    "--tile-size",
                    "128",
                    "--device",
                    "cpu",
                    "-q",
                    "--json",
                ]
            )
            == 0
        )
    assert names[0].read_bytes() == names[1].read_bytes()
    assert {name for name, _ in pyogrio.list_layers(names[0])} == {"segments", "layer_styles"}
    assert len(gpd.read_file(names[0], layer="segments")) == 7
    assert '"segments": 7' in capsys.readouterr().out


def test_a_scene_with_nothing_in_it_has_no_segments(scene: Path, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.tif", np.zeros((200, 300), np.uint8))
    assert len(find(empty)) == 0


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(OptionError, match="IoU of one object 0: it must be above 0"):
        GridPrompts(same=0)
    with pytest.raises(OptionError, match="predicted iou 2: it must be between 0 and 1"):
        GridPrompts(predicted_iou=2)


def test_thresholds_fit_the_network() -> None:
    assert (GridPrompts().filters("vit_b").predicted_iou, GridPrompts().filters("vit_b").stability) == (0.88, 0.95)
    assert GridPrompts().filters("bundled").predicted_iou < 0.5
    assert GridPrompts(stability=0.7).filters("bundled").stability == 0.7


def test_points_far_from_valid_pixels_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.full((128, 256), 90, np.uint8)
    grey[:, 100:] = 0
    path = write(tmp_path / "scene.tif", grey)
    with rasterio.open(path, "r+") as target:
        target.nodata = 0
    asked = []
    monkeypatch.setattr(Objects, "_masks", lambda _, grey, prompts: asked.append(prompts) or Masks.none(*grey.shape))
    find(path, tile_size=128, overlap=0)
    none, some = sorted((prompts.points[:, 0, 0] for prompts in asked), key=len)  # tasks end in any order
    assert (sorted(set(some.tolist())), len(none)) == ([16, 48, 80, 112], 0)  # 112 is a step of 32 from column 99
