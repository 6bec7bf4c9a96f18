from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geolabel.bands import band_in_name
from geolabel.errors import SceneError
from geolabel.extraction.plan import examined
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare, prepare_scenes
from geolabel.io.read.headers import check_image, product_of
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.io.read.scenes import SceneReader
from geolabel.io.read.sources import FileSource
from geolabel.io.write.rasters import write_cog
from geolabel.tiles import Window

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)


def write(path: Path, bands, *, unit: str | None = None, description: str | None = None, **profile) -> Path:
    bands = np.asarray(bands)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=bands.dtype,
        count=len(bands),
        height=bands.shape[1],
        width=bands.shape[2],
        crs="EPSG:32648",
        transform=UTM,
        **profile,
    ) as file:
        file.write(bands)
        if unit:
            file.set_band_unit(1, unit)
        if description:
            file.set_band_description(1, description)
    return path


def noise(count: int = 3, dtype: str = "uint8", size: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 250, (count, size, size)).astype(dtype)


def survey(*scenes: Path | str):
    return prepare_scenes(list_scenes(list(scenes)), Reading(), Networks(device="cpu"), Parameters(threads=1))


@pytest.mark.parametrize(
    "said", [{"unit": "m"}, {"unit": "metre"}, {"description": "DSM_2019"}, {"description": "Elevation (m)"}]
)
def test_heights_that_say_so_are_refused(tmp_path: Path, said: dict[str, str]) -> None:
    path = write(tmp_path / "a.tif", noise(1, "float32"), **said)
    with pytest.raises(SceneError, match="holds heights"):
        prepare(path, Reading(), Networks(device="cpu"), Parameters())
    with pytest.raises(SceneError, match="holds heights"):
        survey(path, write(tmp_path / "b.tif", noise()))


@pytest.mark.parametrize(("dtype", "told"), [("float32", True), ("int16", True), ("uint8", False), ("uint16", False)])
def test_one_band_that_may_be_no_brightness_is_told(tmp_path: Path, dtype: str, told: bool) -> None:
    reader = SceneReader(write(tmp_path / "a.tif", noise(1, dtype)))
    check_image(reader.header)
    assert any("heights or an index" in text for text in reader.warnings) == told
    assert SceneReader(write(tmp_path / "b.tif", noise(4, dtype)), bands="2").warnings == ()


def test_own_products_are_known_left_out_and_refused_alone(tmp_path: Path) -> None:
    scene = write(tmp_path / "scene.tif", noise(), photometric="rgb")
    grid = SceneReader(scene).scene.grid
    for kind in ("score", "mask"):
        values = np.zeros((96, 96), np.uint8)
        write_cog(tmp_path / f"{kind}.tif", [(grid.window, values)], grid, nodata=255, kind=kind)
        assert product_of(FileSource(str(tmp_path / f"{kind}.tif")).header) == kind
        with pytest.raises(SceneError, match=rf"by geolabel \({kind}\) and is not an image; geolabel polygonize"):
            survey(tmp_path / f"{kind}.tif")
    found = survey(str(tmp_path / "*.tif"))
    assert found.plans[0].reader.scene.name == str(scene)
    assert [text for text in found.warnings if "left out" in text] == [
        f"{tmp_path / kind}.tif was written by geolabel ({kind}) and is not an image: left out"
        for kind in ("mask", "score")
    ]
    with pytest.raises(SceneError, match="not an image"):
        survey(tmp_path / "mask.tif", tmp_path / "score.tif")


def test_bands_in_files_of_their_own_are_refused_with_the_command_that_joins_them(tmp_path: Path) -> None:
    files = [write(tmp_path / f"T48_B{n:02}_10m.tif", noise(1)) for n in (2, 3, 4, 8)]
    with pytest.raises(SceneError, match="separate files") as caught:
        survey(*files)
    assert f"-separate scene.vrt {files[2]} {files[1]} {files[0]})" in str(caught.value)
    with pytest.raises(SceneError, match="separate files"):
        survey(*files[:2])


def test_grey_scenes_of_several_dates_are_no_bands(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{year}_pan.tif", noise(1)) for year in (2019, 2024)]
    assert survey(*files).scenes == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("d/LC08_L2SP_193024_SR_B4.TIF", ("d/LC08_L2SP_193024_*", "SR_B4")),
        ("scene_red.tif", ("scene_*", "red")),
        ("B8A.jp2", ("*", "B8A")),
        ("/vsizip/a.zip/x-NIR.tif", ("/vsizip/a.zip/x-*", "NIR")),
        ("bay.tif", ("bay", None)),
        ("redland.tif", ("redland", None)),
    ],
)
def test_a_name_tells_its_band(name: str, expected: tuple[str, str | None]) -> None:
    assert band_in_name(name) == expected


@pytest.mark.parametrize("value", [0, 255])
def test_a_margin_is_left_out_of_reading_and_of_the_stretch(tmp_path: Path, value: int) -> None:
    bands = noise(size=200)
    plain, plain_stretch = examined(SceneReader(write(tmp_path / "plain.tif", bands[:, :, 60:])), "p2-98")
    assert not [text for text in plain.warnings if "margin" in text]
    bands[:, :, :60] = value
    bands[:, 100:104, 150:154] = value
    path = write(tmp_path / "scene.tif", bands)
    reader, stretch = examined(SceneReader(path), "p2-98")
    assert any(f"a margin of {value} in all bands, 30 % of the scene" in text for text in reader.warnings)
    expected = np.ones((200, 200), bool)
    expected[:, :60] = False
    grid = reader.scene.grid
    np.testing.assert_array_equal(reader.read(grid.window, grid)[1], expected)
    np.testing.assert_array_equal(reader.read(Window(10, 50, 70, 33), grid)[1], expected[10:80, 50:83])
    again = reader.within(grid.outline)
    np.testing.assert_array_equal(again.read(grid.window, grid)[1], expected)
    np.testing.assert_allclose(stretch.low, plain_stretch.low, atol=3)
    np.testing.assert_allclose(stretch.high, plain_stretch.high, atol=6)
    kept, _ = examined(SceneReader(path, nodata=-1), "p2-98")
    assert kept.read(grid.window, grid)[1].all()


@pytest.mark.parametrize("value", [-9999.0, float(np.finfo("f4").min), 1e20])
def test_a_fill_gives_what_nodata_gives(tmp_path: Path, value: float) -> None:
    bands = noise(dtype="float32", size=120) / 255
    bands[:, 30:60] = value
    path = write(tmp_path / "scene.tif", bands)
    found, stretch = examined(SceneReader(path), "p2-98")
    told, same = examined(SceneReader(path, nodata=value), "p2-98")
    assert found.findings.warnings
    assert replace(stretch, spec="") == replace(same, spec="")
    grid = found.scene.grid
    for one, other in zip(found.read(grid.window, grid), told.read(grid.window, grid), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_alpha_band_that_looks_like_infrared_is_told(tmp_path: Path) -> None:
    bands = noise(4)
    infrared, _ = examined(SceneReader(write(tmp_path / "a.tif", bands, photometric="rgb", alpha="yes")), "p2-98")
    assert any("band 4 is marked as alpha but varies" in text for text in infrared.warnings)
    bands[3] = 255
    bands[3, :20] = 0
    bands[3, 20:22] = np.arange(96)  # a soft edge
    clear, _ = examined(SceneReader(write(tmp_path / "b.tif", bands, photometric="rgb", alpha="yes")), "p2-98")
    assert clear.warnings == ()


def test_findings_of_many_scenes_are_told_with_their_names(tmp_path: Path) -> None:
    bands = noise(size=128)
    bands[:, :40] = 0
    first = write(tmp_path / "a.tif", bands, photometric="rgb")
    second = write(tmp_path / "b.tif", noise(size=128), photometric="rgb")
    assert [text for text in survey(first, second).warnings if text.startswith(f"{first}: a margin of 0 in all bands")]
