"""Chips: tables and folders as they come, every bad input, and chips cut from scenes."""

import csv
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from PIL import Image
from torch.utils.data import DataLoader

from geolabel.chips import Chip, ChipList, check_learnable, is_held_out, split
from geolabel.cli.main import run
from geolabel.datasets.chips import read_chips
from geolabel.errors import ChipError, GeolabelError, OptionError, OutputError
from geolabel.extraction.request import Reading
from geolabel.io.write.rasters import write_geotiff
from geolabel.labeling.cut_chips import cut_chips
from geolabel.labeling.synthesize import synthesize
from geolabel.labels import IGNORE
from geolabel.scene import Grid
from geolabel.tiles import TileGrid

RNG = np.random.default_rng(0)


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def picture(height: int = 12, width: int = 17) -> np.ndarray:
    return RNG.integers(0, 255, (height, width, 3), np.uint8)


def table(folder: Path, text: str, *names: str) -> Path:
    for name in names:
        save(folder / name, picture())
    folder.mkdir(exist_ok=True)
    (folder / "labels.csv").write_text(text)
    return folder


# What is read


def test_a_table_of_zeros_and_ones(tmp_path: Path):
    chips = read_chips(table(tmp_path, "image,label\na/x.png,1\na/y.jpg,0\n", "a/x.png", "a/y.jpg"))
    assert (chips.classes, chips.names, chips.labels.tolist()) == (("landslide",), ("x", "y"), [[True], [False]])
    assert read_chips(tmp_path, class_name="scar").classes == ("scar",)
    assert read_chips(tmp_path / "labels.csv").names == ("x", "y")


def test_a_table_above_the_folder_is_cut_to_it(tmp_path: Path):
    table(tmp_path, "image,label\ntrain/x.png,1\nval/y.png,0\n", "train/x.png", "val/y.png")
    assert read_chips(tmp_path / "train").names == ("x",)
    assert read_chips(tmp_path / "val").names == ("y",)


def test_names_of_classes_and_columns_of_classes_say_the_same(tmp_path: Path):
    files = ("x.png", "y.png", "z.png")
    named = read_chips(table(tmp_path / "a", "image,label\nx.png,slide; road\ny.png,road\nz.png,none\n", *files))
    flags = read_chips(table(tmp_path / "b", "image,road,slide\nx.png,1,1\ny.png,1,0\nz.png,0,0\n", *files))
    assert named.classes == flags.classes == ("road", "slide")
    assert named.labels.tolist() == flags.labels.tolist() == [[True, True], [True, False], [False, False]]


@pytest.mark.parametrize(
    "text",
    [
        "image,label\nx.png,1.0\ny.png,0.0\n",
        "image,label\nx.png,True\ny.png,False\n",
        "image,label\nx.png,yes\ny.png,No\n",
        "image, label\nx.png, 1\ny.png, 0\n",
        '"image", "label"\n"x.png", "1 "\n"y.png", " 0"\n',
        "\ufeffimage,label\r\nx.png,1\r\ny.png,0\r\n",
        "Image;LABEL\nx.png;1\ny.png;0\n",
        "image\tlabel\n\nx.png\t1\n\t\ny.png\t0\n",
        "sep=;\nimage;label\nx.png;1\ny.png;0\n",
        ",image,label,\n0,x.png,1,\n1,y.png,0,\n",
        "image,label\n./x.png,1\nsub\\..\\y.png,0\n",
    ],
)
def test_tables_of_any_program_say_the_same(tmp_path: Path, text: str):
    (tmp_path / "sub").mkdir()
    table(tmp_path, "", "x.png", "y.png")
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8", newline="")
    chips = read_chips(tmp_path)
    assert (chips.classes, chips.names, chips.labels.tolist()) == (("landslide",), ("x", "y"), [[True], [False]])


def test_numbers_of_classes_may_have_decimals(tmp_path: Path):
    chips = read_chips(table(tmp_path, "image,label\nx.png,2.0\ny.png,1\nz.png,0.0\n", "x.png", "y.png", "z.png"))
    assert (chips.classes, chips.labels.sum(axis=1).tolist()) == (("1", "2"), [1, 1, 0])


def test_images_without_a_row_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = table(tmp_path, "image,label\nimages/x.png,1\n", *(f"images/{name}.png" for name in "xyz"))
    assert len(read_chips(folder)) == 1
    assert "labels.csv has no row for 2 images, such as y.png: left out" in caplog.text
    caplog.clear()
    read_chips(folder / "labels.csv")  # a table may be of a part
    assert not caplog.records


def test_one_folder_per_class(tmp_path: Path):
    for name in ("slide/a.png", "no_slide/b.png", "quarry/c.png", "masks/a.png"):
        save(tmp_path / name, picture())
    chips = read_chips(tmp_path)
    assert chips.classes == ("quarry", "slide")
    assert dict(zip(chips.names, chips.labels.tolist(), strict=True)) == {
        "a": [False, True],
        "b": [False, False],
        "c": [True, False],
    }


def test_masks_lie_beside_images_and_a_chip_that_shows_nothing_needs_none(tmp_path: Path):
    text = "image,label\nimages/x.png,1\nimages/y.png,0\nimages/z.png,1\n"
    folder = table(tmp_path, text, "images/x.png", "images/y.png", "images/z.png")
    save(folder / "masks/x.png", np.eye(12, 17, dtype=np.uint8) * 255)
    chips = read_chips(folder)
    np.testing.assert_array_equal(chips.chip(0).mask, np.eye(12, 17))
    assert chips.chip(1).mask.max() == 0
    assert chips.chip(2).mask is None


def test_samples_are_those_of_torch(tmp_path: Path):
    chips = read_chips(table(tmp_path, "image,label\nx.png,1\ny.png,0\n", "x.png", "y.png"))
    batch = next(iter(DataLoader(chips, batch_size=2, collate_fn=list)))
    assert batch[0]["image"].shape == (3, 12, 17)
    assert batch[0]["label"].tolist() == [1.0]
    assert "mask" not in batch[0]
    assert batch[1]["mask"].dtype == torch.int64


def test_sixteen_bits_are_stretched_alike_in_all_chips(tmp_path: Path):
    values = np.arange(2 * 20 * 20 * 4, dtype=np.uint16).reshape(2, 4, 20, 20)
    for name, bands in zip("ab", values, strict=True):
        with rasterio.open(
            tmp_path / f"{name}.tif",
            "w",
            driver="GTiff",
            dtype="uint16",
            count=4,
            height=20,
            width=20,
            crs="EPSG:32632",
            transform=Affine(0.8, 0, 5e5, 0, -0.8, 5e6),
        ) as file:
            file.write(bands)
    (tmp_path / "labels.csv").write_text("image,label\na.tif,1\nb.tif,0\n")
    chips = read_chips(tmp_path)
    assert chips.gsd == pytest.approx(0.8, rel=1e-3)
    low, high = chips.chip(0).rgb, chips.chip(1).rgb
    assert low.dtype == np.uint8
    assert low.mean() < 100 < 155 < high.mean()


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nx.png,1\n", "columns file, label"),
        ("image,label\nx.png,1\nq.png,1\n", r"1 of 2 labelled chips are missing, such as .*q\.png"),
        ("image,label\nx.png,1\na/x.png,0\n", "1 names stand for several chips, such as 'x'"),
        ("image,slide,road\nx.png,1,maybe\n", "line 2 .* 0 or 1"),
        ("image,label\nx.png,none\n", "names no class"),
        ("image,label\nx.png,1\na/x.png,maybe\n", "line 3 of .*: the label 'maybe' beside labels of 0 and 1"),
        ("label,image\n1\n", "line 2 of .* names no image"),
        ("image,label\n", "holds no chips"),
        ("image,label\nx.png,1\na/x.png,\n", "line 3 of .* has no label: write 0 or none"),
        ("image,label\nx.png,slide\na/x.png,NaN\n", "line 3 of .* has no label"),
        ("image,label\nx.png,1\na/x.png\n", "line 3 of .* has no label"),
        ("image,label\nx.png,0.7\n", r"line 2 of .*: the label 0\.7 is not a class: decide from which value on"),
        ("image,label\nx.png,Slide\na/x.png,slide\n", "the class 'Slide' is also written 'slide'"),
        ("image,label\nx.png,slide,pond\n", "line 2 of .* has 3 cells and the header 2: put quotes"),
        ("image,label,Label\nx.png,1,0\n", "several columns"),
        ("image,label\nx.png,1\n./x.png,0\n", r"lines 2 and 3 of .* name \./x\.png: keep one of them"),
    ],
)
def test_tables_that_cannot_be(tmp_path: Path, text: str, message: str):
    with pytest.raises(ChipError, match=message):
        read_chips(table(tmp_path, text, "x.png", "a/x.png"))


def test_folders_that_cannot_be(tmp_path: Path):
    with pytest.raises(ChipError, match="nowhere is not a folder"):
        read_chips(tmp_path / "nowhere")
    save(tmp_path / "images/a.png", picture())
    with pytest.raises(ChipError, match="no labels"):
        read_chips(tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path):
    folder = table(tmp_path, "image,label\nimages/x.png,1\nimages/y.png,1\n", "images/x.png", "images/y.png")
    (folder / "images/x.png").write_bytes(b"no picture")
    save(folder / "masks/y.png", np.ones((12, 16), np.uint8))
    chips = read_chips(folder)
    with pytest.raises(ChipError, match=r"x\.png cannot be read"):
        chips.chip(0)
    with pytest.raises(ChipError, match="12 x 16 px and its chip 12 x 17"):
        chips.chip(1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "no chips"), ([[1], [1]], "all 2 chips show"), ([[1, 0], [0, 0]], "none of the 2 chips shows the class 'b'")],
)
def test_labels_that_teach_nothing(labels: list[list[int]], message: str):
    chips = ChipList(("a", "b"), [Chip(str(k), picture(), np.array(row, bool)) for k, row in enumerate(labels)])
    with pytest.raises(ChipError, match=message):
        check_learnable(ChipList(chips.classes[: len(labels[0])], chips.chips) if labels else _Empty())


class _Empty:
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    labels = np.zeros((0, 0), bool)

    def __len__(self) -> int:
        return 0

    def chip(self, index: int) -> Chip:
        raise IndexError(index)


def test_the_split_depends_on_names_alone():
    names = [f"nls_{k:04d}" for k in range(2000)]
    chips = ChipList(("a",), [Chip(name, picture(1, 1), np.array([True])) for name in names])
    learn, select = split(chips)
    assert {*learn.names} | {*select.names} == {*names}
    assert len(select) == pytest.approx(400, abs=60)
    assert all(is_held_out(name) for name in select.names)
    assert select.chip(0).name == select.names[0]
    assert is_held_out("4")  # SHA-1 1b6453892473a467d07372d45eb05abc2031647a is 0 modulo 5
    assert not is_held_out("0")


# What is cut


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    synthesize(path, size=320, gsd=0.5, seed=3)
    return path


def test_chips_of_polygons_hold_the_pixels_of_the_scene(scene: Path, tmp_path: Path):
    cut = cut_chips(scene, scene.with_name("scene_truth.gpkg"), tmp_path / "chips", size=96, overlap=16)
    chips = read_chips(cut.folder)
    assert (len(chips), chips.labels.sum()) == (cut.chips, cut.shown[0])
    assert 0 < cut.shown[0] < cut.chips
    assert cut.chips + cut.unclear == len(TileGrid(320, 320, 96, 16))
    assert chips.gsd == pytest.approx(0.5, rel=0.05)
    truth = rasterio.open(scene.with_name("scene_truth.tif")).read(1)
    for k, name in enumerate(chips.names):
        row, col = (int(part) for part in name.split("_")[-2:])
        chip = chips.chip(k)
        np.testing.assert_array_equal(chip.mask, truth[row : row + 96, col : col + 96])
        assert chip.labels[0] == (chip.mask == 1).any()
        with rasterio.open(chips.paths[k]) as file:
            assert file.crs.to_epsg() == 32648
            assert file.transform.c == pytest.approx(500_000 + col * 0.5)


def test_chips_of_a_raster_have_its_classes(scene: Path, tmp_path: Path):
    cut = cut_chips(
        scene, scene.with_name("scene_classes.tif"), tmp_path / "chips", size=64, classes=["landslide", "forest"]
    )
    assert cut.classes == ("forest", "landslide")
    chips = read_chips(cut.folder)
    classes = rasterio.open(scene.with_name("scene_classes.tif")).read(1)
    row, col = (int(part) for part in chips.names[0].split("_")[-2:])
    of_scene = classes[row : row + 64, col : col + 64]
    np.testing.assert_array_equal(chips.chip(0).mask, (of_scene == 0) + 2 * (of_scene == 8))


def test_ground_that_nobody_judged_makes_no_chip_without_landslide(tmp_path: Path):
    grid = Grid(gpd.GeoSeries(crs="EPSG:32632").crs, Affine(1, 0, 5e5, 0, -1, 5e6), 128, 128)
    write_geotiff(tmp_path / "s.tif", RNG.integers(0, 255, (128, 128, 3), np.uint8), grid, description="")
    judged = np.zeros((128, 76), np.uint8)  # 12 of 64 columns of the right windows, and 44 of the middle ones
    judged[80:100, 10:30] = 255
    write_geotiff(tmp_path / "t.tif", judged, Grid(grid.crs, grid.transform, 128, 76), description="")
    cut = cut_chips(tmp_path / "s.tif", tmp_path / "t.tif", tmp_path / "chips", size=64, overlap=32)
    chips = read_chips(cut.folder)
    assert dict(zip(chips.names, chips.labels[:, 0].tolist(), strict=True)) == {
        "s_000000_000000": False,
        "s_000032_000000": True,
        "s_000064_000000": True,
    }
    assert cut.unclear == 3  # nothing in what is judged of them, but a landslide may be beside it


def test_ground_that_a_mask_hides_is_not_labelled(tmp_path: Path):
    grid = Grid(gpd.GeoSeries(crs="EPSG:32632").crs, Affine(1, 0, 5e5, 0, -1, 5e6), 128, 128)
    write_geotiff(tmp_path / "s.tif", RNG.integers(1, 255, (128, 128, 3), np.uint8), grid, description="")
    judged, clouds = np.zeros((128, 128), np.uint8), np.zeros((128, 128), np.uint8)
    judged[80:100, 10:30] = 255
    clouds[:, 64:] = 1
    clouds[80:90, 10:30] = 1
    write_geotiff(tmp_path / "t.tif", judged, grid, description="")
    write_geotiff(tmp_path / "m.tif", clouds, grid, description="")
    reading = Reading(mask=tmp_path / "m.tif", stretch="0,255")
    cut = cut_chips(tmp_path / "s.tif", tmp_path / "t.tif", tmp_path / "chips", size=64, overlap=0, reading=reading)
    chips = read_chips(cut.folder)
    assert dict(zip(chips.names, chips.labels[:, 0].tolist(), strict=True)) == {
        "s_000000_000000": False,
        "s_000064_000000": True,
    }
    mask = chips.chip(1).mask
    assert (mask[16:26, 10:30] == IGNORE).all()
    assert (mask[26:36, 10:30] == 1).all()
    assert not chips.chip(1).rgb[16:26, 10:30].any()
    with pytest.raises(OptionError, match=r"bounds \(0, 0, 1, 1\): chips are cut from the whole of one scene"):
        cut_chips(tmp_path / "s.tif", tmp_path / "t.tif", tmp_path / "c", reading=Reading(bounds=(0, 0, 1, 1)))


def test_points_get_a_chip_each(tmp_path: Path):
    grid = Grid(gpd.GeoSeries(crs="EPSG:32632").crs, Affine(1, 0, 5e5, 0, -1, 5e6), 100, 100)
    write_geotiff(tmp_path / "s.tif", RNG.integers(0, 255, (100, 100, 3), np.uint8), grid, description="")
    points = [shapely.Point(5e5 + x, 5e6 - y) for x, y in ((50, 50), (0.5, 0.5), (80, 20), (500, 500))]
    gpd.GeoDataFrame({"label": [1, 0, 1, 1]}, geometry=points, crs=32632).to_file(tmp_path / "p.gpkg")
    cut = cut_chips(tmp_path / "s.tif", tmp_path / "p.gpkg", tmp_path / "chips", size=32)
    chips = read_chips(cut.folder)
    assert dict(zip(chips.names, chips.labels[:, 0].tolist(), strict=True)) == {
        "s_000000_000000": False,
        "s_000004_000064": True,
        "s_000034_000034": True,
    }
    assert not (cut.folder / "masks").exists()


def test_a_folder_that_exists_and_sizes_that_cannot_be(scene: Path, tmp_path: Path):
    inventory = scene.with_name("scene_truth.gpkg")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/chips.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"contains chips\.json, but no record that geolabel wrote"):
            cut_chips(scene, inventory, tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(OptionError, match="at least 32 px"):
        cut_chips(scene, inventory, tmp_path / "c", size=64, overlap=64)
    with pytest.raises(OptionError, match="no column 'kind'"):
        cut_chips(scene, inventory, tmp_path / "c", class_column="kind")
    with pytest.raises(GeolabelError, match="has no quarry"):
        cut_chips(scene, inventory, tmp_path / "c", classes=["quarry"])
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "chips.json"]


def test_the_command_line_cuts_chips(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["chips", str(scene), "--inventory", str(scene.with_name("scene_truth.gpkg")), "--out", str(tmp_path / "c")]
    assert run([*words, "--size", "64", "-q"]) == 0
    assert "with landslide" in capsys.readouterr().out
    with (tmp_path / "c/labels.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"0", "1"}
