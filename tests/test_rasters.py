import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine

from geolabel.errors import OutputError, TileError
from geolabel.io.write.rasters import write_cog
from geolabel.scene import Grid
from geolabel.tiles import BlockGrid, Window

UTM = pyproj.CRS(32648)
CUSTOM = pyproj.CRS("+proj=laea +lat_0=30 +lon_0=100 +ellps=GRS80")
GRID = Grid(UTM, Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000), 1200, 900)


def values_of(grid: Grid) -> np.ndarray:
    rows, cols = np.mgrid[: grid.height, : grid.width]
    values = ((rows * 7 + cols * 3) % 255).astype(np.uint8)
    values[:40, :50] = 255
    return values


def blocks_of(values: np.ndarray, size: int) -> Iterator[tuple[Window, np.ndarray]]:
    for window in BlockGrid(*values.shape, size):
        yield window, values[window.slices]


@pytest.mark.parametrize(
    "grid",
    [
        GRID,
        Grid(UTM, Affine.translation(5e5, 3e6) * Affine.rotation(30) * Affine.scale(0.5, -0.5), 600, 700),
        Grid(UTM, Affine(0.5, 0, 500_000, 0, 0.5, 3_000_000), 64, 70),
        Grid(CUSTOM, Affine(10, 0, 0, 0, -10, 0), 64, 70),
        Grid(pyproj.CRS(4326), Affine(1e-5, 0, 100, 0, -1e-5, 30), 1, 1),
        Grid(None, Affine(1, 0, 0, 0, -1, 0), 64, 70, unit_m=0.5),
    ],
    ids=["utm", "rotated", "south-up", "custom crs", "one pixel", "no crs"],
)
def test_blocks_come_back_as_a_cog_on_the_grid(tmp_path: Path, grid: Grid):
    values, path = values_of(grid), tmp_path / "score.tif"
    write_cog(path, blocks_of(values, 256), grid, nodata=255, kind="score", tags={"SOFTWARE": "geolabel"})
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(1), values)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags()["SOFTWARE"] == "geolabel"
        assert dataset.transform.almost_equals(grid.transform, 1e-9)
        assert dataset.nodata == 255
        assert dataset.dtypes == ("uint8",)
        assert dataset.compression.name == "deflate"
        assert dataset.scales == (1 / 254,)
        if grid.crs is None:
            assert dataset.crs is None
        else:
            assert pyproj.CRS(dataset.crs.to_wkt()).equals(grid.crs, ignore_axis_order=True)
    assert list(tmp_path.iterdir()) == [path]


def test_scores_average_over_data_and_masks_pick(tmp_path: Path):
    values = np.zeros((1024, 1024), np.uint8)
    values[::2, ::2] = 200  # three of four pixels are 0
    values[:512, :512] = 255
    values[:512:2, :512:2] = 100  # three of four are nodata
    overview = {}
    for kind in ("score", "mask"):
        path = tmp_path / f"{kind}.tif"
        write_cog(path, blocks_of(values, 300), Grid(UTM, GRID.transform, 1024, 1024), nodata=255, kind=kind)
        with rasterio.open(path) as dataset:
            assert dataset.overviews(1) == [2]
        with rasterio.open(path, overview_level=0) as dataset:
            overview[kind] = dataset.read(1)
    assert set(np.unique(overview["score"])) == {50, 100}
    assert set(np.unique(overview["mask"])) <= {0, 100, 200, 255}


def test_bytes_do_not_depend_on_blocks_or_repetition(tmp_path: Path):
    values = values_of(GRID)
    written = []
    for number, size in enumerate((2048, 512, 97, 512)):
        path = tmp_path / f"{number}.tif"
        write_cog(path, blocks_of(values, size), GRID, nodata=255, kind="score")
        written.append(path.read_bytes())
    assert len(set(written)) == 1


def test_pixels_in_no_block_are_nodata(tmp_path: Path):
    write_cog(tmp_path / "a.tif", [(Window(10, 10, 5, 5), np.ones((5, 5), np.uint8))], GRID, nodata=255, kind="mask")
    write_cog(tmp_path / "b.tif", [(Window(10, 10, 5, 5), np.ones((5, 5), np.uint8))], GRID, nodata=None, kind="mask")
    for name, outside in (("a.tif", 255), ("b.tif", 0)):
        with rasterio.open(tmp_path / name) as dataset:
            values = dataset.read(1)
        assert (values == 1).sum() == 25
        assert set(np.unique(values)) == {1, outside}


def test_a_failed_run_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "score.tif"
    path.write_bytes(b"old")

    def failing() -> Iterator[tuple[Window, np.ndarray]]:
        yield Window(0, 0, 2, 2), np.zeros((2, 2), np.uint8)
        raise TileError("tile 2 cannot be read")

    with pytest.raises(TileError):
        write_cog(path, failing(), GRID, nodata=255, kind="score", overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [20_000, 900_000, 1_150_000])
def test_a_full_disk_is_an_error_at_every_stage(tmp_path: Path, size: int):
    path = tmp_path / "score.tif"
    noise = np.random.default_rng(0).integers(0, 255, (GRID.height, GRID.width), dtype=np.uint8)
    write_cog(path, blocks_of(noise, 512), GRID, nodata=255, kind="score")
    before = path.read_bytes()
    assert len(before) > size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OutputError, match=r"score\.tif could not be written"):
            write_cog(path, blocks_of(noise, 512), GRID, nodata=255, kind="score", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_only_when_asked(tmp_path: Path):
    path = tmp_path / "score.tif"
    write_cog(path, [], GRID, nodata=255, kind="score")
    with pytest.raises(OutputError, match=r"score\.tif exists: give --overwrite"):
        write_cog(path, [], GRID, nodata=255, kind="score")
    write_cog(path, blocks_of(values_of(GRID), 512), GRID, nodata=255, kind="score", overwrite=True)
    with rasterio.open(path) as dataset:
        assert dataset.read(1).any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score.jpg", r"must end with \.tif or \.tiff"),
        ("nowhere/score.tif", "the folder .* does not exist"),
        ("folder.tif", "is a folder"),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, name: str, message: str):
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(OutputError, match=message):
        write_cog(tmp_path / name, [], GRID, nodata=255, kind="score", overwrite=True)
