"""Folders and archives as satellite data is delivered in: found by name, read as the same pixels in one file."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from rasterio.shutil import copy

import geolabel
from geolabel.cli.main import cli
from geolabel.errors import SceneError
from geolabel.io.read import deliveries
from geolabel.io.read.deliveries import find_delivery
from geolabel.io.read.fingerprints import fingerprint
from geolabel.io.read.masks import open_masks
from geolabel.io.read.opening import files_of
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.io.read.scenes import SceneReader
from geolabel.synthetic import synthesize
from geolabel.types import AnyArray

PLACE = Affine(10, 0, 500_000, 0, -10, 3_000_000)


def ground(bands: int = 3, size: int = 96, seed: int = 0) -> AnyArray:
    """Reflectances of a forest, red first, with a bare slope, and a margin without data."""
    noise = np.random.default_rng(seed).normal(0, 60, (bands, size, size))
    values = np.asarray([700, 900, 500, 3000, 1500, 1600, 1700, 1800])[:bands, None, None] + noise
    values[:, 30:60, 40:60] = np.asarray([2600, 2200, 1800, 2900, 2000, 2000, 2000, 2000])[:bands, None, None]
    values[:, :, :10] = 0
    return values.clip(0).astype(np.uint16)


def raster(path: Path, values: AnyArray, *, driver: str = "GTiff", **profile: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    profile = {"crs": "EPSG:32632", "transform": PLACE, "dtype": values.dtype, **profile}
    file = path if driver == "GTiff" else path.with_suffix(".made.tif")
    with rasterio.open(file, "w", driver="GTiff", count=count, height=height, width=width, **profile) as target:
        target.write(values)
    if driver != "GTiff":
        copy(file, path, driver=driver, QUALITY="100", REVERSIBLE="YES")
        file.unlink()
    return path


def safe(
    folder: Path, level: str = "2A", values: AnyArray | None = None, *, places: str = "10m", **profile: object
) -> Path:
    """A Sentinel-2 product with three bands."""
    values = ground() if values is None else values
    home = folder / f"S2B_MSIL{level}_20230501T101559_N0509_R065_T32TQM_20230501T122021.SAFE"
    images = home / "GRANULE" / "L2A_T32TQM_A032123_20230501T102107" / "IMG_DATA"
    for band, one in zip(("B04", "B03", "B02"), values, strict=True):
        name = f"T32TQM_20230501T101559_{band}"
        if level == "2A":
            raster(images / f"R{places}" / f"{name}_{places}.jp2", one[None], driver="JP2OpenJPEG", **profile)
        else:
            raster(images / f"{name}.jp2", one[None], driver="JP2OpenJPEG")
    (home / f"MTD_MSIL{level}.xml").write_text("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>")
    return home


def landsat(folder: Path, sensor: str, bands: tuple[int, int, int], values: AnyArray, *, kind: str = "SR_") -> Path:
    home = folder / "scene"
    name = f"{sensor}_L2SP_193028_20210712_20210720_02_T1"
    for band, one in zip(bands, values, strict=True):
        raster(home / f"{name}_{kind}B{band}.TIF", one[None])
    raster(home / f"{name}_QA_PIXEL.TIF", values[:1])
    (home / f"{name}_MTL.xml").write_text("<a/>")
    return home


PLANET = "20230501_101559_24_2473"


def planet(folder: Path, kind: str, values: AnyArray, scene: str = PLANET, **profile: object) -> Path:
    home = folder / "PSScene"
    raster(home / f"{scene}_3B_{kind}.tif", values, **profile)
    raster(home / f"{scene}_3B_udm2.tif", np.ones((8, *values.shape[1:]), np.uint8))
    (home / f"{scene}_3B_AnalyticMS_metadata.xml").write_text("<a/>")
    return home


def pixels(path: Path | str) -> tuple[AnyArray, AnyArray]:
    with SceneReader(path) as reader:
        grid = reader.scene.grid
        return reader.read(grid.window, grid)


def expect_ground(path: Path | str, date: str | None) -> None:
    values, valid = pixels(path)
    truth = ground()
    np.testing.assert_array_equal(valid, (truth != 0).any(axis=0))
    np.testing.assert_array_equal(values[:, valid], truth[:, valid])
    with SceneReader(path) as reader:
        assert reader.warnings == ()
        assert reader.scene.event_date == date
        assert reader.scene.grid.transform == PLACE
        assert reader.scene.grid.crs is not None
        assert reader.scene.grid.crs.to_epsg() == 32632


# --- the missions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["1C", "2A"])
def test_a_safe_folder_is_the_picture_of_its_red_green_and_blue(tmp_path: Path, level: str) -> None:
    home = safe(tmp_path, level)
    expect_ground(home, "2023-05-01")
    expect_ground(home / f"MTD_MSIL{level}.xml", "2023-05-01")
    expect_ground(home / "GRANULE" / "L2A_T32TQM_A032123_20230501T102107", "2023-05-01")


def test_the_finest_bands_of_a_product_are_read(tmp_path: Path) -> None:
    safe(tmp_path, values=ground(seed=1)[:, ::2, ::2], places="20m")
    expect_ground(safe(tmp_path), "2023-05-01")
    shutil.rmtree(next(tmp_path.rglob("R10m")))
    assert pixels(next(tmp_path.glob("*.SAFE")))[0].shape == (3, 48, 48)


@pytest.mark.parametrize("stored", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zipped_product_is_read_without_unpacking(tmp_path: Path, stored: int) -> None:
    home = safe(tmp_path)
    packed = tmp_path / "S2B one.SAFE.zip"
    with zipfile.ZipFile(packed, "w", stored) as archive:
        for file in home.rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    shutil.rmtree(home)
    expect_ground(packed, "2023-05-01")
    assert files_of(str(packed)) == [str(packed)]
    assert [one.name for one in tmp_path.iterdir()] == [packed.name]


@pytest.mark.parametrize(
    ("sensor", "bands", "kind"),
    [("LC08", (4, 3, 2), "SR_"), ("LC09", (4, 3, 2), ""), ("LT05", (3, 2, 1), "SR_"), ("LE07", (3, 2, 1), "")],
)
def test_bands_of_landsat_are_numbered_by_their_sensor(
    tmp_path: Path, sensor: str, bands: tuple[int, int, int], kind: str
) -> None:
    home = landsat(tmp_path, sensor, bands, ground(), kind=kind)
    expect_ground(home, "2021-07-12")
    metadata = next(home.glob("*_MTL.xml"))
    expect_ground(metadata, "2021-07-12")
    (listed,) = list_scenes(metadata.rename(metadata.with_suffix(".txt")))  # which is no list of scenes
    expect_ground(str(listed.source), "2021-07-12")
    packed = tmp_path / "bundle.tar"
    with tarfile.open(packed, "w") as archive:
        for file in home.iterdir():
            archive.add(file, file.name)
    shutil.rmtree(home)
    expect_ground(packed, "2021-07-12")


def test_surface_reflectance_is_preferred_to_level_1(tmp_path: Path) -> None:
    landsat(tmp_path, "LC08", (4, 3, 2), ground(seed=1), kind="")
    expect_ground(landsat(tmp_path, "LC08", (4, 3, 2), ground()), "2021-07-12")


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("AnalyticMS", (2, 1, 0, 3)),
        ("AnalyticMS_SR_clip", (2, 1, 0, 3)),
        ("AnalyticMS_8b", (4, 2, 5, 1, 6, 0, 7, 3)),
        ("AnalyticMS_SR_8b_harmonized_clip", (4, 2, 5, 1, 6, 0, 7, 3)),
        ("Visual", (0, 1, 2)),
    ],
)
def test_images_of_planet_have_their_bands_in_the_order_of_their_kind(
    tmp_path: Path, kind: str, order: tuple[int, ...]
) -> None:
    stored = ground(8)[list(order)]
    home = planet(tmp_path, kind, stored, nodata=0)
    expect_ground(home, "2023-05-01")
    expect_ground(tmp_path, "2023-05-01")  # the folder of the order


def test_surface_reflectance_of_eight_bands_is_preferred_of_planet(tmp_path: Path) -> None:
    planet(tmp_path, "Visual", ground(seed=1))
    planet(tmp_path, "AnalyticMS", ground(4, seed=2))
    expect_ground(planet(tmp_path, "AnalyticMS_SR_8b", ground(8)[[4, 2, 5, 1, 6, 0, 7, 3]]), "2023-05-01")


def test_the_alpha_of_a_visual_image_hides_what_has_no_data(tmp_path: Path) -> None:
    values = np.full((4, 40, 40), 200, np.uint8)
    values[:3, :5] = 0  # black ground
    values[3, :, :10] = 0
    home = planet(tmp_path, "Visual", values, photometric="rgb", alpha="NON-PREMULTIPLIED")
    _, valid = pixels(home)
    np.testing.assert_array_equal(valid, values[3] > 0)


@pytest.mark.parametrize(
    ("kind", "order"), [("AnalyticMS_SR_clip", (2, 1, 0, 3)), ("AnalyticMS_8b", (4, 2, 5, 1, 6, 0, 7, 3))]
)
def test_an_image_of_planet_by_itself_has_the_same_bands(tmp_path: Path, kind: str, order: tuple[int, ...]) -> None:
    home = planet(tmp_path, kind, ground(8)[list(order)], nodata=0)
    with SceneReader(home / f"{PLANET}_3B_{kind}.tif") as reader:
        assert reader.scene.bands == tuple(order.index(band) + 1 for band in range(3))
        assert reader.warnings == ()
    named = raster(tmp_path / f"{PLANET}_3B_{kind}.tif", ground(5))
    with SceneReader(named) as reader:  # bands that no image of this name has
        assert reader.scene.bands == (1, 2, 3)
        assert reader.warnings != ()


def test_bands_that_are_given_one_by_one_lead_to_their_folder(tmp_path: Path) -> None:
    images = sorted(safe(tmp_path).rglob("*.jp2"))
    with pytest.raises(SceneError, match=rf"give their folder, {images[0].parent}, or join red, green and blue"):
        geolabel.extract(images)
    expect_ground(images[0].parent, "2023-05-01")


def test_of_several_scenes_the_metadata_says_which(tmp_path: Path) -> None:
    other = "20230502_111111_10_2474"
    home = planet(tmp_path, "AnalyticMS", ground(4, seed=3), other)
    planet(tmp_path, "AnalyticMS", ground(4)[[2, 1, 0, 3]])
    with pytest.raises(SceneError, match=rf"holds 2 scenes \({PLANET}, {other}\).*metadata"):
        pixels(home)
    expect_ground(home / f"{PLANET}_3B_AnalyticMS_metadata.xml", "2023-05-01")
    item = home / f"{PLANET}_metadata.json"
    item.write_text('{"type": "Feature", "geometry": null, "properties": {}, "assets": ["ortho_analytic_4b"]}')
    (listed,) = list_scenes(item)  # which is no STAC item, though it looks like one
    assert listed.source == str(item)
    expect_ground(item, "2023-05-01")


# --- runs ------------------------------------------------------------------------------------------------------------


def polygons(scene: Path, out: Path) -> gpd.GeoDataFrame:
    done = CliRunner().invoke(cli, ["extract", str(scene), "--out", str(out), "--min-confidence", "0", "-q"])
    assert done.exit_code == 0, done.output
    return gpd.read_file(out, layer="landslides").drop(columns=["source_scene"], errors="ignore")


def test_extract_and_info_give_of_a_delivery_what_they_give_of_one_file(tmp_path: Path) -> None:
    fine = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)  # finer than the mission's own, and so faster
    picture = synthesize(256, 0.5, seed=1001).rgb
    values = 1 + 12 * np.moveaxis(picture, 2, 0).astype(np.uint16)
    values[:, :, :20] = 0
    one = raster(tmp_path / "one.tif", values, nodata=0, photometric="rgb", transform=fine)
    shifted = np.where(values == 0, 0, values + 1000).astype(np.uint16)  # the offset of processing baseline 04.00
    home = safe(tmp_path, values=shifted, transform=fine)
    truth, found = polygons(one, tmp_path / "one.gpkg"), polygons(home, tmp_path / "safe.gpkg")
    assert len(truth) > 0
    assert found.geometry.geom_equals_exact(truth.geometry, 0).all()
    assert list(found["confidence"]) == list(truth["confidence"])
    assert set(found["event_date"].astype(str).str[:10]) == {"2023-05-01"}
    done = CliRunner().invoke(cli, ["info", str(home), "--json"])
    said = json.loads(done.stdout)
    assert said["event_date"] == "2023-05-01"
    assert said["gsd_m"] == pytest.approx(0.5, rel=1e-3)
    assert said["descriptions"][0] == "red, T32TQM_20230501T101559_B04_10m.jp2"


def test_a_delivery_that_changes_is_another_scene(tmp_path: Path) -> None:
    home = safe(tmp_path)
    with SceneReader(home) as reader:
        before = fingerprint(reader)
    image = next(home.rglob("*B03_10m.jp2"))
    raster(image, ground(seed=5)[:1], driver="JP2OpenJPEG")
    with SceneReader(home) as reader:
        assert fingerprint(reader) != before
    assert str(image) in files_of(str(home))


def test_scores_are_predicted_of_a_delivery(tmp_path: Path) -> None:
    scores = geolabel.predict(safe(tmp_path))
    assert scores.shape[-2:] == (96 * 4, 96 * 4)


# --- clouds ----------------------------------------------------------------------------------------------------------


def clear_of(scene: Path, mask: Path) -> AnyArray:
    """Where a scene shows ground, with its own clouds left out."""
    with SceneReader(scene) as stored:
        reader = stored.without(open_masks([mask], [stored.scene.grid], "--mask"))
        there = pickle.loads(pickle.dumps(reader))
        grid = there.scene.grid
        return there.read(grid.window, grid)[1]


def test_the_classes_of_sentinel_hide_clouds_and_their_shadows(tmp_path: Path) -> None:
    home = safe(tmp_path, values=ground()[:, :, 10:90])
    classes = np.repeat(np.arange(12, dtype=np.uint8).repeat(3)[None], 40, 0)[:, :40]  # 20 m, no data first
    folder = home / "GRANULE" / "L2A_T32TQM_A032123_20230501T102107" / "IMG_DATA"
    for side, name in ((10, "R60m/T32TQM_20230501T101559_SCL_60m"), (20, "R20m/T32TQM_20230501T101559_SCL_20m")):
        raster(folder / f"{name}.jp2", classes[None], driver="JP2OpenJPEG", transform=PLACE * Affine.scale(side / 10))
    raster(folder / "R20m" / "T32TQM_20230501T101559_AOT_20m.jp2", classes[None], driver="JP2OpenJPEG")
    clear = clear_of(home, home)
    kept = ~np.isin(np.arange(12), (3, 8, 9, 10))
    truth = (ground()[:, :, 10:90] != 0).any(axis=0)
    truth[:80, :72] &= kept.repeat(6)[None]
    np.testing.assert_array_equal(clear, truth)


def test_the_bits_of_landsat_hide_clouds_and_their_shadows(tmp_path: Path) -> None:
    home = landsat(tmp_path, "LC09", (4, 3, 2), ground()[:, :, 10:])
    bits = np.asarray([1, 21824, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 7 | 1 << 3], np.uint16)  # 21824 is clear
    quality = np.zeros((1, 96, 86), np.uint16)
    quality[0, :, :80] = bits.repeat(10)
    raster(next(home.glob("*_QA_PIXEL.TIF")), quality, nodata=1)
    truth = np.ones((96, 86), bool)
    truth[:, 20:60] = truth[:, 70:80] = False
    np.testing.assert_array_equal(clear_of(home, home), truth)


def test_what_is_not_clear_is_hidden_of_planet(tmp_path: Path) -> None:
    home = planet(tmp_path, "AnalyticMS", ground(4)[[2, 1, 0, 3]][:, :, 10:])
    udm = np.ones((8, 96, 86), np.uint8)
    udm[0, 20:40] = 0
    udm[5] = 0  # which would hide all, were it read
    raster(home / f"{PLANET}_3B_udm2.tif", udm, nodata=0)
    truth = np.ones((96, 86), bool)
    truth[20:40] = False
    np.testing.assert_array_equal(clear_of(home, home / f"{PLANET}_3B_AnalyticMS_metadata.xml"), truth)


def test_clouds_come_out_of_archives_too(tmp_path: Path) -> None:
    home = landsat(tmp_path, "LC09", (4, 3, 2), ground()[:, :, 10:])
    raster(next(home.glob("*_QA_PIXEL.TIF")), np.full((1, 96, 86), 1 << 3, np.uint16) * (np.arange(96) > 50)[:, None])
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(home, "scene")
    assert clear_of(tmp_path / "a.tar", tmp_path / "a.tar").sum() == 51 * 86


def test_a_product_without_classes_hides_nothing_silently(tmp_path: Path) -> None:
    home = safe(tmp_path, "1C")
    with pytest.raises(SceneError, match=r"has no cloud raster for T32TQM_20230501T101559 \(SCL of Sentinel-2 L2A"):
        clear_of(home, home)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_missing_colour_is_named(tmp_path: Path) -> None:
    home = safe(tmp_path)
    next(home.rglob("*B03_10m.jp2")).unlink()
    with pytest.raises(SceneError, match=r"of red, green and blue only blue, red"):
        pixels(home)
    with pytest.raises(SceneError, match="MSS sees no blue"):
        pixels(landsat(tmp_path / "mss", "LM05", (4, 3, 2), ground()))


def test_images_on_other_grids_or_with_too_few_bands_are_refused(tmp_path: Path) -> None:
    home = safe(tmp_path)
    raster(next(home.rglob("*B02_10m.jp2")), ground(1, 80), driver="JP2OpenJPEG")
    with pytest.raises(SceneError, match=r"B02_10m.jp2 is not on the grid"):
        pixels(home)
    with pytest.raises(SceneError, match=r"has 4 bands, but by its name red should be band 6"):
        pixels(planet(tmp_path, "AnalyticMS_8b", ground(4)))


def test_folders_and_archives_of_anything_else_are_no_scene(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "scene.txt").write_text("")
    assert find_delivery(str(tmp_path / "folder")) is None
    with pytest.raises(SceneError, match="is a folder, but not a delivery of Sentinel-2, Landsat or Planet"):
        pixels(tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("scene.tif", b"II*\0")
    with pytest.raises(SceneError, match=r"is a ZIP archive: give the raster inside"):
        pixels(tmp_path / "a.zip")


def test_a_folder_of_very_many_files_is_no_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = safe(tmp_path)
    monkeypatch.setattr(deliveries, "MAX_NAMES", 3)
    assert find_delivery(str(home)) is None


# --- hostile ---------------------------------------------------------------------------------------------------------

B = "GRANULE/g/IMG_DATA/R10m/T32TQM_20230501T101559_{}_10m.jp2"


def test_a_link_out_of_a_product_is_refused(tmp_path: Path) -> None:
    home = safe(tmp_path)
    image = next(home.rglob("*B04_10m.jp2"))
    secret = image.rename(tmp_path / "secret.jp2")
    image.symlink_to(secret)
    with pytest.raises(SceneError, match=r"is a link to .*secret\.jp2, outside its delivery"):
        pixels(home)
    image.unlink()
    image.symlink_to(secret.rename(home / "inside.jp2"))
    expect_ground(home, "2023-05-01")


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    home = safe(tmp_path / "real")
    (tmp_path / "S2.SAFE").mkdir()
    (tmp_path / "S2.SAFE" / "GRANULE").symlink_to(home / "GRANULE")
    assert find_delivery(str(tmp_path / "S2.SAFE")) is None


def zipped(path: Path, names: dict[str, bytes], change: Callable[[bytes], bytes] = bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    path.write_bytes(change(path.read_bytes()))
    return path


IMAGES = {B.format(band): b"\0\0\0\x0cjP  " + bytes(99) for band in ("B04", "B03", "B02")}


@pytest.mark.parametrize("lead", ["../", "/", "a/../../", "C:", "a\\..\\", "{/etc}/"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path: Path, lead: str) -> None:
    packed = zipped(tmp_path / "S2.zip", {f"{lead}{name}": data for name, data in IMAGES.items()})
    with pytest.raises(SceneError, match=r"names '.*', which is not a plain file in it: unpack it"):
        pixels(packed)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = {name: data + bytes(4_000_000) for name, data in IMAGES.items()}
    with pytest.raises(SceneError, match=r"times larger unpacked; the limit is 200 times"):
        pixels(zipped(tmp_path / "S2.zip", bomb))
    monkeypatch.setattr(deliveries, "MAX_RATIO", 1 << 20)
    monkeypatch.setattr(deliveries, "MAX_IMAGE_BYTES", 1 << 20)
    with pytest.raises(SceneError, match=r"takes 0 GB unpacked; the limit for images is 0 GB"):
        pixels(tmp_path / "S2.zip")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    packed = zipped(
        tmp_path / "S2.zip", IMAGES, lambda data: data.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0")
    )
    with pytest.raises(SceneError, match="not a plain file"):
        pixels(packed)


def test_a_link_in_a_tar_is_refused(tmp_path: Path) -> None:
    home = landsat(tmp_path, "LC08", (4, 3, 2), ground())
    image = next(home.glob("*B4.TIF"))
    image.rename(tmp_path / "secret.tif")
    image.symlink_to(tmp_path / "secret.tif")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(home, "scene")
    with pytest.raises(SceneError, match="not a plain file"):
        pixels(tmp_path / "a.tar")


@pytest.mark.parametrize("data", [b"<VRTDataset rasterXSize='9' rasterYSize='9'/>", b"", b"\0\0\0\x0cjP  \r\n\x87\n"])
def test_what_is_named_as_an_image_has_to_be_one(tmp_path: Path, data: bytes) -> None:
    home = safe(tmp_path)
    next(home.rglob("*B03_10m.jp2")).write_bytes(data)
    with pytest.raises(SceneError):
        pixels(home)
    packed = zipped(tmp_path / "S2.zip", dict.fromkeys(IMAGES, data))
    with pytest.raises(SceneError):
        pixels(packed)


def test_a_description_named_as_an_image_leads_nowhere(tmp_path: Path) -> None:
    home = safe(tmp_path)
    inside = raster(tmp_path / "inside.tif", ground(1))
    text = (
        '<VRTDataset rasterXSize="96" rasterYSize="96"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{inside}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    next(home.rglob("*B03_10m.jp2")).write_text(text)
    with pytest.raises(SceneError, match=r"is named as the green band of .*, but is not an image"):
        pixels(home)


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_archives_that_are_none_end_in_our_error(tmp_path: Path, name: str) -> None:
    for data in (b"PK\3\4" + bytes(99), b"PK\5\6" + b"\xff" * 18, bytes(2000), b""):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SceneError):
            pixels(tmp_path / name)
